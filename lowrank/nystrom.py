r"""Nystrom's approximation of a positive semidefinite matrix by some columns.

Shapes: `...` batch, `n` side of the matrix, `r` landmarks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_rank, require_shape
from .arrays import as_matrix, precise, unit


class Nystrom(NamedTuple):
  r"""`factor` F [..., n, r], so that A ~= F F^H, and what is left of diag(A).

  :math:`A - F F^H` is positive semidefinite: `residual` [..., n], its diagonal,
  says how badly each row is represented (0 at the landmarks), and its sum is
  the error in nuclear norm, of which neither needs more of A than its diagonal.

  Example:
    >>> x = jnp.array([0.0, 2.0, 1.0])
    >>> factor, residual = nystrom(jnp.outer(x, x), jnp.array([1]))
    >>> factor.ravel().tolist(), residual.tolist()
    ([0.0, 2.0, 1.0], [0.0, 0.0, 0.0])
  """

  factor: jax.Array
  residual: jax.Array

  @property
  def error(self) -> jax.Array:
    r"""Nuclear norm :math:`\operatorname{tr}(A - F F^H)` [...]."""
    return jnp.sum(self.residual, axis=-1)


def _conj(a: jax.Array) -> jax.Array:
  return a.mT.conj()


def _eigen(w: jax.Array, rtol) -> tuple[jax.Array, jax.Array]:
  """Eigenvectors, and eigenvalues to the power -1/2 or 0 below the cut."""
  values, vectors = jnp.linalg.eigh(w)
  kept = (values > rtol * values[..., -1:]) & (values > 0)
  root = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
  return vectors, root[..., None, :]


@jax.custom_jvp
@precise
def _times_inverse_root(c: jax.Array, w: jax.Array, rtol) -> jax.Array:
  """C (W^+)^(1/2), rotated first: scaled last, errors of C do not grow."""
  vectors, root = _eigen(w, rtol)
  return ((c @ vectors) * root) @ _conj(vectors)


@_times_inverse_root.defjvp
@precise
def _times_inverse_root_jvp(primals, tangents):
  """By divided differences, which repeated eigenvalues do no harm."""
  (c, w, rtol), (dc, dw, _) = primals, tangents
  vectors, root = _eigen(w, rtol)
  rotated, other = c @ vectors, root.mT
  pair, one_kept = root * other, (root > 0) != (other > 0)
  total = jnp.where((root > 0) | (other > 0), root + other, 1)
  quotients = jnp.where(one_kept, total**3, -(pair**2) / total)
  inner = quotients * (_conj(vectors) @ dw @ vectors)
  tangent = ((dc @ vectors) * root + rotated @ inner) @ _conj(vectors)
  return (rotated * root) @ _conj(vectors), tangent


def nystrom_factor(
  columns: ArrayLike, indices: ArrayLike, *, rtol: float | None = None
) -> jax.Array:
  r"""The factor of `nystrom` from the columns alone.

  For a kernel these are `kernel(x, x[indices])`, n r values of it, and the rest
  of the matrix is never formed.

  Args:
    columns: C [..., n, r], of a Hermitian positive semidefinite matrix.
    indices: integers [r] or [..., r]: which columns they are.
    rtol: as in `nystrom`.

  Returns:
    :math:`F = C (W^+)^{1/2}` [..., n, r], float32 or better.

  Raises:
    ValueError: as `nystrom`.

  Example:
    >>> x = jnp.linspace(-1.0, 1.0, 100)[:, None]
    >>> chosen = jnp.arange(5, 100, 10)
    >>> factor = nystrom_factor(jnp.exp(-(x - x[chosen].T) ** 2), chosen)
    >>> error = factor @ factor.T - jnp.exp(-(x - x.T) ** 2)
    >>> bool(jnp.abs(error).max() < 1e-4)
    True
  """
  c = as_matrix('columns', columns)
  indices = _batched_indices(indices, c.shape)
  require_shape('columns', c, (*indices.shape[:-1], None, indices.shape[-1]))
  real = jnp.finfo(c.dtype).dtype
  if rtol is None:
    rtol = c.shape[-1] * float(jnp.finfo(real).eps)
  elif isinstance(rtol, int | float):
    require(rtol >= 0, 'rtol', rtol, '0 or more')
  return _factor(c, indices, jnp.asarray(rtol, real))


@jax.jit
def _factor(c: jax.Array, indices: jax.Array, rtol: jax.Array) -> jax.Array:
  c, size = unit(c)
  w = jnp.take_along_axis(c, indices[..., None], axis=-2)
  return _times_inverse_root(c, (w + _conj(w)) / 2, rtol) * jnp.sqrt(size)


def _batched_indices(indices: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
  """int32 [..., r] with the batch axes of a matrix of this shape."""
  indices = jnp.asarray(indices)
  require_rank('indices', indices, 1, at_least=True)
  integer = jnp.issubdtype(indices.dtype, jnp.integer)
  require(integer, 'indices', indices.dtype, 'integers')
  require(indices.shape[-1] >= 1, 'indices', indices.shape, 'one or more')
  if indices.ndim > 1:
    require_shape('indices', indices, (*shape[:-2], None))
  target = (*shape[:-2], indices.shape[-1])
  return jnp.broadcast_to(indices.astype(jnp.int32), target)


def nystrom(
  a: ArrayLike, indices: ArrayLike, *, rtol: float | None = None
) -> Nystrom:
  r"""Approximates a positive semidefinite matrix by columns at landmarks.

  With `C` the columns and `W` the rows of these at the landmarks,

  .. math:: A \approx C W^+ C^H = F F^H, \qquad F = C (W^+)^{1/2},

  the CUR decomposition of article 10662 with the same rows as columns and the
  intersection as its core. It is exact if `W` has the rank of `A`; the rest
  :math:`A - F F^H` is positive semidefinite whatever the landmarks are, and
  vanishes in their rows and columns. Only these columns and the diagonal of `a`
  are read.

  Deviations: an inverse of `W` multiplied out squares what rounding does to its
  smallest eigenvalues and may leave an indefinite rest. Tropp et al. (Algorithm
  3) shift `A` by a multiple of the identity and take a Cholesky factor of `W`;
  here eigenvalues below the cut are left out, which is as close for full and
  better for deficient rank (no shift is left behind), and takes repeated
  landmarks and matrices that are not quite positive. The root is the Hermitian
  one, so that the factor does not depend on the choice of eigenvectors and is
  differentiable while the rank stays, at repeated eigenvalues too.

  Args:
    a: [..., n, n], Hermitian positive semidefinite, real or complex, of any
      scale; of which nothing is checked.
    indices: landmarks, integers in 0..n-1, [r] or [..., r].
    rtol: eigenvalues of `W` up to this fraction of the largest count as zero, 0
      or more. `None`: r times the machine epsilon. For a noisy `a`, the noise
      over the largest eigenvalue.

  Returns:
    `Nystrom`, float32 or better. `residual` is real and is rounded to the
    precision of the diagonal, but not below 0.

  Raises:
    ValueError: if `a` is not square, `indices` are not integers or their batch
      axes differ from those of `a`, or for a negative `rtol`.

  Example:
    >>> a = jnp.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> found = nystrom(a, jnp.array([0]))
    >>> print(f'{float(found.error):.1f}')  # The last row is left out.
    1.0

  References:
    Williams and Seeger, `Using the Nystrom method to speed up kernel machines
    <https://papers.nips.cc/paper/1866>`_, 2000.
    Tropp et al., `Fixed-rank approximation of a positive-semidefinite matrix
    from streaming data <https://arxiv.org/abs/1706.05736>`_, 2017.
    Su, `article 10662 <https://kexue.fm/archives/10662>`_, 2025.
  """
  a = as_matrix('a', a)
  require_shape('a', a, (*a.shape[:-1], a.shape[-2]))
  indices = _batched_indices(indices, a.shape)
  columns = jnp.take_along_axis(a, indices[..., None, :], axis=-1)
  factor = nystrom_factor(columns, indices, rtol=rtol)
  diagonal = jnp.diagonal(a, axis1=-2, axis2=-1).real
  explained = jnp.sum(jnp.abs(factor) ** 2, axis=-1)
  return Nystrom(factor, jnp.maximum(diagonal - explained, 0))
