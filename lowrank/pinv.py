r"""Pseudo-inverse with its derivative in closed form.

Shapes: `...` batch, `m n` matrix.

References:
  Su, `article 10366 <https://kexue.fm/archives/10366>`_, 2024;
  Golub and Pereyra, `The differentiation of pseudo-inverses and nonlinear least
  squares problems <https://doi.org/10.1137/0710036>`_, 1973.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .arrays import as_matrix, precise, unit


@jax.custom_jvp
@precise
def _pinv_tall(a: jax.Array, rtol: jax.Array) -> jax.Array:
  """Of m >= n; singular values up to `rtol` of the largest count as zero."""
  u, s, vh = jnp.linalg.svd(a, full_matrices=False)
  kept = (s > rtol[..., None] * s[..., :1]) & (s > 0)
  inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
  return (vh.mT.conj() * inverse[..., None, :]) @ u.mT.conj()


@_pinv_tall.defjvp
@precise
def _pinv_tall_jvp(primals, tangents):
  (a, rtol), (da, _) = primals, tangents
  p = _pinv_tall(a, rtol)
  dah, inner = da.mT.conj(), p @ da  # Brackets: no product is [m, m].
  dp = (p @ p.mT.conj()) @ (dah - (dah @ a) @ p) - inner @ p
  innerh = inner.mT.conj()
  return p, dp + (innerh - p @ (a @ innerh)) @ p


@jax.jit
def _pinv(a: jax.Array, rtol: jax.Array) -> jax.Array:
  a, size = unit(a)
  if a.shape[-2] < a.shape[-1]:
    return _pinv_tall(a.mT.conj(), rtol).mT.conj() / size
  return _pinv_tall(a, rtol) / size


def _augmented(a: jax.Array, ridge: jax.Array) -> jax.Array:
  """`a` above, or for m < n beside, the root of the ridge times identity."""
  tall = a.shape[-2] >= a.shape[-1]
  eye = jnp.eye(min(a.shape[-2:]), dtype=a.dtype)
  root = jnp.sqrt(ridge)[..., None, None] * eye
  root = jnp.broadcast_to(root, (*a.shape[:-2], *eye.shape))
  return jnp.concatenate([a, root], axis=-2 if tall else -1)


def pinv(
  a: ArrayLike,
  *,
  rtol: float | jax.Array | None = None,
  ridge: float | jax.Array = 0.0,
) -> jax.Array:
  r"""The pseudo-inverse :math:`A^+`, or that of Tikhonov.

  The article defines :math:`A^+` as the limit of
  :math:`(A^H A + \epsilon I)^{-1} A^H`, the solution of least norm of
  :math:`\min_B \|A B - I\|_F`. Here it comes from the SVD,
  :math:`V S^+ U^H`, which does not square the condition number. Its derivative,
  at constant rank, is that of Golub and Pereyra: with :math:`P = A^+`

  .. math::
    dP = -P \, dA \, P + P P^H dA^H (I - A P) + (I - P A) dA^H P^H P,

  products only, in both directions and at every order (`jvp`, `vjp`, Hessians),
  and so finite for repeated and zero singular values. Where `a` has a deficient
  rank, :math:`A^+` is not continuous, and this is the derivative along the
  matrices of that rank.

  With a ridge :math:`\lambda > 0` the result is :math:`(A^H A + \lambda I)^{-1}
  A^H`, differentiable in `a` and :math:`\lambda` whatever the rank does. It is
  computed as the first columns of the pseudo-inverse of `a` stacked on
  :math:`\sqrt\lambda I`.

  Deviations: NumPy cuts singular values at 1e-15 of the largest, and
  `jnp.linalg.pinv` at `10 * max(m, n) * eps`; this follows
  `scipy.linalg.pinv`. JAX's rule for the derivative is the same.

  Args:
    a: [..., m, n], real or complex, of any scale.
    rtol: singular values up to this fraction of the largest count as zero, 0 or
      more, a scalar or [...]. `None`: max(m, n) times the machine epsilon.
    ridge: :math:`\lambda`, 0 or more, in units of the square of `a`, a scalar
      or [...]. A traced one must be positive to be differentiated; one below
      `(rtol * s_1)^2` does nothing.

  Returns:
    [..., n, m], float32 or better.

  Raises:
    ValueError: for fewer than two axes, a negative `rtol` or `ridge`.

  Example:
    >>> pinv(jnp.array([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])).tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    >>> print(f'{float(pinv(jnp.ones((1, 1)), ridge=1.0)[0, 0]):.2f}')
    0.50

  References:
    Su, `article 10366 <https://kexue.fm/archives/10366>`_, 2024.
  """
  a = as_matrix('a', a)
  m, n = a.shape[-2:]
  real = jnp.finfo(a.dtype).dtype
  if rtol is None:
    rtol = max(m, n) * float(jnp.finfo(real).eps)
  for name, value in (('rtol', rtol), ('ridge', ridge)):
    if isinstance(value, int | float):
      require(value >= 0, name, value, '0 or more')
  rtol = jnp.asarray(rtol, real)
  if isinstance(ridge, int | float) and ridge == 0:
    return _pinv(a, rtol)
  stacked = _augmented(a, jnp.asarray(ridge, real))
  return _pinv(stacked, rtol)[..., :n, :m]
