r"""Rows sorted by expert: where they go, and how they get there and back.

Shapes: `N` rows in the order of the tokens, `R` places, `E` experts.

Each expert has a run of places, as long as its rows are many (in whole blocks),
or of a fixed capacity; places without a row hold zeros. As the way there and
the way back are both known, each gradient is a gather too: no scatter-add.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..mapped_axes import vary_together


class Layout(NamedTuple):
  """Where rows go: `place` [N] and its inverse, `row` [R], and `counts` [E].

  A row without a place has the place R; a place without a row has the row N.
  The counts are of the rows of each expert, with a place or not.

  Example:
    >>> layout = lay_out(jnp.array([1, 0, 1]), 2, block=2)
    >>> print(layout.place, layout.row, layout.counts)
    [2 0 3] [1 3 0 2] [1 2]
  """

  place: jax.Array
  row: jax.Array
  counts: jax.Array


def _order(experts: jax.Array, num_experts: int) -> jax.Array:
  """Rows by expert, those of one in their order."""
  size = len(experts)
  if (num_experts + 1) * size >= 2**31:
    return jnp.argsort(experts)
  # One number for both is sorted several times faster than a pair.
  return jnp.sort(experts * size + jnp.arange(size, dtype=jnp.int32)) % size


def lay_out(
  experts: jax.Array,
  num_experts: int,
  *,
  block: int = 1,
  capacity: int | None = None,
) -> Layout:
  """Gives each row a place among those of its expert, first come first served.

  Args:
    experts: int32 [N] in 0..E; E: none.
    num_experts: E.
    block: places of an expert come in multiples of it; R is as large as it has
      to be in the worst case.
    capacity: places of each expert, R = E times it; `None`: as many as it
      takes.

  Returns:
    `Layout`.

  Example:
    >>> layout = lay_out(jnp.array([0, 0, 1, 2]), 2, capacity=1)
    >>> print(layout.place, layout.row)
    [0 2 1 2] [0 2]
  """
  experts, size = experts.astype(jnp.int32), len(experts)
  counts = jnp.zeros_like(experts, shape=(num_experts + 1,))
  counts = counts.at[experts].add(1)
  if capacity is None:
    room = -(-counts // block) * block
    places = (size + min(num_experts, size) * (block - 1)) // block * block
  else:
    room = jnp.full_like(counts, capacity)
    places = num_experts * capacity
  room = room.at[num_experts].set(0)
  before = lambda n: jnp.cumsum(n) - n
  order = _order(experts, num_experts)
  whose = experts[order]
  rank = jnp.arange(size, dtype=jnp.int32) - before(counts)[whose]
  place = jnp.where(rank < room[whose], before(room)[whose] + rank, places)
  nothing = jnp.full_like(experts, size, shape=(places,))
  return Layout(
    jnp.zeros_like(experts).at[order].set(place, unique_indices=True),
    nothing.at[place].set(order, mode='drop'),
    counts[:num_experts],
  )


@jax.custom_vjp
def _take(x: jax.Array, source: jax.Array, back: jax.Array) -> jax.Array:
  del back
  return jnp.take(x, source, axis=0, mode='fill', fill_value=0)


def _forward(x, source, back):
  return _take(x, source, back), (source, back)


def _backward(residuals, gradient):
  source, back = residuals
  return _take(gradient, back, source), None, None


_take.defvjp(_forward, _backward)


def move_rows(x: ArrayLike, source: jax.Array, back: jax.Array) -> jax.Array:
  """Moves rows, each to one place at most, with a gradient that moves back.

  Args:
    x: [N, ...].
    source: int32 [R], the row for each place; N: none, which is zeros.
    back: int32 [N], its inverse: the place of each row, R for none.

  Returns:
    [R, ...].

  Example:
    >>> place, row, _ = lay_out(jnp.array([1, 0, 1]), 2, block=2)
    >>> print(move_rows(jnp.array([1.0, 2.0, 3.0]), row, place))
    [2. 0. 1. 3.]
  """
  return _take(*vary_together(jnp.asarray(x), source, back))
