"""A dense layer as a sum of vectors: the longest, the best, the random ones."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue import models
from kexue.models import expert_vectors, subset_error

RNG = np.random.default_rng(0)
best_subset, norm_top_k, random_subset_error = (
  jax.jit(measure, static_argnames='k')
  for measure in (
    models.best_subset,
    models.norm_top_k,
    models.random_subset_error,
  )
)


def error(vectors, indices):
  vectors = np.asarray(vectors, np.float64)
  rest = np.delete(vectors, np.asarray(indices), axis=0).sum(0)
  return np.linalg.norm(rest) / np.linalg.norm(vectors.sum(0))


@pytest.mark.parametrize('n', [1, 3, 12])
def test_experts_add_up_to_the_dense_layer(n):
  x, w_in, w_out = (
    RNG.normal(size=s).astype(np.float32) for s in ((2, 3, 5), (5, 12), (12, 4))
  )
  vectors = expert_vectors(x, w_in, w_out, n, activation=jnp.tanh)
  assert vectors.shape == (2, 3, n, 4)
  np.testing.assert_allclose(
    vectors.sum(-2), np.tanh(x @ w_in) @ w_out, rtol=1e-4, atol=1e-5
  )
  first = np.tanh(x @ w_in[:, : 12 // n]) @ w_out[: 12 // n]
  np.testing.assert_allclose(vectors[..., 0, :], first, rtol=1e-4, atol=1e-5)


def test_of_orthogonal_vectors_the_longest_are_the_best():
  turn = np.linalg.qr(RNG.normal(size=(5, 8, 8)))[0]
  vectors = jnp.array(turn * RNG.uniform(0.1, 3, (5, 8, 1)), jnp.float32)
  longest, best = norm_top_k(vectors, 3), best_subset(vectors, 3)
  np.testing.assert_array_equal(np.sort(longest.indices), best.indices)
  np.testing.assert_allclose(longest.relative_error, best.relative_error)
  lengths = np.sort(np.linalg.norm(vectors, axis=-1))[:, :5]
  expected = np.sqrt(np.square(lengths).sum(-1))
  expected /= np.linalg.norm(np.asarray(vectors).sum(-2), axis=-1)
  np.testing.assert_allclose(longest.relative_error, expected, rtol=1e-5)


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
  st.sampled_from([(6, 1), (6, 3), (6, 6), (1, 1)]), st.integers(0, 99)
)
def test_against_all_subsets(shape, seed):
  n, k = shape
  vectors = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
  errors = {
    kept: error(vectors, kept) for kept in itertools.combinations(range(n), k)
  }
  longest, best = norm_top_k(vectors, k), best_subset(vectors, k)
  for found in (longest, best):
    kept = tuple(sorted(found.indices.tolist()))
    np.testing.assert_allclose(found.relative_error, errors[kept], atol=1e-5)
  by_length = np.argsort(-np.linalg.norm(vectors, axis=1))[:k]
  np.testing.assert_array_equal(longest.indices, by_length)
  lowest = min(errors.values())
  np.testing.assert_allclose(best.relative_error, lowest, atol=1e-5)
  mean = np.sqrt(np.mean(np.square(list(errors.values()))))
  found = random_subset_error(vectors, k)
  np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)


def test_long_vectors_may_cancel():
  vectors = jnp.array([[4.0, 0], [-4, 0], [0, 3]])
  assert norm_top_k(vectors, 1).relative_error > 1
  assert best_subset(vectors, 1).relative_error == 0


def test_the_first_of_equals_is_kept():
  vectors = jnp.tile(jnp.array([[3.0, 4.0]]), (40, 1)).at[7].multiply(2)
  assert norm_top_k(vectors, 4).indices.tolist() == [7, 0, 1, 2]


@pytest.mark.parametrize('power', [-120, 100])
def test_any_scale(power):
  vectors = RNG.normal(size=(6, 4)).astype(np.float32)
  scaled = vectors * np.float32(2.0) ** power
  for measure in (norm_top_k, best_subset):
    expected, found = measure(vectors, 2), measure(scaled, 2)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.relative_error, expected.relative_error)
  np.testing.assert_allclose(
    random_subset_error(scaled, 2), random_subset_error(vectors, 2)
  )


def test_zeros():
  nothing = jnp.zeros((3, 2))
  assert norm_top_k(nothing, 1).relative_error == 0
  assert random_subset_error(nothing, 1) == 0
  cancelling = nothing.at[:2, 0].set(jnp.array([1.0, -1]))
  assert norm_top_k(cancelling, 1).relative_error == jnp.inf
  assert subset_error(cancelling, jnp.array([0, 1])) == 0


def test_half_precision_and_double():
  vectors = jnp.array(RNG.normal(size=(6, 4)), jnp.bfloat16)
  expected = norm_top_k(vectors.astype('float32'), 2)
  found = norm_top_k(vectors, 2)
  assert found.relative_error.dtype == jnp.float32
  assert found.relative_error == expected.relative_error
  with jax.enable_x64(True):
    vectors = jnp.array(RNG.normal(size=(6, 4)))
    found = best_subset(vectors, 2)
    np.testing.assert_allclose(
      found.relative_error, error(vectors, found.indices), rtol=1e-13
    )


def test_every_transform():
  vectors = RNG.normal(size=(8, 5, 3)).astype(np.float32)

  def both(v):
    return norm_top_k(v, 2), best_subset(v, 2), random_subset_error(v, 2)

  expected = jax.tree.leaves(jax.jit(both)(vectors))
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    both, mesh=mesh, in_specs=P('data'), out_specs=P('data')
  )
  for found in (jax.vmap(both), jax.pmap(both), jax.jit(mapped)):
    for a, b in zip(jax.tree.leaves(found(vectors)), expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)


def test_wrong_arguments_are_named():
  v, x, a, b = (jnp.ones(s) for s in ((4, 3), (2, 3), (3, 6), (6, 2)))
  for name, call in {
    'k: got 0': lambda: norm_top_k(v, 0),
    'k: got 5': lambda: random_subset_error(v, 5),
    'k: got 2.0': lambda: best_subset(v, 2.0),
    'k: got 10, expected at most': lambda: best_subset(jnp.ones((40, 1)), 10),
    r'vectors: got shape \(3,\)': lambda: norm_top_k(v[0], 1),
    r'vectors: got \(0, 3\)': lambda: norm_top_k(v[:0], 1),
    'indices: got': lambda: subset_error(v, jnp.zeros((2, 1), int)),
    'n: got 4': lambda: expert_vectors(x, a, b, 4),
    'w_in: got': lambda: expert_vectors(x, a[:, :5], b, 2),
    'w_out: got': lambda: expert_vectors(x, a, b[0], 2),
    'x: got': lambda: expert_vectors(1.0, a, b, 2),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
