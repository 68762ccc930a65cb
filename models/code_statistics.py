r"""Which codes are in use: counts and sums by code, perplexity and usage.

Shapes: `K` codes, `d` dimensions. One scatter-add for counts and sums; on a CPU
core, 4096 vectors of width 64 and 1024 codes, it took 0.08 ms where sorting
first took 0.8 and the product with a one-hot matrix 18.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.typing import ArrayLike

from ..checks import require, require_shape
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, sum_over


def require_count(name: str, value: object) -> None:
  """Checks for a number of codes or of steps."""
  good = isinstance(value, int) and value >= 1
  require(good, name, value, 'an integer of 1 or more')


def _indices(
  indices: ArrayLike, num_codes: int, mask: ArrayLike | None
) -> jax.Array:
  """Indices in a row, those masked out beyond the codes."""
  require_count('num_codes', num_codes)
  indices = jnp.asarray(indices)
  integers = jnp.issubdtype(indices.dtype, jnp.integer)
  require(integers, 'indices', indices.dtype, 'an integer dtype')
  if mask is not None:
    require_shape('mask', mask, indices.shape)
    indices = jnp.where(jnp.asarray(mask, bool), indices, num_codes)
  return indices.reshape(-1)


def code_counts(
  indices: ArrayLike,
  num_codes: int,
  *,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Counts how many vectors chose each code, the load of `update_bias`.

  Args:
    indices: [...] in 0..K-1.
    num_codes: K.
    mask: [...], true where a vector counts; `None`: all.
    axis_name: mapped axis or axes over which the vectors are split.

  Returns:
    Counts [K], int32, of all devices.

  Raises:
    ValueError: for indices that are no integers, or another shape of the mask.

  Example:
    >>> print(code_counts(jnp.array([0, 2, 2]), 4))
    [1 0 2 0]
  """
  indices = _indices(indices, num_codes, mask)
  zeros = jnp.zeros_like(indices, jnp.int32, shape=(num_codes,))
  return sum_over(zeros.at[indices].add(1, mode='drop'), axis_name)


def code_sums(
  z: ArrayLike,
  indices: ArrayLike,
  num_codes: int,
  *,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Adds up the vectors that chose each code, in float32 or better.

  Args:
    z: vectors [..., d]; those masked out may be anything, NaN too.
    indices: see `code_counts`, like the other arguments.
    num_codes: see `code_counts`.
    mask: see `code_counts`.
    axis_name: see `code_counts`.

  Returns:
    Sums [K, d] over all devices.

  Raises:
    ValueError: as `code_counts`, or if there is not one index for each vector.

  Example:
    >>> z = jnp.array([[1.0, 0.0], [2.0, 1.0], [5.0, 5.0]])
    >>> print(code_sums(z, jnp.array([1, 1, 0]), 2))
    [[5. 5.]
     [3. 1.]]
  """
  z = wide(z)
  require_shape('indices', indices, z.shape[:-1])
  indices = _indices(indices, num_codes, mask)
  z = z.reshape(-1, z.shape[-1])
  zeros = jnp.zeros_like(z, shape=(num_codes, z.shape[-1]))
  return sum_over(zeros.at[indices].add(z, mode='drop'), axis_name)


class CodebookMetrics(NamedTuple):
  r"""Perplexity :math:`\exp(-\sum_k p_k \log p_k)`, and usage, scalars.

  The perplexity, 1 to K, is how many codes chosen equally often would have the
  same entropy; the usage, 0 to 1, the fraction of codes chosen at all.

  Example:
    >>> metrics = CodebookMetrics.from_counts(jnp.array([3, 3, 3, 0]))
    >>> print(f'{metrics.perplexity:.2f} {metrics.usage:.2f}')
    3.00 0.75
  """

  perplexity: jax.Array
  usage: jax.Array

  @classmethod
  def from_counts(cls, counts: jax.Array) -> 'CodebookMetrics':
    """Of counts [K]: add those of several batches up, do not average metrics.

    The usage of a whole data set is not that of a batch, which has room for as
    many codes as it has vectors. Without a vector: perplexity 1, usage 0.
    """
    counts = wide(counts)
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    used = jnp.mean(counts > 0, dtype=counts.dtype)
    return cls(jnp.exp(jnp.sum(entr(share))), used)


def codebook_metrics(
  indices: ArrayLike,
  num_codes: int,
  *,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> CodebookMetrics:
  """Measures how evenly the codes of a batch are used.

  With `axis_name` it is the perplexity of all devices' counts together, not the
  mean of perplexities, which is smaller.

  Args:
    indices: see `code_counts`, like the other arguments.
    num_codes: see `code_counts`.
    mask: see `code_counts`.
    axis_name: see `code_counts`.

  Returns:
    `CodebookMetrics` of scalars.

  Raises:
    ValueError: as `code_counts`.

  Example:
    >>> metrics = codebook_metrics(jnp.array([0, 0, 1, 1]), 4)
    >>> print(f'{metrics.perplexity:.2f} {metrics.usage:.2f}')
    2.00 0.50
  """
  return CodebookMetrics.from_counts(
    code_counts(indices, num_codes, mask=mask, axis_name=axis_name)
  )
