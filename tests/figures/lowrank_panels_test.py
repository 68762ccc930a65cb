"""The panels draw the columns of the rows that they are given."""

import matplotlib.figure
import numpy as np

from kexue.figures import lowrank_panels


def axes():
  return matplotlib.figure.Figure().subplots()


def test_ratios_are_drawn_against_ranks():
  ax = axes()
  columns = ('rank', 'ratio', 'ratio_min', 'ratio_max')
  values = [(2, 3.0, 2.0, 4.0), (8, 5.0, 5.0, 5.0)]
  rows = [dict(zip(columns, v, strict=True), title='a title') for v in values]
  styles = {'m': dict(color='red'), 'absent': dict(color='blue')}
  lowrank_panels.ratios({'fast-m': rows}, 'fast', styles, ax)
  (line,) = ax.get_lines()
  np.testing.assert_array_equal(line.get_xydata(), [[2, 3], [8, 5]])
  assert ax.get_title() == 'a title'


def test_tolerances_are_beside_what_was_asked():
  ax = axes()
  row = {'rtol': 0.5, 'delivered': 0.4, 'rank': 6, 'optimal_rank': 4}
  lowrank_panels.tolerance({'tolerance-x': [row]}, ['x', 'y'], ax)
  line, asked = ax.get_lines()
  np.testing.assert_array_equal(line.get_xydata(), [[0.5, 0.4]])
  assert line.get_label() == 'x, rank 1.50 of optimal'
  assert asked.get_label() == 'as requested'
