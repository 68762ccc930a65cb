"""Rows sorted by expert: a partial permutation, and its way back."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kexue.models import expert_rows
from kexue.models.expert_rows import lay_out, move_rows

EXPERTS = 4
laid_out = jax.jit(
  lay_out, static_argnames=('num_experts', 'block', 'capacity')
)
choices = st.lists(st.integers(0, EXPERTS), min_size=13, max_size=13)


def expected(experts, block, capacity):
  """The places, one row after the other."""
  counts = np.bincount(experts, minlength=EXPERTS + 1)[:EXPERTS]
  room = np.full(EXPERTS, capacity or 0)
  if capacity is None:
    room = -(-counts // block) * block
  begin = np.cumsum(room) - room
  taken, place = np.zeros(EXPERTS, int), []
  for e in experts:
    if e == EXPERTS or taken[e] == room[e]:
      place.append(None)
    else:
      place.append(begin[e] + taken[e])
      taken[e] += 1
  return place, counts


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(choices, st.sampled_from([(1, None), (5, None), (1, 3)]))
@hypothesis.example([2] * 13, (5, None))
@hypothesis.example([EXPERTS] * 13, (5, None))
@hypothesis.example([0, 1, 2, 3] + [3] * 9, (5, None))
def test_equals_a_loop(experts, options):
  block, capacity = options
  layout = laid_out(jnp.array(experts), EXPERTS, block=block, capacity=capacity)
  place, counts = expected(experts, block, capacity)
  places = len(layout.row)
  np.testing.assert_array_equal(layout.counts, counts)
  found = [None if p == places else p for p in layout.place.tolist()]
  assert found == place
  row = np.full(places, 13)
  for i, p in enumerate(place):
    if p is not None:
      row[p] = i
  np.testing.assert_array_equal(layout.row, row)
  assert layout.place.dtype == layout.row.dtype == jnp.int32


def test_the_worst_case_has_room_and_no_more_than_it_needs():
  for rows, experts, block in ((13, 4, 5), (2, 9, 4), (64, 3, 64), (1, 1, 1)):
    # As many experts as possible with one row in their last block.
    alone = np.minimum(np.arange(rows), experts - 1)
    layout = lay_out(jnp.array(alone), experts, block=block)
    assert np.all(layout.place < len(layout.row))
    blocks = -(-np.asarray(layout.counts) // block)
    assert blocks.sum() * block <= len(layout.row)
  layout = lay_out(jnp.array([0, 0, 0, 0, 0, 0, 1, 2]), 3, block=5)
  assert len(layout.row) == 20  # 10 + 5 + 5


def test_large_numbers_are_sorted_in_pairs(monkeypatch):
  """One number for expert and row would overflow."""
  experts = jnp.array(np.random.default_rng(0).integers(0, 2**20, 3000))
  found = expert_rows._order(experts, 2**20)
  np.testing.assert_array_equal(found, np.argsort(experts, kind='stable'))
  small = expert_rows._order(experts % 7, 7)
  np.testing.assert_array_equal(small, np.argsort(experts % 7, kind='stable'))


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(choices)
def test_rows_go_there_and_back(experts):
  x = jnp.array(np.random.default_rng(0).normal(size=(13, 2)), jnp.float32)
  place, row, _ = laid_out(jnp.array(experts), EXPERTS, block=5)
  there = move_rows(x, row, place)
  back = move_rows(there, place, row)
  nowhere = np.array(experts) == EXPERTS
  np.testing.assert_array_equal(back, np.where(nowhere[:, None], 0, x))
  filled = np.asarray(row) < 13
  assert np.all(there[~filled] == 0) and filled.sum() == 13 - nowhere.sum()


def test_the_gradient_is_the_transpose():
  place, row, _ = lay_out(jnp.array([1, 0, 2, 1, 1]), 2, capacity=2)
  move = functools.partial(move_rows, source=row, back=place)
  matrix = move(jnp.eye(5))
  x = jnp.array(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
  pulled = jax.vjp(move, jnp.ones((5, 3)))[1](x)[0]
  np.testing.assert_array_equal(pulled, matrix.T @ x)
  again = jax.grad(lambda v: jax.vjp(move, jnp.ones((5, 3)))[1](v)[0][0].sum())(
    x
  )
  np.testing.assert_array_equal(again, matrix[:, :1] * jnp.ones(3))


def test_double_precision_has_no_larger_integers():
  with jax.enable_x64(True):
    layout = lay_out(jnp.array([1, 0, 1]), 2, block=2)
    assert layout.place.dtype == layout.row.dtype == jnp.int32
    assert move_rows(jnp.ones((3, 1)), layout.row, layout.place).dtype == float
