"""What choices of columns guarantee, from the singular values."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_shape
from .arrays import require_decomposition_rank, wide


class InterpolationBound(NamedTuple):
  """Bounds [...] of the error, as `interpolation_bound` has them.

  Example:
    >>> interpolation_bound(3, 3, 2, jnp.ones(3))._fields
    ('frobenius', 'spectral', 'pivoted')
  """

  frobenius: jax.Array
  spectral: jax.Array
  pivoted: jax.Array


def interpolation_bound(
  m: int,
  n: int,
  rank: int,
  singular_values: ArrayLike,
  *,
  threshold: float = 1.0,
) -> InterpolationBound:
  r"""How large the error of an interpolative decomposition may be.

  .. math::
    \|A - A_{:J} Z\|_F &\le \sqrt{r + 1}
      \Bigl(\sum_{j > r} \sigma_j^2\Bigr)^{1/2}, \\
    \|A - A_{:J} Z\|_2 &\le \sqrt{1 + f^2 r (n - r)} \; \sigma_{r + 1}, \\
    \|A - A_{:J} Z\|_2 &\le 2^r \sqrt{n - r} \; \sigma_{r + 1}.

  The first is of the best columns there are (Deshpande et al.), and of
  "osinsky" with exact singular vectors and residuals; no smaller constant will
  do. The second is of "strong_rrqr" (Gu and Eisenstat, theorem 3.2), and with
  f = 1 of the columns of largest volume. The third is of "pivoted_qr", for
  which Kahan's matrix shows that it cannot be much better.

  Args:
    m: rows of the matrix.
    n: columns, or whatever there is to choose among: rows if `axis` is 0.
    rank: `r`, in 1..min(m, n).
    singular_values: [..., min(m, n)] of the matrix, in descending order.
    threshold: `f`, 1 or more.

  Returns:
    `InterpolationBound` of [...]: frobenius, spectral, pivoted; zero for a rank
    of min(m, n).

  Raises:
    ValueError: for a rank out of range, another number of singular values, or a
      threshold below 1.

  Example:
    >>> bound = interpolation_bound(5, 3, 2, jnp.array([3.0, 2.0, 1.0]))
    >>> ', '.join(f'{float(x):.3f}' for x in bound)
    '1.732, 1.732, 4.000'

  References:
    Deshpande, Rademacher, Vempala, Wang, `Matrix approximation and projective
    clustering via volume sampling <https://doi.org/10.4086/toc.2006.v002a012>`_,
    2006.
    Gu, Eisenstat, `Efficient algorithms for computing a strong rank-revealing
    QR factorization <https://doi.org/10.1137/0917055>`_, 1996.
    Osinsky, `Close to optimal column approximations with a single SVD
    <https://arxiv.org/abs/2308.09068>`_, 2023.
  """
  require_decomposition_rank(rank, (m, n))
  s = wide(singular_values)
  batch = s.shape[:-1]
  require_shape('singular_values', s, (*batch, min(m, n)))
  require(threshold >= 1, 'threshold', threshold, '1 or more')
  tail = s[..., rank:]
  # Of the scale of the largest, whose square neither overflows nor vanishes.
  largest = tail[..., 0] if tail.shape[-1] else jnp.zeros_like(s[..., 0])
  relative = tail / jnp.where(largest > 0, largest, 1)[..., None]
  optimum = largest * jnp.sqrt(jnp.sum(relative**2, axis=-1))
  strong = math.sqrt(1 + threshold**2 * rank * (n - rank))
  worst = jnp.exp2(jnp.asarray(rank, s.dtype)) * math.sqrt(n - rank)
  return InterpolationBound(
    math.sqrt(rank + 1) * optimum,
    strong * largest,
    jnp.where(largest > 0, worst * largest, 0),
  )
