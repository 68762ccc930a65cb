r"""A codebook of running averages: initialisation, update, revival.

Shapes: `K` codes, `d` dimensions. The codebook is state, not a parameter: no
gradient reaches it, no optimizer decays it. With the counts `n` and sums `m` of
the vectors that chose each code, over all devices,

.. math::
  N \leftarrow d N + (1 - d) n, \qquad M \leftarrow d M + (1 - d) m, \qquad
  E_k = M_k / \tilde N_k, \quad
  \tilde N_k = \frac{N_k + \epsilon}{\sum N + K \epsilon} \sum N.

Quantise with the old codebook, then update, in training only. All functions
give the same result on every device if they are given the same state and key.

References:
  van den Oord, Vinyals and Kavukcuoglu, `Neural Discrete Representation
  Learning <https://arxiv.org/abs/1711.00937>`_, 2017, appendix A.1;
  Su, `article 10489 <https://kexue.fm/archives/10489>`_, 2024, on why the
  start of the codebook has to fit the vectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName
from .code_statistics import (
  code_counts,
  code_sums,
  require_count,
)
from .k_means import k_means, k_means_start
from .nearest_code import DISTANCES, unit_vectors
from .sample_rows import sample_rows

METHODS = ('kmeans', 'data', 'normal', 'uniform')

_SAMPLES = 32  # Vectors for each code that k-means is run on.
_SMOOTHING = 1e-5


class CodebookState(NamedTuple):
  """Codes [K, d], their running counts [K] in vectors a batch, sums [K, d]."""

  codebook: jax.Array
  counts: jax.Array
  sums: jax.Array


def _rows_of(
  z: ArrayLike,
  mask: ArrayLike | None,
  distance: str,
  state: CodebookState | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Vectors [N, d] as the codebook takes them, and which of them count, [N]."""
  require_one_of('distance', distance, DISTANCES)
  require_rank('z', z, 1, at_least=True)
  if state is not None:
    expected = (*jnp.shape(z)[:-1], state.codebook.shape[1])
    require_shape('z', z, expected)
  if mask is not None:
    require_shape('mask', mask, jnp.shape(z)[:-1])
    mask = jnp.asarray(mask, bool).reshape(-1)
  z = lax.stop_gradient(wide(z))
  z = z.reshape(-1, z.shape[-1])
  z = z if state is None else z.astype(state.codebook.dtype)
  return unit_vectors(z) if distance == 'cosine' else z, mask


