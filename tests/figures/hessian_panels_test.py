"""Fits of columns, and that panels say what they show."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.hessian_panels import (
  fit,
  plot_entries,
  plot_full,
  plot_minibatch,
  plot_stages,
)

SIZES = np.geomspace(1e-4, 1, 30)


def axes():
  return matplotlib.figure.Figure().subplots()


def legend(ax):
  return [text.get_text() for text in ax.get_legend().get_texts()]


def control():
  """Row norms with the power 0.8 of the diagonal, gradients on them."""
  return [
    {
      'diagonal': x,
      'row': 2 * x**0.8,
      'isotropic': 2 * x**0.8,
      'eigenvalue': x,
      'isotropic_eigen': x,
      'adam': x**0.5,
      'noise': x**0.5,
      'descent': x**0.9,
      'descent_theory': x**0.9,
    }
    for x in SIZES
  ]


def test_a_fit_of_columns():
  found = fit(control(), 'row', 'isotropic')
  assert found.slope == pytest.approx(1, rel=1e-5)
  assert fit(control(), 'diagonal', 'descent').slope == pytest.approx(0.9)


def test_the_panels_of_the_regression():
  ax = axes()
  plot_full(ax, control())
  assert [text.split()[-1] for text in legend(ax)[:3]] == ['0.80', '1.00'] + [
    '1.00'
  ]
  ax = axes()
  plot_minibatch(ax, control())
  assert 'slope 0.50' in legend(ax)[0] and 'slope 0.90' in legend(ax)[1]
  ax.figure.canvas.draw()


def test_the_panels_of_the_network():
  entries = [row | {'trained': 64} for row in control()]
  entries[0]['adam'] = 0.0  # Left out, as a dead unit is.
  ax = axes()
  plot_entries(ax, entries, 'adam', 0.5)
  assert 'slope 0.50' in legend(ax)[0] and 'after 64' in ax.get_title()
  looks = [
    {'trained': step, 'batch_size': batch}
    | {f'{name}_diagonal_slope': 0.5 for name in ('centred', 'noise', 'adam')}
    | {'centred_row_slope': 1.0 + 0.1 * seed}
    for step in (4, 16)
    for batch in (8, 16)
    for seed in (0, 1)
  ]
  ax = axes()
  plot_stages(ax, looks)
  np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.05, 1.05])
  assert 'batches of 16' in legend(ax)
  ax.figure.canvas.draw()
