"""Interpolative decompositions: least squares, bounds, and what SciPy fails."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.linalg.interpolative
from hypothesis import strategies as st

from kexue.lowrank.interpolation_bound import interpolation_bound
from kexue.lowrank.interpolative import METHODS, Interpolative, interpolative

M, N, RANK = 24, 18, 6


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def problem(kind='gaussian', *, seed=0, dtype=np.complex128):
  """24 x 18, of one of several kinds."""
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(M, N))
  if np.issubdtype(dtype, np.complexfloating):
    a = a + 1j * rng.normal(size=(M, N))
  u, s, vh = np.linalg.svd(a, full_matrices=False)
  a = {
    'gaussian': a,
    'fast': (u * np.logspace(0, -8, N)) @ vh,
    'slow': (u / np.arange(1, N + 1)) @ vh,
    'low rank': (u[:, :4] * s[:4]) @ vh[:4],
    'alike': a[:, rng.integers(0, 8, N)] + 1e-4 * a,
    'sparse': a * (rng.random((M, N)) < 0.15),
    'graded': a * 10.0 ** rng.uniform(-3, 3, N),
  }[kind]
  return a.astype(dtype)


def least_squares(a, indices):
  return np.linalg.lstsq(a[:, np.asarray(indices)], a, rcond=1e-12)[0]


@pytest.mark.parametrize('method', METHODS)
@hypothesis.settings(deadline=None, max_examples=15, derandomize=True)
@hypothesis.given(
  kind=st.sampled_from(['gaussian', 'fast', 'slow', 'alike', 'graded']),
  seed=st.integers(0, 999),
)
def test_the_coefficients_are_of_least_squares(method, kind, seed):
  a = problem(kind, seed=seed)
  result = interpolative(a, RANK, method=method)
  indices, z = map(np.asarray, result)
  assert len(set(indices)) == RANK and z.dtype == a.dtype
  np.testing.assert_array_equal(z[:, indices], np.eye(RANK))
  np.testing.assert_allclose(result.max_coefficient, np.abs(z).max())
  sizes = np.linalg.norm(a, axis=0)
  approximation = a[:, indices] @ z
  best = a[:, indices] @ least_squares(a, indices)
  np.testing.assert_allclose(approximation / sizes, best / sizes, atol=1e-8)
  bound = interpolation_bound(
    M, N, RANK, np.linalg.svd(a, compute_uv=False), threshold=1.05
  )
  slack = 1e-10 * np.linalg.norm(a)
  error = a - approximation
  if method == 'osinsky':  # Sketched, with next to no room to lose.
    assert np.linalg.norm(error) <= bound.frobenius * 1.1 + slack
  if method == 'strong_rrqr':
    assert np.linalg.norm(error, 2) <= bound.spectral + slack
    assert float(result.max_coefficient) <= 1.05 + 1e-9
  if method == 'pivoted_qr':
    assert np.linalg.norm(error, 2) <= bound.pivoted + slack
    assert float(result.max_coefficient) <= 2 ** (RANK - 1)


def test_scipy_has_the_same_pivots():
  a = problem('slow')
  order, projection = scipy.linalg.interpolative.interp_decomp(
    a, RANK, rand=False
  )
  indices, z = interpolative(a, RANK, method='pivoted_qr')
  np.testing.assert_array_equal(indices, order[:RANK])
  np.testing.assert_allclose(z[:, order[RANK:]], projection, atol=1e-12)
  _, r, pivots = scipy.linalg.qr(a, pivoting=True)
  expected = np.linalg.solve(r[:RANK, :RANK], r[:RANK, RANK:])
  np.testing.assert_allclose(z[:, pivots[RANK:]], expected, atol=1e-12)


def test_hilbert():
  """Numerical rank 18 at 1e-12, of columns alike to most digits."""
  a = scipy.linalg.hilbert(200)
  indices, z = result = interpolative(a, 18)
  error = np.linalg.norm(a - a[:, indices] @ z)
  assert error <= 3e-12 * np.linalg.norm(a)
  assert float(result.max_coefficient) <= 10


def test_kahan():
  n = 90
  s, c = np.sin(1.2), np.cos(1.2)
  a = np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
  a = a + 25 * np.finfo(float).eps * np.diag(np.arange(n, 0.0, -1.0))
  optimum = np.linalg.svd(a, compute_uv=False)[-1]
  indices, z = interpolative(a, n - 1)
  error = np.linalg.norm(a - a[:, indices] @ z)
  assert error <= np.sqrt(1 + n - 1) * optimum


def test_osinsky_has_less_error_where_values_fall_fast():
  ratio = []
  for seed in range(12):
    a = problem('fast', seed=seed)
    errors = {}
    for method in ('osinsky', 'pivoted_qr'):
      indices, z = interpolative(a, RANK, method=method)
      errors[method] = np.linalg.norm(a - a[:, indices] @ z)
    ratio.append(errors['osinsky'] / errors['pivoted_qr'])
  assert np.exp(np.mean(np.log(ratio))) < 0.9


@pytest.mark.parametrize('method', METHODS)
def test_rows_are_the_columns_of_the_transpose(method):
  a = problem()
  columns = interpolative(a, RANK, method=method)
  rows = interpolative(np.ascontiguousarray(a.T), RANK, method=method, axis=0)
  assert rows.coefficients.shape == (N, RANK)
  np.testing.assert_array_equal(rows.indices, columns.indices)
  np.testing.assert_allclose(
    rows.coefficients, columns.coefficients.T, atol=1e-12
  )
  assert float(rows.max_coefficient) >= 1


@pytest.mark.parametrize('method', METHODS)
def test_degenerate_matrices(method):
  """SciPy: NaN for zeros; here what is past the rank has no say."""
  for a, exact in (
    (np.zeros((M, N)), True),
    (np.full((M, N), -3.0), True),
    (problem('low rank'), True),
    (problem()[:, np.arange(N) % 5], True),
    (problem() * np.r_[1e9, np.ones(N - 1)], False),
  ):
    a = a.astype(complex)
    result = interpolative(a, RANK, method=method)
    indices, z = map(np.asarray, result)
    assert len(set(indices)) == RANK and np.isfinite(z).all()
    np.testing.assert_array_equal(z[:, indices], np.eye(RANK))
    if exact:
      np.testing.assert_allclose(a[:, indices] @ z, a, atol=1e-12)


def test_lines_and_full_rank():
  row = np.array([[1.0, -4.0, 2.0]])
  square = problem(dtype=np.float64)[:4, :4]
  for method, a in (
    ('strong_rrqr', row),
    ('osinsky', row.T),
    ('osinsky', square),
  ):
    indices, z = interpolative(a, min(a.shape), method=method)
    np.testing.assert_allclose(a[:, indices] @ z, a, atol=1e-15)


def test_types_and_scales():
  a = problem('slow', dtype=np.float32)
  plain = interpolative(a, RANK)
  assert plain.coefficients.dtype == jnp.float32
  assert plain.indices.dtype == jnp.int32
  for scale in (2.0**-100, 2.0**100):  # About 1e30, and exact.
    scaled = interpolative(a * np.float32(scale), RANK)
    np.testing.assert_array_equal(scaled.indices, plain.indices)
    np.testing.assert_allclose(
      scaled.coefficients, plain.coefficients, atol=1e-5
    )
  for dtype in (jnp.bfloat16, jnp.int32):
    narrow = jnp.asarray(a * 50, dtype)
    result = interpolative(narrow, RANK)
    assert result.coefficients.dtype == jnp.float32
    wide = interpolative(narrow.astype(jnp.float32), RANK)
    np.testing.assert_array_equal(result.coefficients, wide.coefficients)


def test_keys_batches_and_devices():
  a = np.stack([problem('slow', seed=seed) for seed in range(8)])
  key = jax.random.key(3)
  run = functools.partial(interpolative, rank=RANK, key=key)
  mesh = jax.make_mesh((4,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  mapped = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
  batched = jax.jit(mapped)(a)  # Two to a device.
  assert batched.max_coefficient.shape == (8,)
  for i in range(8):
    alone = run(a[i])
    assert isinstance(alone, Interpolative)
    np.testing.assert_array_equal(batched.indices[i], alone.indices)
    np.testing.assert_allclose(
      batched.coefficients[i], alone.coefficients, atol=1e-10
    )
  default = interpolative(a[0], RANK)
  same = interpolative(a[0], RANK, key=jax.random.key(0))
  np.testing.assert_array_equal(default.coefficients, same.coefficients)


def test_the_sketch_sees_what_its_settings_say():
  """Of a flat tail little is seen, and more with iterations or rows."""
  a = problem('slow')

  def error(**settings):
    errors = []
    for seed in range(10):
      key = jax.random.key(seed)
      indices, z = interpolative(
        a, RANK, method='randomized', key=key, **settings
      )
      errors.append(np.linalg.norm(a - a[:, indices] @ z))
    return np.mean(errors)

  narrow = error(oversampling=0, power_iterations=0)
  wide = error(oversampling=10, power_iterations=0)
  assert error(oversampling=10, power_iterations=1) < wide < narrow


def test_derivatives_of_the_least_squares():
  a, da, weight = (jnp.asarray(problem('slow', seed=i)) for i in range(3))
  weight = weight[:RANK]
  run = lambda a: interpolative(a, RANK).coefficients
  indices = interpolative(a, RANK).indices
  _, pull = jax.vjp(run, a)
  (gradient,) = pull(weight)
  other = jax.jit(lambda a: jnp.linalg.pinv(a[:, indices]) @ a)
  (expected,) = jax.vjp(other, a)[1](weight)
  np.testing.assert_allclose(gradient, expected, atol=1e-9)
  step = 1e-6
  difference = (run(a + step * da) - run(a - step * da)) / (2 * step)
  dot = lambda x, y: jnp.sum(x * y).real
  np.testing.assert_allclose(
    dot(gradient, da), dot(weight, difference), rtol=1e-6
  )


def test_derivatives_are_finite_past_the_rank():
  def loss(a):
    indices, z = interpolative(a, RANK)
    return jnp.sum((a[:, indices] @ z - a + 1) ** 2)

  for a in (problem('low rank', dtype=np.float64), np.zeros((M, N))):
    assert np.isfinite(jax.grad(loss)(a)).all()


def test_nan_is_not_hidden():
  a = problem()
  for bad in (np.nan, np.inf):
    a[3, 4] = bad
    for method in METHODS:
      z = interpolative(a, RANK, method=method).coefficients
      assert np.isnan(z).any(), method


def test_wrong_arguments_are_named():
  a = np.ones((3, 2))
  run = interpolative
  for message, call in {
    'a: got shape': lambda: run(a[0], 1),
    'rank: got 3': lambda: run(a, 3),  # SciPy: a segmentation fault.
    'rank: got 0': lambda: run(a, 0, axis=0),
    "method: got 'svd'": lambda: run(a, 1, method='svd'),
    'axis: got 2': lambda: run(a, 1, axis=2),
    'oversampling: got -1': lambda: run(a, 1, oversampling=-1),
    'power_iterations: got 1.5': lambda: run(a, 1, power_iterations=1.5),
    'threshold: got 0.5': lambda: run(a, 1, threshold=0.5),
  }.items():
    with pytest.raises(ValueError, match=f'^{message}'):
      call()
