"""The figure of column-row products: rows once, numbers from rows."""

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import column_row_variance
from kexue.figures.column_row_panels import (
  CLOSED,
  COLORS,
  FIXED,
  REWEIGHTED,
  TIMED,
)
from kexue.figures.column_row_variance import (
  MOSAIC,
  TITLES,
  Config,
  _measured,
  _theory,
  plot,
  run,
)

KEY = jax.random.key(0)
RANKS = (2, 8)


def synthetic():
  """Theory 1 / rank, measured 10 % above; 10 times faster at a twentieth."""
  rows = []
  for data in TITLES:
    for rank in RANKS:
      exact = dict.fromkeys((*CLOSED, *FIXED), 1 / rank)
      theory = {'rank': rank, 'optimum': 0.01, 'title': data, **exact}
      rows.append({'run': f'theory-{data}', 'data': data, **theory})
    kinds = [(m, 'unbiased') for m in COLORS]
    for method, weights in kinds + [(m, 'optimal') for m in REWEIGHTED]:
      for rank in RANKS:
        rows.append(
          {
            'run': f'{data}-{method}-{weights}',
            'data': data,
            'method': method,
            'weights': weights,
            'rank': rank,
            'draws': 100,
            'error': 1.1 / rank / (4 if weights == 'optimal' else 1),
            'deviation': 0.05 / rank,
          }
        )
  for data in ('gaussian', 'images'):
    full = ('full', 'exact', 1.0)
    every = [full, *((*how, s) for s in (0.05, 0.5) for how in TIMED)]
    for method, weights, share in every:
      rows.append(
        {
          'run': f'timing-{data}',
          'shape': '2 x 3 x 2',
          'method': method,
          'weights': weights,
          'share': share,
          'relative_error': 0.25,
          'seconds': 2 * share,
          'median_seconds': 4.0,
        }
      )
  for row in rows:
    if row['run'].startswith('timing') and row['share'] == 0.05:
      row['seconds'] = 0.2
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_are_those_of_the_rows():
  numbers, figure, axes = draw(synthetic())
  assert numbers['means_compared'] == 3 * len(CLOSED) * len(RANKS)
  assert numbers['draws'] == 100
  assert numbers['largest_gap_to_theory'] == pytest.approx(0.1)
  assert numbers['largest_z'] == pytest.approx(2)
  assert numbers['root_mean_square_z'] == pytest.approx(2)
  assert numbers['slope_of_norm_iid']['images'] == pytest.approx(-1)
  assert numbers['systematic_over_bernoulli']['images'] == pytest.approx(1.1)
  ratios = numbers['optimal_over_unbiased_error']['gradient']['uniform']
  assert ratios == pytest.approx([0.5, 0.5])
  found = numbers['at_a_twentieth']['gaussian']['top_norm, unbiased']
  assert found == pytest.approx(
    {'speedup': 10, 'median_speedup': 1, 'relative_error': 0.25}
  )
  assert '10.0 times faster with an error of 0.25' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  rows = [row for row in synthetic() if row['run'] != 'timing-gaussian']
  with pytest.raises(ValueError, match='no timing-gaussian'):
    draw(rows)


def test_what_is_computed_is_recorded_once(tmp_path, monkeypatch):
  """With rows of nobody's making, a kind at a time."""
  calls = []

  def count(name, rows):
    def make(*arguments):
      calls.append(name)
      return [{'value': 1.0}] * rows

    return make

  for name, rows in (('_theory', 2), ('_measured', 2), ('_timings', 5)):
    monkeypatch.setattr(column_row_variance, name, count(name, rows))
  arrays = np.ones((2, 3)), np.ones((3, 2))
  monkeypatch.setattr(column_row_variance, 'layer_gradient', lambda *_: arrays)
  monkeypatch.setattr(column_row_variance, 'gaussian', lambda *_: arrays)
  config = Config(images='digits', terms=32, ranks=(4, 8), timed_shares=(0.05,))
  again = lambda: run(config, KEY, tmp_path, parallel='jit')
  rows = again()
  kinds = len(COLORS) + len(REWEIGHTED)
  assert calls.count('_measured') == 3 * kinds
  assert len(rows) == 3 * 2 * (kinds + 1) + 2 * 5
  done = len(calls)
  assert again() == rows and len(calls) == done


def test_measured_errors_are_those_of_the_products():
  """Of a method without chance, both ways to the same number."""
  config = Config(ranks=(4,), draws=32)
  random = np.random.default_rng(0)
  x, y = np.float32(random.normal(size=(2, 9, 9)))
  (theory,) = _theory(config, 'gaussian', x, y)
  (found,) = _measured(config, 'gaussian', x, y, KEY, 'top_norm', 'unbiased')
  assert found['error'] == pytest.approx(theory['top_norm'], rel=1e-4)
  assert found['draws'] == 1
  s = np.linalg.svd(x @ y, compute_uv=False)
  best = np.sum(s[4:] ** 2) / np.sum(s**2)
  assert theory['optimum'] == pytest.approx(best, rel=1e-4)
  (found,) = _measured(config, 'gaussian', x, y, KEY, 'uniform', 'unbiased')
  gap = found['error'] - theory['uniform']
  assert abs(gap) < 5 * found['deviation'] and found['draws'] == 32


def test_timings(monkeypatch):
  config = Config(timed_shares=(0.05,), repeats=2)
  monkeypatch.setattr(column_row_variance, 'TIMED', TIMED[2:3])
  x = np.float32(np.eye(20))
  full, top = column_row_variance._timings(config, 'images', x, x, KEY)
  assert full['relative_error'] == 0 and full['share'] == 1
  assert top['rank'] == 1 and top['shape'] == '20 x 20 x 20'
  assert top['relative_error'] == pytest.approx((19 / 20) ** 0.5)
  assert 0 < top['seconds'] <= top['median_seconds']


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(ranks=()), 'config.ranks'),
    (dict(ranks=(8, 4)), 'config.ranks'),
    (dict(ranks=(512,)), 'config.ranks: .* expected 1 to 511, ascending'),
    (dict(timed_shape=(1500, 4000)), 'config.timed_shape'),
    (dict(timed_shares=(0.2,)), 'config.timed_shares'),
    (dict(draws=8), 'config.draws: got 8, expected 32 or more'),
    (dict(steps=0), 'config.steps: got 0, expected 1 or more'),
    (dict(repeats=-1), 'config.repeats: got -1'),
    (dict(images='kjv'), 'config.images'),
    (dict(images='digits', terms=10_000), 'config.terms'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**{'images': 'digits'} | change).check()


def test_the_presets_pass():
  Config(images='mnist').check()
  Config.full().check()
