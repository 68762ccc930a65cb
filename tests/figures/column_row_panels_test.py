"""Speed-ups, and that panels say what they show."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.column_row_panels import (
  CLOSED,
  COLORS,
  MARKERS,
  plot_check,
  plot_curves,
  speed_ups,
)

RANKS = (4, 16)


def axes():
  return matplotlib.figure.Figure().subplots()


def test_speed_ups():
  rows = [
    {'method': 'full', 'seconds': 2.0, 'median_seconds': 3.0},
    {'method': 'uniform', 'seconds': 0.5, 'median_seconds': 1.0},
  ]
  (found,) = speed_ups({'timing-images': rows}, 'images')
  assert (found['speedup'], found['median_speedup']) == (4.0, 3.0)
  assert found['method'] == 'uniform'


def test_curves_of_every_method():
  theory = dict.fromkeys((*CLOSED, 'top_norm', 'greedy'), 0.5)
  common = {'optimum': 0.1, 'title': 'of images'}
  runs = {'theory-gaussian': [{'rank': r, **common, **theory} for r in RANKS]}
  for method in COLORS:
    rows = [{'rank': r, 'error': 1 / r} for r in RANKS]
    runs[f'gaussian-{method}-unbiased'] = rows
  ax = axes()
  plot_curves(runs, 'gaussian', ax)
  labels = [text.get_text() for text in ax.get_legend().get_texts()]
  assert {*CLOSED, 'norm_systematic (no formula)', 'slope -1'} <= {*labels}
  assert ax.get_title() == 'of images' and ax.get_xscale() == 'log'
  # A line and dots for what has a formula, dots alone for what has none.
  assert len(ax.lines) == 2 * 5 + 1 + 2


def test_gaps_with_two_standard_errors():
  row = {'rank': 4, 'gap': 0.1, 'bar': 0.05, 'draws': 7}
  checks = [
    row | {'data': data, 'method': method}
    for data in MARKERS
    for method in CLOSED
  ]
  ax = axes()
  plot_check(checks, ax)
  assert 'means of 7 draws' in ax.get_title()
  (segment,) = ax.containers[0].lines[2][0].get_segments()
  np.testing.assert_allclose(segment[:, 1], [0.0, 0.2], atol=1e-12)
  assert segment[0, 0] == pytest.approx(-0.32)