def init_codebook(
  z: ArrayLike,
  num_codes: int,
  *,
  key: jax.Array,
  method: str = 'kmeans',
  distance: str = 'euclidean',
  scale: float = 1.0,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> CodebookState:
  r"""Makes a codebook for the vectors of a batch.

  - 'kmeans': ten of Lloyd's iterations from `k_means_start`, on at most 32
    random vectors a code, gathered from all devices;
  - 'data': random vectors of the batch;
  - 'normal': independent of the batch, :math:`\mathcal N(0, 1)`;
  - 'uniform': likewise, :math:`U(-1/K, 1/K)`.

  Article 10489 finds that codes much shorter than the vectors collapse, under
  the rotation trick above all; the first two methods cannot start so.

  Args:
    z: vectors [..., d], finite, such as the first batch of an encoder.
    num_codes: K. If there are fewer vectors, some codes are equal and wait for
      `revive_codes`.
    key: random key, the same on every device.
    method: as above.
    distance: see `nearest_code`; the codes for 'cosine' are unit vectors.
    scale: what the codes are multiplied by, for experiments with unfit ones.
    mask: [...], true where a vector counts; `None`: all; one has to.
    axis_name: mapped axis or axes over which the vectors are split.

  Returns:
    `CodebookState`, float32 or better. The counts of 'kmeans' are those of its
    clusters, in vectors a batch; otherwise each code counts as an average one.

  Raises:
    ValueError: if a shape does not fit or an argument is out of range.

  Example:
    >>> z = jnp.array([[0.0], [2.0], [8.0], [9.0]])
    >>> state = init_codebook(z, 2, key=jax.random.key(0))
    >>> print(state.codebook.ravel().sort(), state.counts)
    [1.  8.5] [2. 2.]
  """
  require_one_of('method', method, METHODS)
  require_count('num_codes', num_codes)
  rows, mask = _rows_of(z, mask, distance)
  sample_key, key = jax.random.split(key)
  shards = 1 if axis_name is None else lax.axis_size(axis_name)
  number = num_codes
  if method == 'kmeans':
    number = min(max(len(rows) * shards, number), _SAMPLES * number)
  sample, available = sample_rows(
    rows, number, key=sample_key, mask=mask, axis_name=axis_name
  )
  shape, dtype = (num_codes, rows.shape[1]), rows.dtype
  counts = jnp.full(num_codes, available / num_codes, dtype)
  if method == 'kmeans':
    once = jnp.arange(number) < available
    codes = k_means_start(sample, num_codes, key=key)
    codes, counts = k_means(sample, codes, distance=distance, mask=once)
    counts = counts.astype(dtype) * jnp.maximum(available / number, 1)
  elif method == 'data':
    codes = sample
  elif method == 'normal':
    codes = jax.random.normal(key, shape, dtype)
  else:
    bound = 1 / num_codes
    codes = jax.random.uniform(key, shape, dtype, -bound, bound)
  codes = scale * (unit_vectors(codes) if distance == 'cosine' else codes)
  return CodebookState(codes, counts, codes * counts[:, None])


def update_codebook(
  state: CodebookState,
  z: ArrayLike,
  indices: ArrayLike,
  *,
  decay: ArrayLike = 0.99,
  distance: str = 'euclidean',
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> CodebookState:
  """Moves the codes towards the vectors that chose them.

  The equations of the module. Deviation: a code that no vector of the batch
  chose stays where it is. Its ratio of sum and count does not change either;
  only the smoothing would in time carry it to zero.

  Args:
    state: from `init_codebook`.
    z: vectors [..., d].
    indices: their codes [...], from `nearest_code` with the old codebook.
    decay: `d`, in [0, 1].
    distance: see `nearest_code`; for 'cosine' vectors and codes become unit
      vectors.
    mask: [...], true where a vector counts; `None`: all.
    axis_name: mapped axis or axes over which the vectors are split.

  Returns:
    The next `CodebookState`.

  Raises:
    ValueError: if a shape does not fit or an argument is out of range.

  Example:
    >>> zeros = jnp.zeros((2, 1))
    >>> state = CodebookState(zeros, zeros[:, 0], zeros)
    >>> z, indices = jnp.array([[3.0], [5.0]]), jnp.array([1, 1])
    >>> state = update_codebook(state, z, indices, decay=0.5)
    >>> print(state.counts, f'{state.codebook[1, 0]:.3f}')
    [0. 1.] 4.000
  """
  if isinstance(decay, int | float):
    require(0 <= decay <= 1, 'decay', decay, 'a number in [0, 1]')
  codes = len(state.codebook)
  rows, mask = _rows_of(z, mask, distance, state)
  require_shape('indices', indices, jnp.shape(z)[:-1])
  indices = jnp.asarray(indices).reshape(-1)
  where = {'mask': mask, 'axis_name': axis_name}
  new = code_counts(indices, codes, **where)
  average = lambda old, x: decay * old + (1 - decay) * x
  counts = average(state.counts, new.astype(state.counts.dtype))
  sums = average(state.sums, code_sums(rows, indices, codes, **where))
  total = jnp.sum(counts)
  smooth = (counts + _SMOOTHING) / (total + codes * _SMOOTHING) * total
  chosen = new > 0
  means = sums / jnp.where(chosen, smooth, 1)[:, None]
  means = unit_vectors(means) if distance == 'cosine' else means
  codebook = jnp.where(chosen[:, None], means, state.codebook)
  return CodebookState(codebook, counts, sums)


def revive_codes(
  state: CodebookState,
  z: ArrayLike,
  *,
  key: jax.Array,
  threshold: ArrayLike,
  distance: str = 'euclidean',
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> CodebookState:
  """Puts codes that are hardly used on random vectors of the batch.

  Dead is a code whose running count is below `threshold`. It gets a vector of
  its own, of all devices' vectors, and the count of an average code, or of
  `threshold` if that is more, with the sum that belongs to it: the next update
  does not carry it back, and it has time to find its vectors. If there are more
  dead codes than vectors, a random subset of them is revived.

  Args:
    state: after `update_codebook`.
    z: vectors [..., d], finite.
    key: random key, the same on every device, another one at every step.
    threshold: in vectors a batch, over all devices; well below the number of
      vectors for each code. 0: nothing is dead.
    distance: see `nearest_code`; for 'cosine' vectors become unit vectors.
    mask: [...], true where a vector may be taken; `None`: all.
    axis_name: mapped axis or axes over which the vectors are split.

  Returns:
    The next `CodebookState`.

  Raises:
    ValueError: if a shape does not fit or the threshold is negative.

  Example:
    >>> codebook = jnp.array([[0.0], [50.0]])
    >>> counts = jnp.array([4.0, 0.0])
    >>> state = CodebookState(codebook, counts, codebook * counts[:, None])
    >>> z = jnp.full((8, 1), 7.0)
    >>> state = revive_codes(state, z, key=jax.random.key(0), threshold=1)
    >>> print(state.codebook.ravel(), state.counts, state.sums.ravel())
    [0. 7.] [4. 2.] [ 0. 14.]
  """
  if isinstance(threshold, int | float):
    require(threshold >= 0, 'threshold', threshold, '0 or more')
  codebook, counts, sums = state
  codes = len(codebook)
  rows, mask = _rows_of(z, mask, distance, state)
  row_key, key = jax.random.split(key)
  rows, available = sample_rows(
    rows, codes, key=row_key, mask=mask, axis_name=axis_name
  )
  dead = counts < threshold
  # The first ranks go to the dead, in random order.
  priority = jnp.where(dead, jax.random.uniform(key, (codes,)), -1)
  _, order = lax.top_k(priority, codes)
  rank = jnp.zeros_like(order).at[order].set(jnp.arange(codes))
  revived = dead & (rank < available)
  count = jnp.maximum(jnp.mean(counts), threshold)
  codebook = jnp.where(revived[:, None], rows[rank], codebook)
  return CodebookState(
    codebook,
    jnp.where(revived, count, counts),
    jnp.where(revived[:, None], count * rows[rank], sums),
  )
