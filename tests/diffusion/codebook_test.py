import functools
import hashlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.diffusion import Codebook
from kexue.diffusion import codebook as module
from kexue.training import data_mesh


@functools.partial(jax.jit, static_argnums=0)
def atoms_of(codebook, k, t):
  return codebook.atoms(k, t)


@functools.partial(jax.jit, static_argnums=0)
def products(codebook, vectors, t):
  return codebook.products(vectors, t)


@functools.partial(jax.jit, static_argnums=0)
def best(codebook, residual, t):
  return codebook.best(residual, t)


KINDS = ('gaussian', 'rademacher', 'circulant', 'hadamard')


def rotated(x, by):
  return ((x << np.uint32(by)) | (x >> np.uint32(32 - by))).astype(np.uint32)


def threefry(key, counts):
  """Threefry-2x32 of Salmon et al., 2011, 20 rounds, in numpy."""
  keys = [*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
  x, y = counts[0] + keys[0], counts[1] + keys[1]
  for block in range(5):
    for by in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
      x = (x + y).astype(np.uint32)
      y = x ^ rotated(y, by)
    x = x + keys[(block + 1) % 3]
    y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
  return x.astype(np.uint32), y.astype(np.uint32)


def folded(key, number):
  x, y = threefry(key, (np.uint32([0]), np.uint32([number])))
  return x[0], y[0]


def random_bits(seed, purpose, t, number, count):
  """The words a decoder in another language would draw."""
  key = (np.uint32(0), np.uint32(seed))
  for data in (purpose, t, number):
    key = folded(key, data)
  counts = np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)
  x, y = threefry(key, counts)
  return x ^ y


def test_gaussian_atoms_are_those_of_a_numpy_threefry():
  words = random_bits(11, 0, 640, 3, 500)
  halves = np.concatenate([words & 0xFFFF, words >> 16])
  table = scipy.special.ndtri((np.arange(2**16) + 0.5) / 2**16)
  expected = table[halves] / table.std()
  atom = atoms_of(Codebook(8, 999, seed=11), 3, 640)
  np.testing.assert_allclose(atom, expected[:999], rtol=2e-7)


def test_quantiles_are_normal():
  table = np.float64(module._quantiles())
  assert table.mean() == 0
  assert table.var() == pytest.approx(1, abs=1e-7)
  assert np.mean(table**4) == pytest.approx(3, abs=2e-3)


def test_rademacher_atoms_are_those_of_a_numpy_threefry():
  words = random_bits(11, 1, 640, 3, 32)
  bits = np.unpackbits(words.view(np.uint8), bitorder='little')
  atom = atoms_of(Codebook(8, 1000, kind='rademacher', seed=11), 3, 640)
  np.testing.assert_array_equal(atom, 1.0 - 2.0 * bits[:1000])


@pytest.mark.parametrize(
  ('kind', 'digest'),
  [
    ('rademacher', '96f38ecc61f9e837'),
    ('hadamard', 'f4c8b1d81dc3ac3a'),
  ],
)
def test_golden_bits(kind, digest):
  codebook = Codebook(100, 48, kind=kind, seed=7)
  atoms = atoms_of(codebook, jnp.arange(100), 12)
  signs = np.asarray(atoms > 0)
  assert hashlib.sha256(np.packbits(signs)).hexdigest()[:16] == digest


@pytest.mark.parametrize(
  ('kind', 'entries'),
  [
    ('gaussian', [-0.272827, -1.858755, 1.518747, -0.732826]),
    ('circulant', [0.678030, -1.105104, 0.730227, -1.418700]),
  ],
)
def test_golden_entries(kind, entries):
  atoms = atoms_of(Codebook(100, 48, kind=kind, seed=7), 61, 12)
  np.testing.assert_allclose(atoms[:4], entries, atol=1e-5)


def test_golden_start():
  start = Codebook(2, 48, kind='hadamard', seed=7).start()
  np.testing.assert_allclose(
    start[:3], [0.712811, -0.042105, 0.217325], atol=1e-5
  )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('size', 'dim'), [(70, 48), (9, 1)])
