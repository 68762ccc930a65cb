r"""The descent limiter: a bound on the predicted decrease instead of warmup.

To first order a step of learning rate :math:`\eta` along `u` lowers the loss by
:math:`\eta \langle u, g \rangle`. Early in training the gradient is large and
the prediction absurd; article 10657 proposes

.. math:: \eta_t = \eta \, \min(1, T / \langle u_t, g_t \rangle)

in place of warmup.

References:
  Su, `Why is the default norm for gradient clipping 1?
  <https://kexue.fm/archives/10657>`_, 2025.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..checks import require


class ClipByDescentState(NamedTuple):
  """State of the inner transformation, the last descent and factor."""

  inner_state: Any
  descent: jax.Array
  factor: jax.Array


def clip_by_descent(
  inner: optax.GradientTransformation, threshold: float
) -> optax.GradientTransformationExtraArgs:
  r"""Scales the update of `inner` so that its descent is at most a threshold.

  .. math:: u \leftarrow u \, \min(1, T / |\langle u, g \rangle|)

  with `g` what comes in and `u` what `inner` makes of it. It wraps the
  transformation because a chain forgets the gradient.

  Deviations: the article has no absolute value; with it, `inner` may hold the
  sign of the descent or not, and an update that climbs is bounded as well.

  Args:
    inner: makes the direction, such as `optax.scale_by_adam()`; learning rate
      and decay come after, outside. With the learning rate inside, the
      threshold bounds the predicted decrease of the loss itself.
    threshold: `T`, above 0, in the unit of the loss over that of `inner`'s
      learning rate.

  Returns:
    `optax.GradientTransformationExtraArgs` with state `ClipByDescentState`.

  Raises:
    ValueError: if `threshold` is not positive.

  Example:
    >>> tx = clip_by_descent(optax.identity(), 5.0)
    >>> g = jnp.array([3.0, 4.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates.round(3), state.descent)
    [0.6 0.8] 25.0
  """
  if isinstance(threshold, int | float):
    require(threshold > 0, 'threshold', threshold, 'a number above 0')
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return ClipByDescentState(inner.init(params), jnp.zeros([]), jnp.ones([]))

  def update(updates, state, params=None, **extra_args):
    gradient = updates
    updates, inner_state = inner.update(
      updates, state.inner_state, params, **extra_args
    )
    wide = lambda tree: jax.tree.map(
      lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )
    descent = jnp.abs(optax.tree.vdot(wide(updates), wide(gradient)))
    factor = jnp.where(descent > threshold, threshold / descent, 1.0)
    updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
    state = ClipByDescentState(
      inner_state,
      descent.astype(state.descent.dtype),
      factor.astype(state.factor.dtype),
    )
    return updates, state

  return optax.GradientTransformationExtraArgs(init, update)
