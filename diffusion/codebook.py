r"""Codebooks of noise that are never stored: seed, timestep and number say all.

Atom `k` of the codebook of timestep `t` is drawn from a key that is folded from
the seed, the timestep and `k` alone, by threefry, whose bits are the same on
every backend. Hence the order of the steps, the size of a chunk and the number
of atoms do not matter: a codebook of 64 is the first 64 of one of 4096, a
decoder draws the chosen atoms alone, and an encoder goes over all in chunks.

Kinds, by what is drawn for each codebook:

* "gaussian": every atom; `K D` normals.
* "rademacher": every atom, signs :math:`\pm 1`; a sixteenth of the random bits.
* "circulant": one Gaussian vector and signs of entries for every `D` atoms,
  :math:`z_k[j] = \sigma_j g[(j - k) \bmod D]`; all products by an FFT. Without
  the signs the products of a smooth image with neighbouring shifts are all but
  equal, and the best atom is hardly better than any (11 dB on Fashion-MNIST).
* "hadamard": signs of rows and columns of a Hadamard matrix of order
  :math:`n = 2^{\lceil \log_2 D \rceil}` for every `n` atoms,
  :math:`z_k[j] = \rho_k H_{k c_j} \sigma_j`; all products by a Walsh-Hadamard
  transform, exactly orthogonal atoms where `D` is a power of two. Without the
  signs of rows every codebook would hold the same constant column. Columns are
  `D` at random, the same for a seed: on the first `D`, or on a region of an
  image, atoms would correlate (by 0.31 at `D` = 784, and by 0.06 so).

A normal number is one of 2^16 quantiles, looked up by 16 random bits. These are
half the bits of the usual ones and no function that backends round differently,
so that all atoms are the same floats everywhere.

References:
  Ohayon et al., `Compressed Image Generation with Denoising Diffusion Codebook
  Models <https://arxiv.org/abs/2502.01189>`_, 2025;
  Su, `Making diffusion models discrete <https://kexue.fm/archives/10711>`_,
  2025.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_shape

KINDS = ('gaussian', 'rademacher', 'circulant', 'hadamard')

# Atoms drawn at a time: their normals stay in the cache for the product.
_CHUNK = 64
# Purposes of a key besides the kinds, which take 0 to 3.
_START, _ENTRY_SIGNS, _COLUMNS = 4, 5, 6


@functools.cache
def _quantiles() -> np.ndarray:
  """The normal quantiles at the middles of 2^16 cells, of variance 1."""
  middles = (2 * np.arange(2**15) + 1) / 2**17
  lower = np.array([*map(statistics.NormalDist().inv_cdf, middles)])
  every = np.concatenate([lower, -lower[::-1]])
  return (every / np.sqrt(np.mean(every**2))).astype(np.float32)


def _words(key: jax.Array, count: int) -> jax.Array:
  # The other way of drawing bits depends on how many they are.
  with jax.threefry_partitionable(True):
    return jax.random.bits(key, (count,), jnp.uint32)


def _normals(key: jax.Array, count: int) -> jax.Array:
  """Normal numbers by the lower halves of words, then by the upper ones."""
  words = _words(key, -(-count // 2))
  halves = jnp.concatenate([words & 0xFFFF, words >> 16])[:count]
  return jnp.asarray(_quantiles())[halves.astype(jnp.int32)]


def _signs(key: jax.Array, count: int) -> jax.Array:
  """Signs by the bits of words, the lowest first."""
  words = _words(key, -(-count // 32))
  bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
  return 1.0 - 2.0 * bits.reshape(-1)[:count].astype(jnp.float32)


def _hadamard(n: int) -> jax.Array:
  """The matrix of order n = 2^k: signs by the parity of common bits."""
  i = jnp.arange(n)
  common = lax.population_count(i[:, None] & i)
  return 1.0 - 2.0 * (common & 1)


def _transform(x: jax.Array) -> jax.Array:
  """The Walsh-Hadamard transform of [..., n], as two products of matrices."""
  bits = x.shape[-1].bit_length() - 1
  left, right = _hadamard(2 ** (bits // 2)), _hadamard(2 ** (bits - bits // 2))
  square = x.reshape(*x.shape[:-1], len(left), len(right))
  exact = functools.partial(jnp.einsum, precision='highest')
  return exact('ab,...bc,cd->...ad', left, square, right).reshape(x.shape)


def first_largest(x: jax.Array) -> jax.Array:
  """`argmax` over the last axis, int32, by two reductions that are fast.

  >>> print(first_largest(jnp.array([1.0, 3.0, 3.0])))
  1
  """
  is_largest = x == jnp.max(x, axis=-1, keepdims=True)
  last = x.shape[-1] - 1  # Of numbers that are none.
  places = jnp.where(is_largest, jnp.arange(last + 1, dtype=jnp.int32), last)
  return jnp.min(places, axis=-1)


@dataclasses.dataclass(frozen=True)
class Codebook:
  r"""`K` vectors of noise for each timestep, of zero mean and unit variance.

  Hashable, so that it can be a static argument; holds no array.

  Args:
    size: `K`, the number of atoms of a timestep.
    dim: `D`, entries of an atom.
    kind: "gaussian", "rademacher", "circulant" or "hadamard"; see the module.
    seed: 0 .. 2^32 - 1.
    shared: one codebook for all timesteps. It then takes thousands of atoms for
      what a few do otherwise (article 10711).

  Raises:
    ValueError: for sizes below one, an unknown kind, or a seed out of range.

  Example:
    >>> codebook = Codebook(1024, 16)
    >>> atoms = codebook.atoms(jnp.array([3, 900]), t=7)
    >>> print(atoms.shape, codebook.best(5 * atoms, t=7))
    (2, 16) [  3 900]

  References:
    Ohayon et al., `arXiv 2502.01189 <https://arxiv.org/abs/2502.01189>`_,
    2025; Su, `article 10711 <https://kexue.fm/archives/10711>`_, 2025.
  """

  size: int
  dim: int
  kind: str = 'gaussian'
  seed: int = 0
  shared: bool = False

  def __post_init__(self):
    for name in ('size', 'dim'):
      value = getattr(self, name)
      good = isinstance(value, int) and 1 <= value < 2**31
      require(good, name, value, 'an integer in 1 .. 2^31 - 1')
    require_one_of('kind', self.kind, KINDS)
    good = isinstance(self.seed, int) and 0 <= self.seed < 2**32
    require(good, 'seed', self.seed, 'an integer in 0 .. 2^32 - 1')

  def _key(self, purpose: int, t: ArrayLike) -> jax.Array:
    root = jax.random.key(self.seed, impl='threefry2x32')
    t = 0 if self.shared else t
    return jax.random.fold_in(jax.random.fold_in(root, purpose), t)

  def _drawn(self, number: jax.Array, t: ArrayLike) -> jax.Array:
    """What is drawn at random for one number: an atom, or a block of atoms."""
    of = lambda purpose: jax.random.fold_in(self._key(purpose, t), number)
    key = of(KINDS.index(self.kind))
    if self.kind == 'gaussian':
      return _normals(key, self.dim)
    if self.kind == 'rademacher':
      return _signs(key, self.dim)
    if self.kind == 'hadamard':
      return _signs(key, 2 * self._period)
    signs = _signs(of(_ENTRY_SIGNS), self.dim)
    return jnp.concatenate([_normals(key, self.dim), signs])

  @property
  def _period(self) -> int:
    """Atoms that come out of one draw, for the structured kinds."""
    if self.kind == 'circulant':
      return self.dim
    return 1 << (self.dim - 1).bit_length()

  @property
  def _columns(self) -> np.ndarray:
    """The columns [dim] of the Hadamard matrix that atoms have entries of."""
    # Sorted once for each compilation, not in every step.
    with jax.ensure_compile_time_eval():
      words = _words(self._key(_COLUMNS, 0), self._period)
      return np.argsort(words, stable=True)[: self.dim]

  @property
  def _structured(self) -> bool:
    return self.kind in ('circulant', 'hadamard')

  def start(self) -> jax.Array:
    """The vector [dim] all codes of this seed start from; nobody sends it."""
    return _normals(self._key(_START, 0), self.dim)

  def atoms(self, indices: ArrayLike, t: ArrayLike) -> jax.Array:
    """Draws the atoms of given numbers.

    Args:
      indices: integers [...] in 0 .. size - 1.
      t: the timestep, an integer scalar.

    Returns:
      float32 [..., dim].
    """
    indices = jnp.asarray(indices)
    draw = jax.vmap(functools.partial(self._atom, t=t))
    return draw(indices.reshape(-1)).reshape(*indices.shape, self.dim)

  def _atom(self, k: jax.Array, t: ArrayLike) -> jax.Array:
    if not self._structured:
      return self._drawn(k, t)
    block, row = k // self._period, k % self._period
    first, second = jnp.split(self._drawn(block, t), 2)
    if self.kind == 'circulant':
      return jnp.roll(first, row) * second
    common = lax.population_count(row & self._columns.astype(row.dtype))
    entries = 1.0 - 2.0 * (common & 1).astype(jnp.float32)
    return first[row] * entries * second[: self.dim]

  def over_atoms(self, fn: Callable[[jax.Array], Any], t: ArrayLike) -> Any:
    """A function of every atom, a chunk of them at a time.

    Args:
      fn: of atoms [c, dim], to a pytree of [c, ...].
      t: the timestep.

    Returns:
      The pytree, of [size, ...]: an entry for each atom.
    """
    chunk = min(_CHUNK, self.size)
    numbers = jnp.arange(-(-self.size // chunk) * chunk).reshape(-1, chunk)
    parts = lax.map(lambda k: fn(self.atoms(k, t)), numbers)
    join = lambda x: x.reshape(-1, *x.shape[2:])[: self.size]
    return jax.tree.map(join, parts)

  def products(self, vectors: jax.Array, t: ArrayLike) -> jax.Array:
    r"""All inner products :math:`\langle v, z_k \rangle`.

    Args:
      vectors: [N, dim].
      t: the timestep.

    Returns:
      float32 [N, size].

    Raises:
      ValueError: for vectors of another shape.
    """
    require_shape('vectors', vectors, (None, self.dim))
    vectors = jnp.asarray(vectors, jnp.float32)
    if not self._structured:
      product = functools.partial(jnp.matmul, precision='highest')
      return self.over_atoms(lambda z: product(z, vectors.T), t).T
    one = lambda drawn: self._block_products(vectors, drawn)
    blocks = lax.map(one, self._blocks(t))
    return jnp.moveaxis(blocks, 0, 1).reshape(len(vectors), -1)[:, : self.size]

  def _blocks(self, t: ArrayLike) -> jax.Array:
    """What is drawn for every block of a structured codebook, [blocks, n]."""
    count = -(-self.size // self._period)
    return jax.vmap(lambda b: self._drawn(b, t))(jnp.arange(count))

  def _block_products(self, vectors: jax.Array, drawn: jax.Array) -> jax.Array:
    first, second = jnp.split(drawn, 2)
    signed = vectors * second[: self.dim]
    if self.kind == 'circulant':
      spectrum = jnp.conj(jnp.fft.rfft(first)) * jnp.fft.rfft(signed)
      return jnp.fft.irfft(spectrum, self.dim)
    # Columns that are not taken find the zero behind the last entry.
    places = np.full(self._period, self.dim)
    places[self._columns] = np.arange(self.dim)
    padded = jnp.pad(signed, ((0, 0), (0, 1)))[:, places]
    return first * _transform(padded)

  def squares(self, t: ArrayLike) -> jax.Array:
    """The squared norm of every atom, float32 [size]."""
    if self.kind in ('rademacher', 'hadamard'):
      return jnp.full([self.size], float(self.dim))
    square = lambda z: jnp.sum(jnp.square(z), axis=-1)
    if self.kind == 'gaussian':
      return self.over_atoms(square, t)
    normals = self._blocks(t)[:, : self.dim]
    return jnp.repeat(square(normals), self._period)[: self.size]

  def best(self, residual: jax.Array, t: ArrayLike) -> jax.Array:
    """The atom with the largest product, the first one of equals.

    Args:
      residual: [B, dim].
      t: the timestep.

    Returns:
      int32 [B].
    """
    return first_largest(self.products(residual, t))

  def combine(
    self, indices: jax.Array, weights: jax.Array, t: ArrayLike
  ) -> jax.Array:
    r"""Weighted sums of atoms, :math:`\sum_m w_m z_{k_m}`.

    Args:
      indices: integers [B, M].
      weights: [B, M]; an atom of weight 0 may have any index.
      t: the timestep.

    Returns:
      float32 [B, dim].
    """

    def add(total, one):
      index, weight = one
      return total + weight[:, None] * self.atoms(index, t), None

    like = jnp.zeros_like(weights, jnp.float32, shape=(len(weights), self.dim))
    return lax.scan(add, like, (indices.T, weights.T.astype(jnp.float32)))[0]
