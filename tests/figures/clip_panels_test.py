"""Laws and powers in the panels of `clip_norm`."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.clip_panels import (
  GAUSSIAN,
  LABELS,
  plot_bowls,
  plot_curves,
  plot_descent,
  plot_optima,
  plot_won,
)

WIDTHS = (4, 8, 16)


def axes():
  return matplotlib.figure.Figure().subplots()


def legend(ax):
  return [text.get_text() for text in ax.get_legend().get_texts()]


def numbers():
  """Learning rates on the law of the root, norms of 1."""
  size = {str(w): 100 * w for w in WIDTHS}
  by_width = {
    str(w): dict(rate=n**-0.5, low=0.9 * n**-0.5, high=1.1 * n**-0.5)
    | {'at_edge': w == '4'}
    for w, n in size.items()
  }
  root = {w: n**0.5 for w, n in size.items()}
  each = {
    'by_width': by_width,
    'power': -0.5,
    'power_of_seeds': {'mean': -0.5, 'min': -0.6, 'max': -0.4},
    'power_of_article': -0.5,
    'norm': dict.fromkeys(size, 1.0),
    'norm_l1': {w: GAUSSIAN * x for w, x in root.items()},
    'won': root,
    'won_at_best': dict.fromkeys(size, 1.0),
    'power_of_won': 0.5,
    'power_of_won_at_best': 0.0,
  }
  return {'parameters': size} | dict.fromkeys(LABELS, each)


def test_laws_go_through_what_is_on_them():
  ax = axes()
  plot_optima(ax, numbers())
  assert 'Adam: power -0.50 (-0.60 to -0.40)' in legend(ax)
  law = [line for line in ax.lines if line.get_linestyle() == '--'][0]
  points = ax.containers[0].lines[0]
  np.testing.assert_allclose(law.get_ydata(), points.get_ydata(), rtol=1e-9)
  ax.figure.canvas.draw()
  ax = axes()
  plot_descent(ax, numbers())
  law, l1 = (
    next(line for line in ax.lines if text in line.get_label()).get_ydata()
    for text in ('sqrt(2 N / pi)', 'own batch')
  )
  np.testing.assert_allclose(law, l1, rtol=1e-9)
  ax = axes()
  plot_won(ax, numbers())
  assert 'SGD: power 0.00' in legend(ax)
  assert ax.lines[1].get_ydata()[0] == pytest.approx(1)


def test_curves_are_bands_over_seeds():
  run = lambda seed: [
    {'step': s, 'norm': 1.0 + seed, 'clipped': seed, 'sign_cosine': 0.5}
    for s in (5, 10)
  ]
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic([['norm', 'clipped', 'cosine']])
  plot_curves(axes, {w: [run(0), run(1)] for w in WIDTHS})
  np.testing.assert_allclose(axes['norm'].lines[0].get_ydata(), [1.5, 1.5])
  assert 'Gaussian, 0.798' in legend(axes['cosine'])
  assert len(axes['clipped'].collections) == len(WIDTHS)


def test_bowls_have_a_star_at_the_best_and_leave_out_what_diverged():
  rates = np.array([0.1, 0.2, 0.4])
  losses = np.array([[3.0, 1.0, np.inf], [3.0, 2.0, 2.0]])
  ax = axes()
  plot_bowls(ax, {4: (rates, losses), 8: (rates, losses[1:])}, 'sgd')
  line, star = ax.lines[:2]
  np.testing.assert_allclose(line.get_ydata(), [3, 1.5])
  assert star.get_xdata()[0] == 0.2 and 'SGD' in ax.get_title()
  ax.figure.canvas.draw()
