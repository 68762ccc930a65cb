"""Samples of the exact denoiser against the moments that steps give them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.diffusion import (
  Schedule,
  add_noise,
  denoiser,
  gaussian_denoiser,
  predict_noise,
  prediction_target,
  sample,
)

LINEAR = Schedule.linear(1000)
LAMBDA = np.array([0.0, 0.01, 0.3, 1.0, 2.0])
ORACLE = gaussian_denoiser(LAMBDA, LINEAR)
KEY = jax.random.key(0)


def final_variances(schedule, *, eta=None, variance='fixed_small'):
  """Of linear steps, x_{i-1} = f x_i + s z: exact, from N(0, 1)."""
  result = np.ones_like(LAMBDA)
  for i in range(schedule.steps, 0, -1):
    a, before = schedule.alpha_bar[i], schedule.alpha_bar[i - 1]
    beta = 1 - a / before
    small = beta * (1 - before) / (1 - a)
    gain = np.sqrt(a) * LAMBDA / (a * LAMBDA + 1 - a)
    if eta is None:
      draws = {'fixed_small': small, 'fixed_large': beta * (i > 1)}[variance]
      of_x = np.sqrt(1 - beta) * (1 - before) / (1 - a)
      factor = np.sqrt(before) * beta / (1 - a) * gain + of_x
    else:
      draws = eta**2 * small
      eps = (1 - np.sqrt(a) * gain) / np.sqrt(1 - a)
      factor = np.sqrt(before) * gain + np.sqrt(1 - before - draws) * eps
    result = factor**2 * result + draws
  return result


@pytest.mark.parametrize(
  'options',
  [{}, {'variance': 'fixed_large'}, {'eta': 0.0}, {'eta': 0.7}],
  ids=str,
)
def test_samples_have_the_variances_of_their_steps(options):
  schedule, n = LINEAR.respace(40), 20_000
  run = lambda key: sample(ORACLE, schedule, key, (n, 5), **options)
  x = np.float64(jax.jit(run)(KEY))
  expected = final_variances(schedule, **options)
  np.testing.assert_allclose(x[:, 0], 0, atol=1e-6)
  x, expected = x[:, 1:], expected[1:]
  z = (np.mean(x**2, 0) / expected - 1) * np.sqrt(n / 2)
  assert np.all(np.abs(z) < 4), z
  correlation = np.corrcoef(x.T)[np.triu_indices(4, 1)]
  assert np.all(np.abs(correlation) * np.sqrt(n) < 4)
  # All steps of the schedule lead to the source itself.
  exact = final_variances(LINEAR, **options)[1:]
  np.testing.assert_allclose(exact[1:], LAMBDA[2:], rtol=0.02)
  np.testing.assert_allclose(exact[0], LAMBDA[1], rtol=0.08)


def test_eta_one_takes_the_steps_of_the_ddpm():
  schedule = LINEAR.respace(10)
  run = lambda **options: sample(ORACLE, schedule, KEY, (4, 5), **options)
  np.testing.assert_allclose(run(eta=1.0), run(), rtol=1e-4, atol=1e-5)
  # No noise but the first: of one key, and given.
  start = jax.random.normal(KEY, (4, 5))
  one = sample(ORACLE, schedule, KEY, (4, 5), eta=0.0, start=start)
  key = jax.random.key(1)
  other = sample(ORACLE, schedule, key, (4, 5), eta=0.0, start=start)
  np.testing.assert_array_equal(one, other)
  assert not np.allclose(one, run(eta=0.0))


def test_the_learned_range_ends_in_both_fixed_variances():
  schedule = LINEAR.respace(10)
  run = functools.partial(sample, schedule=schedule, key=KEY, shape=(4, 5))
  for variance, fraction in (('fixed_small', 0.0), ('fixed_large', 1.0)):
    learned = lambda x, t, w=fraction: (ORACLE(x, t), jnp.full_like(x, w))
    np.testing.assert_allclose(
      run(learned, variance='learned_range'),
      run(ORACLE, variance=variance),
      rtol=1e-4,
      atol=1e-5,
    )


def test_networks_get_original_timesteps():
  seen = []

  def spy(x, t):
    jax.debug.callback(lambda t: seen.append(int(t)), t, ordered=True)
    return ORACLE(x, t)

  schedule = LINEAR.respace([3, 40, 41, 1000])
  for eta in (None, 0.0):
    sample(spy, schedule, KEY, (1, 5), eta=eta).block_until_ready()
    jax.effects_barrier()
    assert seen == [1000, 41, 40, 3]
    seen.clear()


def test_samples_are_the_last_prediction():
  steps = Schedule.linear(30).respace([7, 20])
  last = lambda x, t: jnp.ones_like(x) * t
  np.testing.assert_array_equal(sample(last, steps, KEY, (2, 3)), 7)


@pytest.mark.parametrize('prediction', ['eps', 'x0', 'v'])
def test_a_network_of_each_kind_is_the_same_denoiser(prediction):
  def network(x, t):
    assert t.dtype == jnp.int32 and t.shape == (4,)
    x0 = ORACLE(x, t)
    noise = predict_noise(LINEAR, x0, x, t)
    return prediction_target(LINEAR, x0, noise, t, prediction=prediction)

  x = jax.random.normal(KEY, (4, 5))
  make = functools.partial(denoiser, network, LINEAR, prediction=prediction)
  for t in (7, jnp.array([1, 10, 100, 300])):
    expected = np.asarray(ORACLE(x, t))
    found = make(clip=False)(x, t)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    clipped = expected.clip(-1, 1)
    assert np.any(clipped != expected)
    np.testing.assert_allclose(make()(x, t), clipped, rtol=1e-4, atol=1e-4)


def test_a_network_of_the_learned_range_serves_everybody():
  network = lambda x, t: jnp.concatenate([0 * x + 0.5, x], axis=-1)
  x = jnp.array([[[-1.0, 1.0], [0.0, 0.5]]])
  make = functools.partial(denoiser, network, LINEAR, prediction='x0')
  np.testing.assert_array_equal(make()(x, 3), jnp.full((1, 2, 2), 0.5))
  x0_hat, fraction = make(learned_range=True)(x, 3)
  np.testing.assert_array_equal(x0_hat, make()(x, 3))
  np.testing.assert_array_equal(fraction, (x + 1) / 2)


def test_sampling_on_many_devices():
  schedule = LINEAR.respace(5)
  run = lambda key: sample(ORACLE, schedule, key, (2, 5), eta=0.5)
  keys = jax.random.split(KEY, 8)
  expected = jax.jit(jax.vmap(run))(keys)
  close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
  close(run(keys[3]), expected[3])
  close(jax.pmap(run)(keys), expected)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  local = lambda keys: run(keys[0])[None]
  sharded = jax.shard_map(local, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  close(jax.jit(sharded)(keys), expected)


def test_the_ordinary_differential_equation_and_back():
  """Noised by its own noise, an image comes back, of a fine schedule."""
  x0 = 0.5 * jnp.ones((1, 5))
  know = lambda x, t: jnp.broadcast_to(x0, x.shape)
  start = add_noise(LINEAR, x0, jax.random.normal(KEY, (1, 5)), 1000)
  found = sample(know, LINEAR.respace(9), KEY, (1, 5), eta=0.0, start=start)
  np.testing.assert_allclose(found, x0, rtol=1e-6)


def test_wrong_arguments_are_named():
  x, few = jnp.ones((2, 3)), LINEAR.respace(5)
  run = functools.partial(sample, ORACLE, few, KEY, (2, 5))
  broken = lambda channels: denoiser(
    lambda x, t: jnp.ones((2, channels)), LINEAR
  )
  pair = denoiser(lambda x, t: x, LINEAR, learned_range=True)
  for name, call in {
    'schedule: got Schedule': lambda: denoiser(ORACLE, few),
    "prediction: got 'y'": lambda: denoiser(ORACLE, LINEAR, prediction='y'),
    "the network's output: got": lambda: broken(4)(x, 1),
    "the network's output: ": lambda: pair(x, 1),
    "variance: got 'v'": lambda: run(variance='v'),
    "variance: got 'fixed_large'": lambda: run(variance='fixed_large', eta=0.0),
    'start: got shape': lambda: run(start=x),
    'eta: got -1': lambda: run(eta=-1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
