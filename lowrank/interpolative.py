r"""Interpolative decomposition: a matrix from some of its own columns.

Shapes: `...` batch, `m n` matrix, `r` rank, `l` rows of a sketch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of
from .arrays import (
  as_matrix,
  over_batch,
  precise,
  require_decomposition_rank,
)
from .orthonormalize import condition
from .osinsky import osinsky_columns
from .pivoted_qr import PivotedQR, factor, qr_of_columns, solve_chosen
from .strong_rrqr import strong_rrqr
from .svd import svd

METHODS = ('pivoted_qr', 'randomized', 'strong_rrqr', 'osinsky')


class Interpolative(NamedTuple):
  """`indices` [..., r] int32 and `coefficients` [..., r, n] or [..., m, r].

  Example:
    >>> a = jnp.outer(jnp.arange(1.0, 4), jnp.array([1.0, 4.0, -2.0]))
    >>> indices, coefficients = interpolative(a, 1)
    >>> a[:, indices].shape, coefficients.shape
    ((3, 1), (1, 3))
  """

  indices: jax.Array
  coefficients: jax.Array

  @property
  def max_coefficient(self) -> jax.Array:
    """Largest modulus [...] of a coefficient, 1 at least.

    Guaranteed is no more than the threshold for "strong_rrqr" that converged,
    and 2^(r - 1) for "pivoted_qr", which Kahan's matrix approaches; for the
    others, nothing. Measured: up to 2, and 5 for "osinsky" where `a` is sparse.
    """
    return jnp.max(jnp.abs(self.coefficients), axis=(-2, -1))


def interpolative(
  a: ArrayLike,
  rank: int,
  *,
  method: str = 'osinsky',
  axis: int = 1,
  key: jax.Array | None = None,
  oversampling: int = 10,
  power_iterations: int = 1,
  threshold: float = 1.05,
) -> Interpolative:
  r"""A matrix from its most telling columns, or rows.

  .. math:: A \approx A_{:J} Z, \qquad Z_{:J} = I,

  with `r` columns `J` that one of four methods chooses, and the least squares
  coefficients :math:`Z = A_{:J}^+ A`, the best for any choice: what is left is
  the projection of `A` away from the chosen columns.

  "pivoted_qr"
    takes the column farthest from those before (`pivoted_qr`), `r` passes over
    `A`; what SciPy's `interp_decomp(rand=False)` takes, and
    :math:`Z_{ij} = (R_{11}^{-1} R_{12})_{ij}`. The error is at worst
    :math:`2^r \sqrt{n - r}` times the optimum, :math:`|Z| \le 2^{r - 1}`.
  "randomized"
    does that with a sketch :math:`S A (A^H A)^q` of `r + oversampling` rows, in
    2 q + 2 passes.
  "strong_rrqr"
    swaps columns until :math:`|Z| \le f` (`strong_rrqr`). The bounds are
    polynomial, in the spectral norm, too; one pass and a factorisation for
    every swap.
  "osinsky"
    weighs what the singular vectors of the sketch see of a column against what
    they leave of it (`osinsky_columns`), as many passes as "randomized". The
    error is at most :math:`\sqrt{r + 1}` times the optimum in the Frobenius
    norm, nearly: of exact singular vectors and residuals, and these are
    sketched. No bound for :math:`|Z|`.

  Why "osinsky" is the default: of the fast ones it alone has a bound that is
  near the optimum. Error over the optimum, median of five matrices of 300 x 250
  at rank 30 (singular values that fall exponentially, harmonically; a smooth
  kernel with noise; a mixture; sparse rank-one terms), of Kahan's of size 90 at
  rank 89; and CPU seconds at 4000 x 3000, rank 50, in float64, where SciPy's
  `interp_decomp` takes 1.3:

  ===========  ====  ====  ======  =======  ======  =====  =======
  method       fast  slow  kernel  mixture  sparse  Kahan  seconds
  ===========  ====  ====  ======  =======  ======  =====  =======
  pivoted_qr   1.80  1.37  1.46    1.27     1.17    5e11   0.30
  randomized   1.80  1.38  1.50    1.16     1.17    7e4    0.16
  strong_rrqr  1.74  1.37  1.40    1.27     1.17    1.5    0.6-1.1
  osinsky      1.43  1.42  1.44    1.14     1.15    1.5    0.19
  ===========  ====  ====  ======  =======  ======  =====  =======

  Where the singular values fall slowly it loses some percent, no more.

  Args:
    a: [..., m, n], real or complex, of any scale.
    rank: `r`, in 1..min(m, n).
    method: "osinsky", "strong_rrqr", "randomized" or "pivoted_qr".
    axis: 1 chooses columns, `a ~= a[:, indices] @ coefficients`; 0 rows,
      `a ~= coefficients @ a[indices]`, which is the former of `a.mT`.
    key: of the sketch of "randomized" and "osinsky", the same for all of a
      batch; `None` is `jax.random.key(0)`, so that the result is always the
      same.
    oversampling: rows of the sketch beyond `r`.
    power_iterations: `q` of the sketch, 0 or more.
    threshold: `f` of "strong_rrqr", 1 or more.

  Returns:
    `Interpolative`: indices [..., r] int32, distinct, the column that adds most
    to those before it first; coefficients [..., r, n], or [..., m, r] for rows,
    float32 or better, exactly the identity at the indices. All finite for
    finite `a`: columns past the numerical rank have coefficients of zero but
    for their own. Derivatives are those of the least squares for fixed indices.
    NaN or infinity in `a` makes all coefficients NaN, since nothing can be
    raised in compiled code.

  Raises:
    ValueError: for less than two axes, a rank out of range, an unknown method
      or axis, negative counts, or a threshold below 1.

  Example:
    >>> a = jnp.array([[1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 4.0, 2.0]])
    >>> indices, coefficients = interpolative(a, 2)
    >>> bool(jnp.abs(a[:, indices] @ coefficients - a).max() < 1e-5)
    True
    >>> rows = interpolative(a, 1, axis=0)
    >>> rows.coefficients.shape, rows.indices.tolist()
    ((2, 1), [1])

  References:
    Su, `article 10501 <https://kexue.fm/archives/10501>`_, 2024.
    Cheng, Gimbutas, Martinsson, Rokhlin, `On the compression of low rank
    matrices <https://doi.org/10.1137/030602678>`_, 2005.
    Osinsky, `Close to optimal column approximations with a single SVD
    <https://arxiv.org/abs/2308.09068>`_, 2023.
  """
  a = as_matrix('a', a)
  require_decomposition_rank(rank, a.shape)
  require_one_of('method', method, METHODS)
  require(axis in (0, 1), 'axis', axis, '0 or 1')
  for name, count in (
    ('oversampling', oversampling),
    ('power_iterations', power_iterations),
  ):
    good = isinstance(count, int) and count >= 0
    require(good, name, count, 'an integer, 0 or more')
  require(threshold >= 1, 'threshold', threshold, '1 or more')
  result = _interpolative(
    a if axis == 1 else a.mT,
    jax.random.key(0) if key is None else key,
    rank=rank,
    method=method,
    width=min(rank + oversampling, *a.shape[-2:]),
    power_iterations=power_iterations,
    threshold=threshold,
  )
  if axis == 0:
    result = result._replace(coefficients=result.coefficients.mT)
  return result


@functools.partial(
  jax.jit,
  static_argnames=(
    'rank',
    'method',
    'width',
    'power_iterations',
    'threshold',
  ),
)
@precise
def _interpolative(
  a: jax.Array, key: jax.Array, *, rank: int, **settings
) -> Interpolative:
  """`interpolative` by columns."""

  def decompose(a):
    # What is chosen is constant, and the loops have no reverse mode.
    fixed = jax.lax.stop_gradient(a)
    qr = _chosen(fixed, key, rank=rank, **settings)
    coefficients = _least_squares(a, qr)
    eye = jnp.eye(rank, dtype=a.dtype)
    return Interpolative(qr.indices, coefficients.at[:, qr.indices].set(eye))

  return over_batch(decompose, a)


def _chosen(
  a: jax.Array,
  key: jax.Array,
  *,
  rank: int,
  method: str,
  width: int,
  power_iterations: int,
  threshold: float,
) -> PivotedQR:
  """QR of the columns that a method chooses."""
  if method == 'pivoted_qr':
    return factor(a, rank)
  if method == 'strong_rrqr':
    chosen = strong_rrqr(a, rank, threshold=threshold).indices
    return qr_of_columns(a, chosen)
  first, sketch = _sketches(a, key, width, power_iterations)
  if method == 'randomized':
    return qr_of_columns(a, factor(sketch, rank).indices)
  v = svd(sketch, rank).vh.T.conj()
  return qr_of_columns(a, osinsky_columns(v, first - (first @ v) @ v.T.conj()))


def _sketches(
  a: jax.Array, key: jax.Array, width: int, power_iterations: int
) -> tuple[jax.Array, jax.Array]:
  """S A and S A (A^H A)^q, its rows orthogonalised on the way; both [l, n]."""
  m, _ = a.shape
  first = jax.random.normal(key, (width, m), a.dtype) @ a / width**0.5
  rows = lambda x: jax.lax.optimization_barrier(x.mT.conj())
  sketch = first
  for _ in range(power_iterations):
    sketch = rows(condition(a @ condition(sketch.mT.conj()))) @ a
  return first, sketch


@jax.custom_jvp
def _least_squares(a: jax.Array, qr: PivotedQR) -> jax.Array:
  """C^+ A [r, n] with the QR of the chosen columns C, held in derivatives."""
  return solve_chosen(qr, qr.r)


@_least_squares.defjvp
@precise
def _least_squares_jvp(primals, tangents):
  """`dZ = C^+ (dA - dC Z) + (C^H C)^-1 dC^H (A - C Z)`, for any rank of C."""
  (a, qr), (da, _) = primals, tangents
  z = solve_chosen(qr, qr.r)
  dc = da[:, qr.indices]
  dz = solve_chosen(qr, qr.q.T.conj() @ (da - dc @ z))
  left = dc.T.conj() @ (a - qr.q @ qr.r)
  return z, dz + solve_chosen(qr, solve_chosen(qr, left, adjoint=True))
