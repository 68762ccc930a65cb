"""A run in small that is recorded once, and codecs of equal bits."""

import dataclasses
import math
import types

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.diffusion import payload_bits
from kexue.figures import ddcm_robustness
from kexue.figures.damaged_codes import Received
from kexue.figures.ddcm_robustness import MOSAIC, Config, _Damage, plot, run
from kexue.figures.robustness_panels import NAMES, damaged
from kexue.figures.rotation_panels import image_of
from kexue.training.loop import Interrupted

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits',
  coded=4,
  batch=4,
  size=64,
  atoms=3,
  code_steps=4,
  tail=2,
  rates=(0.01, 0.2),
  seeds=2,
  pictured=0.2,
  parts=2,
)


@pytest.fixture
def config(random_run, quick_network):
  return dataclasses.replace(SMALL, model=random_run)


def test_a_run_is_recorded_once(config, tmp_path, monkeypatch):
  config.check()
  rows = run(config, KEY, tmp_path / 'run', parallel='jit')
  assert {row['codec'] for row in rows if 'codec' in row} == {*NAMES}
  originals = config.data().validation['image'][:4]
  (real,) = (row for row in rows if row['run'] == 'real')
  np.testing.assert_array_equal(image_of(real)[:, 8:16], originals[1, ..., 0])
  headers = config.headers((8, 8, 1))
  for name in NAMES:
    few, many = damaged(rows, name)
    (sent,) = (row for row in rows if row['run'] == f'{name}-clean')
    # Rows are written from the same images.
    for row in (few, many):
      assert row['psnr'] + row['loss'] == pytest.approx(sent['psnr'])
      assert row['psnr_low'] <= row['psnr'] <= row['psnr_high']
    assert few['wrong'] < many['wrong'] == 1
    assert 'pixels' in many and 'pixels' not in few
    parts = [row for row in rows if row['run'] == f'{name}-parts']
    assert [row['part'] for row in parts] == [0.25, 0.75]
    if name in headers:
      assert sent['bits'] == payload_bits(headers[name]) / 4
      assert sent['bits_per_pixel'] == sent['bits'] / 64
    # Of two streams the first one is shown.
    assert image_of(many).shape == (8, 32)
  monkeypatch.setattr(ddcm_robustness, 'DiffusionCodes', None)
  monkeypatch.setattr(ddcm_robustness, 'JpegCodes', None)
  assert run(config, KEY, tmp_path / 'run', parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert [*numbers['codecs']] == [*NAMES]
  assert 'digits' in axes['images'].figure.get_suptitle()


class Faded:
  """Images that lose so many units for every wrong bit."""

  bits = (10, 20)
  images = np.full((2, 8, 8, 1), 99, np.uint8)

  def received(self, every):
    self.every = every
    wrong = np.array([np.sum(x) for one in every for x in one])
    images = np.tile(self.images, (len(every), 1, 1, 1))
    images -= np.uint8(wrong[:, None, None, None])
    return Received(images, wrong > 3)


def damage(codes):
  launch = types.SimpleNamespace(key=KEY)
  originals = np.full_like(codes.images, 100)
  return _Damage(SMALL, launch, 'rank', lambda: codes, originals)


def test_what_a_wrong_bit_costs():
  codes = Faded()
  rows = [*damage(codes)._parts()]
  assert [row['part'] for row in rows] == [0.25, 0.75]
  for row in rows:
    # Twice the error.
    assert row['loss'] == pytest.approx(20 * math.log10(2))
    assert row['loss_error'] == row['lost'] == 0
  places = [[np.flatnonzero(x) for x in one] for one in codes.every]
  assert places[0][0] < 5 and places[0][1] < 10
  assert places[1][0] >= 5 and places[1][1] >= 10


def test_what_a_rate_costs():
  codes = Faded()
  (row,) = damage(codes)._rate(0.2)
  wrong = np.array([[np.sum(x) for x in one] for one in codes.every])
  assert wrong.shape == (2, 2) and (wrong[0] != wrong[1]).any()
  psnr = -20 * np.log10((wrong + 1) / 255)
  assert row['psnr'] == pytest.approx(psnr.mean())
  ends = psnr.mean(axis=1)
  assert row['psnr_low'] == pytest.approx(ends.min())
  assert row['psnr_high'] == pytest.approx(ends.max())
  assert row['tenth'] == pytest.approx(np.quantile(psnr, 0.1))
  assert row['loss'] == pytest.approx(20 * np.log10(wrong + 1).mean())
  assert row['wrong'] == np.mean(wrong > 0)
  assert row['lost'] == np.mean(wrong > 3)
  np.testing.assert_array_equal(image_of(row)[0, ::8], 99 - wrong[0])
  # The same bits in another launch, others in another codec.
  again, other = damage(Faded()), damage(Faded())
  other.name = 'jpeg'
  assert next(again._rate(0.2)) == row != next(other._rate(0.2))


def test_a_stopped_run_ends_between_rows(config, tmp_path, monkeypatch):
  stop = lambda self: True
  monkeypatch.setattr('kexue.training.loop.StopSignal.agreed', stop)
  with pytest.raises(Interrupted, match='stopped before rank-clean'):
    run(config, KEY, tmp_path / 'run', parallel='jit')


def test_codecs_have_about_equal_bits():
  headers = Config().headers((28, 28, 1))
  bits = {name: payload_bits(h) / h.count for name, h in headers.items()}
  assert bits['rank'] == 20 * 40
  for name in ('independent', 'ddcm'):
    assert bits['rank'] - 44 < bits[name] <= bits['rank']
  assert bits['rank'] - 20 < bits['dense'] <= bits['rank']
  assert headers['ddcm'].packing == 'step' and headers['ddcm'].atoms == 1
  assert headers['independent'].steps == 18 and headers['ddcm'].steps == 80


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(coded=1), 'config.coded: got 1'),
    (dict(batch=0), 'config.batch'),
    (dict(seeds=0), 'config.seeds'),
    (dict(parts=0), 'config.parts'),
    (dict(rates=(0.0, 0.2)), 'config.rates'),
    (dict(rates=(0.2, 0.1)), 'config.rates: .* ascending'),
    (dict(pictured=0.3), 'config.pictured: got 0.3'),
    (dict(atoms=100), 'atoms'),
    (dict(tail=30), 'config.code_steps: .* of 35 timesteps'),
    (dict(code_steps=9), 'for ddcm of'),
    (dict(dataset='photos'), 'config.dataset'),
  ],
)
def test_what_cannot_run_is_refused(config, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **change).check()


def test_presets_can_run():
  for preset in (Config(), Config.full()):
    preset.check()
