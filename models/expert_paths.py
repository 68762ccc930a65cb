r"""The ways of rows to their experts, over one device or several.

Shapes: `N` rows, a token once for each expert it chose, `D` width, `E` experts,
`T` tokens, `k` chosen, `C` capacity, `P` devices.

All but `to_all` take `rows` [N, D] and the expert of each, `chosen`, int32 [N]
in 0..E, last, and return the outputs [N, D'], zeros for the expert E, which
there is not. `params` has leaves [E, ...], of this device's experts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..mapped_axes import AxisName
from .expert_blocks import apply_in_blocks
from .expert_rows import lay_out, move_rows
from .routing import Routing

ExpertFn = Callable[[Callable[..., jax.Array], Any, jax.Array], jax.Array]
ToExperts = Callable[[jax.Array, jax.Array], jax.Array]


def to_blocks(
  expert_fn: ExpertFn,
  params: Any,
  experts: int,
  size: int,
  rows: jax.Array,
  chosen: jax.Array,
) -> jax.Array:
  """Sorted, in blocks of `size` rows of one expert each."""
  place, row, _ = lay_out(chosen, experts, block=size)
  of_block = jnp.take(chosen, row[::size], mode='fill', fill_value=experts)
  blocks = move_rows(rows, row, place).reshape(-1, size, rows.shape[-1])
  function = functools.partial(expert_fn, jnp.matmul)
  out = apply_in_blocks(function, params, blocks, of_block)
  return move_rows(out.reshape(-1, out.shape[-1]), place, row)


def to_ragged(
  expert_fn: ExpertFn,
  params: Any,
  experts: int,
  rows: jax.Array,
  chosen: jax.Array,
) -> jax.Array:
  """Sorted, with the product that accelerators have a kernel for."""
  place, row, counts = lay_out(chosen, experts)
  matmul = functools.partial(lax.ragged_dot, group_sizes=counts)
  out = expert_fn(matmul, params, move_rows(rows, row, place))
  return move_rows(out, place, row)


def to_capacity(
  expert_fn: ExpertFn,
  params: Any,
  experts: int,
  capacity: int,
  axis_name: AxisName | None,
  rows: jax.Array,
  chosen: jax.Array,
) -> jax.Array:
  """As many rows for each expert, the first ones, and zeros for the others.

  [E, C, D] over one device; over several each sends C rows to each expert, and
  has [E / P, P C, D].
  """
  place, row, _ = lay_out(chosen, experts, capacity=capacity)
  x = move_rows(rows, row, place).reshape(experts, capacity, -1)
  if axis_name is not None:
    x = lax.all_to_all(x, axis_name, 0, 1, tiled=True)
  out = expert_fn(jnp.matmul, params, x)
  if axis_name is not None:
    out = lax.all_to_all(out, axis_name, 1, 0, tiled=True)
  return move_rows(out.reshape(experts * capacity, -1), place, row)


def to_devices(
  local: ToExperts,
  experts: int,
  room: int,
  axis_name: AxisName,
  rows: jax.Array,
  chosen: jax.Array,
) -> jax.Array:
  """To the devices of the experts, there through `local`, and back again.

  `room` rows to each device, enough for what may be chosen of its experts.
  """
  devices = lax.axis_size(axis_name)
  own = experts // devices
  place, row, _ = lay_out(chosen // own, devices, capacity=room)
  exchange = lambda x: lax.all_to_all(x, axis_name, 0, 0, tiled=True)
  theirs = jnp.take(chosen % own, row, mode='fill', fill_value=own)
  out = local(exchange(move_rows(rows, row, place)), exchange(theirs))
  return move_rows(exchange(out), place, row)


def to_all(
  expert_fn: ExpertFn, params: Any, x: jax.Array, routing: Routing
) -> jax.Array:
  """Every expert for every token [T, D], weighted by gates [T, k]: [T, D']."""
  out = expert_fn(jnp.matmul, params, x[None])
  chosen = jax.nn.one_hot(routing.indices, len(out), dtype=routing.gates.dtype)
  weights = jnp.einsum('tk,tke->te', routing.gates, chosen)
  return jnp.einsum('te,etd->td', weights, out.astype(weights.dtype))
