"""Rows of the choices once, and the headline numbers from rows."""

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import column_matrices, interpolative_selection
from kexue.figures.column_choices import BASELINES, OURS, Choice, fit
from kexue.figures.interpolative_selection import (
  MOSAIC,
  THRESHOLDS,
  Config,
  plot,
  run,
)

SMALL = Config(
  seeds=2,
  images='digits',
  weights='none',
  shape=(100, 100),
  rank=5,
  repeats=1,
  sizes=(8,),
)
NAMES = (*OURS, *BASELINES)


def synthetic():
  """All errors 2, but Osinsky's: 1.5 in half of SciPy's second."""
  rows = []
  for name in NAMES:
    error = 1.5 if name == 'osinsky' else 2.0
    quality = {'selector': name, 'error': error, 'coefficient': 1.25}
    rows += [
      {'run': kind, 'matrix': kind, 'seed': seed, **quality}
      for kind in ('fast', 'digits')
      for seed in (0, 1)
    ]
    times = {'shape': '9 x 9', 'seconds_of_one': error / 3, **quality}
    rows += [
      {'run': f'time-{kind}', 'spectrum': kind, **times}
      for kind in ('fast', 'slow')
    ]
    if name in OURS:
      rows += [{'run': 'kahan', 'size': n, **quality} for n in (4, 9)]
  for kind in ('fast', 'kernel'):
    for f in THRESHOLDS:
      strong = {'swaps': 2.0, 'largest_coefficient': f, 'mean_error': 1.5}
      rows.append({'run': 'x', 'kind': kind, 'threshold': f, **strong})
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_are_those_of_the_rows():
  numbers, figure, axes = draw(synthetic())
  errors = numbers['median_error_over_optimum']
  assert errors['osinsky'] == {'fast': 1.5, 'digits': 1.5}
  assert numbers['median_largest_coefficient']['uniform']['fast'] == 1.25
  ours = numbers['large']['slow']['osinsky']
  assert ours['times_as_fast_as_scipy'] == pytest.approx(4 / 3)
  assert ours['error_over_scipy'] == 0.75
  assert numbers['kahan']['pivoted_qr'] == 2.0
  assert (numbers['kahan_size'], numbers['kahan_guarantee']) == (9, 3.0)
  assert numbers['strong_rrqr_keeps_its_threshold']
  assert numbers['swaps']['kernel, f = 1.05'] == 2.0
  assert '1.3 times as fast' in figure.get_suptitle()
  assert '-25%' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


def test_a_threshold_that_is_broken_shows():
  rows = synthetic()
  rows[-1] |= {'largest_coefficient': 2.1}
  assert not draw(rows)[0]['strong_rrqr_keeps_its_threshold']


def test_no_records_no_figure():
  with pytest.raises(ValueError, match='records: got'):
    draw([])


def test_run_records_once(tmp_path, monkeypatch):
  calls = []

  def choose(name, a, rank, seed):
    calls.append(name)
    return fit(np.asarray(a), np.arange(rank))

  monkeypatch.setattr(column_matrices, 'SHAPE', (48, 40))
  monkeypatch.setattr(interpolative_selection, 'choose', choose)
  strong = lambda a, rank, threshold: type(
    'Found', (), {'swaps': 3, 'indices': np.arange(rank)}
  )
  monkeypatch.setattr(interpolative_selection, 'strong_rrqr', strong)
  again = lambda: run(SMALL, jax.random.key(0), tmp_path)
  rows = again()
  kinds = [row for row in rows if row.get('matrix')]
  assert len(kinds) == 5 * 2 * len(NAMES)
  a = interpolative_selection.matrices('digits', 'none')['fast'](
    np.random.default_rng(0)
  )
  q, _ = np.linalg.qr(a[:, :30])
  s = np.linalg.svd(a, compute_uv=False)
  expected = np.linalg.norm(a - q @ (q.T @ a)) / np.linalg.norm(s[30:])
  assert kinds[0]['error'] == pytest.approx(expected)
  timed = [row for row in rows if row.get('spectrum')]
  assert len(timed) == 2 * 7 and all(r['seconds_of_one'] > 0 for r in timed)
  (size,) = {row['size'] for row in rows if row.get('size')}
  assert size == 8
  swaps = [row['swaps'] for row in rows if row.get('threshold')]
  assert swaps == [3.0] * 2 * len(THRESHOLDS)
  assert draw(rows)[0]['kahan_size'] == 8
  count = len(calls)
  assert again() == rows and len(calls) == count


def test_choices_are_in_double_precision(tmp_path, monkeypatch):
  seen = []

  def choose(name, a, rank, seed):
    seen.append(jax.numpy.asarray(a).dtype)
    return Choice(np.arange(rank), np.eye(rank, np.shape(a)[1]))

  monkeypatch.setattr(interpolative_selection, 'choose', choose)
  tasks = [('kahan', 4, lambda: interpolative_selection._on_kahan(8))]
  monkeypatch.setattr(interpolative_selection, '_tasks', lambda *_: tasks)
  run(SMALL, jax.random.key(0), tmp_path)
  assert set(map(str, seen)) == {'float64'}


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(seeds=0), 'config.seeds: got 0, expected 1 or more'),
    (dict(repeats=0), 'config.repeats'),
    (dict(shape=(50, 100)), 'config.shape'),
    (dict(rank=21), 'config.rank: got 21, expected 1 to 20'),
    (dict(sizes=()), 'config.sizes'),
    (dict(sizes=(91,)), 'config.sizes'),
    (dict(weights='gpt'), "config.weights: got 'gpt'"),
    (dict(images='kjv'), "config.images: got 'kjv'"),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    Config(**(vars(SMALL) | change)).check()
