"""The scorer, the numbers of the figure, and that rows are computed once."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import attention_error, cur_retrieval
from kexue.figures.cur_retrieval import (
  METHODS,
  MOSAIC,
  Config,
  _calls,
  _recall,
  _regression,
  plot,
  run,
)

TINY = Config(
  dataset='digits',
  keys=40,
  queries=12,
  anchors=6,
  shift=1,
  budgets=(16,),
  seeds=2,
  landmarks=(2, 4),
  tokens=8,
)


def test_regression_on_anchors_is_ridge_regression():
  scores = np.random.default_rng(0).normal(size=(5, 4))
  x = np.random.default_rng(1).random((5, 36))
  among, anchors = jnp.asarray(x @ x.T), np.array([0, 2, 3])
  queries = jnp.array([1, 4])
  found = _regression(jnp.asarray(scores), among, anchors, queries)
  known, mean = x[anchors], scores[anchors].mean(0)
  gram = known.T @ known + 0.1 * np.eye(36)
  weights = np.linalg.solve(gram, known.T @ (scores[anchors] - mean))
  np.testing.assert_allclose(found, mean + x[[1, 4]] @ weights, rtol=1e-3)


def test_recall_and_calls():
  best = np.array([[1, 2], [3, 4]])
  assert _recall(np.array([[2, 9, 1], [0, 5, 4]]), best) == 0.75
  assert _calls({10: [0.8, 0.8], 40: [1.0, 1.0]}) == pytest.approx(20)
  assert _calls({10: [0.8, 0.8], 40: [0.8, 0.9]}) is None


def synthetic():
  """At 10 and 40 calls: 0.8 and 1 for CUR in rounds, less for the others."""
  rows = []
  for name in METHODS:
    for seed in (0, 1):
      for calls, recall in ((10, 0.8), (40, 1.0)):
        recall -= 0.3 * (name != 'rounds') + 0.01 * seed
        row = {'seed': seed, 'method': name, 'calls': calls, 'recall': recall}
        rows.append({'run': f'search-{seed}', **row})
  for name in attention_error.METHODS:
    for m in (2, 4):
      row = dict(landmarks=m, error=1 / m, error_low=0.1, error_high=1.0)
      rows.append({'run': 'attention', 'method': name, **row})
  sizes = {'keys': 100, 'anchors': 5}
  for rank in range(3):
    row = {'rank': rank, 'scorer': 0.5**rank, 'pixels': 0.4**rank, **sizes}
    rows.append({'run': 'spectrum', **row})
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  calls = numbers['calls_to_90_percent']
  assert calls['rounds'] == pytest.approx(20 * 2**0.05, rel=1e-3)
  assert calls['pixels'] is None
  repay = numbers['queries_that_repay_anchors']
  assert repay['every key'] == pytest.approx(500 / (100 - calls['rounds']))
  assert repay['pixels'] is None
  share = numbers['share_of_full_scan']
  assert share['rounds'] == pytest.approx(calls['rounds'] / 100)
  assert share['pixels'] is None
  assert numbers['recall']['rounds'][10] == {
    'mean': pytest.approx(0.795),
    'min': pytest.approx(0.79),
    'max': pytest.approx(0.8),
  }
  assert numbers['attention_error']['best'] == {2: 0.5, 4: 0.25}
  assert 'in rounds 21 calls' in figure.get_suptitle()
  assert 'pixels alone not reached' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


@pytest.mark.parametrize('lost', ['spectrum', 'attention', 'search-0'])
def test_what_is_not_recorded_is_named(lost):
  rows = [row for row in synthetic() if row['run'] != lost]
  if lost == 'search-0':
    rows = [row for row in rows if row['run'] != 'search-1']
  with pytest.raises(ValueError, match='records: got'):
    draw(rows)


def test_calls_are_split_as_said(monkeypatch):
  made = []

  def search(score_fn, index, queries, keys, *, rescore, start, **options):
    size = index if start is None else start.shape[-1]
    made.append((size, rescore, options['rounds'], start is not None))
    return types.SimpleNamespace(indices=None)

  of = lambda *_, landmarks, **__: landmarks  # In the place of an index.
  monkeypatch.setattr(cur_retrieval, 'cur_index', of)
  monkeypatch.setattr(cur_retrieval, 'cur_search', search)
  scores = jnp.asarray(np.random.default_rng(0).random((4, 40)))
  for method in ('estimate', 'one_round', 'rounds', 'seeded'):
    cur_retrieval._cur(TINY, method, 28, scores, scores, {'pixels': scores})
  assert made == [
    (18, 10, 1, False),
    (14, 14, 1, False),
    (6, 22, 5, False),  # No more landmarks than anchors.
    (6, 22, 5, True),
  ]


def test_run_records_once(tmp_path, monkeypatch):
  monkeypatch.setattr(
    cur_retrieval, 'METHODS', {n: METHODS[n] for n in ('pixels', 'one_round')}
  )
  # The scorer and the model have tests of their own.
  flat = lambda x: x.reshape(len(x), -1)
  monkeypatch.setattr(
    cur_retrieval, 'best_match', lambda q, k, _: flat(q) @ flat(k).T
  )
  measured = lambda *x: [
    {'method': name, 'landmarks': m}
    for m in x[-1]
    for name in attention_error.METHODS
  ]
  monkeypatch.setattr(attention_error, 'trained_heads', lambda *_, **__: [])
  monkeypatch.setattr(attention_error, 'errors', measured)
  rows = run(TINY, jax.random.key(0), tmp_path, parallel='jit')
  found = [r for r in rows if 'recall' in r]
  assert len(found) == 2 * 2
  assert all(0 < r['recall'] <= 1 for r in found)
  spectrum = [r for r in rows if r['run'] == 'spectrum']
  assert len(spectrum) == 11 and spectrum[0]['scorer'] == pytest.approx(1)
  assert (spectrum[0]['keys'], spectrum[0]['anchors']) == (40, 6)
  assert len([r for r in rows if r['run'] == 'attention']) == 4 * 2
  refuse = lambda *_: pytest.fail('computed again')
  monkeypatch.setattr(cur_retrieval, '_scored', refuse)
  assert run(TINY, jax.random.key(0), tmp_path, parallel='jit') == rows


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(dataset='kjv'), 'config.dataset'),
    (dict(text='digits'), 'config.text'),
    (dict(keys=10), 'config.keys'),
    (dict(keys=10**6), 'config.keys'),
    (dict(queries=1), 'config.queries'),
    (dict(anchors=12), 'config.anchors: got 12'),
    (dict(shift=-1), 'config.shift'),
    (dict(budgets=(10,)), 'config.budgets'),
    (dict(budgets=(24, 16)), 'config.budgets'),
    (dict(budgets=(16, 41)), 'config.budgets'),
    (dict(landmarks=()), 'config.landmarks'),
    (dict(landmarks=(2, 9)), 'config.landmarks'),
    (dict(seeds=0), 'config.seeds'),
    (dict(steps=0), 'config.steps'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  TINY.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change).check()


def test_both_presets_can_run():
  Config().check()
  Config.full().check()
