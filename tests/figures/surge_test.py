"""The figure in small, and its numbers from made-up rows."""

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import surge
from kexue.figures.comparison import by_run
from kexue.figures.optima import grid_losses
from kexue.figures.surge import (
  MOSAIC,
  OPTIMIZERS,
  THEORIES,
  Config,
  plot,
  run,
)

KEY = jax.random.key(0)
RATES = (0.001, 0.002, 0.004)
SMALL = dict(
  dataset='digits',
  width=4,
  population=128,
  batch_sizes=(8,),
  learning_rates=RATES,
  steps=2,
  seeds=2,
  stages=(0, 3),
  stage_batch=8,
  one_step_batches=(8,),
  searched=4,
  probed=4,
  signs=2,
)


def test_run_records_once_and_is_drawn(tmp_path, monkeypatch):
  # They have tests of their own, and take long to compile.
  found = lambda *args, **options: {'probe': 0.1, 'measured': 0.1}
  monkeypatch.setattr(surge, 'search', found)
  monkeypatch.setattr(surge, 'theory', lambda *args: 0.1)
  config = Config(**SMALL)
  rows = run(config, KEY, tmp_path, parallel='jit')
  assert run(config, KEY, tmp_path, parallel='jit') == rows
  looks = [row for row in rows if 'probe' in row]
  assert [row['stage'] for row in looks] == [0, 3]
  assert looks[0]['loss_at_stage'] > looks[1]['loss_at_stage']
  ends = [row for row in rows if row.get('step') == 2 and 'map' in row]
  assert len(ends) == 2 * 3 * 2
  # Seeds differ, learning rates share their batches.
  for name in OPTIMIZERS:
    rates, losses = grid_losses(by_run(rows), map=name, batch_size=8)
    assert tuple(rates) == RATES and losses.shape == (2, 3)
    assert losses[0, 0] != losses[1, 0]


def made_up():
  rows = []
  for stage in (0, 50):
    for batch, measured in ((16, 0.001), (64, 0.002), (256, 0.004)):
      row = dict(run=f'stage-{stage}', stage=stage, batch_size=batch)
      row |= dict(loss_at_stage=1.0, surge_index=100.0, at_edge=0)
      row |= dict.fromkeys(('measured', 'measured_low'), measured)
      row |= dict(measured_high=measured, probe=1.1 * measured)
      row |= dict(probe_low=measured, probe_high=1.2 * measured)
      row |= dict(quadratic=measured)
      row |= dict(article=0.01, independent=2 * measured)
      row |= dict(correlated=0.9 * measured)
      rows.append(row)
  for name in OPTIMIZERS:
    for batch in (16, 256):
      for rate in RATES:
        for seed in range(2):
          far = np.log2(rate / 0.002) - 0.5 * (name == 'adam')
          row = dict(run=f'{name}-{batch}-{rate}-{seed}', map=name, step=9)
          row |= dict(batch_size=batch, learning_rate=rate, seed=seed)
          rows.append(row | dict(train_loss=np.exp(far**2)))
  return rows


def test_numbers_of_made_up_rows():
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(made_up(), axes)
  over = {name: at['50'] for name, at in numbers['over_search'].items()}
  assert set(over) == set(THEORIES)
  assert over['probe']['max'] == pytest.approx(1.1)
  assert over['correlated']['min'] == pytest.approx(0.9)
  assert over['article']['max'] == pytest.approx(5)  # Not the batch of 16.
  assert numbers['measured_growth']['0'] == pytest.approx(4)
  assert numbers['searches_at_an_edge'] == 0
  optima = numbers['optima']
  assert optima['sign'][16]['rate'] == pytest.approx(0.002)
  assert optima['adam'][256]['rate'] == pytest.approx(0.002 * 2**0.5)
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(stages=(-1,)), r'config.stages: got \(-1,\)'),
    (dict(stage_rate=0.0), 'config.stage_rate: got 0.0'),
    (dict(one_step_batches=()), r'config.one_step_batches: got \(\)'),
    (dict(searched=3), 'config.searched: got 3'),
    (dict(learning_rates=(0.1, 0.2)), 'config.learning_rates'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()
