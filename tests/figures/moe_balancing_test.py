"""A run in small that is recorded once and drawn, settings, refusals."""

import dataclasses

import jax
import matplotlib.figure
import pytest

from kexue.figures.moe_balancing import MOSAIC, Config, Setting, plot, run

KEY = jax.random.key(0)
SMALL = Config(
  width=32,
  layers=1,
  experts=8,
  length=8,
  batch_size=8,
  steps=4,
  log_points=2,
  validation_windows=16,
  weights=(0.1,),
  rates=(0.01,),
)


def test_a_run_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  # A part of it: every rule costs a compilation.
  settings = [s for s in SMALL.settings if s.method != 'rms']
  monkeypatch.setattr(Config, 'settings', settings)
  rows = run(SMALL, KEY, tmp_path, parallel='pmap')
  ends = [row for row in rows if 'val_loss' in row]
  found = [(row.get('method'), row.get('value')) for row in ends]
  assert found == [
    (None, None),
    ('none', 0),
    ('auxiliary', 0.1),
    ('sign', 0.01),
    ('quantile', 0),
  ]
  start, none, auxiliary, sign, quantile = ends
  assert len({row['val_loss'] for row in ends}) == 5
  assert auxiliary['balance_weight'] == 0.1 and auxiliary['bias_rate'] == 0
  assert sign['bias_rate'] == 0.01
  assert none['balance_weight'] == none['bias_rate'] == 0
  assert quantile['dataset'] == 'kjv' and quantile['step_tokens'] == 64
  assert start['val_loss'] > none['val_loss']
  sizes = [r['windows'] for r in rows if r['run'] == 'sign-0.01-s0-held-out']
  assert sizes == [1, 2, 4, 8, 16]
  monkeypatch.setattr('kexue.figures.mixture_model.fit', None)
  assert run(SMALL, KEY, tmp_path, parallel='pmap') == rows
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert numbers['table']['sign 0.01']['val_loss']['mean'] == sign['val_loss']
  title = figure.get_suptitle()
  assert f'quantile {quantile["violation"]:.2g}' in title and 'kjv' in title
  assert all(ax.get_title() for ax in axes.values())
  figure.canvas.draw()


def test_split_experts_need_shard_map(tmp_path):
  split = dataclasses.replace(SMALL, expert_devices=8)
  with pytest.raises(ValueError, match='parallel: got .pmap., .* shard_map'):
    run(split, KEY, tmp_path, parallel='pmap')
  assert not [*tmp_path.iterdir()]


def test_settings_of_the_presets():
  settings = Config.full().settings
  assert len(settings) == len({*settings})
  assert [s.rule for s in Config().settings][:2] == ['sign', 'sign']
  assert Setting('auxiliary', 0.1).numbers == {
    'balance_weight': 0.1,
    'bias_rate': 0.0,
  }
  assert Setting('rms', 0.01).numbers['bias_rate'] == 0.01
  assert Setting('rms', 0.01).rule == 'rms'
  for method in ('sign', 'rms'):  # The same rates for both.
    rates = tuple(s.value for s in settings if s.method == method)
    assert rates == Config.full().rates and len(rates) >= 3
  assert len(Config.full().weights) >= 4


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(weights=(0.1, 0.01)), 'config.weights: .* ascending'),
    (dict(weights=()), 'config.weights'),
    (dict(rates=(0.0, 0.1)), 'config.rates: .* positive'),
    (dict(rates=(0.1, 0.1)), 'config.rates'),
    (dict(steps=3), 'config.steps: got 3'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
