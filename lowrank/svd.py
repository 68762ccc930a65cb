r"""Truncated singular value decomposition with a derivative that stays finite.

Shapes: `...` batch, `m n` matrix, `k = min(m, n)`, `r` rank.

References:
  Su, `article 10407 <https://kexue.fm/archives/10407>`_, 2024;
  Wan and Zhang, `Automatic differentiation for complex valued SVD
  <https://arxiv.org/abs/1909.02659>`_, 2019.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arrays import as_matrix, precise, require_decomposition_rank, unit

# Rounding errors of computed singular values, over eps times the largest.
_NOISE = 30


class SVD(NamedTuple):
  """`u` [..., m, r], `s` [..., r] real and descending, `vh` [..., r, n].

  Example:
    >>> u, s, vh = svd(jnp.diag(jnp.array([1.0, 3.0, 2.0])), 2)
    >>> u.shape, s.tolist(), vh.shape
    ((3, 2), [3.0, 2.0], (2, 3))
  """

  u: jax.Array
  s: jax.Array
  vh: jax.Array


def oriented(triples: SVD) -> SVD:
  """Turns pairs so that the largest entry of a column of `u` is positive.

  The factors of modulus one cancel in the product.
  """
  u, s, vh = triples
  index = jnp.argmax(jnp.abs(u), axis=-2, keepdims=True).astype(jnp.int32)
  pivot = jnp.take_along_axis(u, index, axis=-2)
  size = jnp.abs(pivot)
  phase = jnp.where(size > 0, pivot / jnp.where(size > 0, size, 1), 1)
  return SVD(u * phase.conj(), s, phase.mT * vh)


def _inverse(x: jax.Array, floor: jax.Array) -> jax.Array:
  """1 / x, and 0 for x within the floor."""
  small = jnp.abs(x) <= floor
  return jnp.where(small, 0, 1 / jnp.where(small, 1, x))


@jax.custom_jvp
def _thin_svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """All k singular values, and vectors of any phase."""
  return tuple(jnp.linalg.svd(a, full_matrices=False))


@_thin_svd.defjvp
@precise
def _thin_svd_jvp(primals, tangents):
  (a,), (da,) = primals, tangents
  u, s, vh = _thin_svd(a)
  uh, v = u.mT.conj(), vh.mT.conj()
  floor = _NOISE * jnp.finfo(s.dtype).eps * s[..., :1]
  row, column = s[..., :, None], s[..., None, :]
  inner = uh @ da @ v
  # How U and V turn: together, which repeated values leave open, and apart,
  # which only zeros do.
  total = _inverse(column - row, floor[..., None]) * (inner + inner.mT.conj())
  apart = _inverse(column + row, floor[..., None]) * (inner - inner.mT.conj())
  du, dv = u @ (total + apart) / 2, v @ (total - apart) / 2
  over_s = _inverse(s, floor)[..., None, :]
  m, n = a.shape[-2:]
  if m > n:
    du = du + (da @ v - u @ inner) * over_s
  if m < n:
    dv = dv + (da.mT.conj() @ u - v @ inner.mT.conj()) * over_s
  ds = jnp.diagonal(inner, axis1=-2, axis2=-1).real
  return (u, s, vh), (du, ds, dv.mT.conj())


@functools.partial(jax.jit, static_argnums=1)
def _svd(a: jax.Array, rank: int) -> SVD:
  a, size = unit(a)
  u, s, vh = _thin_svd(a)
  s = s * size[..., 0]
  return oriented(SVD(u[..., :rank], s[..., :rank], vh[..., :rank, :]))


def svd(a: ArrayLike, rank: int) -> SVD:
  r"""The best approximation of a given rank, :math:`A_r = U S V^H`.

  By Eckart, Young and Mirsky nothing of this rank is closer: the error is
  :math:`(\sum_{j > r} s_j^2)^{1/2}` in the Frobenius norm and :math:`s_{r+1}`
  in the spectral one. The largest entry of each column of `u` is made real and
  positive, so that the result is unique where singular values are distinct.

  The derivative is that of the thin SVD, dropped part included. With
  :math:`M = U^H dA V` and :math:`dU = U \Omega + \dots`,
  :math:`dV = V \Psi + \dots` it solves

  .. math::
    dS = \Re \operatorname{diag} M, \quad
    (\Omega + \Psi)_{ij} = \frac{(M + M^H)_{ij}}{s_j - s_i}, \quad
    (\Omega - \Psi)_{ij} = \frac{(M - M^H)_{ij}}{s_j + s_i},

  where a denominator within :math:`30 \epsilon s_1` counts as zero, and its
  reciprocal too. So all is finite: for zero, for the identity, for duplicated
  columns. It is also right there for what does not depend on the choice of
  vectors that repeated values leave open: for equal :math:`s_i = s_j > 0` the
  term lost turns U and V together within their common space, which functions
  of the subspaces, :math:`U U^H`, :math:`V V^H`, :math:`U V^H`, or symmetric
  functions of `s` do not see; for zeros, U and V turn freely.

  One case no rule for (U, S, V) can serve: in `u * s @ vh` with *exactly* equal
  values, perturbations split these along vectors that depend on the
  perturbation, and :math:`\Re M_{ij}` between the equal ones is lost. There
  differentiate :math:`A_r = U U^H A` instead, `u @ (u.mT.conj() @ a)`, which is
  right for repeated and distinct values alike. Where :math:`s_r = s_{r+1}` the
  truncation itself has no derivative, and a finite value comes out.

  Deviations: `jnp.linalg.svd` has all the denominators as
  :math:`s_j^2 - s_i^2` and gives NaN for equal values.

  Args:
    a: [..., m, n], real or complex, of any scale.
    rank: `r`, 1 to min(m, n).

  Returns:
    `SVD`, float32 or better.

  Raises:
    ValueError: for fewer than two axes or a rank out of range.

  Example:
    >>> a = jnp.array([[3.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    >>> u, s, vh = svd(a, 1)
    >>> (u * s @ vh).tolist()
    [[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    >>> nuclear = lambda a: svd(a, 2).s.sum()
    >>> jax.grad(nuclear)(jnp.eye(2)).tolist()  # Repeated singular values.
    [[1.0, 0.0], [0.0, 1.0]]

  References:
    Su, `article 10407 <https://kexue.fm/archives/10407>`_, 2024.
  """
  a = as_matrix('a', a)
  require_decomposition_rank(rank, a.shape)
  return _svd(a, rank)
