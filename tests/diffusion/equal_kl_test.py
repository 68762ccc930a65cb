"""Shares of the KL between chosen timesteps, and what is asked for in vain."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kexue.diffusion import Schedule, equal_kl_timesteps

LINEAR = Schedule.linear(1000)


def gaussian_kl(schedule, variances):
  """Of the exact denoiser: what kl_per_step gives for many images."""
  a = schedule.alpha_bar[2:, None]
  errors = np.sum(variances * (1 - a) / (a * variances + 1 - a), axis=1)
  return np.append(np.inf, (schedule.snr[1:-1] - schedule.snr[2:]) * errors / 2)


KL = gaussian_kl(LINEAR, 30 * np.arange(1, 257) ** -1.2)


@hypothesis.given(
  st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 5)
)
@hypothesis.settings(max_examples=80, deadline=None)
def test_parts_are_equal_within_a_step_of_the_table(seed, count, tail):
  """Where no step of the table is worth more than a part."""
  rng = np.random.default_rng(seed)
  kl = np.append(np.nan, rng.random(999) ** rng.integers(1, 20))
  kl[rng.integers(1, 1000) :] *= rng.random()
  found = equal_kl_timesteps(LINEAR, kl, count, tail=tail)
  assert len(found) == count + tail and found[-1] == 1000
  assert all(isinstance(t, int) for t in found)
  assert list(found) == sorted(set(found)) and found[0] >= 1
  spent = np.cumsum(np.append(0.0, kl[1:]))
  share, ends = spent[-1] / count, spent[np.array(found[tail:]) - 1]
  if kl[1:].max() < share and found[tail] > tail + 1:
    np.testing.assert_allclose(np.diff(ends), share, atol=kl[1:].max())
    np.testing.assert_allclose(ends[0], share, atol=kl[1:].max())
  # Without a tail the nearest of all timesteps, if they are not neighbours.
  if tail == 0 and np.all(np.diff(found) > 1):
    wanted = share * np.arange(1, count + 1)
    nearest = np.abs(spent[:, None] - wanted).min(0)
    np.testing.assert_allclose(np.abs(ends - wanted), nearest, atol=1e-9)


def test_the_whole_table_and_a_single_step():
  for schedule in (Schedule.cosine(30), Schedule.cosine(1)):
    kl = np.ones(schedule.steps)
    if schedule.steps > 1:
      found = equal_kl_timesteps(schedule, kl, schedule.steps)
      assert found == tuple(range(1, schedule.steps + 1))
      assert schedule.respace(found) == schedule
      assert equal_kl_timesteps(schedule, kl, 1) == (schedule.steps,)


def test_steps_of_so_many_nats():
  nats = math.log(4096)
  found = np.array(equal_kl_timesteps(LINEAR, KL, 40, nats=nats, tail=8))
  spent = np.cumsum(np.append(0.0, KL[1:]))
  coded = found[8:]
  left = spent[-1] - nats * np.arange(40)[::-1]
  largest = KL[coded[0] : 1000].max()
  np.testing.assert_allclose(spent[coded - 1], left, atol=largest / 2 + 1e-9)
  assert coded[-1] == 1000 and coded[0] > 20
  # The tail is even in log SNR, rounded to the table.
  noise = -np.log(LINEAR.snr[1 : found[8] + 1])
  even = noise[0] + (noise[-1] - noise[0]) * np.arange(1, 9) / 9
  nearest = np.abs(noise[:, None] - even).argmin(0) + 1
  assert len(set(nearest)) == 8
  np.testing.assert_array_equal(found[:8], nearest)
  # More nats, lower timesteps; what is left over is not a part.
  more = equal_kl_timesteps(LINEAR, KL, 40, nats=1.2 * nats)
  assert np.all(np.array(more)[:-1] < coded[:-1])
  # In parts of the whole, most are neighbours at the end, one a step.
  whole = equal_kl_timesteps(LINEAR, KL, 40)
  assert whole[:5] == (1, 2, 3, 4, 5) and whole[-1] == 1000


def test_what_one_step_is_worth_is_not_cut():
  kl = np.zeros(100)
  kl[59] = 7.0  # From timestep 60 to 59.
  schedule = Schedule.linear(100)
  for tail in (0, 3):
    found = equal_kl_timesteps(schedule, kl, 4, tail=tail)
    assert len(set(found)) == 4 + tail and found[-1] == 100
    assert sum(59 <= t <= 60 for t in found) >= 1
  # Neighbours where there is no room for more; and all below are taken.
  kl = np.append(0.0, np.geomspace(1e3, 1e-3, 99))
  found = equal_kl_timesteps(schedule, kl, 20, tail=7)
  assert found[:12] == tuple(range(1, 13)) and found[-1] == 100


def test_the_decoders_term_is_nobodys():
  for first in (0.0, 1e9, np.inf, np.nan):
    kl = np.append(first, KL[1:])
    found = equal_kl_timesteps(LINEAR, kl, 9, nats=5.0)
    assert found == equal_kl_timesteps(LINEAR, KL, 9, nats=5.0)


def test_a_respaced_schedule_gives_original_timesteps():
  schedule = LINEAR.respace(100)
  kl = np.append(0.0, np.ones(99))
  found = equal_kl_timesteps(schedule, kl, 10, tail=2)
  assert set(found) <= set(schedule.timesteps.tolist())
  assert found[-1] == 1000 and schedule.respace(found).steps == 12


def test_too_little_to_spend():
  kl = np.append(0.0, np.full(999, 0.01))  # 9.99 nats.
  assert len(equal_kl_timesteps(LINEAR, kl, 10, nats=1.11)) == 10
  with pytest.raises(ValueError, match='^count: got 11, expected at most 10'):
    equal_kl_timesteps(LINEAR, kl, 11, nats=1.0)
  for name, call in {
    'count: got 0': dict(count=0),
    'count: got 999, expected 1 to 998': dict(count=999, tail=2),
    'tail: got -1': dict(tail=-1),
    'nats: got 0': dict(nats=0),
    'kl_per_step: got shape': dict(kl_per_step=kl[1:]),
    'kl_per_step: got': dict(kl_per_step=-kl),
    'kl_per_step: got arr': dict(kl_per_step=0 * kl),
    'kl_per_step: got array': dict(kl_per_step=np.append(kl[:-1], np.inf)),
  }.items():
    call = {'schedule': LINEAR, 'kl_per_step': kl, 'count': 5} | call
    with pytest.raises(ValueError, match=f'^{name}'):
      equal_kl_timesteps(**call)
