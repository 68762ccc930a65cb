"""The step is that of the optimizer, its noise scale that of the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.figures.tracked_run import noise_columns, tracked_step
from kexue.scaling import noise_scale_tracker, two_batch_noise_scale
from kexue.training import init_state, make_step, parallelize

KEY = jax.random.key(0)


def loss(params, x):
  return jnp.mean((params['w'] - x) ** 2)


def plain(params, variables, x, key):
  return loss(params, x), (variables, {})


def batches(steps=4):
  return 1 + jax.random.normal(KEY, (steps, 16, 3))


def trained(optimizer, how='jit'):
  tracker = noise_scale_tracker(decay=0.9)
  params = {'w': jnp.zeros(3)}
  step = tracked_step(loss, optimizer, tracker, microbatches=2)
  program = parallelize(step, how)
  state = init_state(params, optimizer, tracker.init(params))
  return program(program.place(state), batches(), KEY)


@pytest.mark.parametrize('how', ['jit', 'pmap'])
def test_it_trains_like_any_other_step(how):
  optimizer = optax.adam(0.1)
  state, metrics = trained(optimizer, how)
  program = parallelize(make_step(plain, optimizer), how)
  start = program.place(init_state({'w': jnp.zeros(3)}, optimizer))
  expected, known = program(start, batches(), KEY)
  np.testing.assert_allclose(state.params['w'], expected.params['w'], rtol=1e-5)
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], known[name], rtol=1e-5)
  assert int(state.step) == 4 and int(state.variables.count) == 4


def test_the_noise_scale_is_that_of_two_batch_sizes():
  state, _ = trained(optax.sgd(0.0))
  of = {name: float(x) for name, x in noise_columns(state).items()}
  sums = np.zeros(2)
  for i, x in enumerate(np.float64(batches())):
    halves = -2 / 3 * x.reshape(2, 8, 3).mean(1)
    small = np.mean(np.sum(halves**2, 1))
    big = np.sum(halves.mean(0) ** 2)
    _, square, trace = two_batch_noise_scale(small, big, 8, 16)
    sums += 0.9 ** (3 - i) * np.array([square, trace])
  assert of['noise_scale'] == pytest.approx(sums[1] / sums[0], rel=1e-4)
  assert of['noise_low'] <= of['noise_scale'] <= of['noise_high']
