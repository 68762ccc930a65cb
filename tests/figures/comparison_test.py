"""Crossings, selections and fits on curves whose answer is known."""

import numpy as np
import pytest

from kexue.figures.comparison import (
  by_run,
  crossing,
  grid,
  power_law,
  select,
  spread,
  tuned,
)


@pytest.mark.parametrize(
  'x, y, target, expected',
  [
    ([0, 1, 2], [4, 2, 1], 3.0, 0.5),
    ([0, 1, 2], [4, 2, 1], 2.0, 1.0),
    ([0, 1, 2], [4, 2, 1], 1.25, 1.75),
    ([0, 1, 2], [4, 2, 1], 0.5, 2.5),  # Continued past the end,
    ([1, 2, 3], [4, 2, 1], 5.0, 0.5),  # and before the beginning.
    ([0, 1, 2, 3], [4, 2, 3, 1], 2.5, 0.75),  # The first of several.
  ],
)
def test_crossing(x, y, target, expected):
  assert crossing(x, y, target) == pytest.approx(expected)


def test_a_flat_end_has_no_crossing():
  assert np.isnan(crossing([0, 1, 2], [3, 2, 2], 1.0))
  with pytest.raises(ValueError, match='2 or more'):
    crossing([1], [1], 1.0)


def test_power_law_of_noisy_points():
  generator = np.random.default_rng(0)
  x = np.geomspace(1e9, 1e15, 200)
  y = 2.6 * x**-0.054 * np.exp(0.001 * generator.normal(size=200))
  law = power_law(x, y)
  assert law['a'] == pytest.approx(2.6, rel=0.01)
  assert law['b'] == pytest.approx(0.054, rel=0.01)


def test_rows_by_run():
  rows = [
    {'run': 'a', 'step': 1, 'width': 32},
    {'run': 'b', 'step': 1, 'width': 64},
    {'run': 'a', 'step': 2, 'width': 32},
  ]
  runs = by_run(rows)
  assert [row['step'] for row in runs['a']] == [1, 2]
  assert select(runs, width=64) == [[rows[1]]]
  assert select(runs, width=32, seed=0) == []
  assert spread([1.0, 2.0, 6.0]) == {'mean': 3.0, 'min': 1.0, 'max': 6.0}


def test_the_tuned_runs_are_all_seeds_at_the_best_rate_of_the_first():
  def run(rate, seed, loss, step=9):
    row = {'learning_rate': rate, 'seed': seed, 'optimizer': 'a'}
    return [{**row, 'step': step, 'val_loss': loss}]

  runs = {
    'p': run(0.1, 0, 2.0),
    'q': run(0.2, 0, 1.0),
    'r': run(0.4, 0, np.inf),
    's': run(0.2, 1, 3.0),
    't': run(0.2, 2, 3.0, step=4),  # Not whole.
    'u': run(0.2, 3, np.inf),
  }
  assert grid(runs) == [(0.1, 2.0), (0.2, 1.0), (0.4, np.inf)]
  assert tuned(runs, optimizer='a') == [runs['q'], runs['s']]
  with pytest.raises(ValueError, match="none with {'optimizer': 'b'}"):
    tuned(runs, optimizer='b')
