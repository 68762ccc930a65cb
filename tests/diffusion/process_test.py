"""Noising, predictions, posteriors and steps against Bayes and draws."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.diffusion import (
  Posterior,
  Schedule,
  add_noise,
  ddim_step,
  ddpm_step,
  posterior,
  predict_noise,
  predict_x0,
  prediction_target,
)

LINEAR = Schedule.linear(1000)
SCHEDULES = {
  'linear': LINEAR,
  'respaced': LINEAR.respace(7),
  'cosine': Schedule.cosine(30),
  'single': LINEAR.respace(1),
}
RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
  return SCHEDULES[request.param]


def some_positions(schedule):
  return sorted({1, min(2, schedule.steps), schedule.steps // 2 or 1}) + [
    schedule.steps
  ]


def test_add_noise(schedule):
  x0, noise = np.float32(normal(3, 4, 2)), np.float32(normal(3, 4, 2))
  for i in (0, *some_positions(schedule)):
    a = schedule.alpha_bar[i]
    expected = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise
    found = add_noise(schedule, x0, noise, i)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  # A position for each image.
  i = jnp.array([0, 1, schedule.steps])
  each = [add_noise(schedule, x0[j], noise[j], i[j]) for j in range(3)]
  np.testing.assert_array_equal(
    add_noise(schedule, x0, noise, i), jnp.stack(each)
  )


@pytest.mark.parametrize('prediction', ['eps', 'x0', 'v'])
def test_predictions_go_there_and_back(schedule, prediction):
  with jax.enable_x64(True):
    x0, noise = jnp.asarray(normal(4, 3)), jnp.asarray(normal(4, 3))
    i = jnp.array(some_positions(schedule)[:4] + [1] * 4)[:4]
    x = add_noise(schedule, x0, noise, i)
    target = prediction_target(schedule, x0, noise, i, prediction=prediction)
    found = predict_x0(schedule, target, x, i, prediction=prediction)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, x0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
      predict_noise(schedule, x0, x, i), noise, rtol=1e-9, atol=1e-9
    )
    if prediction == 'v':
      a = schedule.alpha_bar[np.asarray(i)][:, None]
      np.testing.assert_allclose(
        target, np.sqrt(a) * noise - np.sqrt(1 - a) * x0, rtol=1e-10
      )


def test_posterior_is_bayes(schedule):
  """Precisions add up: of N(sqrt(a') x0, 1 - a') and of x given x'."""
  with jax.enable_x64(True):
    x0, x = jnp.asarray(normal(2, 3)), jnp.asarray(normal(2, 3))
    for i in some_positions(schedule)[1:]:
      if i == 1:
        continue
      a, beta = schedule.alpha_bar[i - 1], schedule.betas[i - 1]
      precision = 1 / (1 - a) + (1 - beta) / beta
      sum_of = np.sqrt(a) * x0 / (1 - a) + np.sqrt(1 - beta) * x / beta
      mean, deviation = posterior(schedule, x0, x, i)
      np.testing.assert_allclose(mean, sum_of / precision, rtol=1e-8)
      np.testing.assert_allclose(deviation**-2, precision, rtol=1e-8)
      assert deviation.shape == ()
    # The step to the image knows where it goes.
    mean, deviation = posterior(schedule, x0, x, 1)
    np.testing.assert_allclose(mean, x0, rtol=1e-12)
    assert deviation == 0


def test_posterior_against_draws():
  """What is left of x' without the mean: unbiased, the variance, unrelated."""
  schedule, i, n = Schedule.cosine(20), 12, 100_000
  a, beta = schedule.alpha_bar[i - 1], schedule.betas[i - 1]
  before = np.sqrt(a) * 0.7 + np.sqrt(1 - a) * normal(n)
  x = np.sqrt(1 - beta) * before + np.sqrt(beta) * normal(n)
  mean, deviation = posterior(schedule, np.full(n, 0.7, 'f4'), np.float32(x), i)
  left = (before - np.float64(mean)) / float(deviation)
  assert abs(left.mean()) * np.sqrt(n) < 4
  assert abs(left.var() - 1) * np.sqrt(n / 2) < 4
  assert abs(np.corrcoef(left, x)[0, 1]) * np.sqrt(n) < 4


def test_the_large_variance_is_that_of_normal_images(schedule):
  """All x_i are N(0, 1) then, with a correlation of the root of alpha."""
  x = np.float32(normal(2, 3))
  for i in some_positions(schedule):
    x0_hat = np.float32(np.sqrt(schedule.alpha_bar[i])) * x
    mean, deviation = posterior(schedule, x0_hat, x, i, variance='fixed_large')
    beta = schedule.betas[i - 1]
    np.testing.assert_allclose(mean, np.sqrt(1 - beta) * x, rtol=1e-4)
    np.testing.assert_allclose(deviation, np.sqrt(beta), rtol=1e-5)


def test_ends_of_the_learned_range(schedule):
  x = jnp.ones((2, 3))
  for i in some_positions(schedule):
    at = functools.partial(posterior, schedule, x, x, i)
    learned = functools.partial(at, variance='learned_range')
    large = at(variance='fixed_large').deviation
    low = posterior(schedule, x, x, max(i, min(2, schedule.steps))).deviation
    low = low if schedule.steps > 1 else large
    ends = jnp.array([[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]])
    mean, deviation = learned(fraction=ends)
    expected = jnp.stack([large, low, jnp.sqrt(large * low)])
    np.testing.assert_allclose(deviation, [expected, expected], rtol=1e-5)
    np.testing.assert_allclose(mean, at().mean)


def test_the_first_step_draws_nothing(schedule):
  x0, x = np.float32(normal(2, 3)), np.float32(normal(2, 3))
  half = jnp.full(x.shape, 0.5)
  for kind in ('fixed_small', 'fixed_large', 'learned_range'):
    fraction = half if kind == 'learned_range' else None
    step = functools.partial(
      ddpm_step, schedule, x0, x, variance=kind, fraction=fraction
    )
    np.testing.assert_allclose(step(1, 1e6 * x), x0, rtol=1e-6)
    if (i := schedule.steps) > 1:
      mean, deviation = posterior(
        schedule, x0, x, i, variance=kind, fraction=fraction
      )
      np.testing.assert_allclose(
        step(i, x), mean + deviation * x, rtol=1e-5, atol=1e-6
      )
  np.testing.assert_allclose(ddim_step(schedule, x0, x, 1, x, eta=1.0), x0)


def test_ddim_with_eta_one_is_the_ddpm(schedule):
  x0, x, noise = (np.float32(normal(2, 3)) for _ in range(3))
  x0 = np.clip(x0, -1, 1)  # The noise is what fits the clipped image.
  for i in some_positions(schedule):
    np.testing.assert_allclose(
      ddim_step(schedule, x0, x, i, noise, eta=1.0),
      ddpm_step(schedule, x0, x, i, noise),
      rtol=2e-5,
      atol=2e-6,
    )


def test_ddim_is_the_formula(schedule):
  x0, x, noise = (normal(2, 3) for _ in range(3))
  with jax.enable_x64(True):
    for i in some_positions(schedule):
      a, before = schedule.alpha_bar[i], schedule.alpha_bar[i - 1]
      small = (1 - before) / (1 - a) * (1 - a / before)
      eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
      for eta in (0.0, 0.3, 1.0):
        kept = np.sqrt(max(1 - before - eta**2 * small, 0))
        expected = (
          np.sqrt(before) * x0 + kept * eps + eta * np.sqrt(small) * noise
        )
        found = ddim_step(schedule, x0, x, i, noise, eta=eta)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_no_digits_are_lost_in_large_steps():
  """Of 1 - a' - s^2 single precision would keep none where noise is all."""
  schedule = Schedule([1.0, 1e-3, 1e-9])
  a, before = schedule.alpha_bar[2], schedule.alpha_bar[1]
  exact = np.sqrt(a / before) * (1 - before)  # To the last digits.
  one, zero = jnp.ones([]), jnp.zeros([])
  found = ddim_step(schedule, zero, one, 2, zero, eta=1.0)
  np.testing.assert_allclose(found, exact, rtol=1e-5)
  small = np.float32((1 - before) / (1 - a) * (1 - a / before))
  naive = np.sqrt(np.float32(1 - before) - small)
  assert abs(naive / exact - 1) > 1e-3


def test_steps_without_noise_keep_the_noise_of_a_known_image(schedule):
  x0, noise = np.float32(normal(2, 3)), np.float32(normal(2, 3))
  i = schedule.steps
  x = add_noise(schedule, x0, noise, i)
  found = ddim_step(schedule, x0, x, i, 1e6 * noise)
  expected = add_noise(schedule, x0, noise, i - 1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_types():
  for dtype, wide in (('bfloat16', 'float32'), ('float32', 'float32')):
    x = jnp.ones((2, 3), dtype)
    for found in (
      add_noise(LINEAR, x, x, 3),
      predict_x0(LINEAR, x, x, 3, prediction='x0'),
      posterior(LINEAR, x, x, 3).mean,
      ddim_step(LINEAR, x, x, 3, x, eta=0.5),
    ):
      assert found.dtype == wide


def test_transformations_agree():
  schedule = LINEAR.respace(50)
  x0, x, noise = (np.float32(normal(8, 2, 3)) for _ in range(3))
  i = jnp.arange(1, 9) * 6

  def run(x0, x, noise, i):
    return (
      add_noise(schedule, x0, noise, i),
      predict_x0(schedule, noise, x, i, prediction='v'),
      Posterior(*posterior(schedule, x0, x, i)).mean,
      ddpm_step(schedule, x0, x, i, noise, variance='fixed_large'),
      ddim_step(schedule, x0, x, i, noise, eta=0.5),
    )

  close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
  args = x0, x, noise, i
  expected = run(*args)
  close(jax.jit(run)(*args), expected)
  close(jax.vmap(run)(*args), expected)
  for j in (0, 7):  # A scalar instead of one for each.
    one = run(*(a[j : j + 1] for a in args[:3]), int(i[j]))
    close(one, jax.tree.map(lambda x, j=j: x[j : j + 1], expected))
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(run, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  close(jax.jit(sharded)(*args), expected)


def test_wrong_arguments_are_named():
  x = jnp.ones((2, 3))
  at = functools.partial(posterior, LINEAR, x, x)
  for name, call in {
    'i: got -1': lambda: add_noise(LINEAR, x, x, -1),
    'i: got 1001': lambda: add_noise(LINEAR, x, x, 1001),
    'i: got 0': lambda: predict_x0(LINEAR, x, x, 0),
    'i: got 0,': lambda: predict_noise(LINEAR, x, x, 0),
    'i: got 1002': lambda: ddim_step(LINEAR, x, x, 1002, x),
    'i: got 0, ': lambda: at(0),
    "prediction: got 'e'": lambda: predict_x0(LINEAR, x, x, 1, prediction='e'),
    "variance: got 'large'": lambda: at(1, variance='large'),
    "fraction: got 'none'": lambda: at(1, variance='learned_range'),
    "fraction: got 'one'": lambda: at(1, fraction=x),
    'eta: got 1.5': lambda: ddim_step(LINEAR, x, x, 1, x, eta=1.5),
    "prediction: got 'z'": lambda: prediction_target(
      LINEAR, x, x, 1, prediction='z'
    ),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
