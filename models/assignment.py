r"""The loss-free bias as a solver of the assignment problem.

Shapes: `n` rows, and as many columns.

Tokens choose experts by score plus bias, and the bias evens out the load. With
as many tokens as experts, one each, that is the linear assignment problem, and
the bias solves its dual,

.. math::
  \min_\pi \sum_i c_{i \pi(i)} = \max_b \sum_i \min_j (c_{ij} - b_j)
  + \sum_j b_j.

A few turns of a good rule, and nearly all rows choose columns of their own. Who
else gets which column, the shortest augmenting paths of Jonker and Volgenant
settle; they may start from any bias and end at the optimum.

References:
  Su, `articles 10757 <https://kexue.fm/archives/10757>`_, 2025, on the bias as
  a solver, and `11619 <https://kexue.fm/archives/11619>`_, 2026, on the dual;
  Jonker and Volgenant, A shortest augmenting path algorithm for dense and
  sparse linear assignment problems, Computing 38, 1987.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_rank
from ..lowrank.arrays import unit, wide
from .code_statistics import require_count


class Settled(NamedTuple):
  """An assignment and what it took.

  `columns`: of each row [n], int32. `bias`: [n], of the optimum. `paths`: rows
  that did not get the column they chose at first; `scanned`: rows that were
  looked at for them.
  """

  columns: jax.Array
  bias: jax.Array
  paths: jax.Array
  scanned: jax.Array


class _Matching(NamedTuple):
  """Row of each column and column of each row, n for none; as `Settled`."""

  rows: jax.Array
  columns: jax.Array
  bias: jax.Array
  paths: jax.Array
  scanned: jax.Array


class _Search(NamedTuple):
  """Shortest paths from a row to every column, [n] each, and where it is.

  `distance`, and `through` which row; `known`: those that are the shortest. The
  `row` to be scanned next, n for none, had the column at the `offset`.
  """

  distance: jax.Array
  through: jax.Array
  known: jax.Array
  row: jax.Array
  column: jax.Array
  offset: jax.Array
  scanned: jax.Array


def least_two(values: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """The two least values, by minima alone, which XLA vectorises on CPU.

  Args:
    values: array.
    axis: along which they are looked for; of one value both are this one.

  Returns:
    Two arrays without the axis.

  Example:
    >>> print(*least_two(jnp.array([3.0, 1.0, 2.0]), 0))
    1.0 2.0
  """
  least = jnp.min(values, axis, keepdims=True)
  same = values == least
  above = jnp.min(jnp.where(same, jnp.inf, values), axis)
  least = jnp.squeeze(least, axis)
  one = (jnp.sum(same, axis) == 1) & jnp.isfinite(above)
  return least, jnp.where(one, above, least)


def turn_bias(cost: jax.Array, bias: jax.Array) -> jax.Array:
  r"""Moves the bias one turn towards the optimum of the dual.

  .. math::
    \alpha_i = \operatorname{mid}_j (c_{ij} - b_j), \qquad
    b_j \leftarrow \operatorname{mid}_i (c_{ij} - \alpha_i),

  the middle of the two least: each column would be chosen by one row if the
  others stayed where they are. That is `quantile_bias` for one token an expert,
  but for the middle on the side of the experts, too.

  Args:
    cost: [n, n].
    bias: [n], subtracted from the costs of each column.

  Returns:
    The new bias [n].

  Example:
    >>> print(turn_bias(jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.zeros(2)))
    [-1.  1.]
  """
  middle = lambda values, axis: sum(least_two(values, axis)) / 2
  alpha = middle(cost - bias, 1)
  return middle(cost - alpha[:, None], 0)


def _first(where: jax.Array) -> jax.Array:
  """The first true place of the last axis, int32; its size if there is none."""
  size = where.shape[-1]
  place = jnp.arange(size, dtype=jnp.int32)
  return jnp.min(jnp.where(where, place, size), axis=-1)


def _scan(cost: jax.Array, matching: _Matching, search: _Search) -> _Search:
  """Looks at the costs of one more row: Dijkstra's algorithm."""
  row, bias = search.row, matching.bias
  distance = cost[row] - bias + search.offset
  closer = (distance < search.distance) & ~search.known
  distance = jnp.where(closer, distance, search.distance)
  left = jnp.where(search.known, jnp.inf, distance)
  nearest = left == jnp.min(left)
  free = nearest & (matching.rows == len(cost))
  column = _first(jnp.where(jnp.any(free), free, nearest))
  next_row = matching.rows[column]
  own = cost.at[next_row, column].get(mode='clip') - bias[column]
  return _Search(
    distance=distance,
    through=jnp.where(closer, row, search.through),
    known=search.known.at[column].set(True),
    row=next_row,
    column=column,
    offset=distance[column] - own,
    scanned=search.scanned + 1,
  )