def test_products_squares_and_sums_are_those_of_the_atoms(kind, size, dim):
  codebook = Codebook(size, dim, kind=kind, seed=3)
  atoms = np.float64(atoms_of(codebook, jnp.arange(size), 5))
  vectors = jax.random.normal(jax.random.key(0), (4, dim))
  found = products(codebook, vectors, 5)
  chex.assert_shape(found, (4, size))
  np.testing.assert_allclose(found, vectors @ atoms.T, atol=2e-5)
  np.testing.assert_allclose(
    jax.jit(codebook.squares)(5), np.square(atoms).sum(1), rtol=1e-6
  )
  indices = jnp.array([[0, size - 1], [size // 2, 0]])
  weights = jnp.array([[0.5, -2.0], [3.0, 0.0]])
  np.testing.assert_allclose(
    jax.jit(codebook.combine)(indices, weights, 5),
    np.einsum('bm,bmd->bd', weights, atoms[np.asarray(indices)]),
    atol=1e-5,
  )


@pytest.mark.parametrize('kind', KINDS)
def test_an_atom_depends_on_its_numbers_alone(kind):
  small = Codebook(64, 40, kind=kind)
  large = Codebook(4096, 40, kind=kind)
  k = jnp.array([[0, 63], [17, 5]])
  expected = small.atoms(k, 9)
  np.testing.assert_array_equal(large.atoms(k, 9), expected)
  np.testing.assert_array_equal(jax.jit(large.atoms)(k, jnp.int32(9)), expected)
  one_by_one = [atoms_of(small, one, 9) for one in k.ravel()]
  np.testing.assert_array_equal(
    jnp.stack(one_by_one).reshape(2, 2, 40), expected
  )
  over_time = jax.jit(jax.vmap(lambda t: small.atoms(k, t)))(jnp.arange(8, 10))
  np.testing.assert_array_equal(over_time[1], expected)
  assert np.abs(over_time[0] - expected).max() > 0.5


@pytest.mark.parametrize('kind', ['gaussian', 'hadamard'])
def test_settings_of_jax_do_not_change_it(kind):
  codebook = Codebook(9, 40, kind=kind)
  draw = lambda: np.asarray(jax.jit(codebook.atoms)(jnp.arange(9), 4))
  expected = draw()
  with jax.threefry_partitionable(False):
    np.testing.assert_array_equal(draw(), expected)
  with jax.default_prng_impl('rbg'):
    np.testing.assert_array_equal(draw(), expected)
  with jax.enable_x64(True):
    np.testing.assert_array_equal(draw(), expected)


def test_seeds_kinds_and_sharing():
  k = jnp.arange(4)
  one = Codebook(4, 32, seed=1)
  assert np.abs(one.atoms(k, 3) - Codebook(4, 32, seed=2).atoms(k, 3)).max() > 1
  shared = Codebook(4, 32, seed=1, shared=True)
  np.testing.assert_array_equal(shared.atoms(k, 3), shared.atoms(k, 800))
  assert np.abs(shared.atoms(k, 3) - one.atoms(k, 3)).max() > 1
  assert np.abs(one.start() - Codebook(4, 32, seed=2).start()).max() > 0.5
  assert hash(one) == hash(Codebook(4, 32, seed=1))


@pytest.mark.parametrize('kind', KINDS)
def test_entries_are_standard_and_codebooks_independent(kind):
  """Over many timesteps, so that shifts and rows count once."""
  dim, times = 48, 300
  codebook = Codebook(5, dim, kind=kind)
  draw = jax.jit(jax.vmap(lambda t: codebook.atoms(jnp.arange(5), t)))
  atoms = np.float64(draw(jnp.arange(1, times + 1)))
  z = np.sqrt(times) * atoms.mean(0)
  assert np.abs(z).max() < 4.5
  between = np.einsum('tkd,tkd->tk', atoms[1:], atoms[:-1]) / np.sqrt(dim)
  assert np.abs(between.mean() * np.sqrt(between.size)) < 4
  assert between.std() == pytest.approx(1, abs=0.12)
  assert np.square(atoms).mean() == pytest.approx(1, abs=0.05)


def test_hadamard_atoms_are_orthogonal_and_no_column_is_constant():
  codebook = Codebook(64, 64, kind='hadamard')
  atoms = np.asarray(atoms_of(codebook, jnp.arange(64), 2))
  np.testing.assert_array_equal(atoms @ atoms.T, 64 * np.eye(64))
  assert np.abs(atoms.sum(0)).max() < 64


def test_circulant_atoms_are_signed_shifts():
  codebook = Codebook(40, 19, kind='circulant')
  atoms = np.asarray(atoms_of(codebook, np.arange(40), 2))
  sizes, signs = np.abs(atoms), np.sign(atoms)
  np.testing.assert_array_equal(sizes[3], np.roll(sizes[0], 3))
  np.testing.assert_array_equal(sizes[25], np.roll(sizes[19], 6))
  assert np.abs(sizes[19] - sizes[0]).max() > 0.1
  # The product with the signs of entries is a shift itself.
  entries = module._signs(
    jax.random.fold_in(codebook._key(module._ENTRY_SIGNS, 2), 0), 19
  )
  shifts = signs[:19] * entries
  np.testing.assert_array_equal(shifts[7], np.roll(shifts[0], 7))
  assert np.abs(np.sum(entries)) < 19


@pytest.mark.parametrize('kind', KINDS)
def test_a_smooth_image_tells_neighbours_apart(kind):
  """Else all but a few of the products are as good as one."""
  codebook = Codebook(32, 128, kind=kind)
  smooth = 2 * np.cos(np.arange(128) / 60)[None]
  every = jax.jit(jax.vmap(lambda t: codebook.products(smooth, t)[0]))
  correlation = np.corrcoef(np.float64(every(np.arange(200))).T)
  np.fill_diagonal(correlation, 0)
  assert np.abs(correlation).max() < 0.35  # Five deviations; shifts have 1.


def test_hadamard_atoms_of_other_sizes_are_all_but_orthogonal():
  codebook = Codebook(256, 196, kind='hadamard')
  atoms = np.asarray(atoms_of(codebook, np.arange(256), 2))
  correlation = atoms @ atoms.T / 196 - np.eye(256)
  assert np.abs(correlation).max() < 0.16  # 0.31 for the first columns.


@pytest.mark.parametrize('kind', ['gaussian', 'hadamard'])
def test_the_chunk_does_not_matter(kind, monkeypatch):
  codebook = Codebook(70, 48, kind=kind)
  residual = jax.random.normal(jax.random.key(1), (6, 48))
  expected = products(codebook, residual, 3)
  monkeypatch.setattr(module, '_CHUNK', 7)  # Of 64.
  found = jax.jit(lambda r: codebook.products(r, 3))(residual)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  alone = [best(codebook, r[None], 3)[0] for r in residual]
  np.testing.assert_array_equal(best(codebook, residual, 3), alone)


def test_best_takes_the_first_of_equals():
  # One dimension of signs: half of the atoms tie.
  codebook = Codebook(40, 1, kind='rademacher')
  signs = np.asarray(atoms_of(codebook, jnp.arange(40), 1))[:, 0]
  found = best(codebook, jnp.array([[2.0], [-1.0]]), 1)
  assert found.tolist() == [np.argmax(signs), np.argmin(signs)]
  assert found.dtype == jnp.int32


@settings(max_examples=2, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_atom_finds_itself(kind, size, seed):
  codebook = Codebook(size, 37, kind=kind, seed=seed)
  atoms = np.asarray(atoms_of(codebook, jnp.arange(size), 1000))
  lengths = np.linalg.norm(atoms, axis=1, keepdims=True)
  found = products(codebook, atoms / lengths, 1000) / lengths.T
  np.testing.assert_array_equal(np.argmax(found, 1), np.arange(size))


def test_huge_and_tiny_residuals():
  codebook = Codebook(64, 48)
  residual = jax.random.normal(jax.random.key(1), (6, 48))
  expected = best(codebook, residual, 3)
  for scale in (1e-30, 1e30):
    found = best(codebook, scale * residual, 3)
    np.testing.assert_array_equal(found, expected)
  half = products(codebook, residual.astype(jnp.bfloat16), 3)
  assert half.dtype == jnp.float32
  assert best(codebook, jnp.zeros((6, 48)), 3).tolist() == [0] * 6


@pytest.mark.parametrize('kind', ['gaussian', 'circulant'])
def test_one_device_and_eight(kind):
  codebook = Codebook(40, 24, kind=kind)
  residual = jax.random.normal(jax.random.key(1), (8, 24))

  def both(r):
    index = codebook.best(r, 3)
    return index, codebook.combine(index[:, None], r[:, :1], 3)

  expected = jax.jit(both)(residual)
  mesh = data_mesh()
  spec = P('data')
  each = jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec)
  sharded = jax.jit(each)(residual)
  chex.assert_trees_all_close(sharded, expected, atol=1e-6)
  mapped = jax.pmap(both)(residual[:, None])
  flat = jax.tree.map(lambda x: x[:, 0], mapped)
  chex.assert_trees_all_close(flat, expected, atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    (dict(size=0), 'size'),
    (dict(size=2.0), 'size'),
    (dict(dim=0), 'dim'),
    (dict(kind='uniform'), 'kind'),
    (dict(seed=-1), 'seed'),
    (dict(seed=2**32), 'seed'),
  ],
)
def test_refuses(options, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    Codebook(**dict(size=4, dim=4) | options)


def test_refuses_vectors_of_another_size():
  with pytest.raises(ValueError, match='^vectors: got shape'):
    Codebook(4, 4).products(jnp.ones((2, 5)), 1)


def test_first_largest_is_argmax():
  x = jax.random.randint(jax.random.key(0), (50, 9), 0, 4).astype(jnp.float32)
  np.testing.assert_array_equal(module.first_largest(x), jnp.argmax(x, -1))
  assert module.first_largest(jnp.full([1, 9], jnp.nan)).tolist() == [8]
