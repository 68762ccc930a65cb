"""The numbers of the figure, from synthetic rows whose ratio is known."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.muon_vs_adamw import MOSAIC, Config, _total_steps, plot


def synthetic(ratio=0.5, widths=(32, 64)):
  """Losses 2 (w s)^-0.3; Muon takes `ratio` of the steps; the best rate 0.1."""
  rows = []
  for width in widths:
    for name, speed in (('adamw', 1.0), ('muon', 1.0 / ratio)):
      grid = [(r, 0, 1.0) for r in (0.05, 0.1, 0.2)] + [(0.1, 1, 1.0)]
      if name == 'muon':
        grid += [(0.1, seed, b) for b in (0.4, 0.6) for seed in (0, 1)]
      for rate, seed, budget in grid:
        for step in range(10, round(100 * budget) + 1, 10):
          penalty = 1 + 0.1 * abs(np.log2(rate / 0.1))
          loss = penalty * 2 * (width * step * speed) ** -0.3
          rows.append(
            {
              'run': f'{name}{width}{rate}{seed}{budget}',
              'step': step,
              'optimizer': name,
              'width': width,
              'learning_rate': rate,
              'weight_decay': 0.1,
              'seed': seed,
              'budget': budget,
              'step_flops': width**2,
              'optimizer_flops': width**2 // 4 if name == 'muon' else 0,
              'val_loss': loss,
              'seconds': 0.1 * step,
            }
          )
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


@pytest.mark.parametrize('ratio', [0.5, 0.58])
def test_the_ratio_is_found(ratio):
  numbers, figure, _ = draw(synthetic(ratio))
  found = numbers['steps_to_target_ratio']
  assert found['mean'] == pytest.approx(ratio, abs=0.02)
  at = numbers['by_width']['64']
  assert at['steps_ratio_along_the_curve']['mean'] == pytest.approx(
    ratio, abs=0.02
  )
  assert at['flops_ratio']['mean'] == pytest.approx(1.25 * found['mean'])
  assert at['optimum']['muon'] == {'learning_rate': 0.1, 'weight_decay': 0.1}
  assert f'{found["mean"]:.2f} of the steps' in figure.get_suptitle()


def test_the_law_is_fitted():
  # L = 2 (w s)^-0.3 at s = 100 and C = 100 w^2: L ~ C^-0.15.
  numbers, _, _ = draw(synthetic(0.5, (32, 64, 128)))
  assert numbers['power_law']['adamw']['b'] == pytest.approx(0.15)
  # Twice the speed is the loss of four times the compute.
  assert numbers['power_law_compute_ratio'] == pytest.approx(0.25)


def test_a_diverged_run_is_no_optimum_and_does_not_break_the_picture():
  rows = synthetic()
  bad = [r for r in rows if r['learning_rate'] == 0.2 and r['step'] == 100]
  for row in bad:
    row['val_loss'] = float('inf')
  numbers, figure, _ = draw(rows)
  assert numbers['by_width']['32']['optimum']['adamw']['learning_rate'] == 0.1
  figure.canvas.draw()


def test_a_diverged_seed_at_the_optimum_is_left_out():
  rows = synthetic()
  for row in rows:
    if row['seed'] == 1 and row['step'] >= 50 and row['budget'] == 1.0:
      row['val_loss'] = float('inf')
  numbers, figure, _ = draw(rows)
  assert numbers['steps_to_target_ratio']['mean'] == pytest.approx(
    0.5, abs=0.02
  )
  figure.canvas.draw()


def test_what_is_not_complete_is_refused_by_name():
  rows = [row for row in synthetic() if row['optimizer'] == 'adamw']
  with pytest.raises(ValueError, match='no muon at 32'):
    draw(rows)


def test_an_unfinished_seed_is_left_out():
  rows = [
    row
    for row in synthetic()
    if row['seed'] == 0 or row['step'] < 50 or row['budget'] < 1
  ]
  numbers, _, _ = draw(rows)
  assert numbers['by_width']['64']['steps_ratio']['mean'] > 0


def test_one_width_is_drawn_without_a_law():
  numbers, _, _ = draw(synthetic(widths=(32,)))
  assert 'power_law' not in numbers


def test_axes_carry_units_and_legends():
  _, _, axes = draw(synthetic())
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  assert '[nats per byte]' in axes['curves'].get_ylabel()
  assert '[FLOPs]' in axes['law'].get_xlabel()


def test_steps_are_counted_for_the_progress_bar():
  config = Config(
    widths=(64, 32),
    steps=(100, 10),
    learning_rates=(0.1, 0.2),
    weight_decays=(0.0, 0.1, 0.2),
    seeds=3,
    budgets=(0.5,),
  )
  small = 2 * (2 * 3 + 2) * 10 + 3 * 5
  large = 2 * (2 + 2) * 100 + 3 * 50
  assert _total_steps(config) == small + large


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(steps=(1,)), r'config.steps: got \(1,\), expected one number'),
    (dict(widths=(), steps=()), 'config.steps'),
    (dict(widths=(33, 64)), 'width: got 33'),
    (dict(budgets=()), 'config.budgets'),
    (dict(budgets=(1.0,)), 'config.budgets'),
    (dict(log_points=1), 'config.log_points'),
    (dict(steps=(1, 1, 1)), 'config.steps'),
    (dict(length=0), 'config.length'),
    (dict(weight_decays=(-1.0,)), 'config.weight_decays'),
    (dict(batch_size=12), 'config.batch_size: got 12, expected a multiple'),
    (dict(seeds=0), 'config.seeds: got 0'),
    (dict(learning_rates=()), 'config.learning_rates'),
    (dict(budgets=(0.0,)), 'config.budgets'),
    (dict(dataset='nothing'), "name: got 'nothing'"),
  ],
)
def test_what_cannot_run_is_refused_before_it_starts(change, message):
  config = Config.full()
  for name, value in change.items():
    setattr(config, name, value)
  if 'widths' in change and 'steps' not in change:
    config.steps = (100,) * len(config.widths)
  with pytest.raises(ValueError, match=message):
    config.check()
