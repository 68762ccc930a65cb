"""Agreement of two trackers, and what panels show of infinite ends."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import noise_panels as panels

SCALES = ('training', 'other', 'simple', 'part head', 'part mlp 0')


def row(step, other=10.0, high=15.0):
  values = dict.fromkeys(SCALES, 10.0) | {'other': other}
  values |= {'curvature_scale': 5.0, 'surge': 0.5, 'article_surge': 90.0}
  columns = dict(
    seed=0, step=step, batch_size=64, other_batch=16, rows=32, val_loss=3 - step
  )
  for name, value in values.items():
    columns |= {name: value, f'{name}_low': 0.75 * value}
    columns[f'{name}_high'] = high if name in SCALES else 2 * value
  sign = dict(sign_scale=3.0, sign_scale_above=30.0)
  return columns | sign | dict(one_step=-4.0 if step == 1 else 8.0)


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def test_differences_are_in_standard_errors_of_the_inverse():
  same, apart = panels.differences([row(1), row(2, other=40.0, high=60.0)])
  assert same == 0
  inverse_error = lambda low, high: (1 / low - 1 / high) / 2 / 1.96
  both = np.hypot(inverse_error(7.5, 60), inverse_error(30, 60))
  assert apart == pytest.approx((1 / 10 - 1 / 40) / both)


def test_intervals_meet_or_do_not():
  rows = [row(1), row(2, other=40.0), row(3, other=40.0, high=31.0)]
  rows[1] |= {'other_low': 15.5, 'training_high': 15.0}
  assert panels.overlapping(rows).tolist() == [True, False, True]


def test_an_infinite_end_is_an_error_from_zero():
  rows = [row(1, high=float('inf'))]
  assert panels.differences(rows).tolist() == [0.0]
  assert panels.overlapping(rows).tolist() == [True]


def test_parts_are_the_columns_of_scales():
  assert panels.parts_of(row(1)) == ['head', 'mlp 0']


def test_negative_single_steps_are_counted(ax):
  panels.simple(ax, [row(1), row(2), row(3)])
  assert '1 of 3 are negative' in ax.get_title()


@pytest.mark.parametrize('high', [15.0, float('inf')])
def test_all_panels_can_be_drawn(ax, high):
  rows = [row(step, high=high) for step in (1, 2)]
  numbers = {'other_over_training': {'mean': 1.0}}
  for draw in (panels.simple, panels.scales, panels.parts, panels.surge):
    draw(ax, rows)
  panels.agreement(ax, [rows], numbers)
  panels.loss(ax, [rows])
  assert ax.xaxis_inverted() and ax.get_legend() and ax.get_title()
  ax.figure.canvas.draw()
