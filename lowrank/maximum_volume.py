r"""Rows that span the largest volume, by swaps.

Shapes: `...` batch, `n k` a basis.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .arrays import over_batch, precise
from .deim import as_basis
from .pivoted_qr import pivoted_qr


def maximum_volume(
  v: ArrayLike, *, tolerance: float = 0.01, max_swaps: int = 1000
) -> jax.Array:
  r"""Rows the determinant of which no swap increases by much.

  Of rows `I` let :math:`B = V V_I^{-1}`. If row `i` takes the place of the
  `j`-th chosen one, :math:`|\det V_I|` is multiplied by :math:`|B_{ij}|`, and

  .. math:: B \leftarrow B - B_{:j} (B_{i:} - e_j^T) / B_{ij}.

  The largest entry is swapped in until :math:`|B_{ij}| \le 1 + \tau` (Goreinov
  et al.). Then :math:`\|V_I^{-1}\|_2 \le \sqrt{1 + k (n - k) (1 + \tau)^2}` for
  orthonormal columns. It depends on their span alone.

  Deviation: the start is `q_deim`, not the pivots of LU, from which more swaps
  are needed and whose triangular factor, at worst, has an inverse like
  :math:`2^k`, so that no digit of `B` is right.

  Args:
    v: [..., n, k], k <= n.
    tolerance: :math:`\tau`, above 0.
    max_swaps: at which to stop, 0 or more.

  Returns:
    [..., k] int32, distinct.

  Raises:
    ValueError: for less than two axes, more columns than rows, a tolerance that
      is not positive or a negative number of swaps.

  Example:
    >>> v = jnp.array([[1.0, 0.0], [0.9, 1.0], [1.0, 2.0]])
    >>> sorted(maximum_volume(v).tolist())
    [0, 2]

  References:
    Goreinov et al., `How to find a good submatrix
    <https://doi.org/10.1142/9789812836021_0015>`_, 2010.
  """
  v = as_basis('v', v)
  require(tolerance > 0, 'tolerance', tolerance, 'a number above 0')
  require(max_swaps >= 0, 'max_swaps', max_swaps, '0 or more')
  return _maximum_volume(v, tolerance, max_swaps)


@functools.partial(jax.jit, static_argnames=('tolerance', 'max_swaps'))
@precise
def _maximum_volume(v: jax.Array, tolerance, max_swaps) -> jax.Array:
  swap = functools.partial(_swap, tolerance=tolerance, max_swaps=max_swaps)
  return over_batch(swap, v)


def _swap(v: jax.Array, *, tolerance: float, max_swaps: int) -> jax.Array:
  """`maximum_volume` of one matrix."""
  _, r, rows = pivoted_qr(v.mT, v.shape[-1])
  triangle = r[:, rows]
  # Past the rank the rows of `r` are zero, and so are these columns of `b`.
  triangle = triangle + jnp.diag(jnp.where(jnp.diag(triangle) == 0, 1, 0))
  b = jax.scipy.linalg.solve_triangular(triangle, r).T

  def size(b, rows):
    return jnp.abs(b).at[rows].set(0)  # Of the chosen rows: the identity.

  def more(state):
    b, rows, count = state
    return (jnp.max(size(b, rows)) > 1 + tolerance) & (count < max_swaps)

  def step(state):
    b, rows, count = state
    i, j = jnp.unravel_index(jnp.argmax(size(b, rows)), b.shape)
    row = b[i].at[j].add(-1)
    b = b - jnp.outer(b[:, j] / b[i, j], row)
    return b, rows.at[j].set(i.astype(jnp.int32)), count + 1

  count = jnp.zeros_like(rows, shape=())
  _, rows, _ = jax.lax.while_loop(more, step, (b, rows, count))
  return rows
