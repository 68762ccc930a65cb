"""What is chosen for a rate, and for what model."""

import dataclasses
import math

import numpy as np
import pytest

from kexue.diffusion import (
  BitstreamError,
  Schedule,
  payload_bits,
  schedule_hash,
)
from kexue.training.codec_settings import (
  TAIL,
  header_schedule,
  ladder,
  on_schedule,
  settings_for,
)


@pytest.mark.parametrize('packing', ['dense', 'step', 'independent'])
def test_the_largest_payload_that_fits_is_chosen(gaussian_model, packing):
  every = [payload_bits(h) for h in ladder(gaussian_model, packing)]
  assert len(every) > 30
  for rate in (0.5, 1.0, 1.234, 3.0):
    settings = settings_for(rate, gaussian_model, packing=packing)
    fits = max(bits for bits in every if bits <= rate * 64)
    assert payload_bits(settings) == fits and settings.packing == packing
  for bits in (min(every), max(every)):  # The ends are within.
    settings = settings_for(bits / 64, gaussian_model, packing=packing)
    assert payload_bits(settings) == bits
  assert max(every) <= 8 * 64


def test_rates_are_dense(gaussian_model):
  """Whatever the rate: from the least on a tenth of it may be unused."""
  every = sorted({payload_bits(h) for h in ladder(gaussian_model)})
  steps = [b / a for a, b in zip(every, every[1:], strict=False)]
  assert max(steps[8:]) < 1.12


@pytest.mark.parametrize('rate', [0.0, -1.0, 0.1, 100.0, math.nan, math.inf])
def test_rates_out_of_range_name_the_range(gaussian_model, rate):
  with pytest.raises(BitstreamError, match='rate: got .*, expected 0.34.* to'):
    settings_for(rate, gaussian_model)


def test_timesteps_follow_from_the_header_and_the_model(gaussian_model):
  settings = settings_for(0.5, gaussian_model)
  schedule = header_schedule(settings, gaussian_model)
  assert schedule.steps == settings.steps + 1 + settings.tail
  assert schedule.timesteps[-1] == 100
  assert settings.schedule_hash == schedule_hash(schedule)
  even = dataclasses.replace(settings, rule='even', millinats=0)
  assert header_schedule(even, gaussian_model) == Schedule.cosine(100).respace(
    schedule.steps
  )
  timesteps = tuple(schedule.timesteps.tolist())
  listed = dataclasses.replace(even, rule='listed', timesteps=timesteps)
  assert header_schedule(listed, gaussian_model) == schedule


def test_steps_spend_what_they_can_or_their_part_of_all(gaussian_model):
  settings = settings_for(0.5, gaussian_model)
  nats = payload_bits(settings) * math.log(2) / settings.steps
  assert 0.55 * nats < settings.millinats / 1000 < 0.65 * nats
  # A model that has little to say.
  small = dataclasses.replace(
    gaussian_model, params=1e-3 * gaussian_model.params
  )
  assert np.sum(small.kl_per_step[1:]) < nats * settings.steps
  settings = on_schedule(settings, small)
  assert settings.millinats == 0
  assert header_schedule(settings, small).steps == settings.steps + 1 + TAIL


def test_a_short_schedule_has_a_short_ladder(gaussian_model):
  short = dataclasses.replace(gaussian_model, schedule=Schedule.cosine(14))
  assert max(h.steps for h in ladder(short)) == 11
