"""The oracle itself: its denoiser by draws, its rates by slow searches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from kexue.diffusion import (
  Schedule,
  gaussian_denoiser,
  rate_distortion,
  realistic_rate_distortion,
)

LINEAR = Schedule.linear(1000)
POWER_LAW = np.arange(1, 1025) ** -1.2
SOURCES = {
  'power law': POWER_LAW,
  'ties': np.array([1.0, 1.0, 0.25, 0.25, 0.25]),
  'zeros': np.array([[0.0, 2.0], [0.5, 0.0]]),
  'one': np.array([0.3]),
  'wide': 10.0 ** np.arange(-12, 3),
}


def searched_rate(variances, distortion):
  """The level by bisection, a hundred halvings."""
  low, high = 0.0, np.max(variances)
  for _ in range(200):
    level = (low + high) / 2
    if np.mean(np.minimum(level, variances)) < distortion:
      low = level
    else:
      high = level
  some = variances[variances > level]
  return np.sum(np.log2(some / level)) / 2 / variances.size


@pytest.mark.parametrize('name', SOURCES)
def test_rate_against_a_search(name):
  variances = SOURCES[name]
  mean = variances.mean()
  distortions = mean * np.array([1e-4, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
  expected = [searched_rate(variances, d) for d in distortions]
  found = jax.jit(rate_distortion)(variances, distortions)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
  with jax.enable_x64(True):
    found = jax.jit(rate_distortion)(variances, distortions)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    limits = np.array([0.0, 0.0, 0.0, 0.0, 0.0, mean, 2 * mean])
    found = jax.jit(rate_distortion)(variances, limits)
    np.testing.assert_allclose(found[4:], [np.inf, 0.0, 0.0], atol=1e-12)


def test_rate_of_one_variable():
  run = jax.jit(rate_distortion)
  found = run(4.0, jnp.array([[1.0, 0.25], [4.0, 5.0]]))
  np.testing.assert_allclose(found, [[1.0, 2.0], [0.0, 0.0]], atol=1e-6)
  assert run(jnp.zeros(3), 0.0) == 0


def test_realistic_rate_of_one_variable():
  run = jax.jit(realistic_rate_distortion)
  distortions = np.array([1e-3, 0.5, 1.0, 2.0, 3.9, 4.0, 9.0])
  correlation = np.maximum(1 - distortions / 4, 0)
  expected = -np.log2(1 - correlation**2) / 2
  found = run(2.0, distortions)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert run(2.0, 0.0) == np.inf
  assert run(jnp.zeros(3), 0.0) == 0


def test_realistic_rate_is_the_least_sum():
  """Over all ways of splitting the distortion between three variables."""
  variances, distortion = np.array([2.0, 0.5, 0.1]), 0.6

  def rate(parts):
    correlation = np.clip(1 - parts / (2 * variances), 1e-9, 1 - 1e-9)
    return np.mean(-np.log2(1 - correlation**2) / 2)

  least = optimize.minimize(
    rate,
    np.minimum(distortion, variances),
    bounds=[(1e-6, 2 * v) for v in variances],
    constraints={
      'type': 'eq',
      'fun': lambda parts: np.mean(parts) - distortion,
    },
    options={'ftol': 1e-12},
  )
  found = jax.jit(realistic_rate_distortion)(variances, distortion)
  np.testing.assert_allclose(found, least.fun, rtol=1e-4)
  # Equal parts are not the best.
  assert rate(np.full(3, 0.2)) > found + 0.05


def test_order_of_the_rates():
  """Realism costs something; without shared randomness, half of the error."""
  distortions = POWER_LAW.mean() * np.geomspace(0.003, 0.9, 20)
  with jax.enable_x64(True):
    run = jax.jit(rate_distortion)
    plain, half = (run(POWER_LAW, d) for d in (distortions, distortions / 2))
    realistic = jax.jit(realistic_rate_distortion)(POWER_LAW, distortions)
  assert np.all(plain < realistic) and np.all(realistic < half)
  assert np.all(np.diff(realistic) < 0)


@pytest.mark.parametrize('t', [1, 300, 1000])
def test_the_error_of_the_denoiser_is_unrelated_to_what_it_sees(t):
  n, variances = 50_000, np.array([0.0, 0.04, 3.0])
  rng = np.random.default_rng(t)
  x0 = np.sqrt(variances) * rng.normal(size=(n, 3))
  a = LINEAR.alpha_bar[t]
  x = np.sqrt(a) * x0 + np.sqrt(1 - a) * rng.normal(size=(n, 3))
  left = x0 - np.float64(gaussian_denoiser(variances, LINEAR)(np.float32(x), t))
  assert np.all(left[:, 0] == 0)
  left, x, variances = left[:, 1:], x[:, 1:], variances[1:]
  products = left * x / (left.std(0) * x.std(0))
  assert np.all(np.abs(products.mean(0)) * np.sqrt(n) < 4)
  error = variances * (1 - a) / (a * variances + 1 - a)
  z = (np.mean(left**2, 0) / error - 1) * np.sqrt(n / 2)
  assert np.all(np.abs(z) < 4)


def test_shapes_and_types():
  variances = np.ones((4, 4, 1))
  denoise = gaussian_denoiser(variances, LINEAR)
  x = jnp.ones((3, 4, 4, 2))
  each = jnp.array([1, 10, 1000])
  found = denoise(x, each)
  assert found.shape == x.shape
  for j, t in enumerate(each):
    np.testing.assert_allclose(denoise(x, t)[0], found[j], rtol=1e-6)
  with jax.enable_x64(True):  # Variances of float64 leave images as they are.
    assert denoise(jnp.ones((3, 4, 4, 2), 'float32'), 3).dtype == jnp.float32
  batch = jax.jit(jax.vmap(rate_distortion))
  found = batch(jnp.array([[1.0, 4.0], [1.0, 1.0]]), jnp.array([1.0, 0.25]))
  np.testing.assert_allclose(found, [0.5, 1.0], rtol=1e-6)
  traced = jax.jit(lambda v: gaussian_denoiser(v, LINEAR)(jnp.ones(2), 1))
  assert traced(jnp.ones(2)).shape == (2,)


def test_wrong_arguments_are_named():
  for name, call in {
    'schedule: got': lambda: gaussian_denoiser(1.0, LINEAR.respace(3)),
    'variances: got': lambda: gaussian_denoiser([1.0, -1.0], LINEAR),
    'i: got 1001': lambda: gaussian_denoiser(1.0, LINEAR)(jnp.ones(1), 1001),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
