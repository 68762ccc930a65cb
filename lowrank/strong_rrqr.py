r"""Strong rank-revealing QR: swaps until no coefficient is large.

Shapes: `...` batch, `m n` matrix, `r` rank.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .arrays import (
  as_matrix,
  over_batch,
  precise,
  require_decomposition_rank,
  unit,
)
from .pivoted_qr import (
  PivotedQR,
  factor,
  qr_of_columns,
  residual_squares,
  solve_chosen,
)


class StrongRRQR(NamedTuple):
  """`indices` [..., r] int32, `converged` [...] bool, `swaps` [...] int32.

  Example:
    >>> indices, converged, swaps = strong_rrqr(jnp.eye(3), 2)
    >>> indices.tolist(), bool(converged), int(swaps)
    ([0, 1], True, 0)
  """

  indices: jax.Array
  converged: jax.Array
  swaps: jax.Array


def strong_rrqr(
  a: ArrayLike,
  rank: int,
  *,
  threshold: float = 1.05,
  max_swaps: int = 1000,
) -> StrongRRQR:
  r"""Columns that span as much as swaps of single ones can make them span.

  After pivoted QR let :math:`T = R_{11}^{-1} R_{12}` be the coefficients of the
  other columns, :math:`\omega_i` the norms of the rows of :math:`R_{11}^{-1}`
  and :math:`\gamma_j` those of what is left of the columns. To put column `j`
  in the place of the chosen column `i` multiplies their volume,
  :math:`|\det R_{11}|`, by

  .. math:: \rho_{ij} = \sqrt{|T_{ij}|^2 + \omega_i^2 \gamma_j^2}.

  The largest is carried out for as long as it exceeds the threshold `f` (Gu and
  Eisenstat, algorithm 4). Then

  .. math::
    |T_{ij}| \le f, \qquad
    \sigma_1(R_{22}) \le \sqrt{1 + f^2 r (n - r)} \; \sigma_{r + 1},

  where pivoted QR has :math:`2^{r - 1}` and :math:`2^r \sqrt{n - r}`. Each swap
  multiplies the volume by more than `f`, so that there are
  :math:`O(r \log_f n)` at most; measured from 0 to 20, with f = 1.05 mostly 0
  to 5, for errors up to a tenth below those of pivoted QR.

  Deviations: each swap is followed by a new factorisation, `O(m n r)` in matrix
  products, which leaves no error to accumulate, rather than by the paper's
  updates in `O(m n)`. To be fast on a large matrix use a Gaussian sketch of a
  few more than `r` rows, `s @ a`; the coefficients of the sketch are then what
  is bounded. Columns past the numerical rank are not swapped.

  Args:
    a: [..., m, n], real or complex.
    rank: `r`, in 1..min(m, n).
    threshold: `f`, 1 or more; above 1 for the number of swaps to be bounded.
    max_swaps: after which it gives up, for the sake of ties and roundings.

  Returns:
    `StrongRRQR`; `converged` says that the bounds hold.

  Raises:
    ValueError: for less than two axes, a rank out of range, a threshold below
      1, or a negative number of swaps.

  Example:
    >>> a = jnp.array([[1.0, 0.9, 0.0], [0.0, 0.0, 0.5]])
    >>> strong_rrqr(a, 2).indices.tolist()
    [0, 2]

  References:
    Gu, Eisenstat, `Efficient algorithms for computing a strong rank-revealing
    QR factorization <https://doi.org/10.1137/0917055>`_, 1996.
  """
  a = as_matrix('a', a)
  require_decomposition_rank(rank, a.shape)
  require(threshold >= 1, 'threshold', threshold, '1 or more')
  require(max_swaps >= 0, 'max_swaps', max_swaps, '0 or more')
  return _strong_rrqr(a, rank=rank, threshold=threshold, max_swaps=max_swaps)


@functools.partial(jax.jit, static_argnames='rank')
@precise
def _strong_rrqr(a: jax.Array, *, rank: int, **limits) -> StrongRRQR:
  search = functools.partial(_search, rank=rank, **limits)
  return over_batch(search, unit(a)[0])


def _growth(a: jax.Array, qr: PivotedQR) -> jax.Array:
  """Factors [r, n] by which swaps multiply the volume, 0 for chosen ones."""
  eye = jnp.eye(qr.indices.shape[0], dtype=a.dtype)
  inverse = solve_chosen(qr, eye)
  heights = jnp.sum(jnp.real(inverse * inverse.conj()), axis=1)
  left = residual_squares(a, qr.q, qr.r)
  coefficients = jnp.abs(solve_chosen(qr, qr.r))
  growth = jnp.sqrt(coefficients**2 + heights[:, None] * left)
  return growth.at[:, qr.indices].set(0)


def _search(a, *, threshold, rank, max_swaps) -> StrongRRQR:
  """`strong_rrqr` of one matrix."""

  def body(state: StrongRRQR) -> StrongRRQR:
    qr = qr_of_columns(a, state.indices)
    growth = _growth(a, qr)
    out, into = jnp.divmod(jnp.argmax(growth).astype(jnp.int32), a.shape[1])
    converged = growth[out, into] <= threshold
    swapped = qr.indices.at[out].set(into)
    return StrongRRQR(
      jnp.where(converged, qr.indices, swapped),
      converged,
      state.swaps + jnp.where(converged, 0, 1),
    )

  proceed = lambda state: ~state.converged & (state.swaps < max_swaps)
  start = StrongRRQR(
    factor(a, rank).indices,
    jnp.zeros_like(a, shape=(), dtype=bool),
    jnp.zeros_like(a, shape=(), dtype=jnp.int32),
  )
  return jax.lax.while_loop(proceed, body, start)
