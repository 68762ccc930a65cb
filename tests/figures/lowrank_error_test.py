"""The figure of all decompositions: rows once, and the numbers from rows."""

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import lowrank_error
from kexue.figures.lowrank_error import (
  MOSAIC,
  SHAPE,
  Config,
  _matrices,
  _total_steps,
  plot,
  run,
)

SMALL = Config(
  ranks=(2, 4),
  keys=2,
  images='digits',
  weights='none',
  tolerances=(0.5,),
  power=1,
)
METHODS = ('SVD, q = 0', 'SVD, q = 2', 'ID, osinsky', 'CUR, osinsky')


def synthetic():
  """Ratios of 2, and of 3 at the second rank of CUR on the slow spectrum."""
  rows = []
  for panel in ('fast', 'slow', 'images'):
    for method in METHODS:
      for rank in (2, 4):
        worse = (panel, method, rank) == ('slow', 'CUR, osinsky', 4)
        ratio = 2.0 + worse
        rows.append(
          {
            'run': f'{panel}-{method}',
            'matrix': panel,
            'title': panel,
            'method': method,
            'rank': rank,
            'ratio': ratio,
            'ratio_min': ratio,
            'ratio_max': ratio,
          }
        )
    rows.append(
      {
        'run': f'tolerance-{panel}',
        'title': panel,
        'rtol': 0.5,
        'delivered': 0.4 if panel == 'fast' else 0.25,
        'rank': 6,
        'optimal_rank': 4,
      }
    )
  for q in (0, 1):
    for name in ('kexue', 'none', 'LU', 'QR'):
      power = {'normalizer': name, 'iterations': q, 'ratio': 1.0 + q}
      rows.append({'run': 'power', **power})
  return rows


def test_numbers_are_those_of_the_rows():
  figure = matplotlib.figure.Figure()
  numbers = plot(synthetic(), figure.subplot_mosaic(MOSAIC))
  assert numbers['largest_ratio']['CUR, osinsky'] == {
    'fast': 2.0,
    'slow': 3.0,
    'images': 2.0,
  }
  assert numbers['delivered_over_tolerance'] == pytest.approx(0.8)
  assert numbers['rank_over_optimal'] == pytest.approx(1.5)
  assert set(numbers['after_most_power_iterations'].values()) == {2.0}
  assert figure.axes[MOSAIC[1].index('weights') + 3].get_title() == (
    'no weights installed'
  )


def test_no_records_no_figure():
  figure = matplotlib.figure.Figure()
  with pytest.raises(ValueError, match='records: got'):
    plot([], figure.subplot_mosaic(MOSAIC))


def test_matrices_have_the_spectra_they_are_called_by():
  found = _matrices(SMALL, None)
  assert set(found) == {'fast', 'slow', 'step', 'noise', 'images'}
  s = np.linalg.svd(found['slow'][1], compute_uv=False)
  np.testing.assert_allclose(s[:50], 1 / np.arange(1, 51), rtol=1e-4)
  assert found['noise'][1].shape == SHAPE
  title, images = found['images']
  assert (
    images.shape == (64, SHAPE[1]) and 0 <= images.min() < images.max() <= 1
  )
  assert title.startswith('digits')


def test_run_records_once(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    lowrank_error,
    '_methods',
    lambda: {'SVD, q = 0': lambda a, rank, key: calls.append(rank) or 0 * a},
  )
  monkeypatch.setattr(lowrank_error, '_spectra', lambda: {'fast': np.ones(384)})
  matrices = {'fast': ('title', np.eye(12, 10, dtype=np.float32))}
  monkeypatch.setattr(lowrank_error, '_matrices', lambda *_: matrices)
  again = lambda: run(SMALL, jax.random.key(0), tmp_path)
  rows = again()
  assert calls == [2, 2, 4, 4]
  # Nothing at all is taken away: all of the matrix against what is left.
  ratios = [row['ratio'] for row in rows if row.get('method')]
  np.testing.assert_allclose(ratios, [(10 / 8) ** 0.5, (10 / 6) ** 0.5])
  (asked,) = [row for row in rows if row.get('rtol')]
  assert asked['delivered'] <= 0.5 and asked['optimal_rank'] == 8
  assert len([row for row in rows if row.get('normalizer')]) == 8
  assert again() == rows and len(calls) == 4
  assert _total_steps(SMALL, 1) == 2


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(ranks=()), r'config.ranks: got \(\), expected ascending'),
    (dict(ranks=(4, 2)), 'config.ranks'),
    (dict(ranks=(300,)), 'config.ranks: got .*1 to 192'),
    (dict(keys=0), 'config.keys: got 0, expected 1 or more'),
    (dict(power=0), 'config.power'),
    (dict(tolerances=(1.0,)), 'config.tolerances'),
    (dict(weights='gpt'), "config.weights: got 'gpt'"),
    (dict(images='kjv'), "config.images: got 'kjv', expected a set of images"),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    Config(**(vars(SMALL) | change)).check()
