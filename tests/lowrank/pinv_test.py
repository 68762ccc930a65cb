"""The pseudo-inverse against SciPy's, its derivative against differences."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import pinv

SHAPES = [(5, 3), (3, 5), (4, 4)]


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


def gaussian(*shape, seed=0, imaginary=True):
  rng = np.random.default_rng(seed)
  real, other = rng.normal(size=shape), rng.normal(size=shape)
  return real + 1j * other if imaginary else real


def matrices(m, n, *, imaginary=True):
  """One of full rank, one of rank 2."""
  low = gaussian(m, 2, seed=1) @ gaussian(2, n, seed=2)
  both = np.stack([gaussian(m, n), low])
  return both if imaginary else both.real


def central(function, x, dx, *, step=1e-6):
  return (function(x + step * dx) - function(x - step * dx)) / (2 * step)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('imaginary', [False, True])
def test_agrees_with_scipy(shape, imaginary, double):
  a = matrices(*shape, imaginary=imaginary)
  for result, x in zip(pinv(a), a, strict=True):
    np.testing.assert_allclose(result, scipy.linalg.pinv(x), atol=1e-12)


def test_small_singular_values_are_cut(double):
  eps = np.finfo(np.float64).eps
  a = np.diag([1, 4.1 * eps, 3.9 * eps])
  a = np.pad(a, ((0, 1), (0, 0)))
  np.testing.assert_allclose(pinv(a), scipy.linalg.pinv(a), rtol=1e-12)
  assert np.count_nonzero(pinv(a)) == 2
  assert np.count_nonzero(pinv(a, rtol=1e-3)) == 1
  assert np.count_nonzero(pinv(a, rtol=0)) == 3
  # One for each matrix.
  batch = pinv(np.stack([a, a]), rtol=jnp.array([0.0, 1e-3]))
  assert [np.count_nonzero(x) for x in batch] == [3, 1]


@hypothesis.settings(deadline=None, max_examples=15, derandomize=True)
@hypothesis.given(
  shape=st.sampled_from([(6, 4), (4, 6), (1, 5)]),
  dtype=st.sampled_from([np.float32, np.complex64]),
  seed=st.integers(0, 2**31),
  decay=st.floats(0, 4),
  scale=st.sampled_from([1e-30, 1.0, 1e30]),
  deficient=st.booleans(),
)
def test_penrose_identities(shape, dtype, seed, decay, scale, deficient):
  k = min(shape)
  u, v = (np.linalg.qr(gaussian(n, k, seed=seed))[0] for n in shape)
  if dtype == np.float32:
    u, v = (np.linalg.qr(gaussian(n, k, seed=seed).real)[0] for n in shape)
  s = 10 ** -np.linspace(0, decay, k)
  if deficient and k > 1:
    s[-1] = 0
  exact = (u * s) @ v.conj().T
  p = pinv((scale * exact).astype(dtype))
  assert p.dtype == dtype
  # The one of the exact matrix must be told from rounding at its condition.
  a, p = np.complex128((scale * exact).astype(dtype)) / scale, p * scale
  p = np.complex128(p)
  noise = 1e-5 * 10**decay
  np.testing.assert_allclose(a @ p @ a, a, atol=noise)
  np.testing.assert_allclose(p @ a @ p, p, atol=noise * np.abs(p).max())
  for projection in (a @ p, p @ a):
    np.testing.assert_allclose(projection, projection.conj().T, atol=noise)


@jax.jit
def _slopes(a, da, ct):
  """Forward and backward derivative, in one program."""
  p, pull = jax.vjp(pinv, a)
  return p, jax.jvp(pinv, (a,), (da,))[1], *pull(ct)


@pytest.mark.parametrize(
  ('shape', 'imaginary'),
  [((5, 3), False), ((5, 3), True), ((3, 5), True), ((4, 4), True)],
)
def test_derivative_is_that_of_golub_and_pereyra(shape, imaginary, double):
  m, n = shape
  a = matrices(m, n, imaginary=imaginary)
  da = gaussian(2, m, n, seed=3, imaginary=imaginary)
  ct = gaussian(2, n, m, seed=4, imaginary=imaginary)
  p, dp, slope = (np.asarray(x) for x in _slopes(a, da, ct))
  adjoint = lambda x: x.swapaxes(-1, -2).conj()
  ph, dah = adjoint(p), adjoint(da)
  left, right = np.eye(m) - a @ p, np.eye(n) - p @ a
  formula = -p @ da @ p + p @ ph @ dah @ left + right @ dah @ ph @ p
  np.testing.assert_allclose(dp, formula, atol=1e-11)
  # Pullbacks of JAX transpose and do not conjugate.
  np.testing.assert_allclose(np.sum(slope * da).real, np.sum(ct * dp).real)


def test_pullback_is_products_only():
  p, pull = jax.vjp(pinv, np.ones((4, 3), np.float32))
  text = str(jax.make_jaxpr(pull)(p))
  assert 'dot_general' in text
  assert not any(name in text for name in ('svd', 'eigh', 'qr', 'solve'))


@pytest.mark.parametrize('imaginary', [False, True])
def test_derivative_against_differences(imaginary, double):
  m, n = 5, 3
  some = functools.partial(gaussian, imaginary=imaginary)
  x, dx = some(m, n), some(m, n, seed=3)
  # Of rank 2, along matrices of rank 2.
  left, right = some(m, 2), some(2, n, seed=1)
  dl, dr = some(m, 2, seed=2), some(2, n, seed=3)
  a = np.stack([x, left @ right])
  da = np.stack([dx, dl @ right + left @ dr])
  _, (full, low), _ = _slopes(a, da, a.swapaxes(1, 2))
  cut = lambda x: np.linalg.pinv(x, rcond=1e-8)
  np.testing.assert_allclose(full, central(cut, x, dx), atol=1e-7)
  moved = lambda t: cut((left + t * dl) @ (right + t * dr))
  np.testing.assert_allclose(low, central(moved, 0, 1), atol=1e-6)


def test_second_derivatives(double):
  x, dx = gaussian(5, 3, imaginary=False), gaussian(5, 3, seed=3).real
  slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(pinv(x)))))
  _, curvature = jax.jvp(slope, (x,), (dx,))
  np.testing.assert_allclose(curvature, central(slope, x, dx), atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES[:2])
def test_ridge_is_tikhonov(shape, double):
  m, n = shape
  # Whatever the rank: full, 2, 0; and at equal singular values.
  a = np.stack([*matrices(m, n), np.zeros((m, n)), np.eye(m, n)])
  ridge, da = np.array([0.3, 0.1, 2.0, 1.0]), gaussian(4, m, n, seed=3)
  adjoint = lambda x: x.swapaxes(-1, -2).conj()
  w = np.linalg.inv(adjoint(a) @ a + ridge[:, None, None] * np.eye(n))
  p = w @ adjoint(a)
  dp = -p @ da @ p + w @ adjoint(da) @ (np.eye(m) - a @ p) - w @ p
  run = lambda a, ridge: pinv(a, ridge=ridge)
  result = jax.jit(lambda *x: jax.jvp(run, x[:2], x[2:]))(
    a, ridge, da, np.ones(4)
  )
  chex.assert_trees_all_close(result, (p, dp), atol=1e-10)


def test_no_ridge_for_some(double):
  a = matrices(5, 3)
  result = pinv(a, ridge=jnp.array([0.0, 1e-3]))
  np.testing.assert_allclose(result[0], pinv(a)[0], atol=1e-12)
  assert np.abs(result[1] - pinv(a)[1]).max() > 1e-4


def test_ridge_is_accurate_where_normal_equations_are_not(double):
  a = np.float32([[1, 1], [1e-4, 0], [0, 1e-4]])
  wide, ridge = np.float64(a), 1e-9
  exact = np.linalg.solve(wide.T @ wide + ridge * np.eye(2), wide.T)
  with jax.enable_x64(False):
    np.testing.assert_allclose(pinv(a, ridge=ridge), exact, rtol=2e-3)


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1.0, 1e30])
def test_everything_is_finite(scale):
  ones = np.ones((4, 3), np.float32) * np.float32(scale)
  eye = ones * np.eye(4, 3, dtype=np.float32)
  for a in (np.stack([ones, eye]), ones[:1], ones[:, :1]):
    p, dp, slope = _slopes(a, np.ones_like(a), np.ones_like(a.swapaxes(-1, -2)))
    chex.assert_tree_all_finite(p)
    assert not np.isnan(dp).any() and not np.isnan(slope).any()  # 1e60 is inf.
    if scale == 0:
      np.testing.assert_array_equal(p, 0)
    else:
      np.testing.assert_allclose(a @ p @ a, a, rtol=1e-5, atol=1e-6 * scale)


def test_types():
  a = jnp.asarray(gaussian(4, 3).real, jnp.bfloat16)
  for x in (a, a.astype(jnp.float16), a.astype(jnp.int32)):
    p = pinv(x)
    assert p.dtype == jnp.float32
    np.testing.assert_array_equal(p, pinv(x.astype(jnp.float32)))
  slope = jax.grad(lambda a: pinv(a).sum())(a)
  assert slope.dtype == jnp.bfloat16


def test_batches_are_vmapped_and_sharded():
  a = gaussian(8, 2, 4, 3).real.astype(np.float32)
  run = jax.value_and_grad(lambda a: jnp.sum(jnp.cos(pinv(a))))
  each = jax.vmap(jax.vmap(run))
  total, slope = jax.jit(run)(a)
  values, slopes = each(a)
  np.testing.assert_allclose(total, values.sum(), rtol=1e-5)
  np.testing.assert_allclose(slope, slopes, atol=1e-4)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(each, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  chex.assert_trees_all_close(jax.jit(sharded)(a), (values, slopes), atol=1e-4)


def test_wrong_arguments_are_named():
  a = np.ones((2, 2))
  for name, call in {
    'a: got shape': lambda: pinv(a[0]),
    'rtol: got -1': lambda: pinv(a, rtol=-1),
    'ridge: got -0.1': lambda: pinv(a, ridge=-0.1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
