"""Levenberg-Marquardt against scipy, and where it knows nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy import optimize

from kexue.scaling import LeastSquares, least_squares

X = np.linspace(0.1, 4, 12)
STARTS = np.array([[0.0, 0.0], [2.0, -1.0], [-3.0, 3.0]])


def model(p, np=np):
  """A decay with its rate in a logarithm."""
  x = X.astype(getattr(p, 'dtype', float))
  return np.exp(p[0]) * np.exp(-np.exp(p[1]) * x)


@jax.jit
def fit(y, weights):
  return least_squares(
    lambda p: model(p, jnp) - y, STARTS.astype(y.dtype), weights
  )


@settings(max_examples=12, deadline=None)
@given(a=st.floats(-1, 2), b=st.floats(-1.5, 1), seed=st.integers(0, 99))
def test_against_scipy(a, b, seed):
  rng = np.random.default_rng(seed)
  with jax.enable_x64(True):
    clean = model([a, b])
    y = clean * (1 + 0.03 * rng.normal(size=X.size))
    weights = rng.uniform(0.5, 2, X.size)
    found = fit(y, weights)
    root = np.sqrt(weights)
    oracle = optimize.least_squares(
      lambda p: root * (model(p) - y),
      [a + 0.1, b + 0.1],  # Exactly zero would be its unit.
      xtol=1e-14,
      ftol=1e-14,
      gtol=1e-14,
      jac='3-point',
    )
  np.testing.assert_allclose(found.parameters, oracle.x, rtol=1e-5, atol=1e-7)
  variance = 2 * oracle.cost / (X.size - 2)
  covariance = variance * np.linalg.inv(oracle.jac.T @ oracle.jac)
  np.testing.assert_allclose(
    found.covariance, covariance, rtol=1e-4, atol=1e-12
  )
  rms = np.sqrt(2 * oracle.cost / weights.sum())
  np.testing.assert_allclose(found.rms, rms, rtol=1e-6)


def test_weights_of_zero_leave_out():
  y = model([1.0, 0.3])
  wrong = y.copy()
  wrong[3] = 50.0
  keep = np.arange(X.size) != 3
  found = fit(np.float32(wrong), np.float32(keep))
  np.testing.assert_allclose(found.parameters, [1.0, 0.3], atol=1e-4)
  # With it the fit is elsewhere.
  assert (
    abs(fit(np.float32(wrong), np.ones(12, np.float32)).parameters[0] - 1) > 0.1
  )


@jax.jit
def three_fits():
  blind = lambda p: p[0] - jnp.arange(5.0) + 0 * p[1]
  alone = lambda p: p - 3.0
  positive = lambda p: jnp.log(p) - jnp.log(jnp.array([2.0, 2.0]))
  return (
    least_squares(blind, jnp.ones((1, 2)), jnp.ones(5)),
    least_squares(alone, jnp.ones((1, 2)), jnp.ones(2)),
    least_squares(positive, jnp.array([[-1.0], [1.0]]), jnp.ones(2)),
  )


def test_what_the_data_do_not_know():
  blind, alone, positive = three_fits()
  # A parameter without influence: it stays, and its variance is enormous.
  np.testing.assert_allclose(blind.parameters, [2.0, 1.0], rtol=1e-5)
  assert blind.covariance[1, 1] > 1e8 > 1 > blind.covariance[0, 0]
  # As many parameters as points.
  np.testing.assert_allclose(alone.parameters, 3.0, rtol=1e-6)
  assert np.all(np.isinf(alone.covariance))
  # A start that is not finite is not chosen.
  np.testing.assert_allclose(positive.parameters, 2.0, rtol=1e-5)


def test_vmapped_and_sharded():
  rng = np.random.default_rng(0)
  clean = model([1.0, 0.3])
  y = np.float32(clean * (1 + 0.05 * rng.normal(size=(8, X.size))))
  ones = np.ones(12, np.float32)
  run = jax.vmap(functools.partial(fit, weights=ones))
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(run, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  found = jax.jit(sharded)(y)
  assert isinstance(found, LeastSquares)
  each = np.stack([fit(row, ones).parameters for row in y])
  np.testing.assert_allclose(found.parameters, each, atol=1e-4)