def _add_row(cost: jax.Array, matching: _Matching) -> _Matching:
  """Gives the first row without a column one, on the shortest path."""
  n = len(cost)
  start = _first(matching.columns == n)
  nowhere = jnp.full_like(matching.rows, n)
  search = lax.while_loop(
    lambda search: search.row < n,
    lambda search: _scan(cost, matching, search),
    _Search(
      distance=jnp.full_like(matching.bias, jnp.inf),
      through=nowhere,
      known=nowhere < n,
      row=start,
      column=nowhere[0],
      offset=jnp.zeros_like(matching.bias[0]),
      scanned=matching.scanned,
    ),
  )
  above = search.distance[search.column] - search.distance
  bias = matching.bias - jnp.where(search.known, above, 0)

  def shift(carry):
    rows, columns, column, _ = carry
    row = search.through[column]
    rows, given_up = rows.at[column].set(row), columns[row]
    return rows, columns.at[row].set(column), given_up, row

  rows, columns, *_ = lax.while_loop(
    lambda carry: carry[3] != start,
    shift,
    (matching.rows, matching.columns, search.column, nowhere[0]),
  )
  return _Matching(rows, columns, bias, matching.paths + 1, search.scanned)


def settle(cost: jax.Array, bias: jax.Array) -> Settled:
  """Assigns every row a column of its own, at the least cost, from any bias.

  Each row chooses; of those that chose the same the first one stays; the others
  get one after the other what is cheapest for all (Jonker and Volgenant).

  Args:
    cost: [n, n], finite.
    bias: [n], finite; the nearer to the optimum, the fewer rows are left.

  Returns:
    `Settled`; up to rounding it is optimal, whatever the bias.

  Example:
    >>> found = settle(jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.zeros(2))
    >>> print(found.columns, found.paths)
    [1 0] 1
  """
  n = len(cost)
  values = cost - bias
  chosen = _first(values == jnp.min(values, axis=1, keepdims=True))
  nobody = jnp.full_like(chosen, n)
  rows = nobody.at[chosen].min(jnp.arange(n, dtype=jnp.int32))
  columns = nobody.at[rows].set(jnp.arange(n, dtype=jnp.int32), mode='drop')
  zero = jnp.zeros_like(chosen[0])
  found = lax.while_loop(
    lambda matching: jnp.any(matching.columns == n),
    lambda matching: _add_row(cost, matching),
    _Matching(rows, columns, bias, zero, zero),
  )
  return Settled(*found[1:])


def reduced(cost: ArrayLike) -> jax.Array:
  """The same problem at a common scale: no column or row without a zero.

  Args:
    cost: [n, n], of any scale.

  Returns:
    [n, n], 0 or more; what is not finite costs more than all of the others.

  Example:
    >>> print(reduced(jnp.array([[3e30, 5e30], [4e30, 5e30]])) > 0)
    [[False  True]
     [False False]]
  """
  cost = wide(cost)
  known = jnp.isfinite(cost)
  cost = unit(jnp.where(known, cost, 0))[0]
  least = jnp.min(jnp.where(known, cost, jnp.inf))
  most = jnp.max(jnp.where(known, cost, -jnp.inf))
  span = jnp.where(most > least, most - least, 1)
  least, most = (jnp.where(jnp.isfinite(x), x, 0) for x in (least, most))
  cost = jnp.where(known, cost, most + len(cost) * span)
  cost -= jnp.min(cost, axis=1, keepdims=True)
  return cost - jnp.min(cost, axis=0)


def balanced_assignment(cost: ArrayLike, *, steps: ArrayLike) -> jax.Array:
  r"""Assigns each row a column of its own, at the least cost in all.

  Some turns of the loss-free bias in the quantile form of article 11619, until
  few rows choose the same column (`turn_bias`), then shortest augmenting paths
  for those that do (`settle`): the algorithm of Jonker and Volgenant, with a
  start by bias. More turns leave fewer rows to paths, of which each takes
  O(n^2), but do not change the optimum.

  Deviations: the articles leave it at the bias. Alone it is not a solver for
  any number of turns: moved by a rate it circles the optimum, moved by
  quantiles it comes near but stops short of it where costs tie, and either way
  rows that want the same column remain.

  Args:
    cost: [n, n], of any scale; minus the scores. What is not finite is assigned
      only where nothing else is left, and costs a few digits of the rest.
    steps: turns, 1 or more; a number, traced or not. 4 to 16 are the fastest
      for most costs.

  Returns:
    Column of each row [n], int32: always a permutation, optimal up to rounding,
    by about n units in the last place of the range of the costs in all. Of
    equally good ones any may come out. Integers come out exactly while n times
    their range is below 2^20 (in float32). No gradient passes.

  Raises:
    ValueError: unless `cost` is square, and `steps` 1 or more.

  Example:
    >>> cost = jnp.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
    >>> print(balanced_assignment(cost, steps=4))
    [1 0 2]

  References:
    Su, `article 10757 <https://kexue.fm/archives/10757>`_, 2025, and `11619
    <https://kexue.fm/archives/11619>`_, 2026; Jonker and Volgenant, Computing
    38, 1987.
  """
  require_rank('cost', cost, 2)
  shape = jnp.shape(cost)
  good = shape[0] == shape[1] and shape[0] >= 1
  require(good, 'cost', shape, 'as many columns as rows, one or more')
  if isinstance(steps, int | float):
    require_count('steps', steps)
  cost = lax.stop_gradient(reduced(cost))
  bias = jnp.zeros_like(cost[0])
  turn = lambda _, bias: turn_bias(cost, bias)
  return settle(cost, lax.fori_loop(0, steps, turn, bias)).columns
