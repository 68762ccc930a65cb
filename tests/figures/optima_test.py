"""Grids out of rows, optima at edges, and what is drawn."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.optima import draw_optima, grid_losses, optimum

RATES = (0.01, 0.02, 0.04)


def runs_of(least, **tags):
  """Parabolas in the logarithm, two seeds, about the rate `least`."""
  return {
    f'{tags}-{rate}-{seed}': [
      dict(step=1, learning_rate=rate, seed=seed, train_loss=9.0, **tags),
      dict(
        step=2,
        learning_rate=rate,
        seed=seed,
        train_loss=float(np.exp(np.log2(rate / least) ** 2 + seed)),
        **tags,
      ),
    ]
    for rate in RATES
    for seed in range(2)
  }


def test_the_last_row_of_each_run_counts():
  runs = runs_of(0.02, name='a') | runs_of(0.025, name='b')
  runs['look'] = [dict(name='a', probe=1.0)]
  rates, losses = grid_losses(runs, name='a')
  np.testing.assert_array_equal(rates, RATES)
  np.testing.assert_allclose(losses[0], np.exp([1.0, 0.0, 1.0]))
  np.testing.assert_allclose(losses[1], np.e * losses[0])
  best = optimum(*grid_losses(runs, name='b'))
  assert best['rate'] == pytest.approx(0.025) and not best['at_edge']
  assert best['low'] == pytest.approx(0.025) == best['high']


def test_a_diverged_run_is_infinite():
  runs = runs_of(0.02)
  lost = runs['{}-0.04-1'][-1]
  del lost['train_loss']
  _, losses = grid_losses(runs)
  assert np.isinf(losses[1, 2]) and np.isfinite(losses).sum() == 5


def test_an_optimum_at_the_edge_says_so():
  best = optimum(np.array(RATES), np.array([[4.0, 3.0, 2.0]]))
  assert best['at_edge'] is True and best['rate'] == pytest.approx(0.04)


def test_edges_are_hollow_and_bars_are_of_the_interval():
  inside = dict(rate=2.0, low=1.0, high=4.0, at_edge=False)
  outside = dict(rate=8.0, low=np.nan, high=np.nan, at_edge=True)
  ax = matplotlib.figure.Figure().subplots()
  draw_optima(ax, [16, 64], [inside, outside], over=2.0, color='tab:red')
  line, *_, hollow = ax.lines
  np.testing.assert_array_equal(line.get_ydata(), [1, 4])
  assert hollow.get_markerfacecolor() == 'white'
  np.testing.assert_array_equal(hollow.get_xydata(), [[64, 4]])
  (bars,) = ax.containers[0].lines[2]
  np.testing.assert_allclose(bars.get_segments()[0], [[16, 0.5], [16, 2]])
