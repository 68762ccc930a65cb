r"""The two losses of vector quantisation, over masked vectors.

.. math:: L = \mathrm{reconstruction} + \beta_q \, |\mathrm{sg}[z] - q|^2
  + \beta \, |z - \mathrm{sg}[q]|^2

with the stop-gradient sg; a codebook of running averages drops the second term.

References:
  van den Oord, Vinyals and Kavukcuoglu, `Neural Discrete Representation
  Learning <https://arxiv.org/abs/1711.00937>`_, 2017, equation 3.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require_rank, require_shape
from ..lowrank.arrays import wide


def _mean_square(
  z: ArrayLike, q: ArrayLike, mask: ArrayLike | None
) -> jax.Array:
  """The mean of |z - q|^2 over vectors and dimensions, in float32 or better."""
  require_rank('z', z, 1, at_least=True)
  require_shape('q', q, jnp.shape(z))
  difference = wide(z) - wide(q)
  if mask is None:
    return jnp.mean(jnp.square(difference))
  require_shape('mask', mask, jnp.shape(z)[:-1])
  mask = jnp.asarray(mask, bool)
  # Before the square: what is masked out may be NaN, and its gradient is zero.
  difference = jnp.where(mask[..., None], difference, 0)
  entries = jnp.maximum(jnp.sum(mask), 1) * difference.shape[-1]
  return jnp.sum(jnp.square(difference)) / entries


def commitment_loss(
  z: ArrayLike, q: ArrayLike, *, mask: ArrayLike | None = None
) -> jax.Array:
  r"""Computes the mean of :math:`|z - \mathrm{sg}[q]|^2`: `z` goes to its code.

  Args:
    z: vectors [..., d].
    q: their codes [..., d], which get no gradient.
    mask: [...], true where a vector counts; `None`: all.

  Returns:
    Scalar, a mean over vectors and dimensions, float32 or better; 0 if nothing
    counts.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> z, q = jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])
    >>> print(commitment_loss(z, q), jax.grad(commitment_loss)(z, q))
    2.0 [2. 0.]
  """
  return _mean_square(z, lax.stop_gradient(q), mask)


def codebook_loss(
  z: ArrayLike, q: ArrayLike, *, mask: ArrayLike | None = None
) -> jax.Array:
  r"""Computes the mean of :math:`|\mathrm{sg}[z] - q|^2`: codes go to vectors.

  Args:
    z: vectors [..., d], which get no gradient.
    q: their codes [..., d].
    mask: see `commitment_loss`.

  Returns:
    Scalar, as `commitment_loss`.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> z, q = jnp.array([3.0, 2.0]), jnp.array([1.0, 1.0])
    >>> print(codebook_loss(z, q), jax.grad(codebook_loss, 1)(z, q))
    2.5 [-2. -1.]
  """
  return _mean_square(lax.stop_gradient(z), q, mask)
