"""Search by CUR: exact for low rank, exact scores, and no call wasted."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import CURIndex, cur_search
from kexue.lowrank.cur_search import _estimates

RANK, ANCHORS, KEYS, QUERIES = 3, 8, 40, 6


def look_up(rows, keys):
  """The score function of tables: a query is its row, a key its number."""
  return rows[:, keys]


def table(rank=RANK, *, seed=0, noise=0.0, dtype=np.float32):
  """Scores of anchors and then queries, of low rank up to an offset of keys."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape)
  scores = draw(ANCHORS + QUERIES, rank) @ draw(rank, KEYS) + 10 * draw(KEYS)
  return (scores + noise * draw(*scores.shape)).astype(dtype)


def index_of(scores, landmarks):
  return CURIndex(scores[:ANCHORS], jnp.asarray(landmarks))


def search(scores, landmarks=(3, 17, 30, 5), **options):
  return cur_search(
    look_up,
    index_of(scores, landmarks),
    scores[ANCHORS:],
    np.arange(KEYS),
    **dict(top_k=4, rescore=4, rounds=1) | options,
  )


def test_exact_for_scores_of_low_rank():
  """Four landmarks tell three factors apart, and four calls find four keys."""
  with jax.enable_x64(True):
    scores = table(dtype=np.float64)
    found = jax.device_get(search(scores, ridge=1e-12))
  best = np.argsort(-scores[ANCHORS:], axis=1)[:, :4]
  np.testing.assert_array_equal(found.indices, best)
  expected = np.take_along_axis(scores[ANCHORS:], best, axis=1)
  np.testing.assert_array_equal(found.scores, expected)
  assert found.calls == QUERIES * 8


def estimate(anchors, seen, got, ridge):
  """The formula of the docstring, in double precision."""
  anchors = np.float64(anchors)
  mean = anchors.mean(0)
  r = anchors - mean
  gram = r[:, seen] @ r[:, seen].T
  shift = ridge * np.trace(gram) / len(r) * np.eye(len(r))
  weights = np.linalg.solve(gram + shift, r[:, seen] @ (got - mean[seen]))
  return mean + weights @ r


@pytest.mark.parametrize('rounds', [1, 3])
def test_rounds_follow_the_formula(rounds):
  scores, start = table(noise=1.0), [3, 17, 30, 5]
  found = search(scores, start, rescore=7, rounds=rounds, top_k=11, ridge=0.1)
  for row, indices, values in zip(
    scores[ANCHORS:], found.indices, found.scores, strict=True
  ):
    seen = list(start)
    for size in {1: [7], 3: [3, 2, 2]}[rounds]:
      guess = estimate(scores[:ANCHORS], seen, row[seen], 0.1)
      guess[seen] = -np.inf
      seen += np.argsort(-guess)[:size].tolist()
    expected = sorted(seen, key=lambda i: -row[i])
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, row[expected])


@hypothesis.settings(deadline=None, max_examples=12, derandomize=True)
@hypothesis.given(
  seed=st.integers(0, 2**31),
  size=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
  noise=st.sampled_from([0.0, 10.0]),
  ridge=st.sampled_from([1e-30, 0.03, 1e3]),
)
def test_scores_are_exact_and_keys_distinct(seed, size, noise, ridge):
  scores = np.float32(size) * table(seed=seed, noise=noise)
  found = search(scores, rescore=10, rounds=4, top_k=14, ridge=ridge)
  for row, indices, values in zip(scores[ANCHORS:], *found[:2], strict=True):
    assert len(set(indices.tolist())) == 14
    np.testing.assert_array_equal(values, row[indices])
    assert (np.diff(values) <= 0).all()


def test_anchors_that_agree_leave_their_mean():
  mean, rows = jnp.arange(5.0), jnp.zeros((5, 3))
  found = _estimates(mean, rows, jnp.array([1, 4]), jnp.ones(2), 0.03)
  np.testing.assert_array_equal(found, mean)


def test_every_call_leaves_no_key_out():
  scores = table(noise=5.0)
  found = search(scores, rescore=KEYS - 4, rounds=2)
  best = np.argsort(-scores[ANCHORS:], axis=1)[:, :4]
  np.testing.assert_array_equal(found.indices, best)


def test_without_rescoring_the_landmarks_are_all():
  scores = table()
  found = search(scores, rescore=0)
  chosen = np.array([3, 17, 30, 5])
  expected = chosen[np.argsort(-scores[ANCHORS:][:, chosen], axis=1)]
  np.testing.assert_array_equal(found.indices, expected)
  assert found.calls == QUERIES * 4


