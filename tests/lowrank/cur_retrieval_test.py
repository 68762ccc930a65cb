"""All queries at once: anchors exactly, the others by search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank import cur_index, cur_retrieval, cur_search

QUERIES, KEYS = 15, 30
rng = np.random.default_rng(0)
SCORES = rng.normal(size=(QUERIES, KEYS)).astype(np.float32)


def look_up(rows, keys):
  return rows[:, keys]


def retrieve(scores=SCORES, **options):
  keys = np.arange(KEYS)
  return cur_retrieval(
    look_up,
    scores,
    keys,
    **dict(landmarks=3, top_k=2, method='pivoted_qr') | options,
  )


def chosen_anchors(found):
  """Queries whose result is the best there is, on scores of no rank."""
  best = np.argsort(-SCORES, axis=1)[:, :2]
  return {i for i in range(QUERIES) if (found.indices[i] == best[i]).all()}


def test_anchors_are_exact_and_the_others_as_by_index_and_search():
  found = retrieve(anchors=5, rescore=4, rounds=2, ridge=0.1)
  anchors = np.array([0, 3, 6, 9, 12])
  assert chosen_anchors(found) >= set(anchors)
  assert len(chosen_anchors(found)) < QUERIES
  others = np.setdiff1d(np.arange(QUERIES), anchors)
  keys = np.arange(KEYS)
  index = cur_index(
    look_up, SCORES[anchors], keys, landmarks=3, method='pivoted_qr'
  )
  options = dict(top_k=2, rescore=4, rounds=2, ridge=0.1)
  expected = cur_search(look_up, index, SCORES[others], keys, **options)
  np.testing.assert_array_equal(found.indices[others], expected.indices)
  np.testing.assert_array_equal(found.scores[others], expected.scores)
  exact = np.take_along_axis(SCORES, np.asarray(found.indices), axis=1)
  np.testing.assert_array_equal(found.scores, exact)
  assert found.calls == 5 * KEYS + 10 * 7


def test_defaults():
  """Three times as many calls as landmarks, twice as many anchors."""

  def calls(**options):
    counted = []

    def record(scores):
      found = retrieve(scores, **options)
      counted.append(found.calls)
      return found

    found = jax.eval_shape(record, SCORES)  # Nothing is run.
    assert found.indices.shape == found.scores.shape == (QUERIES, 2)
    assert found.indices.dtype == jnp.int32
    return counted.pop()

  assert calls() == 6 * KEYS + 9 * 12
  # As far as there are keys and queries.
  assert calls(landmarks=9) == QUERIES * KEYS
  assert calls(landmarks=28, method='uniform', anchors=10) == QUERIES * KEYS


def test_a_key_draws_the_anchors():
  draw = lambda seed: retrieve(anchors=5, key=jax.random.key(seed), rescore=0)
  first, second = draw(0), draw(1)
  assert len(chosen_anchors(first)) >= 5 <= len(chosen_anchors(second))
  assert chosen_anchors(first) != chosen_anchors(second)
  np.testing.assert_array_equal(first.indices, draw(0).indices)


def test_low_rank_is_found_with_few_calls():
  a, b = rng.normal(size=(QUERIES, 2)), rng.normal(size=(2, KEYS))
  scores = (a @ b + rng.normal(size=KEYS)).astype(np.float32)
  key = jax.random.key(0)
  found = jax.jit(
    lambda x: retrieve(x, top_k=3, rescore=5, rounds=1, ridge=1e-6, key=key)
  )(scores)
  best = np.argsort(-scores, axis=1)[:, :3]
  np.testing.assert_array_equal(found.indices, best)
  assert int(found.calls) == 6 * KEYS + 9 * 8


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(landmarks=0), 'landmarks: got 0'),
    (dict(landmarks=31), 'landmarks: got 31, expected an integer in 1..30'),
    (dict(anchors=16), 'anchors: got 16, expected an integer in 1..15'),
    (dict(anchors=2), 'landmarks: got 3, expected an integer in 1..2'),
    (dict(rescore=28), 'rescore: got 28, expected an integer in 0..27'),
    (dict(top_k=13), 'top_k: got 13, expected an integer in 1..12'),
    (dict(rounds=0), 'rounds: got 0'),
    (dict(ridge=-1.0), 'ridge: got -1.0'),
    (dict(method='none'), 'method: got'),
  ],
)
def test_what_cannot_be_is_refused(change, message):
  refuse = lambda *_: pytest.fail('scored before the arguments were checked')
  options = dict(landmarks=3, top_k=2) | change
  with pytest.raises(ValueError, match=message):
    cur_retrieval(refuse, SCORES, np.arange(KEYS), **options)
