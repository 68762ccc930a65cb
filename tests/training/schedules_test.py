"""Schedules against their formulas."""

import numpy as np
import pytest

from kexue.training.schedules import schedule


def values(kind, **options):
  s = schedule(kind, **options)
  return np.array([float(s(t)) for t in range(options['steps'] + 1)])


@pytest.mark.parametrize('kind', ['constant', 'cosine', 'linear', 'wsd'])
def test_warmup_rises_from_zero_to_the_peak(kind):
  found = values(kind, steps=40, warmup=8, peak=0.5)
  np.testing.assert_allclose(found[:9], 0.5 * np.arange(9) / 8, atol=1e-6)
  assert found.max() <= 0.5 + 1e-6


def test_shapes_after_warmup():
  t = np.arange(31) / 30
  options = dict(steps=40, warmup=10, peak=2.0, final=0.1)
  cosine = 2 * (0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2)
  np.testing.assert_allclose(values('cosine', **options)[10:], cosine, 1e-5)
  linear = 2 * (1 - 0.9 * t)
  np.testing.assert_allclose(values('linear', **options)[10:], linear, 1e-5)
  wsd = values('wsd', decay=15, **options)[10:]
  np.testing.assert_allclose(wsd[:16], 2.0)
  np.testing.assert_allclose(wsd[15:], 2 * (1 - 0.9 * np.arange(16) / 15), 1e-5)
  assert np.all(values('wsd', steps=20)[:17] == 1.0)  # A fifth by default.


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(kind='cosin', steps=4), "kind: got 'cosin'"),
    (dict(kind='cosine', steps=0), 'steps: got 0'),
    (dict(kind='cosine', steps=4, warmup=4), 'warmup: got 4'),
    (dict(kind='wsd', steps=4, warmup=1, decay=4), 'decay: got 4'),
  ],
)
def test_wrong_arguments_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    schedule(options.pop('kind'), **options)
