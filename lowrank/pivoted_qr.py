r"""QR with column pivoting that stops after a few columns.

Shapes: `...` batch, `m n` matrix, `r` rank.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .arrays import (
  as_matrix,
  over_batch,
  precise,
  require_decomposition_rank,
  unit,
)


class PivotedQR(NamedTuple):
  """`q` [..., m, r], `r` [..., r, n] in place, `indices` [..., r] int32.

  Example:
    >>> q, r, indices = pivoted_qr(jnp.diag(jnp.arange(3.0)), 1)
    >>> q.shape, r.shape, indices.shape
    ((3, 1), (1, 3), (1,))
  """

  q: jax.Array
  r: jax.Array
  indices: jax.Array


def pivoted_qr(a: ArrayLike, rank: int) -> PivotedQR:
  r"""The first steps of QR with column pivoting.

  Each step takes the column that is farthest from the span of those before it
  (Businger and Golub, 1965), so that

  .. math:: A \approx Q R, \quad A_{:J} = Q R_{:J}, \quad R = Q^H A,

  with :math:`R_{:J}` upper triangular and its diagonal positive and
  nonincreasing; `r` keeps the order of the columns of `a`. What is left of `a`,
  :math:`A - Q R`, is what the orthogonal projection on the chosen columns
  leaves. At worst it is :math:`2^r \sqrt{n - r}` times the optimum, as Kahan's
  matrix shows; usually below twice.

  Deviations from LAPACK's `geqp3`: Gram-Schmidt, done twice, instead of
  reflections, to stop after `r` columns, with `O(m n r)` operations in products
  of `a` with vectors. Norms of what is left of the columns are downdated, and
  all are computed anew when the largest has lost half of the digits, rather
  than each when it has. Columns that depend on the chosen ones but for
  roundings count as zero: past the numerical rank the columns of `q` and the
  rows of `r` are zero, and the indices the first that are unused.

  The loops have no reverse mode; differentiate `interpolative`. A matrix with
  NaN or infinity gives NaN.

  Args:
    a: [..., m, n], real or complex.
    rank: `r`, in 1..min(m, n).

  Returns:
    `PivotedQR`, float32 or better, finite for finite `a`; indices distinct.

  Raises:
    ValueError: for less than two axes, and a rank out of range.

  Example:
    >>> a = jnp.array([[3.0, 0.0, 3.0], [0.0, 1.0, 4.0]])
    >>> q, r, indices = pivoted_qr(a, 2)
    >>> indices.tolist()
    [2, 0]
    >>> bool(jnp.abs(q @ r - a).max() < 1e-5)
    True

  References:
    Businger, Golub, `Linear least squares solutions by Householder
    transformations <https://doi.org/10.1007/BF01436084>`_, 1965.
    Drmac, Bujanovic, `On the failure of rank-revealing QR factorization
    software <https://doi.org/10.1145/1377612.1377616>`_, 2008.
    Su, `article 10501 <https://kexue.fm/archives/10501>`_, 2024.
  """
  a = as_matrix('a', a)
  require_decomposition_rank(rank, a.shape)
  return _pivoted_qr(a, rank)


@functools.partial(jax.jit, static_argnames='rank')
@precise
def _pivoted_qr(a: jax.Array, rank: int) -> PivotedQR:
  return over_batch(functools.partial(factor, rank=rank), a)


class _State(NamedTuple):
  """After `count` steps; `q` has its columns as rows."""

  q: jax.Array
  r: jax.Array
  indices: jax.Array
  count: jax.Array
  # Squared norms of what is left of the columns, -1 of those chosen, and the
  # largest when they were last computed from what is left.
  left: jax.Array
  level: jax.Array


def _squares(x: jax.Array) -> jax.Array:
  """Squared norms of the columns."""
  return jnp.sum(jnp.real(x * x.conj()), axis=0)


def _rounding(squares: jax.Array, rank: int) -> jax.Array:
  """Squared norm of what is left for roundings of a column that depends."""
  return rank * (8 * jnp.finfo(squares.dtype).eps) ** 2 * squares


def residual_squares(a: jax.Array, q: jax.Array, r: jax.Array) -> jax.Array:
  """Squared norms [n] of the columns of `a - q @ r`, 0 for roundings.

  >>> residual_squares(jnp.eye(2), jnp.eye(2, 1), jnp.eye(1, 2)).tolist()
  [0.0, 1.0]
  """
  exact = _squares(a - q @ r)
  return jnp.where(exact <= _rounding(_squares(a), q.shape[1]), 0, exact)


def solve_chosen(
  qr: PivotedQR, x: jax.Array, *, adjoint: bool = False
) -> jax.Array:
  """R_11^-1 X or R_11^-H X, R_11 = `r[:, indices]`; 0 where its rows are.

  >>> qr = pivoted_qr(jnp.diag(jnp.array([2.0, 4.0])), 2)
  >>> solve_chosen(qr, qr.r).tolist()
  [[0.0, 1.0], [1.0, 0.0]]
  """
  triangle = qr.r[:, qr.indices]
  live = jnp.diagonal(triangle) != 0
  mask = lambda x: jnp.where(live[:, None], x, 0)
  triangle = triangle + jnp.diag(jnp.where(live, 0, 1).astype(x.dtype))
  trans = 'C' if adjoint else 'N'
  return mask(jax.scipy.linalg.solve_triangular(triangle, mask(x), trans=trans))


def factor(a: jax.Array, rank: int) -> PivotedQR:
  """`pivoted_qr` of one matrix."""
  m, n = a.shape
  # Scaling vectors instead of `a` saves a copy of it.
  power = unit(a)[1][0, 0]
  eps = jnp.finfo(a.dtype).eps
  initial = _squares(a / power)

  def step(state: _State) -> _State:
    q, r, indices, i, left, level = state
    j = jnp.argmax(left)
    column = a[:, j] / power
    for _ in range(2):
      column = column - (q.conj() @ column) @ q
    square = _squares(column[:, None])[0]
    # NaN must not pass for a column that depends.
    good = ~(square <= _rounding(initial[j], rank))
    size = jnp.sqrt(jnp.where(good, square, 1))
    column = jnp.where(good, column / size, 0)
    row = jnp.where(left < 0, 0, (column.conj() @ a) / power)
    row = row.at[j].set(jnp.where(good, size, 0).astype(a.dtype))
    left = jnp.where(left < 0, -1, jnp.maximum(left - _squares(row[None]), 0))
    return _State(
      q.at[i].set(column),
      r.at[i].set(row),
      indices.at[i].set(j.astype(jnp.int32)),
      i + 1,
      left.at[j].set(-1),
      level,
    )

  def refresh(state: _State) -> _State:
    exact = residual_squares(a / power, state.q.T, state.r)
    left = jnp.where(state.left < 0, -1, exact)
    return state._replace(left=left, level=jnp.max(left))

  # A loop in a loop, since of a branch `vmap` would run both sides every step.
  unfinished = lambda state: state.count < rank
  stale = lambda state: jnp.max(state.left) < jnp.sqrt(eps) * state.level
  unless_stale = lambda state: unfinished(state) & ~stale(state)

  def steps(state: _State) -> _State:
    state = jax.lax.while_loop(unless_stale, step, state)
    return jax.lax.cond(unfinished(state), refresh, lambda state: state, state)

  zeros = functools.partial(jnp.zeros_like, a)
  state = _State(
    zeros(shape=(rank, m)),
    zeros(shape=(rank, n)),
    zeros(shape=(rank,), dtype=jnp.int32),
    zeros(shape=(), dtype=jnp.int32),
    initial,
    jnp.max(initial),
  )
  state = jax.lax.while_loop(unfinished, steps, state)
  return PivotedQR(state.q.T, state.r * power, state.indices)


def qr_of_columns(a: jax.Array, indices: jax.Array) -> PivotedQR:
  """Pivoted QR of chosen columns, and what it says of all others.

  The columns are put in the order of their pivots, so that those which depend
  on the others come last and are zero in `q`.

  Args:
    a: [m, n], of a wide type.
    indices: [r], distinct, of columns.

  Returns:
    `PivotedQR` of `a` with these columns, the indices in another order.

  Example:
    >>> a = jnp.array([[3.0, 0.0, 3.0], [0.0, 1.0, 4.0]])
    >>> q, r, indices = qr_of_columns(a, jnp.array([0, 2]))
    >>> indices.tolist(), bool(jnp.abs(q @ r - a).max() < 1e-5)
    ([2, 0], True)
  """
  # Reflections are faster on columns that are long, and the loop on short ones.
  columns, _ = unit(a[:, indices])
  basis, small = jnp.linalg.qr(columns)
  q, _, order = factor(small, indices.shape[0])
  q = basis @ q
  rows = jax.lax.optimization_barrier(q.T.conj())
  return PivotedQR(q, rows @ a, indices[order])
