r"""Finite scalar quantisation: each dimension rounded to a few levels.

No codebook, hence none that collapses: `d` dimensions with :math:`L_i` levels
give :math:`\prod_i L_i` codes, the points of one grid in [-1, 1]^d. With
:math:`h = (L - 1)(1 + 10^{-3}) / 2`, and :math:`o = 1/2` for even `L`, else 0,

.. math::
  b = h \tanh(z + \operatorname{atanh}(o / h)) - o, \qquad
  code = \operatorname{round}(b) / \lfloor L / 2 \rfloor,

with the gradient of `b`. An even `L` has one level more below zero than above.
The symmetric variant has as many, and none at zero,

.. math::
  b = (L - 1) (\tanh z + 1) / 2, \qquad
  code = 2 \operatorname{round}(b) / (L - 1) - 1;

for odd `L` both have the same grid. Either way a code is a number of digits `k`
in 0..L-1 that stand at :math:`(k - centre) \cdot step`.

References:
  Mentzer et al., `Finite Scalar Quantization: VQ-VAE Made Simple
  <https://arxiv.org/abs/2309.15505>`_, 2023;
  Su, `Embarrassingly simple FSQ: rounding beats VQ-VAE
  <https://kexue.fm/archives/9826>`_, 2023.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require, require_rank
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName
from .code_statistics import (
  codebook_metrics,
)
from .gradient_estimators import straight_through
from .quantized import Quantized, checked_vectors

# Table 1 of the paper: levels for about so many codes.
FSQ_LEVELS = {
  2**8: (8, 6, 5),
  2**10: (8, 5, 5, 5),
  2**12: (7, 5, 5, 5, 5),
  2**14: (8, 8, 8, 6, 5),
  2**16: (8, 8, 8, 5, 5, 5),
}


class _Grid(NamedTuple):
  """Of every dimension: levels, and what the two variants differ in, [d]."""

  levels: np.ndarray
  centre: np.ndarray
  step: np.ndarray
  half: np.ndarray
  offset: np.ndarray


def _grid(levels: Sequence[int], symmetric: bool) -> _Grid:
  least = 2 if symmetric else 3
  good = len(levels) >= 1 and all(
    isinstance(level, int) and level >= least for level in levels
  )
  also = '' if symmetric else ' (two levels need symmetric=True)'
  expected = f'integers of {least} or more{also}'
  require(good, 'levels', tuple(levels), expected)
  count = math.prod(levels)
  require(count < 2**31, 'levels', tuple(levels), 'fewer than 2^31 codes')
  size = np.array(levels, np.int32)
  if symmetric:
    half = (size - 1) / 2
    return _Grid(size, half, 1 / half, half, np.zeros(len(size)))
  half = (size - 1) * (1 + 1e-3) / 2
  offset = np.where(size % 2 == 0, 0.5, 0.0)
  return _Grid(size, size // 2, 1 / (size // 2), half, offset)


def _require_vectors(name: str, x: jax.Array, grid: _Grid) -> None:
  require_rank(name, x, 1, at_least=True)
  good = jnp.issubdtype(x.dtype, jnp.floating)
  require(good, name, x.dtype.name, 'a floating dtype')
  dim = len(grid.levels)
  expected = f'a last axis of {dim}, an entry for each of the levels'
  require(x.shape[-1] == dim, name, x.shape, expected)


def _codes_of(digits: jax.Array, grid: _Grid) -> jax.Array:
  """One product, rounded once: the same bits wherever it is computed."""
  return (digits - grid.centre.astype(digits.dtype)) * grid.step.astype(
    digits.dtype
  )


def _place_values(grid: _Grid) -> np.ndarray:
  """The first digit counts ones, the second as many as the first has levels."""
  return np.cumprod([1, *grid.levels[:-1]], dtype=np.int32)


def fsq_quantize(
  z: ArrayLike, levels: Sequence[int], *, symmetric: bool = False
) -> jax.Array:
  r"""Squeezes each dimension by a tanh and rounds it to its levels.

  Deviations: the paper's notebook writes `tan` for the inverse of tanh and
  :math:`1 - 10^{-3}` for the factor of `h`; here zero goes to zero exactly and
  the outermost levels can be reached. Halves are rounded upwards. Two levels
  are refused unless symmetric: their shift, atanh(0.999), sits where tanh has
  slope 0.002 and nothing trains.

  Args:
    z: [..., d], any reals; half precision is computed in float32.
    levels: `d` integers, 3 or more, or 2 if symmetric; 5 or more are advised.
      `FSQ_LEVELS` has the paper's choices by number of codes.
    symmetric: the variant with levels at :math:`\pm 1`.

  Returns:
    Codes [..., d] in [-1, 1] in the dtype of `z`, with the gradient of the
    squeezed value before rounding.

  Raises:
    ValueError: for levels that are too few or not integers, 2^31 codes or more,
      or a `z` whose last axis or dtype does not fit.

  Example:
    >>> print(fsq_quantize(jnp.array([-9.0, 0.2, 9.0]), (5, 5, 4)))
    [-1.   0.   0.5]
    >>> print(fsq_quantize(jnp.array([-9.0, 0.2]), (2, 2), symmetric=True))
    [-1.  1.]

  References:
    Mentzer et al., `arXiv 2309.15505 <https://arxiv.org/abs/2309.15505>`_,
    2023; Su, `article 9826 <https://kexue.fm/archives/9826>`_, 2023.
  """
  z, grid = jnp.asarray(z), _grid(levels, symmetric)
  _require_vectors('z', z, grid)
  x = wide(z)
  shift, half, lift = (
    constant.astype(x.dtype)
    for constant in (
      np.arctanh(grid.offset / grid.half),
      grid.half,
      grid.centre - grid.offset,
    )
  )
  squeezed = jnp.tanh(x + shift) * half + lift
  # Above 1000 levels the margin of 1e-3 is wider than half a level.
  digits = jnp.clip(jnp.floor(squeezed + 0.5), 0, grid.levels - 1)
  codes = _codes_of(straight_through(squeezed, digits), grid)
  return codes.astype(z.dtype)


def fsq_indices(
  codes: ArrayLike, levels: Sequence[int], *, symmetric: bool = False
) -> jax.Array:
  r"""The number of each code, :math:`\sum_i k_i \prod_{j < i} L_j`.

  Exact in integers: in bfloat16, which has 8 bits, the products of the usual
  formula give numbers that no code has.

  Args:
    codes: [..., d], of `fsq_quantize`; any dtype that tells the levels apart,
      bfloat16 up to 500 of them.
    levels: as they were quantised.
    symmetric: likewise.

  Returns:
    int32 [...] in 0 .. prod(levels) - 1.

  Raises:
    ValueError: see `fsq_quantize`.

  Example:
    >>> codes = fsq_quantize(jnp.array([[9.0, 9.0], [0.0, 0.0]]), (8, 5))
    >>> print(fsq_indices(codes, (8, 5)))
    [39 20]
  """
  codes, grid = jnp.asarray(codes), _grid(levels, symmetric)
  _require_vectors('codes', codes, grid)
  x = wide(codes)
  digits = jnp.round(
    x / grid.step.astype(x.dtype) + grid.centre.astype(x.dtype)
  ).astype(jnp.int32)
  return jnp.sum(digits * _place_values(grid), axis=-1)


def fsq_codes(
  indices: ArrayLike,
  levels: Sequence[int],
  *,
  symmetric: bool = False,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
  """The codes of given numbers, the inverse of `fsq_indices`.

  Args:
    indices: integers [...] in 0 .. prod(levels) - 1.
    levels: as they were quantised.
    symmetric: likewise.
    dtype: of the codes.

  Returns:
    Codes [..., d], bit for bit those of `fsq_quantize` for `z` of this dtype.

  Raises:
    ValueError: for indices that are no integers, and see `fsq_quantize`.

  Example:
    >>> print(fsq_codes(jnp.array([39, 20]), (8, 5)))
    [[0.75 1.  ]
     [0.   0.  ]]
  """
  indices, grid = jnp.asarray(indices), _grid(levels, symmetric)
  good = jnp.issubdtype(indices.dtype, jnp.integer)
  require(good, 'indices', indices.dtype.name, 'an integer dtype')
  digits = indices[..., None] // _place_values(grid) % grid.levels
  digits = wide(digits.astype(dtype))
  return _codes_of(digits, grid).astype(dtype)


class FiniteScalarQuantizer(nn.Module):
  """Each dimension rounded to its levels, `fsq_quantize`: nothing to train.

  Args:
    levels: number of levels of each of the d dimensions; `FSQ_LEVELS`.
    symmetric: see `fsq_quantize`.
    axis_name: mapped axis or axes over which the batch is split.

  Example:
    >>> layer = FiniteScalarQuantizer((8, 5))
    >>> out = layer.apply({}, jnp.array([[9.0, 0.0]]))
    >>> print(out.quantized, out.indices, layer.num_codes)
    [[0.75 0.  ]] [23] 40
  """

  levels: tuple[int, ...]
  symmetric: bool = False
  axis_name: AxisName | None = None

  @property
  def num_codes(self) -> int:
    """The number of codes, the product of the levels."""
    return math.prod(self.levels)

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> Quantized:
    """Quantises vectors [..., d]; see `VectorQuantizer.__call__`."""
    del train
    codes = fsq_quantize(
      checked_vectors(x, mask), self.levels, symmetric=self.symmetric
    )
    indices = fsq_indices(codes, self.levels, symmetric=self.symmetric)
    metrics = codebook_metrics(
      indices,
      self.num_codes,
      mask=mask,
      axis_name=None if self.is_initializing() else self.axis_name,
    )
    return Quantized(codes, indices, {}, metrics._asdict())

  def encode(self, x: jax.Array) -> jax.Array:
    """The indices [...] of vectors [..., d]."""
    return self(x).indices

  def decode_indices(self, indices: jax.Array) -> jax.Array:
    """The codes [..., d] of indices [...]."""
    return fsq_codes(indices, self.levels, symmetric=self.symmetric)
