r"""Rows of singular vectors by discrete empirical interpolation.

Shapes: `...` batch, `m n` matrix, `k` singular vectors. Rows `p` of `u`
[..., m, k] and `q` of `v` [..., n, k] are rows and columns of the matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_shape
from .arrays import as_matrix
from .pivoted_qr import pivoted_qr


def as_basis(name: str, v: ArrayLike) -> jax.Array:
  """Checks for [..., n, k] with k <= n, and converts to a wide type."""
  v = as_matrix(name, v)
  n, k = v.shape[-2:]
  require(k <= n, name, v.shape, 'no more columns than rows')
  return v


def take_rows(a: jax.Array, indices: jax.Array) -> jax.Array:
  """Rows [..., c, n] of [..., m, n] at indices [..., c]."""
  return jnp.take_along_axis(a, indices[..., None], axis=-2)


def deim(v: ArrayLike) -> jax.Array:
  r"""Rows by the discrete empirical interpolation method.

  The first is where the first column is largest. Each next one is where column
  `j` differs most from its interpolation by the columns before, at the rows
  `q` chosen so far (Sorensen and Embree, algorithm 1):

  .. math:: \arg\max_i |v_j - V_{:,:j} \, V_{q,:j}^{-1} v_{j,q}|_i.

  These are the pivots of LU with partial pivoting, by which they are computed.
  The order of the columns matters, not only their span. At worst
  :math:`\|V_q^{-1}\|` grows like :math:`2^k`; see `deim_bound`.

  Deviation: LAPACK and cuSOLVER measure complex numbers by
  :math:`|\mathrm{Re}| + |\mathrm{Im}|` when they pivot.

  Args:
    v: [..., n, k], k <= n, leading singular vectors in order.

  Returns:
    [..., k] int32, distinct.

  Raises:
    ValueError: for less than two axes, or more columns than rows.

  Example:
    >>> deim(jnp.array([[0.6, 0.8], [0.8, -0.6], [0.0, 0.1]])).tolist()
    [1, 0]

  References:
    Sorensen, Embree, `A DEIM induced CUR factorization
    <https://arxiv.org/abs/1407.5516>`_, 2016.
  """
  v = as_basis('v', v)
  return jax.lax.linalg.lu(v)[2][..., : v.shape[-1]]


def q_deim(v: ArrayLike) -> jax.Array:
  r"""Rows by QR with column pivoting of :math:`V^H` (Q-DEIM).

  It depends on the span of the columns alone and usually makes
  :math:`\|V_q^{-1}\|` smaller than `deim` does.

  Args:
    v: [..., n, k], k <= n, leading singular vectors.

  Returns:
    [..., k] int32, distinct.

  Raises:
    ValueError: for less than two axes, or more columns than rows.

  Example:
    >>> q_deim(jnp.array([[0.6, 0.8], [0.8, -0.6], [0.0, 0.1]])).tolist()
    [0, 1]

  References:
    Drmac, Gugercin, `A new selection operator for the discrete empirical
    interpolation method <https://arxiv.org/abs/1505.00370>`_, 2016.
  """
  v = as_basis('v', v)
  return pivoted_qr(v.mT.conj(), v.shape[-1]).indices


class DEIMBound(NamedTuple):
  r"""A guarantee on chosen rows and columns, of `deim_bound`.

  Attributes:
    eta_rows: [...], :math:`\|U_p^+\|_2`, 1 or more.
    eta_columns: [...], :math:`\|V_q^+\|_2`, 1 or more.
    error: [...], the largest error there can be.

  Example:
    >>> DEIMBound(eta_rows=3.0, eta_columns=4.0, error=5.0).error
    5.0
  """

  eta_rows: jax.Array
  eta_columns: jax.Array
  error: jax.Array


def _eta(v: jax.Array, indices: jax.Array) -> jax.Array:
  """The norm of the pseudo-inverse of chosen rows."""
  chosen = take_rows(v, indices)
  smallest = jnp.linalg.svd(chosen, compute_uv=False)[..., -1]
  return jnp.where(
    smallest > 0, 1 / jnp.where(smallest > 0, smallest, 1), jnp.inf
  )


def deim_bound(
  u: ArrayLike,
  v: ArrayLike,
  rows: ArrayLike,
  columns: ArrayLike,
  residual: ArrayLike,
) -> DEIMBound:
  r"""How far `C U R` with the optimal core can be from the matrix.

  For any rows `p` and columns `q`, however they were chosen, and any
  orthonormal `U` and `V` (Sorensen and Embree, theorem 4.1 and its lemmas),

  .. math::
    \|M - C C^+ M\| &\le \|V_q^+\|_2 \, \|M - M V V^H\|, \\
    \|M - M R^+ R\| &\le \|U_p^+\|_2 \, \|M - U U^H M\|

  in the spectral and the Frobenius norm. The error :math:`(M - C C^+ M) + C C^+
  (M - M R^+ R)` has the first as a part, and a second that is no more than the
  other, orthogonal to it. So for the singular vectors

  .. math:: \|M - C C^+ M R^+ R\|_2 \le \sqrt{\eta_p^2 + \eta_q^2} \, s_{k+1}.

  Deviations: the paper adds :math:`\eta_p + \eta_q`, up to :math:`\sqrt 2`
  more; it chooses `k` rows and columns, where here they may be more.

  Args:
    u: [..., m, k] with orthonormal columns, such as left singular vectors.
    v: [..., n, k], such as right singular vectors.
    rows: [..., c] integers, c >= k.
    columns: [..., d] integers, d >= k.
    residual: [...], the larger of the norms of :math:`M - U U^H M` and
      :math:`M - M V V^H`: :math:`s_{k+1}` for singular vectors in the spectral
      norm, :math:`(\sum_{j>k} s_j^2)^{1/2}` in the Frobenius norm.

  Returns:
    `DEIMBound`, the error in the norm of the residual. Infinite where the
    chosen rows of `u` or `v` do not have the rank `k`: nothing is guaranteed.

  Raises:
    ValueError: if shapes do not fit, or for less than `k` rows or columns.

  Example:
    >>> u = v = jnp.eye(3, 1)
    >>> bound = deim_bound(u, v, jnp.array([0]), jnp.array([0]), 0.5)
    >>> float(bound.eta_rows), f'{float(bound.error):.2f}'
    (1.0, '0.71')

  References:
    Sorensen, Embree, `A DEIM induced CUR factorization
    <https://arxiv.org/abs/1407.5516>`_, 2016.
  """
  u, v = as_basis('u', u), as_basis('v', v)
  *batch, _, k = u.shape
  require_shape('v', v, (*batch, None, k))
  rows, columns = jnp.asarray(rows), jnp.asarray(columns)
  for name, indices in (('rows', rows), ('columns', columns)):
    require_shape(name, indices, (*batch, None))
    require(indices.shape[-1] >= k, name, indices.shape, f'{k} or more')
  eta_rows, eta_columns = _eta(u, rows), _eta(v, columns)
  eta = jnp.hypot(eta_rows, eta_columns)
  error = jnp.where(jnp.isfinite(eta), eta * residual, jnp.inf)
  return DEIMBound(eta_rows, eta_columns, error)
