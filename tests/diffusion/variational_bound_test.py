"""Terms of the bound against KLs of normal distributions and bins' masses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kexue.diffusion import Schedule, posterior
from kexue.diffusion.variational_bound import bin_log_probability, bound_term

LINEAR = Schedule.linear(1000)
VALUES = 2 * np.arange(256) / 255 - 1
KINDS = ('fixed_small', 'fixed_large', 'learned_range')


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize('deviation', [0.005, 0.1, 3.0])
@pytest.mark.parametrize('mean', [-1.2, 0.001, 0.9])
def test_bins_have_the_mass_of_the_normal_distribution(mean, deviation):
  edges = np.append(-np.inf, VALUES[1:] - 1 / 255)
  low, high = edges, np.append(edges[1:], np.inf)
  # By symmetry on the side where the difference has all digits.
  right = low > mean
  low, high = (
    np.where(right, 2 * mean - high, low),
    np.where(right, 2 * mean - low, high),
  )
  normal = stats.norm(mean, deviation)
  with np.errstate(divide='ignore'):
    expected = np.log(normal.cdf(high) - normal.cdf(low))
  run = jax.jit(bin_log_probability)
  found = np.float64(run(np.float32(VALUES), mean, deviation))
  assert np.all(np.isfinite(found))
  some = np.isfinite(expected)
  np.testing.assert_allclose(found[some], expected[some], rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-4)
  with jax.enable_x64(True):
    found = run(VALUES, mean, deviation)
    np.testing.assert_allclose(
      found[some], expected[some], rtol=1e-8, atol=1e-12
    )


def test_bins_have_finite_derivatives():
  grad = jax.grad(bin_log_probability, (1, 2))
  run = jax.jit(jax.vmap(grad, (0, None, None)))
  for mean, deviation in ((0.0, 0.3), (1.0, 0.004), (-3.0, 0.004)):
    by_mean, by_deviation = run(jnp.float32(VALUES), mean, deviation)
    assert np.all(np.isfinite(by_mean)) and np.all(np.isfinite(by_deviation))
    # Bins above the mean want it higher, those below lower.
    assert np.all(by_mean * np.sign(VALUES - mean) >= 0)
    assert np.abs(by_mean).max() > 1 and np.abs(by_deviation).max() > 1


@pytest.mark.parametrize('variance', KINDS)
def test_terms_are_kls_of_both_posteriors(variance):
  schedule = LINEAR.respace(30)
  x0, x0_hat, x = normal(3, 4, 2, 2)
  fraction = 1 / (1 + x**2) if variance == 'learned_range' else None
  run = jax.jit(
    functools.partial(bound_term, schedule), static_argnames='variance'
  )
  with jax.enable_x64(True):
    x0, x0_hat, x = (jnp.asarray(a) for a in (x0, x0_hat, x))
    for i in (2, 17, 30):
      one, s = posterior(schedule, x0, x, i)
      two, r = posterior(
        schedule, x0_hat, x, i, variance=variance, fraction=fraction
      )
      one, s, two, r = (np.asarray(a) for a in (one, s, two, r))
      kl = np.log(r / s) + (s**2 + (one - two) ** 2) / (2 * r**2) - 0.5
      found = run(x0, x0_hat, i, variance=variance, fraction=fraction)
      np.testing.assert_allclose(found, kl.sum((1, 2)), rtol=1e-7)


def test_terms_of_good_predictions_keep_their_digits():
  """Of predictions that are nearly right; nothing is lost beside 1."""
  x0 = jnp.zeros((1, 1000))
  run = jax.jit(functools.partial(bound_term, LINEAR))
  for i in (500, 1000):
    found = run(x0, x0 + 1e-3, i)
    exact = (LINEAR.snr[i - 1] - LINEAR.snr[i]) * 1e-6 * 1000 / 2
    np.testing.assert_allclose(found, [exact], rtol=1e-4)
  assert run(x0, x0, 500) == 0


def test_the_first_term_is_the_decoders():
  x0 = jnp.float32(VALUES[np.array([[0, 3, 128], [255, 254, 7]])])
  x0_hat = x0 + 0.004
  betas, a = LINEAR.betas, LINEAR.alpha_bar
  second = np.sqrt(betas[1] * (1 - a[1]) / (1 - a[2]))
  log_mass = jax.jit(bin_log_probability)
  run = jax.jit(
    functools.partial(bound_term, LINEAR), static_argnames='variance'
  )
  expected = -log_mass(x0, x0_hat, second).sum(1)
  for variance in ('fixed_small', 'fixed_large'):
    found = run(x0, x0_hat, 1, variance=variance)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  for fraction, deviation in ((0.0, second), (1.0, np.sqrt(betas[0]))):
    fraction = jnp.full_like(x0, fraction)
    found = run(x0, x0_hat, 1, variance='learned_range', fraction=fraction)
    expected = -log_mass(x0, x0_hat, deviation).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  found = run(x0, x0_hat, 1, decoder_deviation=0.02)
  expected = -log_mass(x0, x0_hat, 0.02).sum(1)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # A position for each image.
  found = run(x0, x0_hat, jnp.array([1, 9]))
  each = [run(x0, x0_hat, i)[j] for j, i in enumerate((1, 9))]
  np.testing.assert_allclose(found, each, rtol=1e-6)
