"""A run in small that is recorded once, and codes that decode by themselves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.diffusion import Codebook, Codes, Restored, restore
from kexue.figures import ddcm_restoration
from kexue.figures.ddcm_restoration import (
  MOSAIC,
  Config,
  _Restorer,
  judged,
  plot,
  run,
)
from kexue.figures.diffusion_model import as_bytes, signed
from kexue.figures.measurements import measure, tasks
from kexue.figures.rotation_panels import image_of
from kexue.training.loop import Interrupted

KEY = jax.random.key(0)
SHAPE = (8, 8, 1)
SMALL = Config(
  dataset='digits',
  coded=5,
  sizes=(8,),
  sampling_steps=4,
  step_counts=(4,),
  noises=(0.0, 0.3),
  known=100,
)


@pytest.fixture
def config(random_run, quick_network):
  return dataclasses.replace(SMALL, model=random_run)


def two_tasks(shape):
  return {name: tasks(shape)[name] for name in ('pooled', 'box')}


def test_a_run_is_recorded_once(config, random_model, tmp_path, monkeypatch):
  monkeypatch.setattr(ddcm_restoration, 'tasks', two_tasks)
  config.check()
  rows = run(config, KEY, tmp_path / 'run', parallel='jit')
  restored = [row for row in rows if row.get('method') == 'restored']
  assert len(restored) == 2 * 2
  for row in restored:
    assert row['bits'] == 3 * math.log2(row['size'])
    assert row['bits_per_pixel'] == row['bits'] / 64
    assert row['values'] == 5 * 64 and row['difference'] < 1e-5
    assert row['differ'] <= 1
  methods = [row['method'] for row in rows if row.get('task') == 'pooled']
  assert methods[:4] == ['measured', 'pseudo-inverse', 'linear', 'cubic']
  codes = [row for row in rows if row.get('method') == 'code']
  assert [row['size'] for row in codes] == [8]
  # One of them by hand.
  row = next(r for r in restored if r['size'] == 8 and r['task'] == 'box')
  originals = config.data().validation['image'][:5]
  task = tasks(SHAPE)['box']
  y = measure(task, signed(originals), 0.0, KEY)
  schedule, codebook = (
    random_model.schedule.respace(4),
    Codebook(8, 64, kind='hadamard'),
  )
  found = jax.jit(
    lambda y: restore(
      random_model.denoise(), task.operator, y, schedule, codebook, shape=SHAPE
    )
  )(y)
  images = as_bytes(found.x0)
  expected = np.concatenate([*images[..., 0]], axis=1)
  off = np.abs(np.int32(image_of(row)) - expected)
  assert off.max() <= 1 and (off > 0).mean() < 0.01
  scores = judged(task, images, y, originals)
  assert row['consistency'] == pytest.approx(scores['consistency'], rel=1e-3)
  monkeypatch.setattr(ddcm_restoration, 'restore', None)
  monkeypatch.setattr(ddcm_restoration, 'as_bytes', None)
  assert run(config, KEY, tmp_path / 'run', parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert numbers['size'] == 8 and numbers['decoded']['values'] == 4 * 5 * 64
  assert 'digits' in axes['images'].figure.get_suptitle()


def test_a_stopped_run_ends_between_tasks(config, tmp_path, monkeypatch):
  monkeypatch.setattr(ddcm_restoration, 'tasks', two_tasks)
  monkeypatch.setattr('kexue.training.loop.StopSignal.agreed', lambda s: True)
  monkeypatch.setattr(ddcm_restoration._Restorer, 'record_code', lambda s: None)
  with pytest.raises(Interrupted, match='stopped before pooled with K8-T4'):
    run(config, KEY, tmp_path / 'run', parallel='jit')


def test_a_decoder_gets_the_bits_alone():
  """What is judged is what the decoder makes, of codes that were packed."""

  class Contest:
    def decode(self, header, codes):
      self.got = header, codes
      return np.full((5, *SHAPE), 0.25)

  (header,) = SMALL.headers(SHAPE)
  contest = Contest()
  restorer = _Restorer(None, contest, header, None)
  indices = np.arange(15).reshape(5, 3, 1) % 8
  restored = Restored(jnp.zeros((5, *SHAPE)), Codes(indices, 0 * indices))
  x0, stream = restorer._through_bits(restored)
  np.testing.assert_array_equal(x0, 0.25)
  assert contest.got[0] == header and len(stream) < 100
  np.testing.assert_array_equal(contest.got[1].indices, indices)
  assert contest.got[1].indices is not indices


def test_judged():
  task = tasks(SHAPE)['pooled']
  originals = np.full((3, *SHAPE), 100, np.uint8)
  y = task.operator(signed(originals))
  images = originals + np.uint8([[[[51]]]])
  scores = judged(task, images, y, originals)
  assert scores['consistency'] == pytest.approx(0.4, rel=1e-5)
  assert scores['psnr'] == pytest.approx(20 * math.log10(5))
  assert scores['psnr_error'] == 0


def test_headers():
  config = dataclasses.replace(
    SMALL, sizes=(4, 64), sampling_steps=6, step_counts=(3, 6)
  )
  found = [(h.size, h.steps, h.rule) for h in config.headers(SHAPE)]
  assert found == [(4, 5, 'even'), (64, 5, 'even'), (64, 2, 'even')]


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(coded=1), 'config.coded: got 1'),
    (dict(coded=10_000), 'held-out images'),
    (dict(sizes=(1, 4)), 'config.sizes'),
    (dict(sizes=(8, 4)), 'config.sizes: .* ascending'),
    (dict(sampling_steps=1), 'config.sampling_steps'),
    (dict(step_counts=(4, 21)), '2 to 20 timesteps'),
    (dict(noises=(-0.1,)), 'config.noises'),
    (dict(noises=(0.1, 0.0)), 'config.noises: .* ascending'),
    (dict(known=1), 'config.known'),
    (dict(dataset='photos'), 'config.dataset'),
  ],
)
def test_what_cannot_run_is_refused(config, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **change).check()


def test_presets_can_run():
  for preset in (Config(), Config.full()):
    preset.check()
