"""The index of CUR retrieval: every pair once, landmarks by their scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank import cur_index, interpolative

rng = np.random.default_rng(0)
QUERIES, KEYS = (rng.normal(size=(n, 3)).astype(np.float32) for n in (7, 20))


def near(queries, keys):
  return -jnp.sum((queries[:, None] - keys) ** 2, axis=-1)


@pytest.mark.parametrize('batch_size', [1, 3])
def test_scores_are_those_of_all_pairs(batch_size):
  index = cur_index(
    near,
    QUERIES,
    KEYS,
    landmarks=4,
    method='pivoted_qr',
    batch_size=batch_size,
  )
  np.testing.assert_allclose(index.scores, near(QUERIES, KEYS), rtol=1e-5)
  assert index.calls == 7 * 20
  assert index.landmarks.dtype == jnp.int32
  assert len(set(index.landmarks.tolist())) == 4


def test_landmarks_are_columns_of_the_centred_scores():
  index = cur_index(near, QUERIES, KEYS, landmarks=4, method='pivoted_qr')
  centred = index.scores - index.scores.mean(0)
  expected = interpolative(centred, 4, method='pivoted_qr').indices
  np.testing.assert_array_equal(index.landmarks, expected)
  # The offset of the scores says nothing.
  far = lambda q, k: near(q, k) + 100 * k[:, 0]
  moved = cur_index(far, QUERIES, KEYS, landmarks=4, method='pivoted_qr')
  np.testing.assert_array_equal(moved.landmarks, expected)


def test_uniform_landmarks_may_be_more_than_anchors_and_follow_the_key():
  draw = lambda seed: cur_index(
    near,
    QUERIES,
    KEYS,
    landmarks=15,
    method='uniform',
    key=jax.random.key(seed),
  ).landmarks.tolist()
  assert len(set(draw(0))) == 15 and draw(0) == draw(0) != draw(1)


def test_pytrees_and_programs_outside_jax():
  """Lengths and words, by a scorer that only Python knows."""
  words = lambda x: {'x': x, 'length': np.arange(1, len(x) + 1)}

  def python(queries, keys):
    assert queries['x'].shape == (1, 3)
    return np.float32(near(queries['x'], keys['x']) * keys['length'])

  def score(queries, keys):
    shape = jax.ShapeDtypeStruct((1, len(keys['x'])), jnp.float32)
    return jax.pure_callback(
      python, shape, queries, keys, vmap_method='sequential'
    )

  index = cur_index(
    score, words(QUERIES), words(KEYS), landmarks=2, method='uniform'
  )
  expected = near(QUERIES, KEYS) * np.arange(1, 21)
  np.testing.assert_allclose(index.scores, expected, rtol=1e-5)


@pytest.mark.parametrize('method', ['osinsky', 'pivoted_qr'])
def test_equal_scores_give_distinct_landmarks(method):
  flat = lambda q, k: jnp.zeros((len(q), len(k)))
  index = cur_index(flat, QUERIES, KEYS, landmarks=5, method=method)
  assert len(set(index.landmarks.tolist())) == 5


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(landmarks=0), 'landmarks: got 0, expected an integer in 1..7'),
    (dict(landmarks=8), 'landmarks: got 8'),
    (dict(landmarks=21, method='uniform'), 'landmarks: got 21'),
    (dict(method='best'), 'method: got'),
    (dict(batch_size=0), 'batch_size: got 0'),
    (dict(keys=np.ones((0, 3))), 'keys: got'),
    (dict(queries={'a': np.ones(3), 'b': np.ones(4)}), 'queries: got'),
    (dict(queries={}), 'queries: got'),
    (dict(score_fn=lambda q, k: near(q, k)[0]), r'score_fn\(queries'),
    (dict(score_fn=lambda q, k: near(k, q)), r'score_fn\(queries'),
  ],
)
def test_what_cannot_be_is_refused(change, message):
  good = dict(score_fn=near, queries=QUERIES, keys=KEYS, landmarks=3)
  given = good | change
  call = functools.partial(
    cur_index, given.pop('score_fn'), given.pop('queries'), given.pop('keys')
  )
  with pytest.raises(ValueError, match=message):
    call(**given)
