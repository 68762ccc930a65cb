"""Rules against the library's, gaps against SciPy, a run recorded once."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kexue.figures.assignment import (
  MOSAIC,
  PROBLEMS,
  RULES,
  Config,
  costs,
  measured,
  plot,
  quantile_turn,
  rounded,
  run,
  turned,
)
from kexue.models import quantile_bias, update_bias

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits', sizes=(6, 8), turns=(1, 3), rates=(0.3, 1.0), draws=2
)
IMAGES = np.random.default_rng(0).integers(0, 256, (99, 4, 4), np.uint8)


def test_problems():
  uniform, points, images = (costs(name, 8, 1, IMAGES) for name in PROBLEMS)
  assert uniform.dtype == points.dtype == images.dtype == np.float32
  assert 0 < uniform.min() < 0.2 and 0.8 < uniform.max() < 1
  # Distances are those of a metric: no detour is shorter.
  assert np.all(points[0] <= points[0, 0] + points[1, 0] + points[1] + 1e-6)
  a, b = IMAGES[16:24] / 255.0, IMAGES[24:32] / 255.0
  expected = np.square(a[:, None] - b).mean(axis=(2, 3))
  np.testing.assert_allclose(images, expected, rtol=1e-5)
  for name in PROBLEMS:
    other = costs(name, 8, 0, IMAGES)
    assert not np.array_equal(other, costs(name, 8, 1, IMAGES))


def test_rules_are_those_of_the_library():
  cost = costs('uniform', 8, 0, IMAGES)
  bias = jnp.linspace(0.1, 0, 8)
  np.testing.assert_allclose(
    quantile_turn(cost, bias), quantile_bias(-cost, bias, 1), atol=1e-6
  )
  np.testing.assert_allclose(
    turned(cost, 2, 0.0, 'quantile'),
    quantile_turn(cost, quantile_turn(cost, jnp.zeros(8))),
    atol=1e-6,
  )
  for rule in ('sign', 'rms'):
    bias = jnp.zeros(8)
    for rate in (0.1, 0.01):  # 0.01 ** (1 / 2) between two turns.
      load = np.bincount(np.argmin(cost - bias, axis=1), minlength=8)
      bias = update_bias(bias, load, rate=rate, rule=rule)
    np.testing.assert_allclose(turned(cost, 2, 0.1, rule), bias, atol=1e-6)


def test_gaps_are_those_of_scipy():
  cost = costs('points', 8, 0, IMAGES)
  optimum = cost[linear_sum_assignment(cost)].sum()
  found = measured(cost, 'none', 0, 0.0)
  assert abs(found['exact_gap']) < 1e-6 and found['turn_seconds'] == 0
  matrix = cost - cost.min(axis=1, keepdims=True)
  bound = cost.min(axis=1).sum() + matrix.min(axis=0).sum()
  expected = (optimum - bound) / optimum
  assert found['dual_gap'] == pytest.approx(expected, rel=1e-4)
  matrix = matrix - matrix.min(axis=0)
  columns = rounded(matrix, np.zeros(8))
  assert sorted(columns) == [*range(8)]
  greedy = cost[np.arange(8), columns].sum()
  expected = (greedy - optimum) / optimum
  assert found['rounded_gap'] == pytest.approx(expected, abs=1e-5)
  assert found['own'] == len({*matrix.argmin(axis=1)}) / 8 < 1
  assert found['paths'] == 8 * (1 - found['own'])
  later = measured(cost, 'middle', 200, 0.0)
  assert later['dual_gap'] < 0.3 * found['dual_gap']
  assert later['turn_seconds'] > 0 and abs(later['exact_gap']) < 1e-6


def test_a_run_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  SMALL.check()
  rows = run(SMALL, KEY, tmp_path)
  each = 2 + 2 * len(SMALL.rates) * 2 + 2 * 2
  assert len(rows) == 2 * len(PROBLEMS) * SMALL.draws * each
  monkeypatch.setattr('kexue.figures.assignment.measured', None)
  assert run(SMALL, KEY, tmp_path) == rows
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert {*numbers['table']} == {*PROBLEMS}
  assert {*numbers['table']['images'][8]['rules']} == {*RULES}
  assert abs(numbers['largest_exact_gap']) < 1e-6
  assert 'then shortest augmenting paths: gap' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  # An assignment that is not optimal is seen.
  wrong = [r | ({'exact_gap': 0.5} if 'turns' in r else {}) for r in rows]
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  assert plot(wrong, axes)['largest_exact_gap'] == 0.5
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(sizes=(8, 6)), 'config.sizes: .* ascending'),
    (dict(sizes=(1, 6)), 'config.sizes'),
    (dict(sizes=(6, 9999)), 'config.sizes: .* at most'),
    (dict(turns=(0, 4)), 'config.turns'),
    (dict(rates=(0.0,)), 'config.rates'),
    (dict(draws=0), 'config.draws: got 0'),
    (dict(dataset='kjv'), 'dataset'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
