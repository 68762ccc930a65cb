r"""The average of the parameters along a run, kept beside the optimizer.

After update `n` the parameters have become :math:`\theta_n`, and

.. math::
  \bar\theta_n = d_n \bar\theta_{n-1} + (1 - d_n) \theta_n, \qquad
  d_n = \min\Bigl(d, \frac{1 + n}{10 + n}\Bigr),

so that the average forgets the start however long its memory is. Models that
were trained with noisy gradients are used with these parameters.

References:
  Polyak and Juditsky, `Acceleration of stochastic approximation by averaging
  <https://doi.org/10.1137/0330046>`_, 1992.

  Song and Ermon, `Improved techniques for training score-based generative
  models <https://arxiv.org/abs/2006.09011>`_, 2020.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..checks import require


class ParameterAverageState(NamedTuple):
  """The inner state, updates so far, and the averages."""

  inner_state: Any
  count: jax.Array
  average: Any


def with_parameter_average(
  inner: optax.GradientTransformation,
  *,
  decay: float = 0.999,
  warmup: bool = True,
) -> optax.GradientTransformationExtraArgs:
  r"""Averages the parameters that an optimizer makes, and leaves them alone.

  The formula of the module's docstring; read it with `parameter_average`. It
  has to be the outermost wrapper, since it adds the update to the parameters
  to see what they become.

  Args:
    inner: a whole optimizer, learning rate included.
    decay: `d`, in [0, 1); about 1 / (1 - d) updates are remembered.
    warmup: whether the decay rises as said there; without, it is constant and
      the average starts at the parameters of `init`.

  Returns:
    `optax.GradientTransformationExtraArgs` with state `ParameterAverageState`.
    Averages of parameters in half precision are kept in float32.

  Raises:
    ValueError: for a decay outside its range, or an update without parameters.

  Example:
    >>> tx = with_parameter_average(optax.sgd(1.0), decay=0.5, warmup=False)
    >>> params = jnp.array(4.0)
    >>> updates, state = tx.update(jnp.array(2.0), tx.init(params), params)
    >>> float(optax.apply_updates(params, updates))
    2.0
    >>> float(parameter_average(state))
    3.0
  """
  if isinstance(decay, int | float):
    require(0 <= decay < 1, 'decay', decay, 'a number in [0, 1)')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    wide = lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32))
    return ParameterAverageState(
      inner_state=inner.init(params),
      count=jnp.zeros([], jnp.int32),
      average=jax.tree.map(wide, params),
    )

  def update(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError('params: got None, expected the parameters to average')
    updates, inner_state = inner.update(
      updates, state.inner_state, params, **extra_args
    )
    count = optax.safe_increment(state.count)
    kept = jnp.minimum(decay, (1 + count) / (10 + count)) if warmup else decay
    average = jax.tree.map(
      lambda old, new: old + ((1 - kept) * (new - old)).astype(old.dtype),
      state.average,
      optax.apply_updates(params, updates),
    )
    return updates, ParameterAverageState(inner_state, count, average)

  return optax.GradientTransformationExtraArgs(init, update)


def _states(tree: Any) -> Iterator[ParameterAverageState]:
  is_state = lambda x: isinstance(x, ParameterAverageState)
  return filter(is_state, jax.tree.leaves(tree, is_leaf=is_state))


def parameter_average(opt_state: Any) -> Any:
  """Finds the averages in the state of an optimizer.

  Args:
    opt_state: the state of `with_parameter_average`, or one that holds it.

  Returns:
    The averages, a tree like the parameters.

  Raises:
    ValueError: if there are none, or several.

  Example:
    >>> tx = with_parameter_average(optax.adam(1e-3))
    >>> float(parameter_average(tx.init(jnp.array(4.0))))
    4.0
  """
  found = [*_states(opt_state)]
  require(len(found) == 1, 'states of with_parameter_average', len(found), '1')
  return found[0].average
