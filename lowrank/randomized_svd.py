r"""The singular value decomposition by a random sketch of the range.

Shapes: `...` batch, `m n` matrix, `r` rank, `l` width of the sketch.

References:
  Su, `The path to low-rank approximation, II: SVD
  <https://kexue.fm/archives/10407>`_, 2024;
  Halko, Martinsson and Tropp, `Finding structure with randomness
  <https://arxiv.org/abs/0909.4061>`_, 2011;
  Tropp et al., `Practical sketching algorithms for low-rank matrix
  approximation <https://arxiv.org/abs/1609.00048>`_, 2017.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .arrays import precise, require_decomposition_rank
from .operators import Operator, as_operator
from .orthonormalize import condition, orthonormal_basis
from .svd import SVD, oriented, svd


def _gaussian(key: jax.Array, rows: int, columns: int, dtype) -> jax.Array:
  """Columns of norm about 1, so that products with A stay below its norm."""
  block = jax.random.normal(key, (rows, columns), dtype)
  return block / jnp.asarray(math.sqrt(rows), block.dtype)


def range_basis(
  a: Operator, width: int, *, key: jax.Array, power_iterations: int
) -> jax.Array:
  """Orthonormal columns [..., m, width] near the leading left ones of A."""
  y = a.matvec(_gaussian(key, a.shape[-1], width, a.dtype))

  def iterate(_, y):
    return a.matvec(condition(a.rmatvec(condition(y))))

  return orthonormal_basis(jax.lax.fori_loop(0, power_iterations, iterate, y))


def _lift(q: jax.Array, small: SVD) -> SVD:
  """The decomposition of Q B from that of B."""
  return oriented(SVD(q @ small.u, small.s, small.vh))


@precise
def _two_sided(
  a: Operator, rank: int, width: int, power_iterations: int, key: jax.Array
) -> SVD:
  q = range_basis(a, width, key=key, power_iterations=power_iterations)
  return _lift(q, svd(a.rmatvec(q).mT.conj(), rank))


@precise
def _single_pass(a: Operator, rank: int, width: int, key: jax.Array) -> SVD:
  """From Y = A Omega and W = Psi A alone; Psi takes twice as many rows."""
  m, n = a.shape[-2:]
  right, left = jax.random.split(key)
  psi = _gaussian(left, m, min(2 * width + 1, m), a.dtype)
  q = orthonormal_basis(a.matvec(_gaussian(right, n, width, a.dtype)))
  w = a.rmatvec(psi).mT.conj()
  # Psi Q is tall and well conditioned: its least squares is a QR and a solve.
  basis, r = jnp.linalg.qr(psi.mT.conj() @ q)
  b = jax.scipy.linalg.solve_triangular(r, basis.mT.conj() @ w)
  return _lift(q, svd(b, rank))


def randomized_svd(
  a: ArrayLike | tuple,
  rank: int,
  *,
  key: jax.Array,
  oversampling: int = 10,
  power_iterations: int = 2,
  single_pass: bool = False,
) -> SVD:
  r"""The leading singular triples, from products with a few random vectors.

  With :math:`l = r + p` Gaussian columns :math:`\Omega`,

  .. math::
    Q = \mathrm{orth}\bigl((A A^H)^q A \, \Omega\bigr), \qquad
    A \approx Q \, (Q^H A)_r

  (Halko, Martinsson and Tropp, algorithms 4.4 and 5.1), the block being
  orthogonalised before each product by Cholesky factors of its Gram matrix.
  For p >= 2 the expected error of :math:`Q Q^H A`, with q = 0, is

  .. math::
    E \|E\|_F \le \Bigl(1 + \tfrac{r}{p - 1}\Bigr)^{1/2}
      \Bigl(\sum_{j > r} \sigma_j^2\Bigr)^{1/2}

  (theorem 10.5); power iterations replace :math:`\sigma_j` by
  :math:`\sigma_j^{2q + 1}`, after which two are seldom told from the optimum.

  `single_pass` sees the matrix once: :math:`Y = A \Omega`, :math:`W = \Psi A`
  and :math:`A \approx Q ((\Psi Q)^+ W)_r` (Tropp et al., algorithm 7). Its
  error is a few times the optimum; for matrices that stream by.

  Deviations: the sketch is one matrix for all of a batch, so that the result
  does not depend on `vmap`; derivatives are those of the computed function,
  with the sketch held.

  Args:
    a: [..., m, n], real or complex, or `(matvec, rmatvec, shape, dtype)` with
      `matvec(x [n, k])` -> :math:`A x` [m, k] and `rmatvec(y [m, k])` ->
      :math:`A^H y` [n, k].
    rank: r, in 1..min(m, n).
    key: of the sketch.
    oversampling: p, 0 or more; cut where r + p exceeds min(m, n).
    power_iterations: q, 0 or more; two passes over the matrix each.
    single_pass: use both sketches instead; `power_iterations` has no say.

  Returns:
    `SVD` with u [..., m, r], s [..., r] in descending order, vh [..., r, n];
    the largest entry of each column of u is positive. float32 or better.

  Raises:
    ValueError: for a rank out of range, negative counts, or an `a` that is
      neither a matrix nor an operator.

  Example:
    >>> a = jnp.outer(jnp.arange(1.0, 5), jnp.ones(3))
    >>> u, s, vh = randomized_svd(a, 1, key=jax.random.key(0))
    >>> bool(jnp.allclose(u * s @ vh, a, atol=1e-5))
    True

  References:
    Su, `article 10407 <https://kexue.fm/archives/10407>`_, 2024.
    Halko, Martinsson and Tropp, `Finding structure with randomness
    <https://arxiv.org/abs/0909.4061>`_, 2011.
  """
  operator = as_operator('a', a)
  require_decomposition_rank(rank, operator.shape)
  for name, value in (
    ('oversampling', oversampling),
    ('power_iterations', power_iterations),
  ):
    good = isinstance(value, int) and value >= 0
    require(good, name, value, 'an integer of 0 or more')
  width = min(rank + oversampling, *operator.shape[-2:])
  if single_pass:
    return _single_pass(operator, rank, width, key)
  return _two_sided(operator, rank, width, power_iterations, key)
