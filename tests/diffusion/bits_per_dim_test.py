"""Bits of normal images, whose probability and whose KLs are known."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from kexue.diffusion import (
  BitsPerDim,
  Schedule,
  bits_per_dim,
  gaussian_denoiser,
  kl_per_step,
)

KEY = jax.random.key(0)
LAMBDA = np.array([0.01, 0.03, 0.06])


def even_schedule(steps):
  """Even in log SNR, from what 8 bits still see to nothing."""
  log_snr = np.append(np.inf, np.linspace(10, -9, steps))
  return Schedule(1 / (1 + np.exp(-log_snr)))


def eight_bits(count, seed=0):
  noise = np.random.default_rng(seed).normal(size=(count, 3))
  pixels = np.round(127.5 * (np.sqrt(LAMBDA) * noise + 1)).clip(0, 255)
  return 2 * pixels / 255 - 1


def exact_bits(x0):
  """Minus the logarithm of the masses of bins, to base 2."""
  normal = stats.norm(0, np.sqrt(LAMBDA))
  high, low = (
    np.where(abs(x0 + s) > 1, s * np.inf, x0 + s) for s in (1 / 255, -1 / 255)
  )
  return -np.log2(normal.cdf(high) - normal.cdf(low)).mean(1)


def test_the_bound_holds_and_is_reached():
  x0, gaps = eight_bits(1000), {}
  for steps, variance in (
    (20, 'fixed_small'),
    (80, 'fixed_small'),
    (320, 'fixed_small'),
    (80, 'fixed_large'),
  ):
    schedule = even_schedule(steps)
    run = functools.partial(
      bits_per_dim,
      gaussian_denoiser(LAMBDA, schedule),
      schedule=schedule,
      variance=variance,
      decoder_deviation=schedule.snr[1] ** -0.5,
    )
    bits = jax.jit(run)(np.float32(x0), key=KEY)
    assert isinstance(bits, BitsPerDim) and bits.total.shape == (1000,)
    np.testing.assert_allclose(bits.total, sum(bits[1:]), rtol=1e-5)
    gap = np.float64(bits.total) - exact_bits(x0)
    assert gap.mean() > 2 * gap.std() / np.sqrt(gap.size), 'no bound'
    gaps[steps, variance] = gap.mean()
  # A gap that is as large as a step.
  small = [gaps[steps, 'fixed_small'] for steps in (20, 80, 320)]
  assert small[0] > 3.5 * small[1] > 3.5**2 * small[2] and small[2] < 0.2
  # Variances between the posterior's and the step's: the larger fits better.
  assert gaps[80, 'fixed_large'] < gaps[80, 'fixed_small'] / 2


def exact_kl(schedule):
  """Means and deviations, over images: sums of weighted chi squares."""
  a = schedule.alpha_bar[2:, None]
  errors = LAMBDA * (1 - a) / (a * LAMBDA + 1 - a)
  gain = (schedule.snr[1:-1] - schedule.snr[2:]) / 2
  return gain * errors.sum(1), gain * np.sqrt(2 * (errors**2).sum(1))


def test_kl_of_each_step():
  schedule, n = Schedule.linear(1000).respace(50), 5000
  x0 = np.sqrt(LAMBDA) * np.random.default_rng(1).normal(size=(n, 3))
  denoise = gaussian_denoiser(LAMBDA, Schedule.linear(1000))
  run = lambda x0: kl_per_step(denoise, x0, schedule, KEY)
  found = np.float64(jax.jit(run)(np.float32(x0)))
  mean, deviation = exact_kl(schedule)
  z = (found[1:] - mean) / deviation * np.sqrt(n)
  assert found.shape == (50,) and np.all(np.abs(z) < 4.5)
  # Bits are the sum of the same parts.
  bits = bits_per_dim(denoise, np.float32(x0[:500]), schedule, KEY)
  z = (bits.kl.mean() * 3 * math.log(2) - mean.sum()) * np.sqrt(500)
  assert abs(z) < 4.5 * np.sqrt(np.sum(deviation**2) + mean.sum() * 3)


def test_what_noise_does_not_hide():
  schedule = Schedule([1.0, 0.7, 0.2])
  x0 = np.float32([[0.5, -1.0], [0.1, 0.2]])
  denoise = gaussian_denoiser(1.0, schedule)
  found = bits_per_dim(denoise, x0, schedule, KEY).prior
  mean, variance = np.sqrt(0.2) * x0, 0.8
  nats = (variance + mean**2 - 1 - np.log(variance)) / 2
  np.testing.assert_allclose(found, nats.mean(1) / np.log(2), rtol=1e-5)


def test_few_timesteps_are_an_unbiased_estimate():
  schedule = Schedule.linear(100)
  x0 = np.float32(eight_bits(4))
  denoise = gaussian_denoiser(LAMBDA, schedule)
  keys = jax.random.split(KEY, 1000)

  def draws(timesteps, keys):
    run = lambda key: bits_per_dim(
      denoise, x0, schedule, key, timesteps=timesteps
    )
    return np.float64(jax.jit(jax.vmap(run))(keys).kl)

  exact = draws(None, keys[:200])
  mean = exact_kl(schedule)[0] / (3 * math.log(2))
  found = draws(10, keys)
  error = np.sqrt(exact.var(0) / 200 + found.var(0) / 1000)
  assert np.all(np.abs(found.mean(0) - exact.mean(0)) < 4 * error)
  # Runs of as many positions each would have missed the few that count.
  runs = np.array_split(mean, 10)
  even = np.sqrt(sum((run.size * run.std()) ** 2 for run in runs))
  assert np.sqrt(np.mean(found.var(0))) < 0.7 * even


def test_the_learned_range_contains_the_large_variance():
  schedule = even_schedule(20)
  denoise = gaussian_denoiser(LAMBDA, schedule)
  x0 = np.float32(eight_bits(5))
  pair = lambda x, t: (denoise(x, t), jnp.ones_like(x))
  learned = bits_per_dim(pair, x0, schedule, KEY, variance='learned_range')
  large = bits_per_dim(denoise, x0, schedule, KEY, variance='fixed_large')
  np.testing.assert_allclose(learned.kl, large.kl, rtol=1e-4)
  assert np.all(learned.decoder != large.decoder)


def test_on_many_devices():
  schedule = even_schedule(6)
  denoise = gaussian_denoiser(LAMBDA, schedule)
  x0, keys = (
    np.float32(eight_bits(16)).reshape(8, 2, 3),
    jax.random.split(KEY, 8),
  )

  def run(x0, key):
    return bits_per_dim(denoise, x0, schedule, key, timesteps=3)

  expected = jax.jit(jax.vmap(run))(x0, keys)
  close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  local = lambda x0, keys: jax.tree.map(lambda x: x[None], run(x0[0], keys[0]))
  sharded = jax.shard_map(local, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  close(jax.jit(sharded)(x0, keys), expected)


def test_wrong_arguments_are_named():
  schedule, x0 = Schedule.linear(30), jnp.ones((2, 3))
  denoise = gaussian_denoiser(1.0, schedule)
  run = functools.partial(bits_per_dim, denoise, x0, schedule, KEY)
  one = schedule.respace(1)
  for name, call in {
    'timesteps: got 0': lambda: run(timesteps=0),
    'timesteps: got 30, expected 1 to 29': lambda: run(timesteps=30),
    "variance: got 'v'": lambda: run(variance='v'),
    'x0: got shape': lambda: bits_per_dim(denoise, x0[0], schedule, KEY),
    'x0: got sha': lambda: kl_per_step(denoise, x0[0], schedule, KEY),
    'schedule.steps: got 1': lambda: bits_per_dim(denoise, x0, one, KEY),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
