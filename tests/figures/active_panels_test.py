"""Numbers and panels of made-up rows with a known answer."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.active_panels import (
  active_at,
  dense_curve,
  loss_at,
  plot_gain,
  plot_loss,
  plot_rates,
  plot_speed,
  plot_steps,
  read_models,
  results,
)

# Form, chosen, experts, hidden; active parameters and loss of the first seed,
# the second one has 0.1 more.
MODELS = {
  'dense 10': ('dense', 1, 1, 10, 100, 2.0),
  'dense 40': ('dense', 1, 1, 40, 400, 1.6),
  'dense 80': ('dense', 1, 1, 80, 800, 1.5),
  '1 of 4 x 10': ('normalized', 1, 4, 10, 200, 1.7),
  '1 of 8 x 10': ('normalized', 1, 8, 10, 200, 1.4),
  'plain 4 of 8 x 40': ('plain', 4, 8, 40, 1600, 1.55),
}


def made_up():
  rows = []
  for name, (form, chosen, experts, hidden, active, loss) in MODELS.items():
    about = dict(form=form, chosen=chosen, experts=experts, hidden=hidden)
    about |= dict(model=name, dataset='made up', step_tokens=50)
    about |= dict(active=active, total=active * experts)
    about |= dict(active_all=active + 7, total_all=active * experts + 7)
    # The best rate is 0.2, and its start took a minute.
    for rate, seed, worse in ((0.2, 0, 0.0), (0.4, 0, 0.3), (0.2, 1, 0.1)):
      label = f'{name}-lr{rate}-s{seed}'
      tags = {**about, 'learning_rate': rate, 'seed': seed}
      for step in (10, 20, 30):
        row = {'run': label, 'step': step, **tags, 'loss': loss + 1 / step}
        rows.append(row | {'seconds': 60 + step * 0.5})
      end = {'violation': 0.5 - seed / 10} if experts > 1 else {}
      end |= {'run': f'{label}-held-out', 'step': 1, 'val_loss': loss + worse}
      rows.append(end | tags)
  diverged = {'learning_rate': 0.8, 'seed': 0, 'val_loss': np.inf}
  return [*rows, rows[-1] | diverged | {'run': 'diverged-held-out'}]


def test_models_are_read_at_their_best_rate():
  models = read_models(made_up())
  assert [*models] == [*MODELS]
  model = models['plain 4 of 8 x 40']
  assert model.rates == [(0.2, 1.55), (0.4, 1.85), (0.8, np.inf)]
  assert model.loss == pytest.approx({'mean': 1.6, 'min': 1.55, 'max': 1.65})
  assert model.speed == pytest.approx(100)  # Compilation is not counted.
  assert {*model.training} == {*model.ends} == {0, 1}
  assert [row['step'] for row in model.training[1]] == [10, 20, 30]
  curve = np.array(dense_curve(models))
  np.testing.assert_allclose(curve, [(100, 2.05), (400, 1.65), (800, 1.55)])
  assert dense_curve(models, 1)[0] == (100, 2.1)


def test_gains_are_bounded_by_dense_models_or_not_said():
  numbers = results(made_up())
  four, eight, plain = numbers['mixtures'].values()
  # Between 100 and 400 at half the way in logarithms: 1.8 and 1.9.
  expected = {'mean': 0.1, 'min': 0.1, 'max': 0.1}
  assert four['gain'] == pytest.approx(expected)
  # 1.7 is three quarters of the way from 2.0 to 1.6.
  times = 100 * 4**0.75 / 200
  assert four['dense_times']['mean'] == pytest.approx(times)
  assert not four['dense_times_are_more']
  assert eight['gain']['mean'] == pytest.approx(0.4)
  # Below all of them: the widest has four times as many, which is not enough.
  assert eight['dense_times']['mean'] == pytest.approx(4)
  assert eight['dense_times_are_more']
  assert plain['gain'] is None and not plain['dense_times_are_more']
  assert plain['dense_times']['mean'] == pytest.approx(400 * 2**0.5 / 1600)
  assert numbers['runs_that_diverged'] == 1
  assert numbers['lowest_dense'] == pytest.approx(1.55)
  own = numbers['models']['1 of 8 x 10']
  assert own['violation'] == pytest.approx(
    {'mean': 0.45, 'min': 0.4, 'max': 0.5}
  )
  assert (own['active'], own['total'], own['total_all']) == (200, 1600, 1607)
  assert own['tokens_per_second'] == pytest.approx(100)
  assert 'violation' not in numbers['models']['dense 10']


def test_what_is_worse_than_all_dense_models_equals_none():
  rows = made_up()
  for row in rows:
    if row['model'] == '1 of 4 x 10' and 'val_loss' in row:
      row['val_loss'] += 0.5
  four = results(rows)['mixtures']['1 of 4 x 10']
  assert four['gain']['mean'] == pytest.approx(-0.4)
  assert four['dense_times'] is None and not four['dense_times_are_more']


def test_the_two_interpolations_are_inverse():
  curve = [(100, 2.0), (300, 1.7), (900, 1.6)]
  for active in (100, 150, 300, 899, 900):
    assert active_at(curve, loss_at(curve, active)) == pytest.approx(active)
  assert loss_at(curve, 99) is None and loss_at(curve, 901) is None
  assert active_at(curve, 2.01) is None and active_at(curve, 1.59) is None
  # Past a rise the first model of a loss counts, a flat piece by its start.
  assert active_at([(1, 2.0), (2, 1.0), (4, 1.5), (8, 0.5)], 1.0) == 2
  assert active_at([(1, 2.0), (2, 2.0)], 2.0) == 1


def test_panels_show_all_that_is_there():
  rows = made_up()
  models, numbers = read_models(rows), results(rows)
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplots(2, 3).ravel()
  plot_loss(axes[0], models, 'active')
  plot_loss(axes[1], models, 'total')
  plot_gain(axes[2], models, numbers)
  plot_steps(axes[3], models)
  plot_speed(axes[4], models)
  plot_rates(axes[5], models)
  for ax in axes:
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  said = lambda ax: [text.get_text() for text in ax.texts]
  points = ['10', '40', '80', '1/4', '1/8', '4/8']
  assert said(axes[0]) == points and sorted(said(axes[1])) == sorted(points)
  assert said(axes[2]) == ['0.45'] * 2  # Of what has a gain.
  assert sorted(said(axes[4])) == sorted(points)
  lines = {line.get_label(): line for line in axes[3].get_lines()}
  found = lines['1 of 4 x 10 - dense 10']
  np.testing.assert_allclose(found.get_ydata(), -0.3)
  assert len(lines) == 3  # And zero: nothing is as wide as four of 40.
  curve = axes[0].get_lines()[0]
  np.testing.assert_allclose(curve.get_xdata(), [0.1, 0.4, 0.8])
  np.testing.assert_allclose(curve.get_ydata(), [2.05, 1.65, 1.55])
  figure.canvas.draw()
