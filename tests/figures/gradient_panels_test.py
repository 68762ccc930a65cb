"""Arrows and lines in the panels of `gradient_field`."""

import matplotlib.figure
import numpy as np

from kexue.figures.gradient_panels import (
  CODES,
  COLORS,
  plot_field,
  plot_lines,
)


def axes():
  return matplotlib.figure.Figure().subplots()


def test_arrows_have_one_length_and_colors_say_it():
  about = dict(field='ste', cell=0)
  rows = [
    dict(x=0.0, y=0.0, u=3.0, v=4.0, **about),
    dict(x=1.0, y=0.0, u=0.0, v=-0.1, **about),
  ]
  ax = axes()
  plot_field(ax, rows, 'ste')
  arrows = ax.collections[0]
  np.testing.assert_allclose(arrows.U, [0.6, 0])
  np.testing.assert_allclose(arrows.V, [0.8, -1])
  np.testing.assert_allclose(arrows.get_array(), [np.log10(5), -1])
  np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), CODES)
  assert ax.get_title() == 'ste' and ax.get_aspect() == 1


def test_what_is_measured_lies_on_its_formula():
  rows = [
    dict(kind=kind, dim=dim, radius=0.1, pull=0.02, pull_formula=0.01 * dim)
    for kind in COLORS
    for dim in (4, 2)
  ]
  ax = axes()
  plot_lines(ax, rows, 'dim', 'pull', 'title')
  line, dots = ax.get_lines()[:2]
  np.testing.assert_allclose(line.get_xydata(), [[2, 2], [4, 4]])
  np.testing.assert_allclose(dots.get_ydata(), [2, 2])
  names = [text.get_text() for text in ax.get_legend().get_texts()]
  assert names == [kind for kind in COLORS if kind != 'scaled_rotation']
