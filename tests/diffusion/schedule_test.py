"""Tables of schedules, respacing, and schedules as static arguments."""

import copy
import functools
import pickle

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kexue.diffusion import Schedule

LINEAR = Schedule.linear(1000)


def test_linear_is_that_of_the_ddpm():
  betas = np.linspace(1e-4, 0.02, 1000)
  np.testing.assert_allclose(LINEAR.betas, betas, rtol=1e-10)
  assert LINEAR.alpha_bar.dtype == np.float64 and LINEAR.alpha_bar[0] == 1
  # Of 1000 steps as printed by others: 4.04e-5 at the end.
  np.testing.assert_allclose(LINEAR.alpha_bar[-1], 4.0358e-5, rtol=1e-4)
  assert LINEAR.timesteps.dtype == np.int32
  np.testing.assert_array_equal(LINEAR.timesteps, np.arange(1, 1001))
  # Other numbers of steps reach nearly the same.
  for steps in (100, 4000):
    end = Schedule.linear(steps).alpha_bar[-1]
    np.testing.assert_allclose(np.log(end), -10.1, rtol=0.12)


def test_cosine_is_the_formula_where_it_is_not_clipped():
  schedule = Schedule.cosine(1000)
  signal = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  expected = signal(np.arange(1001) / 1000) / signal(0.0)
  np.testing.assert_allclose(
    schedule.alpha_bar[:-1], expected[:-1], rtol=1e-9, atol=0
  )
  np.testing.assert_allclose(schedule.betas[-1], 0.999)
  assert expected[-1] < 1e-30 < schedule.alpha_bar[-1]  # Without the clip.
  assert Schedule.cosine(1).steps == 1


def test_ratios_of_signal_to_noise():
  assert LINEAR.snr.shape == (1001,) and LINEAR.snr[0] == np.inf
  for i in (1, 500, 1000):
    a = np.prod(1 - LINEAR.betas[:i])
    np.testing.assert_allclose(LINEAR.snr[i], a / (1 - a), rtol=1e-9)


@hypothesis.given(st.integers(1, 40), st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_respacing(steps, data):
  schedule = Schedule.cosine(steps)
  count = data.draw(st.integers(1, steps))
  respaced = schedule.respace(count)
  chosen = respaced.timesteps
  assert respaced.steps == count and chosen[-1] == steps
  even = np.arange(1, count + 1) * steps / count
  np.testing.assert_array_less(np.abs(chosen - even), 0.5 + 1e-9)
  # The noise of a timestep is what it was; betas span what lies between.
  np.testing.assert_array_equal(
    respaced.alpha_bar[1:], schedule.alpha_bar[chosen]
  )
  a = respaced.alpha_bar
  np.testing.assert_allclose(respaced.betas, 1 - a[1:] / a[:-1])
  assert schedule.respace(chosen.tolist()) == respaced
  assert schedule.respace(steps) == schedule
  assert respaced.is_respaced == (count < steps)
  # Of a respaced one, original timesteps are kept.
  some = data.draw(st.lists(st.sampled_from(chosen.tolist()), min_size=1))
  some = sorted(set(some))
  assert respaced.respace(some) == schedule.respace(some)


def test_equal_contents_are_equal_static_arguments():
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def last(schedule, x):
    traces.append(schedule)
    return x * schedule.alpha_bar[-1]

  one, two = Schedule.linear(100), Schedule.linear(100)
  assert one == two and one is not two and hash(one) == hash(two)
  for schedule in (one, two, pickle.loads(pickle.dumps(one)), one.respace(100)):
    last(schedule, jnp.ones(3))
  assert len(traces) == 1
  others = [Schedule.cosine(100), one.respace(99), Schedule.linear(101)]
  # The same noise with other names of the timesteps is another schedule.
  others.append(Schedule(one.alpha_bar, one.timesteps + 1))
  assert len({one, *others}) == 5
  assert one != 'Schedule' and one != one.alpha_bar.tolist()
  assert copy.deepcopy(one) == one
  assert jax.tree.leaves(one) == [one]


def test_nobody_can_write_to_the_tables():
  betas = np.full(30, 0.1)
  schedule = Schedule.from_betas(betas)
  table = schedule.alpha_bar.copy()
  given = Schedule(table)
  betas[:], table[1:] = 0.5, 0.0
  np.testing.assert_allclose(schedule.betas, 0.1)
  assert given == schedule
  for array in (schedule.alpha_bar, schedule.timesteps):
    with pytest.raises(ValueError, match='read-only'):
      array[0] = 0
  with pytest.raises(AttributeError):
    schedule.alpha_bar = betas


def test_wrong_arguments_are_named():
  for name, call in {
    'steps: got 20, expected 21': lambda: Schedule.linear(20),
    'steps: got 0': lambda: Schedule.cosine(0),
    'steps: got 2.0': lambda: Schedule.cosine(2.0),
    'steps: got 1001': lambda: LINEAR.respace(1001),
    'steps: got 0, ': lambda: LINEAR.respace(0),
    r'steps: got \[3, 1001\]': lambda: LINEAR.respace([3, 1001]),
    r'steps: got \[3, 3\]': lambda: LINEAR.respace([3, 3]),
    r'steps: got \[\]': lambda: LINEAR.respace([]),
    'steps: got shape': lambda: LINEAR.respace([[3]]),
    'betas: got': lambda: Schedule.from_betas([0.1, 1.0]),
    'betas: got shape': lambda: Schedule.from_betas(0.1),
    r'alpha_bar\[0\]: got': lambda: Schedule([0.9, 0.5]),
    'alpha_bar: got': lambda: Schedule([1.0, 0.5, 0.5]),
    'alpha_bar: got arr': lambda: Schedule([1.0, 0.5, 0.0]),
    r'len\(alpha_bar\): got 1': lambda: Schedule([1.0]),
    'timesteps: got shape': lambda: Schedule([1.0, 0.5], [1, 2]),
    'timesteps: got': lambda: Schedule([1.0, 0.5, 0.3], [2, 1]),
    'timesteps: got arr': lambda: Schedule([1.0, 0.5, 0.3], [0, 1]),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
