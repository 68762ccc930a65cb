"""What the shared panels draw."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.panels import (
  band,
  bowl,
  final_losses,
  rate_axis,
  scaling,
  whiskers,
)


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def test_band_is_the_mean_and_the_range(ax):
  runs = [
    [{'step': s, 'loss': s + offset} for s in (1, 2)] for offset in (0, 1, 5)
  ]
  band(ax, runs, 'loss', color='red')
  np.testing.assert_allclose(ax.lines[0].get_ydata(), [3, 4])
  box = ax.collections[0].get_datalim(ax.transData)
  assert (box.ymin, box.ymax) == (1, 7)


@pytest.mark.parametrize(
  'losses, best, fill',
  [
    ([3.0, 1.0, 2.0], 0.2, 'full'),
    ([1.0, 2.0, 3.0], 0.1, 'none'),
    ([3.0, 2.0, np.inf], 0.2, 'full'),
  ],
)
def test_bowl_stars_the_best_and_leaves_out_the_infinite(
  ax, losses, best, fill
):
  points = list(zip([0.1, 0.2, 0.4], losses, strict=True))
  bowl(ax, points[::-1], color='blue')
  line, star = ax.lines
  assert star.get_xdata()[0] == best and star.get_fillstyle() == fill
  assert np.all(np.isfinite(line.get_ydata()))
  assert list(line.get_xdata()) == sorted(line.get_xdata())


def test_whiskers_are_distances_from_the_mean():
  mean, error = whiskers([{'mean': 2.0, 'min': 1.5, 'max': 4.0}])
  np.testing.assert_allclose(mean, [2.0])
  np.testing.assert_allclose(error, [[0.5], [2.0]])


def test_scaling_draws_points_and_the_law_through_them(ax):
  compute = [1e10, 1e12]
  spreads = [dict(mean=m, min=m - 0.1, max=m + 0.1) for m in (2.0, 1.0)]
  law = {'a': 2.0 * 1e10**0.15, 'b': 0.15}
  scaling(ax, compute, spreads, law, label='Muon', color='blue')
  scaling(ax, compute, spreads, None, label='AdamW', color='red')
  line = ax.lines[0]
  at = np.interp(1e10, line.get_xdata(), line.get_ydata())
  assert at == pytest.approx(2.0, rel=1e-2)
  labels = ax.get_legend_handles_labels()[1]
  assert labels == ['Muon: L = 63.25 C^-0.150', 'AdamW']
  assert ax.get_xscale() == ax.get_yscale() == 'log'


def test_the_rate_axis_has_a_tick_for_each_rate_once(ax):
  rate_axis(ax, [0.4, 0.1, 0.1, 0.2], 'a title')
  assert [label.get_text() for label in ax.get_xticklabels()] == [
    '0.1',
    '0.2',
    '0.4',
  ]
  assert ax.get_xscale() == 'log' and ax.get_title() == 'a title'
  assert ax.get_ylabel() == 'final validation loss [nats per byte]'


def test_final_losses_say_their_means_and_reach_over_the_seeds(ax):
  spreads = {
    'a': dict(mean=2.0, min=1.5, max=4.0),
    'b': dict(mean=1.0, min=1.0, max=1.0),
  }
  final_losses(ax, spreads, {'a': 'red'}, 'a title')
  assert [text.get_text().strip() for text in ax.texts] == ['2.000', '1.000']
  assert [label.get_text() for label in ax.get_xticklabels()] == ['a', 'b']
  (bar, _) = (c.lines[2][0].get_segments()[0] for c in ax.containers)
  np.testing.assert_allclose(bar[:, 1], [1.5, 4.0])
  colors = [c.lines[0].get_color() for c in ax.containers]
  assert colors == ['red', 'black']
