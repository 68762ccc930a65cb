r"""The learning rate of one step, from the first two moments of the update.

For an update `u` that depends on the minibatch, the loss after a step is to
second order :math:`L - \eta E[u]^T g + \tfrac12 \eta^2 E[u^T H u]`, and lowest
at

.. math::
  \eta^* = \frac{E[u]^T g}{\mathrm{Tr}(E[u u^T] H)}, \qquad
  \Delta L^* = \frac{(E[u]^T g)^2}{2\, \mathrm{Tr}(E[u u^T] H)}.

Every law of this room is this identity with the moments of one kind of update.
It is exact for a quadratic, and about one step only: many small-batch steps
with it are more than a constant learning rate needs.

References:
  McCandlish et al., `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018, section 2.2;
  Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_shape
from ..lowrank.arrays import precise


class OneStep(NamedTuple):
  """The best learning rate [...], and by how much it lowers the loss [...].

  Example:
    >>> g = jnp.array([2.0])
    >>> learning_rate, decrease = one_step(g, g**2, g, jnp.array([[4.0]]))
    >>> float(learning_rate), float(decrease)
    (0.25, 0.5)
  """

  learning_rate: jax.Array
  decrease: jax.Array


def as_floats(*values: ArrayLike) -> list[jax.Array]:
  """Converts to one type: float32, or float64 if an array has it.

  >>> [x.dtype.name for x in as_floats(jnp.ones(2, jnp.bfloat16), 3)]
  ['float32', 'float32']
  """
  dtype = jnp.promote_types(jnp.result_type(*values), jnp.float32)
  return [jnp.asarray(x, dtype) for x in values]


def require_batch_size(batch_size: ArrayLike) -> None:
  """Checks for a positive batch size, where it is a python number."""
  if isinstance(batch_size, int | float):
    require(batch_size > 0, 'batch_size', batch_size, 'a number above 0')


def require_no_negative(name: str, value: ArrayLike) -> None:
  """Checks a deviation or an epsilon, where it is a python number."""
  if isinstance(value, int | float):
    require(value >= 0, name, value, '0 or more')


def require_moments(
  gradient: ArrayLike,
  noise_std: ArrayLike | None = None,
  hessian: ArrayLike | None = None,
  noise_correlation: ArrayLike | None = None,
) -> None:
  """Checks for vectors [N] and matrices [N, N]; `None` is not there."""
  require_shape('gradient', gradient, (None,))
  n = jnp.shape(gradient)[0]
  for name, value, shape in (
    ('noise_std', noise_std, (n,)),
    ('hessian', hessian, (n, n)),
    ('noise_correlation', noise_correlation, (n, n)),
  ):
    if value is not None:
      require_shape(name, value, shape)


@jax.jit
@precise
def _curvature(
  mean: jax.Array, second_moment: jax.Array, hessian: jax.Array
) -> jax.Array:
  """Tr(E[u u^T] H)."""
  if second_moment.ndim > mean.ndim:
    return jnp.sum(second_moment * hessian, axis=(-2, -1))
  variance = second_moment - mean**2
  along_mean = jnp.sum(mean @ hessian * mean, axis=-1)
  return along_mean + variance @ jnp.diagonal(hessian)


def best_step(descent: jax.Array, curvature: jax.Array) -> OneStep:
  """Of a quadratic along the update; infinite if it has no minimum.

  >>> float(best_step(jnp.array(1.0), jnp.array(4.0)).learning_rate)
  0.25
  """
  convex = curvature > 0
  unbounded = jax.lax.stop_gradient(descent) * jnp.inf
  learning_rate = jnp.where(
    convex, descent / jnp.where(convex, curvature, 1), unbounded
  )
  return OneStep(learning_rate, learning_rate * descent / 2)


def one_step(
  mean: ArrayLike,
  second_moment: ArrayLike,
  gradient: ArrayLike,
  hessian: ArrayLike,
) -> OneStep:
  r"""Computes :math:`\eta^* = E[u]^T g / \mathrm{Tr}(E[u u^T] H)` and the gain.

  Args:
    mean: `E[u]`, [..., N].
    second_moment: `E[u u^T]`, [..., N, N]; or its diagonal [..., N] if the
      entries of the update are independent, so that the others are products of
      means.
    gradient: of the full batch, [N].
    hessian: [N, N]; only its symmetric part matters.

  Returns:
    `OneStep`. Where the curvature :math:`\mathrm{Tr}(E[u u^T] H)` is not
    positive the quadratic has no minimum along the update: infinities, of the
    sign of :math:`E[u]^T g` for the learning rate, and NaN if that is zero.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> g, hessian = jnp.array([1.0, -2.0]), jnp.diag(jnp.array([1.0, 2.0]))
    >>> sign = one_step(jnp.sign(g), jnp.ones(2), g, hessian)
    >>> float(sign.learning_rate), float(sign.decrease)
    (1.0, 1.5)
    >>> float(one_step(jnp.sign(g), jnp.ones(2), g, -hessian).learning_rate)
    inf
  """
  mean, second_moment, gradient, hessian = as_floats(
    mean, second_moment, gradient, hessian
  )
  require_moments(gradient, hessian=hessian)
  n = gradient.shape[0]
  require(mean.shape[-1:] == (n,), 'mean.shape', mean.shape, f'(..., {n})')
  require(
    second_moment.shape in (mean.shape, (*mean.shape, n)),
    'second_moment.shape',
    second_moment.shape,
    f'{mean.shape} or {(*mean.shape, n)}',
  )
  descent = precise(jnp.matmul)(mean, gradient)
  return best_step(descent, _curvature(mean, second_moment, hessian))
