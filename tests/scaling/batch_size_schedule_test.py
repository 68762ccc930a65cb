"""Schedules for other batch sizes: clock, factor, and inside an optimizer."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.scaling import batch_size_schedule


def noise(scale):
  return SimpleNamespace(scale=scale)


ADAM = dict(statistics=noise(99.0), optimizer='adam')


def test_the_clock_of_the_schedule():
  base = optax.warmup_cosine_decay_schedule(0.0, 1.0, 100, 1000)
  make = functools.partial(
    batch_size_schedule, base, 64, statistics=noise(1e9), optimizer='sgd'
  )
  steps = np.arange(0, 251, 10)
  read = lambda schedule, steps: jax.jit(jax.vmap(schedule))(steps)
  np.testing.assert_allclose(
    read(make(64), steps), read(base, steps), rtol=1e-6
  )
  # Four times the batch: a quarter of the steps, four times the rate.
  expected = 4 * read(base, 4 * steps)
  np.testing.assert_allclose(read(make(256), steps), expected, rtol=1e-5)
  fixed = read(make(256, budget='steps'), steps)
  np.testing.assert_allclose(fixed, 2 * read(base, steps), rtol=1e-4)
  # A batch size that grows: examples so far, in old batches.
  growing = make({0: 32, 100: 128, 150: 256})
  steps = np.array([0, 99, 100, 149, 150, 200])
  clock = np.array([0, 49.5, 50, 148, 150, 350])
  factor = np.array([0.5, 0.5, 2, 2, 4, 4])
  found = read(growing, steps)
  np.testing.assert_allclose(found, factor * read(base, clock), rtol=1e-4)
  assert growing(100) == pytest.approx(float(found[2]), rel=1e-6)


def test_a_schedule_in_an_optimizer():
  schedule = batch_size_schedule(
    0.1, 64, {0: 64, 2: 256}, statistics=noise(math.inf), optimizer='adam'
  )
  tx = optax.sgd(schedule)
  state, found = tx.init(jnp.ones(())), []
  for _ in range(4):
    updates, state = tx.update(jnp.ones(()), state)
    found.append(float(updates))
  np.testing.assert_allclose(found, [-0.1, -0.1, -0.2, -0.2], rtol=1e-5)


@pytest.mark.parametrize(
  'old, new, name',
  [
    (0, 256, 'old_batch_size'),
    (64, -1, 'new_batch_size'),
    (64, {1: 64}, 'new_batch_size'),
    (64, {}, 'new_batch_size'),
    (64, {0: 64, 5: 0}, 'new_batch_size'),
    (64, {0: 64, 2.5: 128}, 'new_batch_size'),
  ],
)
def test_wrong_batch_sizes_are_named(old, new, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    batch_size_schedule(0.1, old, new, **ADAM)


@pytest.mark.parametrize('option', [{'optimizer': 'lamb'}, {'budget': 'time'}])
def test_wrong_options_are_named(option):
  with pytest.raises(ValueError, match=f'^{[*option][0]}: got'):
    batch_size_schedule(0.1, 64, 256, **ADAM | option)
