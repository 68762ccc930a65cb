r"""The nearest code of every vector, the search of vector quantisation.

Shapes: `N` vectors, `K` codes, `d` dimensions.

Of :math:`|z - c|^2 = |z|^2 - 2 (z \cdot c - |c|^2 / 2)` only the bracket, the
score, depends on the code. A column of ones beside `z` and one of
:math:`-|c|^2 / 2` beside `c` make it a matrix product, so that nothing has to
be added to the scores afterwards. They are formed for a block of vectors at a
time, and their argmax is taken in two stages: XLA vectorises a maximum on CPU,
but not an argmax, which is left with one score for each run of codes, and then
with the best run.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from ..lowrank.arrays import precise, unit, wide

DISTANCES = ('euclidean', 'cosine')

_BLOCK = 2**19  # Scores that exist at a time.
_RUN = 32  # Codes of which the first stage takes the maximum.


def unit_vectors(x: jax.Array) -> jax.Array:
  """Vectors [..., d] over their norms, at any scale; zero stays zero.

  >>> print(unit_vectors(jnp.array([[3e30, 4e30], [0, 0]])))
  [[0.6 0.8]
   [0.  0. ]]
  """
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
  x = x / jnp.where(largest > 0, largest, 1)
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.where(norm > 0, norm, 1)


def _origin(codebook: jax.Array) -> jax.Array:
  """The mean code in whole multiples of the spread, a power of two.

  Distances do not depend on the origin, but their rounding errors do. A
  codebook that lies around zero, whatever its mean, has the origin zero: exact
  ties stay exact.
  """
  mean = jnp.mean(codebook, axis=0)
  _, spread = unit(codebook - mean)
  return jnp.round(mean / spread[0]) * spread[0]


def _first_largest(scores: jax.Array) -> jax.Array:
  """The argmax of [n, K], the lowest one of equals; K in whole runs."""
  runs = scores.reshape(len(scores), -1, _RUN)
  best = jnp.argmax(jnp.max(runs, axis=-1), axis=-1)
  run = jnp.take_along_axis(runs, best[:, None, None], axis=1)[:, 0]
  return best * _RUN + jnp.argmax(run, axis=-1)


@precise
def _search(rows: jax.Array, columns: jax.Array) -> jax.Array:
  """The argmax over k of row . column_k, of [N, d + 1] and [K, d + 1]."""
  size = len(columns)
  # The copies that fill the last run lose all ties with the last code.
  columns = jnp.pad(columns, ((0, -size % _RUN), (0, 0)), mode='edge').T
  block = min(len(rows), max(1, _BLOCK // columns.shape[1]))
  blocks = jnp.pad(rows, ((0, -len(rows) % block), (0, 0)))
  blocks = blocks.reshape(-1, block, rows.shape[1])
  found = lax.map(lambda block: _first_largest(block @ columns), blocks)
  return jnp.minimum(found.ravel()[: len(rows)], size - 1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames='distance')
def _nearest(
  z: jax.Array, codebook: jax.Array, bias: jax.Array, distance: str
) -> jax.Array:
  beside = lambda x, column: jnp.concatenate([x, column], axis=-1)
  bias = bias[:, None]
  if distance == 'cosine':
    rows = beside(unit_vectors(z), jnp.ones_like(z[:, :1]))
    return _search(rows, beside(unit_vectors(codebook), bias))
  codes, size = unit(codebook)  # Over a power of two, as the vectors below.
  origin = _origin(codes)
  codes, z = codes - origin, z - origin * size
  # The square of the power may be beyond all numbers.
  bias = jnp.where(bias == 0, 0, bias / size / size)
  half = jnp.sum(jnp.square(codes), axis=-1, keepdims=True) / 2
  length = jnp.maximum(unit(z[:, None])[1][:, 0], size)
  rows = beside(z / length, size / length)
  return _search(rows, beside(codes, bias / 2 - half))


def nearest_code(
  z: ArrayLike,
  codebook: ArrayLike,
  *,
  distance: str = 'euclidean',
  bias: ArrayLike | None = None,
) -> jax.Array:
  r"""Finds the code that is nearest to each vector.

  .. math::
    \operatorname{argmin}_k |z - c_k|^2 - b_k \quad \text{or} \quad
    \operatorname{argmax}_k \frac{z \cdot c_k}{|z| |c_k|} + b_k,

  so that a code of larger bias is chosen more often. Of codes at the same
  distance the first is taken, as `argmin` does. Neither N x K x d nor, beyond
  a block of vectors, N x K numbers are formed. Half precision is searched in
  float32, products are formed in full precision, and the square of neither huge
  nor tiny vectors overflows or vanishes. Where two codes are equally near up to
  rounding, either may come out. No gradient passes.

  Args:
    z: vectors [..., d].
    codebook: codes [K, d].
    distance: 'euclidean' or 'cosine', for which a zero vector or code has the
      cosine 0 with everything.
    bias: [K], in the unit of the squared distance or of the cosine; `None` is
      zero. `update_bias` learns one that balances the codes.

  Returns:
    Indices [...], int32, always in 0..K-1; any one where `z` is not finite.

  Raises:
    ValueError: if a shape does not fit, or for another distance.

  Example:
    >>> codebook = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> z = jnp.array([[0.4, 0.3], [0.9, 0.4]])
    >>> print(nearest_code(z, codebook))
    [0 1]
    >>> print(nearest_code(z, codebook, bias=jnp.array([0.0, 0.0, 0.3])))
    [0 2]
    >>> print(nearest_code(z, codebook, distance='cosine'))
    [2 2]
  """
  require_one_of('distance', distance, DISTANCES)
  require_rank('codebook', codebook, 2)
  codes, dimensions = jnp.shape(codebook)
  require(codes >= 1, 'codebook', (codes, dimensions), 'one code or more')
  require_rank('z', z, 1, at_least=True)
  shape = jnp.shape(z)
  require(
    shape[-1] == dimensions and jnp.size(z) > 0,
    'z',
    shape,
    f'vectors of the {dimensions} dimensions of the codes',
  )
  if bias is not None:
    require_shape('bias', bias, (codes,))
  dtype = jnp.result_type(wide(z), wide(codebook))
  cast = lambda x: lax.stop_gradient(jnp.asarray(x).astype(dtype))
  z, codebook = cast(z).reshape(-1, dimensions), cast(codebook)
  bias = jnp.zeros_like(codebook[:, 0]) if bias is None else cast(bias)
  return _nearest(z, codebook, bias, distance).reshape(shape[:-1])
