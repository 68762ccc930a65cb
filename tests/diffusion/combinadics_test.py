"""Ranks of sets: all small ones, large ones there and back."""

import itertools
import math
import random

import pytest

from kexue.diffusion import colex_rank, colex_unrank


@pytest.mark.parametrize('size', range(13))
def test_ranks_are_places_in_colexicographic_order(size):
  for count in range(size + 1):
    sets = itertools.combinations(range(size), count)
    ordered = sorted(sets, key=lambda s: s[::-1])
    assert [colex_rank(s) for s in ordered] == list(range(len(ordered)))
    for rank, one in enumerate(ordered):
      assert colex_unrank(rank, size, count) == list(one)


@pytest.mark.parametrize(
  'size, count',
  [
    (1024, 1),
    (1024, 16),
    (1000, 999),
    (4096, 300),
    (2**24, 64),
    (2**31, 1),
    (2**31, 5),
  ],
)
def test_large_sets_there_and_back(size, count):
  draw = random.Random(size + count)
  sets = math.comb(size, count)
  ends = [0, 1, 2, sets - 2, sets - 1]
  for rank in [*ends, *(draw.randrange(sets) for _ in range(5))]:
    subset = colex_unrank(rank, size, count)
    assert len(subset) == count and 0 <= subset[0] and subset[-1] < size
    assert colex_rank(subset) == rank
  top = list(range(size - count, size))
  assert colex_unrank(sets - 1, size, count) == top


def test_a_step_past_a_binomial_moves_the_largest_number():
  """Where a guess by floats would be off by one."""
  for c, j in ((5000, 300), (2**24, 3), (900, 64)):
    edge = math.comb(c, j)
    assert colex_unrank(edge, c + 1, j)[-1] == c
    assert colex_unrank(edge - 1, c + 1, j)[-1] == c - 1


@pytest.mark.parametrize('subset', [[1, 1], [2, 1], [-1, 0], [-3]])
def test_what_is_no_set_is_refused(subset):
  with pytest.raises(ValueError, match='subset: got'):
    colex_rank(subset)


@pytest.mark.parametrize(
  'rank, size, count',
  [(-1, 4, 2), (6, 4, 2), (1, 4, 0), (0, 3, 4)],
)
def test_a_rank_that_no_set_has_is_refused(rank, size, count):
  with pytest.raises(ValueError, match='rank: got'):
    colex_unrank(rank, size, count)


def test_more_numbers_than_floats_count_are_refused():
  with pytest.raises(ValueError, match='size: got'):
    colex_unrank(0, 2**31 + 1, 1)


def test_a_rank_too_long_to_print_is_refused():
  with pytest.raises(ValueError, match='rank: got .0x1000'):
    colex_unrank(2**20_000, 4096, 64)
