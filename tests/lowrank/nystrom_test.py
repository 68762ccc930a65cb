"""Nystrom's approximation against C W^+ C^H in double precision."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import nystrom, nystrom_factor

SIZE, RANK = 12, 5


def matrix(rank=SIZE, *, seed=0, decay=1.0, batch=(), dtype=np.float64):
  """A positive semidefinite matrix with eigenvalues decay^j, near one."""
  rng = np.random.default_rng(seed)
  b = rng.normal(size=(*batch, SIZE, rank))
  if np.issubdtype(dtype, np.complexfloating):
    b = b + 1j * rng.normal(size=b.shape)
  b = np.linalg.qr(b)[0] * decay ** (np.arange(rank) / 2)
  return (b @ b.swapaxes(-1, -2).conj()).astype(dtype)


def reference(a, indices):
  """C W^+ C^H as it is written, in double precision."""
  a = np.asarray(a, np.promote_types(a.dtype, np.float64))
  c = a[:, indices]
  core = np.linalg.pinv(c[indices], rcond=1e-10, hermitian=True)
  return c @ core @ c.conj().T


def product(factor):
  factor = np.asarray(factor)
  wide = np.promote_types(factor.dtype, np.float64)
  factor = factor.astype(wide)
  return factor @ factor.swapaxes(-1, -2).conj()


@pytest.mark.parametrize('dtype', [np.float64, np.complex128])
def test_it_is_the_formula_and_leaves_a_positive_rest(dtype):
  a, chosen = matrix(dtype=dtype, decay=0.5), np.array([7, 0, 3])
  with jax.enable_x64(True):
    found = nystrom(a, chosen)
    error = float(found.error)
  assert found.factor.dtype == dtype and found.residual.dtype == np.float64
  approximation = product(found.factor)
  np.testing.assert_allclose(approximation, reference(a, chosen), atol=1e-13)
  rest = a - approximation
  assert np.linalg.eigvalsh(rest)[0] > -1e-14
  np.testing.assert_allclose(found.residual, np.diag(rest).real, atol=1e-14)
  nuclear = np.linalg.norm(rest, 'nuc')
  np.testing.assert_allclose(error, nuclear, rtol=1e-12)
  # Rows and columns of landmarks are those of the matrix.
  np.testing.assert_allclose(rest[chosen], 0, atol=1e-14)
  # The factor is the one whose rows at the landmarks are Hermitian.
  root = np.asarray(found.factor)[chosen]
  np.testing.assert_allclose(root, root.conj().T, atol=1e-13)
  assert np.linalg.eigvalsh(root)[0] > 0


@pytest.mark.parametrize('dtype', [np.float32, np.complex64])
def test_exact_if_the_landmarks_have_the_rank(dtype):
  a = matrix(3, dtype=dtype)
  for chosen in ([1, 4, 6], [1, 4, 6, 8, 11], [1, 4, 6, 1, 6]):
    found = nystrom(a, jnp.array(chosen))
    np.testing.assert_allclose(product(found.factor), a, atol=2e-5)
    assert float(found.error) < 2e-5


@hypothesis.settings(deadline=None, max_examples=12, derandomize=True)
@hypothesis.given(
  seed=st.integers(0, 2**31),
  rank=st.integers(1, SIZE),
  decay=st.sampled_from([1.0, 0.3, 0.03]),
  size=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)
def test_whatever_the_spectrum_and_scale(seed, rank, decay, size):
  a = matrix(rank, seed=seed, decay=decay)
  a32 = np.float32(size) * a.astype(np.float32)
  chosen = np.random.default_rng(seed).choice(SIZE, RANK)
  found = jax.device_get(nystrom(a32, chosen))
  assert all(np.isfinite(x).all() for x in found)
  assert found.residual.min() >= 0
  rest = np.float64(a32) - product(found.factor)
  # Psd up to rounding; and no landmark makes it worse than nothing.
  largest = np.linalg.norm(np.float64(a32), 2)
  assert np.linalg.eigvalsh(rest)[0] >= -3e-6 * largest
  assert np.linalg.norm(rest, 2) <= 1.0001 * largest
  # As the exact one with the directions above the cut, and not much beyond.
  if size == 1:
    exact = a - reference(a, chosen)
    cut = RANK * np.finfo(np.float32).eps
    slack = 1e-5 + 2 * np.sqrt(cut)
    assert np.linalg.norm(rest, 2) <= np.linalg.norm(exact, 2) + slack


def test_small_eigenvalues_are_not_lost():
  """Where an inverse multiplied out is off by more than the truncation."""
  x = np.linspace(-1, 1, 200)[:, None]
  a = np.exp(-2 * (x - x.T) ** 2)
  chosen = np.arange(5, 200, 10)
  found = nystrom_factor(a[:, chosen].astype(np.float32), chosen)
  assert np.linalg.norm(a - product(found), 2) < 1e-5 * np.linalg.norm(a, 2)
  np.testing.assert_array_equal(found, nystrom(np.float32(a), chosen).factor)


def test_a_matrix_that_is_not_positive_gives_finite_numbers():
  a = -np.eye(4, dtype=np.float32)
  found = nystrom(a, jnp.array([0, 2]))
  np.testing.assert_array_equal(found.factor, 0)
  a = np.diag(np.float32([1, -1e-3, 2, 3]))
  found = nystrom(a, jnp.array([0, 1]))
  np.testing.assert_allclose(product(found.factor), np.diag([1, 0, 0, 0]))


def test_rtol_is_relative_to_the_largest_eigenvalue():
  a = np.diag(np.float32([1.0, 0.1, 0.01, 1.0])) * 1e6
  kept = lambda rtol: np.diag(
    product(nystrom(a, jnp.array([0, 1, 2]), rtol=rtol).factor)
  )
  np.testing.assert_allclose(kept(None), [1e6, 1e5, 1e4, 0], rtol=1e-6)
  np.testing.assert_allclose(kept(0.05), [1e6, 1e5, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(kept(0.5), [1e6, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.int32])
def test_narrow_types_are_computed_in_float32(dtype):
  a = jnp.array([[4, 2, 0], [2, 1, 0], [0, 0, 1]], dtype)
  found = nystrom(a, jnp.array([0]))
  assert found.factor.dtype == found.residual.dtype == jnp.float32
  np.testing.assert_allclose(found.factor[:, 0], [2, 1, 0], rtol=1e-6)


def test_jit_vmap_and_shard_map_agree():
  a = matrix(batch=(8,), decay=0.5, dtype=np.float32)
  rng = np.random.default_rng(0)
  chosen = jnp.array([rng.permutation(SIZE)[:RANK] for _ in range(8)])
  single = jax.jit(nystrom)
  expected = [single(x, i) for x, i in zip(a, chosen, strict=True)]
  expected = jax.tree.map(lambda *x: np.stack(x), *expected)
  mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))
  spread = jax.shard_map(
    nystrom, mesh=mesh, in_specs=P('x'), out_specs=P('x'), check_vma=True
  )
  for form in (nystrom, jax.jit(jax.vmap(nystrom)), jax.jit(spread)):
    for x, y in zip(form(a, chosen), expected, strict=True):
      np.testing.assert_allclose(x, y, atol=1e-5)
  shared = nystrom(a, chosen[0]).factor[3]
  np.testing.assert_allclose(shared, nystrom(a[3], chosen[0]).factor, atol=1e-5)


@pytest.mark.parametrize('rank', [RANK + 1, 3])
def test_derivative_at_full_and_deficient_rank(rank):
  """Along matrices B B^T of one rank: central differences of a projection."""
  rng = np.random.default_rng(1)
  b, db, probe = (rng.normal(size=(SIZE, n)) for n in (rank, rank, RANK))
  chosen = np.arange(RANK)

  @jax.jit
  def value(t):
    moved = b + t * db
    return jnp.sum(probe * nystrom(moved @ moved.T, chosen).factor)

  with jax.enable_x64(True):
    step = 1e-5
    expected = (value(step) - value(-step)) / (2 * step)
    slope = jax.jit(jax.grad(value))(0.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_derivative_of_the_product_at_repeated_eigenvalues():
  chosen = np.array([0, 1, 2])

  def corner(a):
    f = nystrom(a, chosen).factor
    return (f @ f.T)[3, 3]  # a[3, :3] a[:3, :3]^-1 a[:3, 3].

  a = np.eye(4, dtype=np.float32)
  a[3, :3] = a[:3, 3] = 0.5
  slope = jax.jit(jax.grad(corner))
  gradient = slope(a)
  expected = np.zeros((4, 4))
  expected[3, :3] = 1.0  # Only columns are read.
  expected[:3, :3] = -0.25
  np.testing.assert_allclose(gradient, expected, atol=1e-6)
  zero = slope(0 * a)
  assert np.isfinite(zero).all()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(a=np.ones(3)), 'a: got shape'),
    (dict(a=np.ones((3, 4))), 'a: got shape'),
    (dict(a=np.ones((0, 0))), 'a: got'),
    (dict(indices=np.array([0.5])), 'indices: got dtype'),
    (dict(indices=np.array([], int)), 'indices: got'),
    (dict(indices=np.array(0)), 'indices: got shape'),
    (dict(indices=np.zeros((2, 1), int)), 'indices: got shape'),
    (dict(rtol=-1.0), 'rtol: got -1.0, expected 0 or more'),
  ],
)
def test_what_cannot_be_is_refused(change, message):
  good = dict(a=np.eye(3, dtype=np.float32), indices=np.array([0]))
  with pytest.raises(ValueError, match=message):
    functools.partial(nystrom, **good)(**change)


def test_columns_must_be_as_many_as_indices():
  with pytest.raises(ValueError, match='columns: got shape'):
    nystrom_factor(np.ones((4, 2), np.float32), np.array([0]))
