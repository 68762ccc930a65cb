r"""CUR: a matrix from some of its own columns and rows.

Shapes: `...` batch, `m n` matrix, `r` rank. With `C = M[:, J]`, `R = M[I]`,
:math:`M \approx C U R`.

References:
  Su, `The path to low-rank approximation, V: CUR
  <https://kexue.fm/archives/10662>`_, 2025.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require_one_of, require_shape
from .arrays import (
  as_matrix,
  over_batch,
  precise,
  require_decomposition_rank,
)
from .deim import deim, q_deim, take_rows
from .leverage import leverage_rows
from .maximum_volume import maximum_volume
from .osinsky import osinsky_columns
from .pinv import pinv
from .pivoted_qr import pivoted_qr
from .randomized_svd import randomized_svd
from .svd import svd

METHODS = (
  'pivoted_qr',
  'randomized',
  'deim',
  'q_deim',
  'leverage',
  'maxvol',
  'osinsky',
)
CORES = ('optimal', 'intersection')
_SKETCH = 60  # Rows of a sketch that column norms are estimated from.


class CUR(NamedTuple):
  """`c` [..., m, r] = `a[:, columns]`, `u` [..., r, r], `r` = `a[rows]`.

  `rows` and `columns` are [..., r] int32, `r` [..., r, n].

  Example:
    >>> a = jnp.outer(jnp.arange(1.0, 5), jnp.ones(3))
    >>> rows, columns, c, u, r = cur(a, 1)
    >>> c.shape, u.shape, r.shape
    ((4, 1), (1, 1), (1, 3))
  """

  rows: jax.Array
  columns: jax.Array
  c: jax.Array
  u: jax.Array
  r: jax.Array


def cur(
  a: ArrayLike,
  rank: int,
  *,
  method: str = 'osinsky',
  core: str = 'optimal',
  key: jax.Array | None = None,
) -> CUR:
  r"""Chooses rows and columns, and the core between them.

  "optimal" is the core of least squares, "intersection" the one of the article
  that needs no other entries of the matrix:

  .. math:: U = C^+ M R^+ \qquad \text{or} \qquad U = M_{I,J}^+.

  Both give back a matrix of rank `r` or less, and the intersection the chosen
  rows and columns of any matrix. It is good only where :math:`M_{I,J}` is well
  conditioned, so that its rows are chosen given `C`: by the same method, but of
  an orthonormal basis of its columns instead of left singular vectors.
  Independent choices can be a hundred times worse.

  Singular values of `C`, `R` and :math:`M_{I,J}` below :math:`\sqrt\epsilon`
  of the largest count as zero in `u`: from there on the roundings of
  `c @ u @ r` are more than what they add. So `c @ u @ r` is within about
  :math:`\sqrt\epsilon \|M\|` of :math:`C U R`, which `cur_approximation` gives
  to the last digits.

  The methods:

  * "osinsky", `osinsky_columns` on singular vectors and a sketch of what they
    leave: the smallest errors, near :math:`\sqrt{r + 1}` times the optimum at
    worst for either factor.
  * "maxvol", "q_deim", "deim": `maximum_volume`, `q_deim` and `deim` of
    singular vectors, with the guarantee of `deim_bound`.
  * "leverage": sampled by `leverage_rows` of singular vectors.
  * "pivoted_qr": QR with column pivoting of the matrix, then of
    :math:`Q_C^H`; needs no key.
  * "randomized": the same of a sketch; two products with the matrix in all.

  Deviations: singular vectors are those of `randomized_svd` with one power
  iteration. Gradients flow through `c`, `u` and `r`, not through the choice.

  Args:
    a: [..., m, n], real or complex.
    rank: `r`, in 1..min(m, n).
    method: one of the above.
    core: "optimal" or "intersection".
    key: of sketches and samples, the same for every matrix of a batch;
      `jax.random.key(0)` without.

  Returns:
    `CUR`, float32 or better; finite for finite `a`, the indices distinct.

  Raises:
    ValueError: for less than two axes, a rank out of range, or an unknown
      method or core.

  Example:
    >>> i = jnp.arange(8.0)
    >>> a = jnp.sin(i[:, None] + i)  # Of rank two.
    >>> rows, columns, c, u, r = cur(a, 2)
    >>> bool(jnp.allclose(c @ u @ r, a, atol=1e-4))
    True

  References:
    Mahoney, Drineas, `CUR matrix decompositions for improved data analysis
    <https://doi.org/10.1073/pnas.0803205106>`_, 2009.
    Osinsky, `Close to optimal column approximations with a single SVD
    <https://arxiv.org/abs/2308.09068>`_, 2023.
    Su, `article 10662 <https://kexue.fm/archives/10662>`_, 2025.
  """
  a = as_matrix('a', a)
  require_decomposition_rank(rank, a.shape)
  require_one_of('method', method, METHODS)
  require_one_of('core', core, CORES)
  key = jax.random.key(0) if key is None else key
  return _cur(a, rank, method, core, key)


def cur_approximation(
  a: ArrayLike,
  rows: ArrayLike,
  columns: ArrayLike,
  *,
  core: str = 'optimal',
) -> jax.Array:
  r"""What rows and columns say of the matrix, without an ill-conditioned core.

  .. math::
    C C^+ M R^+ R &= Q_C (Q_C^H M Q_R) Q_R^H, \\
    C M_{I,J}^+ R &= Q_C (Q_C)_{I:}^+ R

  with orthonormal bases :math:`Q_C` and :math:`Q_R` of the chosen columns and
  rows. `U` has entries like the inverse of the smallest chosen singular value,
  and the roundings of `c @ u @ r` grow with it; here they do not.

  For the intersection the chosen rows of :math:`Q_C` must have its rank.

  Args:
    a: [..., m, n], real or complex.
    rows: [..., c] integers, c <= n.
    columns: [..., d] integers, d <= m; as many as rows, or less, for the
      intersection.
    core: "optimal" or "intersection".

  Returns:
    [..., m, n], float32 or better.

  Raises:
    ValueError: for less than two axes, indices that do not fit, or an unknown
      core.

  Example:
    >>> a = jnp.array([[2.0, 4.0], [1.0, 3.0]])
    >>> first = jnp.array([0])
    >>> near = cur_approximation(a, first, first, core='intersection')
    >>> near.round(3).tolist()  # Its first row and column, and of rank one.
    [[2.0, 4.0], [1.0, 2.0]]

  References:
    Sorensen, Embree, `A DEIM induced CUR factorization
    <https://arxiv.org/abs/1407.5516>`_, 2016, section 2.
  """
  a = as_matrix('a', a)
  require_one_of('core', core, CORES)
  rows, columns = jnp.asarray(rows), jnp.asarray(columns)
  for name, indices in (('rows', rows), ('columns', columns)):
    require_shape(name, indices, (*a.shape[:-2], None))
  return _approximation(a, rows, columns, core)


@functools.partial(jax.jit, static_argnames=('rank', 'method', 'core'))
@precise
def _cur(a: jax.Array, rank: int, method: str, core: str, key) -> CUR:
  choose = functools.partial(
    _choose, rank=rank, method=method, core=core, key=key
  )
  rows, columns = over_batch(choose, jax.lax.stop_gradient(a))
  c, r = _take_columns(a, columns), take_rows(a, rows)
  # What is cut off is less than what roundings of `c @ u @ r` make of it.
  inverse = functools.partial(pinv, rtol=float(jnp.finfo(a.dtype).eps) ** 0.5)
  if core == 'intersection':
    u = inverse(take_rows(c, rows))
  else:
    q_c, t_c = jnp.linalg.qr(c)
    q_r, t_r = jnp.linalg.qr(r.mT.conj())
    left, right = inverse(jnp.stack([t_c, t_r]))
    u = left @ (q_c.mT.conj() @ (a @ q_r)) @ right.mT.conj()
  return CUR(rows, columns, c, u, r)


@functools.partial(jax.jit, static_argnames='core')
@precise
def _approximation(a, rows, columns, core: str) -> jax.Array:
  c, r = _take_columns(a, columns), take_rows(a, rows)
  q_c = _basis(c)
  if core == 'intersection':
    return q_c @ (pinv(take_rows(q_c, rows)) @ r)
  q_r = _basis(r.mT.conj())
  return q_c @ (q_c.mT.conj() @ (a @ q_r)) @ q_r.mT.conj()


def _basis(x: jax.Array) -> jax.Array:
  """Orthonormal columns that span what `x` does, and zeros if it is less."""
  m, n = x.shape[-2:]
  u, s, _ = svd(x, min(m, n))
  noise = max(m, n) * jnp.finfo(s.dtype).eps * s[..., :1]
  return jnp.where((s > noise)[..., None, :], u, 0)


def _take_columns(a: jax.Array, indices: jax.Array) -> jax.Array:
  return jnp.take_along_axis(a, indices[..., None, :], axis=-1)


def _choose(a: jax.Array, *, rank, method, core, key) -> tuple:
  """Rows and columns of one matrix."""
  key, row_key, column_key = jax.random.split(key, 3)
  given_c = core == 'intersection' or method in ('pivoted_qr', 'randomized')
  if method == 'pivoted_qr':
    columns = pivoted_qr(a, rank).indices
  elif method == 'randomized':
    columns = pivoted_qr(_sketch(a, rank + 10, column_key), rank).indices
  else:
    u, _, vh = randomized_svd(a, rank, key=key, power_iterations=1)
    columns = _select(vh.T.conj(), a, method, column_key)
  if given_c:
    u, _ = jnp.linalg.qr(a[:, columns])
  return _select(u, a.T.conj(), method, row_key), columns


def _select(basis: jax.Array, a: jax.Array, method: str, key) -> jax.Array:
  """Columns of `a` by an orthonormal basis of what its rows span."""
  match method:
    case 'deim':
      return deim(basis)
    case 'leverage':
      return leverage_rows(basis, basis.shape[-1], key=key)
    case 'maxvol':
      return maximum_volume(basis)
    case 'osinsky':
      sketch = _sketch(a, _SKETCH, key)
      residual = sketch - (sketch @ basis) @ basis.T.conj()
      return osinsky_columns(basis, residual)
  return q_deim(basis)


def _sketch(a: jax.Array, count: int, key: jax.Array) -> jax.Array:
  """Random combinations of the rows, of about the size of the matrix."""
  m = len(a)
  omega = jax.random.normal(key, (count, m), a.dtype) / m**0.5
  return omega.astype(a.dtype) @ a
