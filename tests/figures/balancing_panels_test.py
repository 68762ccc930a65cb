"""Table, winners and panels of made-up rows."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.balancing_panels import (
  best_of,
  floor,
  name_of,
  plot_batches,
  plot_loads,
  plot_losses,
  plot_pareto,
  plot_rates,
  plot_steps,
  results,
  runs_of,
)

# Held-out loss and violation of the first seed; the second has 0.02 (quantiles
# 0.04) and 0.1 more of them.
SETTINGS = {
  ('none', 0.0): (1.70, 1.0),
  ('auxiliary', 0.1): (1.65, 0.1),
  ('auxiliary', 1.0): (1.68, 0.05),
  ('sign', 0.01): (1.66, 0.2),
  ('sign', 0.001): (1.665, 0.04),
  ('rms', 0.01): (1.64, 0.02),
  ('rms', 0.001): (1.69, 0.03),
  ('quantile', 0.0): (1.64, 0.06),
}


def made_up(seeds=2):
  about = {'dataset': 'made up', 'experts': 4, 'chosen': 2, 'step_tokens': 64}
  start = {'windows': 8, 'tokens': 640, 'loads': '0.4 0.1 0.2 0.3;1 0 0 0'}
  rows = [{'run': 'start', 'step': 1, 'val_loss': 5.0, **about, **start}]
  for seed in range(seeds):
    for (method, value), (loss, violation) in SETTINGS.items():
      label = f'{method}-{value}-s{seed}'
      tags = {'method': method, 'value': value, 'seed': seed, **about}
      for step in range(1, 9):
        row = {'run': label, 'step': step, 'loss': loss + 1 / step, **tags}
        rows.append(row | {'violation': violation + 8 - step})
      label += '-held-out'
      read = {'violation': violation + 0.1 * seed}
      for i, windows in enumerate((1, 8)):
        row = {'run': label, 'step': i + 1, 'windows': windows, **tags, **read}
        rows.append(row | {'tokens': 80 * windows})
      text = '0.3 0.2 0.25 0.25;0.25 0.25 0.25 0.25'
      more = 0.04 if method == 'quantile' else 0.02
      rows[-1] |= {'val_loss': loss + more * seed, 'loads': text}
  return rows


def test_numbers_of_made_up_rows():
  rows = made_up()
  numbers = results(rows)
  assert [*numbers['table']] == [name_of(s) for s in SETTINGS]
  own = numbers['table']['sign 0.01']
  assert own['val_loss'] == pytest.approx(dict(mean=1.67, min=1.66, max=1.68))
  assert own['violation']['mean'] == pytest.approx(0.25)
  assert own['batch_violation']['mean'] == pytest.approx(0.2 + 0.5)
  assert own['loss_over_none'] == pytest.approx(
    dict(mean=-0.04, min=-0.04, max=-0.04)
  )
  own = numbers['table']['quantile']
  assert own['loss_over_none'] == pytest.approx(
    dict(mean=-0.05, min=-0.06, max=-0.04)
  )
  assert numbers['best'] == {
    'none': 'none',
    'auxiliary': 'auxiliary 0.1',
    'sign': 'sign 0.001',
    'rms': 'rms 0.01',
    'quantile': 'quantile',
  }
  # Against the auxiliary loss that loses least.
  sign, rms = (numbers['loss_free'][name] for name in ('sign', 'rms'))
  assert sign['setting'] == 'sign 0.001'
  assert sign['violation']['mean'] == pytest.approx(0.09)
  assert sign['loss_over_auxiliary']['max'] == pytest.approx(0.015)
  assert rms['loss_over_auxiliary']['mean'] == pytest.approx(-0.01)
  assert numbers['floor'] == pytest.approx(floor(rows[0], 640))
  assert numbers['batch_floor'] > 3 * numbers['floor']
  assert numbers['runs_that_diverged'] == 0


def test_runs_that_diverged_are_left_out():
  rows = made_up()
  lost = next(r for r in rows if r['run'] == 'rms-0.01-s0-held-out')
  rows = [r for r in rows if r['run'] != 'rms-0.01-s0-held-out']
  rows.append({**lost, 'val_loss': np.inf})
  del rows[-1]['violation']
  numbers = results(rows)
  assert numbers['runs_that_diverged'] == 1
  assert numbers['table']['rms 0.01']['val_loss']['mean'] == 1.66
  assert len(runs_of(rows)['rms', 0.01]) == 1


@pytest.mark.parametrize('seeds', [1, 2])
def test_panels_are_labelled(seeds):
  rows = made_up(seeds)
  runs = runs_of(rows)
  best = best_of(runs)
  figure = matplotlib.figure.Figure()
  axes = figure.subplots(6)
  plot_pareto(axes[0], runs)
  plot_steps(axes[1], best)
  plot_batches(axes[2], best)
  plot_rates(axes[3], runs)
  plot_loads(axes[4], best, rows)
  plot_losses(axes[5], best)
  for ax in axes:
    assert ax.get_title() and ax.get_xlabel() and ax.get_ylabel()
    assert ax.get_legend_handles_labels()[1]
  names = axes[1].get_legend_handles_labels()[1]
  assert names == [*map(name_of, best), 'random choices']
  line = dict(zip(names, axes[1].get_lines(), strict=True))['sign 0.001']
  assert line.get_ydata()[-1] == pytest.approx(0.04)
  loads = axes[4].get_lines()
  np.testing.assert_allclose(loads[0].get_ydata(), [1.6, 1.2, 0.8, 0.4])
  np.testing.assert_allclose(loads[1].get_ydata(), [4, 0, 0, 0])
  difference = axes[5].get_lines()[names.index('rms 0.01')]
  np.testing.assert_allclose(difference.get_ydata(), -0.06)
  rates = axes[3].get_lines()[0]
  np.testing.assert_allclose(rates.get_xdata(), [0.001, 0.01])
  figure.canvas.draw()