def test_start_takes_the_place_of_the_landmarks():
  scores = table(noise=2.0)
  starts = np.random.default_rng(0).permuted(
    np.tile(np.arange(KEYS), (QUERIES, 1)), axis=1
  )[:, :4]
  found = search(scores, start=starts, rescore=5, rounds=2)
  for i, start in enumerate(starts):
    alone = search(scores, start, rescore=5, rounds=2)
    np.testing.assert_array_equal(found.indices[i], alone.indices[i])
  shared = search(scores, start=starts[0], rescore=5, rounds=2)
  np.testing.assert_array_equal(shared.indices[0], found.indices[0])


def test_rounds_find_more_than_one():
  """On a smooth scorer whose matrix has no low rank, at equal calls."""
  rng = np.random.default_rng(0)
  points = rng.uniform(size=(300, 2)).astype(np.float32)
  queries = rng.uniform(size=(90, 2)).astype(np.float32)
  kernel = lambda a, b: jnp.exp(-20 * jnp.sum((a[:, None] - b) ** 2, -1))
  index = CURIndex(kernel(queries[:40], points), jnp.arange(8))
  exact = np.asarray(kernel(queries[40:], points))
  best = np.argsort(-exact, axis=1)[:, :10]

  def recall(rounds):
    found = cur_search(
      kernel,
      index,
      queries[40:],
      points,
      top_k=10,
      rescore=24,
      rounds=rounds,
      batch_size=50,
    )
    hits = [
      np.isin(a, b).mean() for a, b in zip(found.indices, best, strict=True)
    ]
    return np.mean(hits)

  once, often = recall(1), recall(4)
  assert often > once + 0.05 and often > 0.9


def test_jit_batches_and_shard_map_agree():
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(ANCHORS + 16, KEYS)).astype(np.float32)
  index = index_of(scores, [3, 17, 30, 5])
  call = functools.partial(cur_search, look_up, index, keys=jnp.arange(KEYS))
  options = dict(top_k=4, rescore=4, rounds=1)
  form = lambda x: call(queries=x, **options)[:2]
  expected = form(scores[ANCHORS:])
  mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))
  spread = jax.shard_map(
    form, mesh=mesh, in_specs=P('x'), out_specs=P('x'), check_vma=True
  )
  each = jax.vmap(lambda x: jax.tree.map(lambda y: y[0], form(x[None])))
  batched = lambda x: call(queries=x, batch_size=5, **options)[:2]
  for other in (jax.jit(each), jax.jit(spread), batched):
    for x, y in zip(other(scores[ANCHORS:]), expected, strict=True):
      np.testing.assert_array_equal(x, y)


def test_scores_are_differentiable_in_the_queries():
  linear = lambda q, k: q @ k.T
  rng = np.random.default_rng(0)
  x = rng.normal(size=(12, 2)).astype(np.float32)
  index = CURIndex(linear(x[:6], x), jnp.arange(2))
  options = dict(top_k=1, rescore=3, rounds=1)
  find = jax.jit(lambda q: cur_search(linear, index, q, x, **options))
  best = find(x[6:8]).indices[:, 0]
  gradient = jax.jit(jax.grad(lambda q: find(q).scores.sum()))(x[6:8])
  np.testing.assert_allclose(gradient, x[best], rtol=1e-6)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(top_k=0), 'top_k: got 0, expected an integer in 1..8'),
    (dict(top_k=9), 'top_k: got 9'),
    (dict(rescore=-1), 'rescore: got -1, expected an integer in 0..36'),
    (dict(rescore=37), 'rescore: got 37'),
    (dict(rounds=0), 'rounds: got 0'),
    (dict(ridge=0.0), 'ridge: got 0.0, expected a number above 0'),
    (dict(batch_size=1.5), 'batch_size: got 1.5'),
    (dict(start=np.zeros((5, 2), int)), 'start: got shape'),
    (dict(start=np.array(0)), 'start: got shape'),
  ],
)
def test_what_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    search(table(), **change)


def test_keys_must_be_those_of_the_index():
  scores = table()
  with pytest.raises(ValueError, match='index.scores: got shape'):
    cur_search(
      look_up,
      index_of(scores, [0]),
      scores[ANCHORS:],
      np.arange(KEYS - 1),
      top_k=1,
      rescore=1,
    )
