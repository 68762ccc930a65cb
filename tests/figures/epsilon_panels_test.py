"""What the panels of made-up rates show."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import epsilon_panels

BATCHES = (16, 64)
RATES = (0.1, 0.2, 0.4)


def single():
  rows = {}
  for eps, power in ((0.0, 0.5), (2.0, 1.0)):
    rows[eps] = []
    for batch in BATCHES:
      rate = 0.001 * (batch / 16) ** power
      row = dict.fromkeys(('measured', 'correlated', 'probe'), rate)
      row |= dict(measured_low=rate / 2, measured_high=2 * rate, at_edge=0)
      row |= dict(article=1 / batch, independent=2 / batch, surge_index=3.0)
      rows[eps].append(row | dict(batch_size=batch))
  return rows


def optima():
  best = lambda rate: dict(rate=rate, low=rate, high=rate, at_edge=False)
  return {
    eps: {b: best(0.2 * (1 + eps)) for b in BATCHES} for eps in (0.0, 2.0)
  }


def runs():
  found = {}
  for eps in (0.0, 2.0):
    for batch in BATCHES:
      for rate in RATES:
        row = dict(eps=eps, batch_size=batch, seed=0)
        row |= dict(learning_rate=rate * (1 + eps), train_loss=1 + rate)
        found[f'{eps}-{batch}-{rate}'] = [row]
  return found


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def curve(ax, i=0):
  return ax.lines[i].get_ydata()


def test_rates_are_over_those_of_the_largest_batch(ax):
  epsilon_panels.plot_article(ax, single())
  np.testing.assert_allclose(curve(ax), [4, 1])
  assert '3' in ax.get_legend().get_texts()[0].get_text()


def test_searches_have_bars_and_theories_lines(ax):
  epsilon_panels.plot_measured(ax, single())
  np.testing.assert_allclose(curve(ax), [0.5, 1])  # Square root at epsilon 0.
  (bars,) = ax.containers[1].lines[2]
  np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.125, 0.5])
  dotted = [x for x in ax.lines if x.get_linestyle() == ':']
  np.testing.assert_allclose(dotted[1].get_ydata(), [0.25, 1])


def test_training_is_drawn_likewise(ax):
  epsilon_panels.plot_trained(ax, optima())
  np.testing.assert_allclose(curve(ax), [1, 1])


def test_growth_has_a_line_for_each(ax):
  names = ('measured', *epsilon_panels.THEORIES, 'trained')
  shape = lambda x: dict(largest_over_smallest=x, overshoot=0.0)
  epsilon_panels.plot_growth(
    ax, {name: {0.0: shape(2), 2.0: shape(4)} for name in names}
  )
  assert len(ax.get_legend().get_texts()) == len(names)
  np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 2], [2, 4]])


def test_the_grid_is_over_what_epsilon_should_do(ax):
  growth = {eps: dict.fromkeys(BATCHES, 1 + eps) for eps in (0.0, 2.0)}
  numbers = dict(growth=growth, optima=optima())
  epsilon_panels.plot_bowls(ax, runs(), numbers)
  stars = [x.get_xdata()[0] for x in ax.lines if x.get_marker() == '*']
  np.testing.assert_allclose(stars, [0.1, 0.1])
  other = matplotlib.figure.Figure().subplots()
  epsilon_panels.plot_optima(other, runs(), numbers)
  np.testing.assert_allclose(curve(other), [0.2, 0.2])
  np.testing.assert_allclose(other.get_yticks(), RATES)
