"""A run in small that is recorded once and drawn, shapes, refusals."""

import dataclasses

import jax
import matplotlib.figure
import pytest

from kexue.figures.moe_scaling import MOSAIC, Config, Shape, plot, run
from kexue.figures.session import Session

KEY = jax.random.key(0)
SMALL = Config(
  width=32,
  layers=1,
  length=8,
  batch_size=8,
  steps=4,
  seeds=2,
  log_points=2,
  validation_windows=16,
  dense=(8, 32),
  mixtures=((1, 4, 8),),
)


def test_a_run_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  rows = run(SMALL, KEY, tmp_path, parallel='jit')
  ends = [row for row in rows if 'val_loss' in row]
  models = {row['model']: row for row in ends}
  assert [*models] == ['dense 8', 'dense 32', '1 of 4 x 8']
  assert models['dense 32']['active'] == 3 * 32 * 32
  assert models['1 of 4 x 8']['active'] == 3 * 32 * 8 + 32 * 4 + 1
  assert models['1 of 4 x 8']['step_tokens'] == 64
  for name in models:
    own = [row for row in ends if row['model'] == name]
    first = {r['learning_rate']: r['val_loss'] for r in own if r['seed'] == 0}
    best = min(first, key=first.get)
    assert {best / 2, best, best * 2} <= {*first}
    assert [r['learning_rate'] for r in own if r['seed'] == 1] == [best]
  monkeypatch.setattr('kexue.figures.mixture_model.fit', None)
  assert run(SMALL, KEY, tmp_path, parallel='jit') == rows
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert {*numbers['mixtures']} == {'1 of 4 x 8'} and numbers['steps'] == 4
  assert '1 of 4 x 8' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


class _Bowl:
  """Losses of a rate without training; the best one is `best`."""

  def __init__(self, best):
    self.best, self.calls = best, []

  def train(self, launch, label, tags, *, seed, learning_rate, bias_rate):
    self.calls.append((learning_rate, seed))
    return {'val_loss': abs(learning_rate - self.best)}


@pytest.mark.parametrize(
  'best, rates', [(1.0, [0.5, 1, 2]), (4.0, [0.5, 1, 2, 4, 8])]
)
def test_rates_are_tried_until_both_neighbours_are_worse(
  monkeypatch, best, rates
):
  from kexue.figures import moe_scaling

  class Progress:
    expected = 0

    def expect(self, steps):
      self.expected += steps

  launch = Session(None, Progress(), None, '', KEY)
  bowl = _Bowl(best)
  config = dataclasses.replace(SMALL, learning_rate=1.0)
  moe_scaling._tune(config, launch, bowl, {'model': 'some'})
  assert [r for r, seed in bowl.calls if seed == 0] == rates
  assert [r for r, seed in bowl.calls if seed == 1] == [best]
  assert launch.progress.expected == 4 * (len(rates) - 3)


def test_shapes_and_their_options():
  single = Shape('normalized', 1, 1, 32)
  assert single.options['rule'] == 'none' and single.name == '1 of 1 x 32'
  plain = Shape('plain', 2, 8, 32)
  assert not plain.options['normalized'] and plain.options['rule'] == 'rms'
  for config in (Config(), Config.full()):
    names = [shape.name for shape in config.shapes]
    assert len({*names}) == len(names)
    sizes = config.sizes_of(config.shapes[0])
    assert sizes.moe is None and sizes.hidden == 32
    sizes = config.sizes_of(config.shapes[-1])
    assert sizes.moe.hidden == 32 and sizes.moe.experts >= 16


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(dense=(8,)), 'config.dense: .* two or more'),
    (dict(dense=(32, 8)), 'config.dense: .* ascending'),
    (dict(dense=(0, 8)), 'config.dense'),
    (dict(mixtures=()), 'config.mixtures'),
    (dict(mixtures=((4, 2, 8),)), r'config.mixtures: got \(\(4, 2, 8\),\)'),
    (dict(mixtures=((1, 2, 0),)), 'config.mixtures'),
    (dict(mixtures=((1, 4, 8),) * 2), 'config.mixtures: .* different'),
    (dict(plain=((0, 2, 8),)), 'config.plain'),
    (
      dict(mixtures=((1, 3, 8),), expert_devices=8),
      'of how many for 8 devices',
    ),
    (dict(bias_rate=0.0), 'config.bias_rate'),
    (dict(steps=3), 'config.steps'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
