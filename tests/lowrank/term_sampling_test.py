"""Samplers: how often, how many, with what weight; exactly and by counting."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.lowrank.term_sampling import (
  UNBIASED,
  inclusion_probabilities,
  take_largest,
)

DRAWS = 10_000
SIZES = np.float32([0.5, 8, 1, 1, 0, 2.5, 1, 3])


def water_filled(sizes, rank):
  """Set what exceeds one to one, scale the rest, and again, in float64."""
  sizes, certain = np.float64(sizes), np.zeros(len(sizes), bool)
  while True:
    rest = sizes[~certain].sum()
    q = np.where(certain, 1, sizes * (rank - certain.sum()) / (rest or 1))
    if not (q > 1 + 1e-12).any():
      return q
    certain |= q > 1


@functools.partial(jax.jit, static_argnums=(0, 2))
def draws(method, sizes, rank):
  keys = jax.random.split(jax.random.key(0), DRAWS)
  return jax.vmap(lambda key: UNBIASED[method](sizes, rank, key))(keys)


@functools.partial(jax.jit, static_argnums=1)
def fill(sizes, rank):
  return inclusion_probabilities(sizes, rank)


def weights_by_term(indices, weights, length):
  """[draws, l]: the sum of the weights that each term got."""
  total = np.zeros((len(indices), length))
  np.add.at(total, (np.arange(len(indices))[:, None], indices), weights)
  return total


@given(
  st.lists(st.integers(0, 40), min_size=8, max_size=8),
  st.sampled_from([1, 4, 8]),
)
@settings(max_examples=25, deadline=None)
def test_probabilities_fill_up(sizes, rank):
  sizes = np.float32(sizes) ** 3
  q = np.asarray(fill(sizes, rank))
  assert q.sum() == pytest.approx(rank, rel=1e-6)
  assert (q >= 0).all() and (q <= 1).all()
  if (sizes > 0).sum() >= rank:
    np.testing.assert_allclose(q, water_filled(sizes, rank), rtol=1e-5)
  else:
    np.testing.assert_array_equal(q[sizes > 0], 1)


@pytest.mark.parametrize(
  'sizes, rank, expected',
  [
    ([1, 6, 1, 2], 2, [0.25, 1, 0.25, 0.5]),
    ([1e30, 1, 1, 0], 2, [1, 0.5, 0.5, 0]),
    ([1, 1e-30, 1e-30, 0], 2, [1, 0.5, 0.5, 0]),
    ([0, 0, 0, 0], 2, [0.5] * 4),
    ([0, 5, 0, 0], 2, [1 / 3, 1, 1 / 3, 1 / 3]),
    ([2, 0, 1, 0], 2, [1, 0, 1, 0]),
  ],
)
def test_probabilities_by_hand(sizes, rank, expected):
  np.testing.assert_allclose(fill(np.float32(sizes), rank), expected, rtol=1e-6)


@pytest.mark.parametrize('method', UNBIASED)
def test_mean_weight_of_every_term_is_one(method):
  indices, weights = draws(method, SIZES, 4)
  total = weights_by_term(indices, weights, len(SIZES))
  mean, deviation = total.mean(0), total.std(0)
  some = SIZES > 0
  error = np.abs(mean - 1)[some]
  assert (error <= 4.5 * deviation[some] / DRAWS**0.5 + 1e-6).all(), mean
  if method != 'uniform':
    assert not total[:, ~some].any()  # Never drawn, or without weight.


@pytest.mark.parametrize('method', ['norm_systematic', 'uniform'])
def test_distinct_terms(method):
  indices, weights = draws(method, SIZES, 4)
  assert (np.diff(np.sort(indices, axis=1), axis=1) > 0).all()
  assert (weights > 0).all()


def test_large_terms_are_certain():
  for method in ('norm_systematic', 'bernoulli'):
    indices, weights = draws(method, SIZES, 4)
    total = weights_by_term(indices, weights, len(SIZES))
    np.testing.assert_array_equal(total[:, 1], 1)
    q = water_filled(SIZES, 4)
    expected = np.where(q > 0, 1 / np.where(q > 0, q, 1), 0)
    for i, weight in enumerate(expected):
      assert {*np.round(total[:, i], 4)} <= {0, np.round(weight, 4)}


def test_systematic_draws_pairs_of_all_kinds():
  """In random order any two terms may come together."""
  indices, _ = draws('norm_systematic', np.ones(8, np.float32), 4)
  total = weights_by_term(indices, np.ones_like(indices), 8)
  together = (total.T @ total / DRAWS)[np.triu_indices(8, 1)]
  chance = 4 * 3 / (8 * 7)
  deviation = (chance * (1 - chance) / DRAWS) ** 0.5
  assert (np.abs(together - chance) < 5 * deviation).all()


def test_independent_draws_repeat_with_the_right_frequency():
  sizes = np.float32([1, 1, 2, 0, 0, 0, 0, 0])
  indices, _ = draws('norm_iid', sizes, 4)
  same = np.mean(indices[:, 0] == indices[:, 1])
  chance = 1 / 16 + 1 / 16 + 1 / 4
  assert abs(same - chance) < 5 * (chance * (1 - chance) / DRAWS) ** 0.5


def test_bernoulli_draws_are_independent():
  indices, weights = draws('bernoulli', np.ones(8, np.float32), 4)
  counts = (weights > 0).sum(1)
  assert np.array_equal(indices[0], np.arange(8))
  assert counts.mean() == pytest.approx(4, abs=0.1)
  assert counts.var() == pytest.approx(8 / 4, rel=0.1)


def test_systematic_on_a_long_sum():
  """Sums of float32 would be coarser than the probabilities of the terms."""
  length, rank = 100_000, 50_000
  sizes = np.float32(np.where(np.arange(length) % 2, 1, 3))
  draw = jax.jit(UNBIASED['norm_systematic'], static_argnums=1)
  for key in jax.random.split(jax.random.key(1), 3):
    indices, weights = map(np.asarray, draw(sizes, rank, key))
    large = np.sum(sizes[indices] > 2)
    assert abs(large - rank * 3 / 4) < 1000 and np.all(weights >= 0)
    assert len(np.unique(indices[weights > 0])) >= rank - 2
    estimate = np.float64(weights).sum()  # Of the number of terms.
    assert estimate == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize('method', UNBIASED)
def test_zeros_get_finite_weights(method):
  indices, weights = draws(method, np.zeros(8, np.float32), 4)
  assert np.isfinite(weights).all() and np.max(weights) == pytest.approx(2)
  assert (np.asarray(indices) < 8).all()


@pytest.mark.parametrize('method', ['norm_systematic', 'bernoulli'])
def test_all_of_them(method):
  indices, weights = draws(method, SIZES, len(SIZES))
  everything = np.tile(np.arange(len(SIZES)), (DRAWS, 1))
  np.testing.assert_array_equal(np.sort(indices, 1), everything)
  np.testing.assert_array_equal(weights, 1)


def test_the_largest():
  take = jax.jit(take_largest, static_argnums=1)
  indices, weights = take(SIZES, 3, None)
  assert indices.tolist() == [1, 7, 5] and weights.tolist() == [1, 1, 1]
