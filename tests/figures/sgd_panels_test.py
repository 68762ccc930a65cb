"""What the panels show of numbers that are known."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import sgd_panels as panels
from kexue.figures.sgd_curves import Curves


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def look(stage, batch_size, scale):
  row = dict(stage=stage, batch_size=batch_size, loss_at_stage=2.0 - stage)
  for name, value in (
    ('law', 0.1),
    ('probe', 0.11),
    ('measured', 0.09),
    ('noise_scale', scale),
    ('simple', 2 * scale),
  ):
    row |= {name: value, f'{name}_low': 0.9 * value, f'{name}_high': 2 * value}
  return row | dict(decrease=0.2, decrease_error=0.5, law_decrease=0.3)


ROWS = [look(0, 8, 10.0), look(0, 16, 10.0)]


def test_single_steps(ax):
  panels.one_step(ax, ROWS)
  assert 'B_noise = 10' in ax.get_title() and 'loss 2.00' in ax.get_title()
  labels = {text.get_text() for text in ax.get_legend().get_texts()}
  assert labels == {'law, from estimates', 'probe', 'line search'}


def test_an_error_larger_than_the_decrease_can_be_drawn(ax):
  panels.decrease(ax, ROWS)
  assert 'law over search 1.50 to 1.50' in ax.get_title()
  assert ax.get_ylim()[0] > 0


def test_noise_scales_go_along_the_run(ax):
  stages = {0: ROWS, 1: [look(1, 8, 40.0)]}
  fit = dict(critical_batch_size=50.0, log_error=0.1)
  panels.noise_scales(ax, stages, fit)
  left, right = ax.get_xlim()
  assert left > 2 > 1 > right
  assert any('critical batch size 50' in x.get_label() for x in ax.get_lines())


def test_the_best_is_hollow_at_the_edge(ax):
  rates = np.array([0.1, 0.2, 0.4])
  curves = {b: Curves(np.ones(1), rates, np.ones((1, 3, 1))) for b in (8, 16)}
  best = lambda rate, edge: dict(
    by_rate=[3.0, 2.0, np.inf], mean=2.0, learning_rate=rate, at_edge=edge
  )
  steps = {8: best(0.1, True), 16: best(0.2, False)}
  panels.grid(ax, curves, {'tradeoff': {'steps': steps}, 'target': 0.65})
  stars = [line for line in ax.get_lines() if line.get_marker() == '*']
  assert [star.get_fillstyle() for star in stars] == ['none', 'full']
  assert '0.65' in ax.get_ylabel()


def test_the_hyperbola_goes_through_twice_its_least(ax):
  at = lambda x: dict(mean=x, min=x, max=x)
  tradeoff = dict(
    min_steps=10.0,
    min_examples=320.0,
    critical_batch_size=32.0,
    rms=0.02,
    steps={8: at(50.0), 32: at(20.0)},
  )
  panels.hyperbola(ax, {'tradeoff': tradeoff, 'target': 0.5})
  curve, *_, corner = ax.get_lines()
  steps, examples = curve.get_data()
  np.testing.assert_allclose((steps / 10 - 1) * (examples / 320 - 1), 1, 1e-5)
  assert corner.get_xydata().tolist() == [[20.0, 640.0]]


def test_optima_and_their_exponents(ax):
  point = dict(rate=0.1, low=0.05, high=0.2)
  optima = {8: point | dict(at_edge=False), 32: point | dict(at_edge=True)}
  fixed = {
    name: {'optima': optima, 'exponents': [0.0]} for name in panels.BUDGETS
  }
  panels.optima(ax, fixed)
  hollow = [x for x in ax.get_lines() if x.get_markerfacecolor() == 'white']
  assert [list(x.get_xdata()) for x in hollow] == [[32], [32]]
  other = matplotlib.figure.Figure().subplots()
  panels.exponents(other, fixed)
  assert other.get_lines()[0].get_xdata().tolist() == [16.0]
