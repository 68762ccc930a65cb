"""A run in small that is recorded once and drawn, and refusals."""

import dataclasses

import jax
import matplotlib.figure
import pytest

from kexue.figures.moe_geometry import EXPERTS, MOSAIC, Config, plot, run

KEY = jax.random.key(0)
SMALL = Config(
  width=32,
  layers=1,
  experts=4,
  length=8,
  batch_size=8,
  steps=4,
  log_points=2,
  validation_windows=4,
  hidden=16,
  dense_steps=2,
  groups=(8,),
  windows=4,
  learning_rates=(0.01, 0.02),
  kinds=('plain', 'normalized'),
  seeds=2,
)


def test_a_run_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  rows = run(SMALL, KEY, tmp_path, parallel='jit')
  taken_apart = [row for row in rows if 'group' in row]
  assert len(taken_apart) == 2 * (4 + 1)
  ends = [row for row in rows if 'val_loss' in row]
  found = {(r['kind'], r['learning_rate'], r['seed']) for r in ends}
  assert len(found) == len(ends) == 2 * (2 + 1)
  plain, normalized = ends[0], ends[3]
  assert (plain['kind'], normalized['kind']) == ('plain', 'normalized')
  assert plain['val_loss'] != normalized['val_loss']
  assert {row['bias_rate'] for row in ends} == {SMALL.bias_rate}
  for name in ('moe_geometry.fit', 'mixture_model.fit'):
    monkeypatch.setattr(f'kexue.figures.{name}', None)
  assert run(SMALL, KEY, tmp_path, parallel='jit') == rows
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert {*numbers['training']} == {'plain', 'normalized'}
  assert numbers['n'] == 8 and 'a quarter of 8' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(groups=(4,)), 'config.groups: .* powers of 2 from 8'),
    (dict(groups=(16, 8)), 'config.groups: .* ascending'),
    (dict(groups=(32,)), 'config.groups: .* divide 16'),
    (dict(kinds=('plain', 'plain')), 'config.kinds'),
    (dict(kinds=('dense',)), 'config.kinds: .* different ones of plain'),
    (dict(learning_rates=(0.0,)), 'config.learning_rates'),
    (dict(bias_rate=0.0), 'config.bias_rate'),
    (dict(windows=0), 'config.windows'),
    (dict(dense_steps=0), 'config.dense_steps'),
    (dict(steps=3), 'config.steps'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  assert {*Config.full().kinds} == {*EXPERTS}
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
