"""Randomized SVD: the optimum, its bound, operators, and what it is given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from sklearn.utils.extmath import randomized_svd as sklearn_svd

from kexue.lowrank import randomized_svd
from kexue.lowrank.operators import Operator

KEY = jax.random.key(7)
SPECTRA = {
  'fast': 10.0 ** -(np.arange(30) / 5),
  'slow': 1 / np.arange(1, 31),
  'step': np.r_[np.ones(6), np.full(24, 1e-3)],
  'flat': np.ones(30),
  'deficient': np.r_[np.ones(3), np.zeros(27)],
}
compiled = jax.jit(
  randomized_svd,
  static_argnames=('rank', 'oversampling', 'power_iterations', 'single_pass'),
)


def matrix(s, m=40, dtype='float64', seed=0):
  rng = np.random.default_rng(seed)
  n = len(s)
  draw = lambda *shape: (
    rng.normal(size=shape)
    + (1j * rng.normal(size=shape) if 'complex' in str(dtype) else 0)
  )
  u, v = np.linalg.qr(draw(m, n))[0], np.linalg.qr(draw(n, n))[0]
  return ((u * s) @ v.conj().T).astype(dtype)


def error(a, found):
  u, s, vh = map(np.asarray, found)
  return np.linalg.norm(a - (u * s) @ vh)


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('name', SPECTRA)
def test_as_good_as_scikit_learn_and_the_optimum(name):
  a, r = matrix(SPECTRA[name]), 6
  u, s, vh = found = compiled(a, r, key=KEY)
  theirs = sklearn_svd(a, r, n_iter=2, power_iteration_normalizer='QR')
  optimum = np.linalg.norm(SPECTRA[name][r:])
  assert error(a, found) <= 1.02 * error(a, theirs) + 1e-13
  assert error(a, found) <= 1.03 * optimum + 1e-13
  np.testing.assert_allclose(u.T @ u, np.eye(r), atol=1e-12)
  np.testing.assert_allclose(vh @ vh.T, np.eye(r), atol=1e-12)
  assert (np.diff(s) <= 1e-12).all() and (s >= 0).all()
  largest = jnp.argmax(jnp.abs(u), axis=0)
  assert (u[largest, jnp.arange(r)] > 0).all()


@pytest.mark.parametrize(
  'dtype, out, tolerance',
  [
    ('bfloat16', 'float32', 2e-2),
    ('float32', 'float32', 1e-4),
    ('complex64', 'complex64', 1e-4),
    ('complex128', 'complex128', 1e-12),
  ],
)
def test_types_and_the_triples_themselves(dtype, out, tolerance):
  a = matrix(SPECTRA['fast'], dtype=dtype if 'c' in dtype else 'float64')
  exact = np.linalg.svd(a)
  u, s, vh = compiled(jnp.asarray(a, dtype), 5, key=KEY)
  assert (u.dtype, s.dtype, vh.dtype) == (out, s.real.dtype, out)
  np.testing.assert_allclose(s, exact[1][:5], rtol=tolerance)
  # u and vh turn with one phase: their products do not.
  expected = [np.outer(exact[0][:, i], exact[2][i]) for i in range(5)]
  found = [np.outer(u[:, i], vh[i]) for i in range(5)]
  np.testing.assert_allclose(found, expected, atol=30 * tolerance)


def test_no_direction_is_lost_in_many_iterations():
  a = matrix(SPECTRA['fast'], dtype='float32')
  found = compiled(a, 20, key=KEY, power_iterations=9, oversampling=5)
  assert error(a, found) <= 1.05 * np.linalg.norm(SPECTRA['fast'][20:])


def test_expected_error_is_below_the_bound_of_the_theory():
  s, r, p = SPECTRA['slow'], 5, 4
  a = matrix(s)
  run = jax.vmap(
    lambda key: randomized_svd(
      a, r + p, key=key, oversampling=0, power_iterations=0
    )
  )
  keys = jax.random.split(KEY, 200)
  u, s_found, vh = jax.jit(run)(keys)
  squares = np.sum((a - (u * s_found[:, None]) @ vh) ** 2, axis=(1, 2))
  bound = (1 + r / (p - 1)) * np.sum(s[r:] ** 2)
  assert squares.mean() + 3 * squares.std() / np.sqrt(200) < bound
  assert squares.mean() > np.sum(s[r + p :] ** 2)


@given(
  shape=st.sampled_from([(1, 7), (7, 1), (9, 4)]),
  scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
  kind=st.sampled_from(['zeros', 'ones', 'one column', 'normal']),
  dtype=st.sampled_from(['float32', 'complex64']),
)
@settings(max_examples=20, deadline=None)
def test_full_rank_is_exact_at_any_scale(shape, scale, kind, dtype):
  a = np.random.default_rng(0).normal(size=shape)
  a = {
    'zeros': 0 * a,
    'ones': 1 + 0 * a,
    'one column': a * (np.arange(shape[1]) == 0),
    'normal': a,
  }[kind]
  a = (scale * a).astype(dtype)
  u, s, vh = compiled(a, min(shape), key=KEY)
  np.testing.assert_allclose((u * s) @ vh, a, atol=2e-5 * scale, rtol=0)
  np.testing.assert_allclose(u.conj().T @ u, np.eye(min(shape)), atol=1e-5)


def test_single_pass_is_near_the_optimum_and_exact_at_its_rank():
  for name in ('fast', 'slow'):
    a = matrix(SPECTRA[name])
    found = compiled(a, 6, key=KEY, single_pass=True)
    assert error(a, found) < 2.5 * np.linalg.norm(SPECTRA[name][6:])
  a = matrix(SPECTRA['deficient'])
  assert error(a, compiled(a, 3, key=KEY, single_pass=True)) < 1e-13
  zero = compiled(np.zeros((9, 6)), 2, key=KEY, single_pass=True)
  assert np.isfinite(zero.u).all() and not zero.s.any()


def test_functions_instead_of_a_matrix():
  a = matrix(SPECTRA['fast'], dtype='complex128')
  calls = []

  def matvec(x):
    calls.append(x.shape)
    return a @ x

  operator = (matvec, lambda y: a.conj().T @ y, a.shape, a.dtype)
  for single_pass in (False, True):
    run = functools.partial(
      randomized_svd, operator, 4, single_pass=single_pass
    )
    found = jax.jit(run)(key=KEY)
    expected = compiled(a, 4, key=KEY, single_pass=single_pass)
    for x, y in zip(found, expected, strict=True):
      np.testing.assert_allclose(x, y, atol=1e-10)
  assert set(calls) == {(30, 14)}
  assert isinstance(Operator(*operator), tuple)


def test_batches_and_shards_are_like_single_matrices():
  a = np.stack([matrix(SPECTRA['slow'], seed=i) for i in range(8)])
  function = functools.partial(randomized_svd, rank=3, key=KEY)
  single = [compiled(x, 3, key=KEY) for x in a]
  expected = [np.stack(parts) for parts in zip(*single, strict=True)]
  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  shard = jax.shard_map(
    function, mesh=mesh, in_specs=P('d'), out_specs=P('d'), check_vma=True
  )
  for found in (jax.jit(function)(a), jax.vmap(function)(a), jax.jit(shard)(a)):
    for x, y in zip(found, expected, strict=True):
      np.testing.assert_allclose(x, y, atol=1e-10)


def test_gradient_of_the_product_is_that_of_the_computed_function():
  a = matrix(SPECTRA['fast'][:8], m=12)
  da = np.random.default_rng(1).normal(size=a.shape)
  weight = np.random.default_rng(2).normal(size=a.shape)

  @jax.jit
  def function(t):
    u, s, vh = randomized_svd(a + t * da, 3, key=KEY, oversampling=2)
    return jnp.sum(weight * ((u * s) @ vh)) + jnp.sum(s**2)

  h = 1e-6
  expected = float(function(h) - function(-h)) / (2 * h)
  assert jax.grad(function)(0.0) == pytest.approx(expected, rel=1e-6)
  slope = jax.jit(jax.grad(lambda a: randomized_svd(a, 2, key=KEY).s.sum()))
  for bad in (np.zeros((5, 4)), np.ones((5, 4)), np.eye(5, 4)):
    assert jnp.isfinite(slope(bad)).all()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(rank=0), r'rank: got 0, expected an integer in 1..4'),
    (dict(rank=5), r'rank: got 5, expected an integer in 1..4'),
    (dict(rank=2.0), 'rank: got 2.0'),
    (dict(oversampling=-1), 'oversampling: got -1, expected an integer of 0'),
    (dict(power_iterations=-1), 'power_iterations: got -1'),
    (dict(a=np.ones(4)), r'a: got shape \(4,\), expected 2 or more axes'),
    (dict(a=(1, 2)), 'a: got '),
  ],
)
def test_what_is_refused(change, message):
  arguments = dict(a=np.ones((4, 6)), rank=2, key=KEY) | change
  with pytest.raises(ValueError, match=message):
    randomized_svd(**arguments)
