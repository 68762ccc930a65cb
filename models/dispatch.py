r"""Tokens to their experts and back, without dropping any.

Shapes: `...` tokens, `T` of them, `D` width, `E` experts, `k` chosen, `C`
capacity of an expert, `P` devices.

An expert is written once, for rows of its own, with a product that it is given:

>>> def expert(matmul, params, x):
...   return matmul(jax.nn.relu(matmul(x, params['w_in'])), params['w_out'])

"sorted" puts the rows of each expert in a row and computes what was chosen, and
little more, however uneven the load; "capacity" gives each expert as many rows
and drops what is too many; "dense" computes all experts for all tokens. Over
devices with some of the experts each, rows travel by `all_to_all`.

References:
  Gale et al., `MegaBlocks <https://arxiv.org/abs/2211.15841>`_, 2022, on
  dropless dispatch; Lepikhin et al., `GShard
  <https://arxiv.org/abs/2006.16668>`_, 2020, on capacity and `all_to_all`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from ..mapped_axes import AxisName, sum_over
from .code_statistics import (
  code_counts,
  require_count,
)
from .expert_paths import (
  ExpertFn,
  ToExperts,
  to_all,
  to_blocks,
  to_capacity,
  to_devices,
  to_ragged,
)
from .routing import Routing

METHODS = ('sorted', 'capacity', 'dense')
BACKENDS = ('auto', 'blocks', 'ragged')


def _capacity(tokens: int, k: int, experts: int, factor: float) -> int:
  """Rows of an expert; more than there are tokens are never needed."""
  return min(tokens, math.ceil(tokens * k * factor / experts))


def _require_factor(factor: float) -> None:
  good = isinstance(factor, int | float) and 0 < factor < math.inf
  require(good, 'capacity_factor', factor, 'a positive number')


def dropped_choices(
  routing: Routing,
  *,
  capacity_factor: float = 1.25,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Counts what `dispatch` with the method "capacity" drops.

  Args:
    routing: see `dispatch`.
    capacity_factor: see `dispatch`.
    axis_name: mapped axis or axes over which the tokens are split, of the data
      too. Each device drops for itself: one has its own capacity.

  Returns:
    Choices dropped on all devices, int32, of the load's sum in all.

  Example:
    >>> from kexue.models import route
    >>> routing = route(jnp.array([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 2), None, 1)
    >>> print(routing.load, dropped_choices(routing, capacity_factor=1.0))
    [6 2] 2
  """
  _require_factor(capacity_factor)
  experts, k = len(routing.load), routing.indices.shape[-1]
  tokens = routing.indices.size // k
  most = _capacity(tokens, k, experts, capacity_factor)
  counts = code_counts(routing.indices, experts)
  return sum_over(jnp.sum(jnp.maximum(counts - most, 0)), axis_name)


def _own_experts(
  experts: int, params: Any, method: str, axis_name: AxisName | None
) -> int:
  """How many experts a device has; checks that its parameters are as many."""
  devices = 1 if axis_name is None else lax.axis_size(axis_name)
  alone = axis_name is None or method != 'dense'
  require(alone, 'axis_name', axis_name, 'None for "dense"')
  good = experts % devices == 0
  require(good, 'axis_name', devices, f'devices that divide {experts} experts')
  for leaf in jax.tree.leaves(params):
    require_rank('params', leaf, 1, at_least=True)
    number, own = jnp.shape(leaf)[0], experts // devices
    require(number == own, 'params', jnp.shape(leaf), f'{own} experts each')
  return experts // devices


def _sorted_path(
  expert_fn: ExpertFn, params: Any, experts: int, backend: str, size: int
) -> ToExperts:
  if backend == 'auto':
    backend = 'blocks' if jax.default_backend() == 'cpu' else 'ragged'
  if backend == 'ragged':
    return functools.partial(to_ragged, expert_fn, params, experts)
  return functools.partial(to_blocks, expert_fn, params, experts, size)


def dispatch(
  x: ArrayLike,
  routing: Routing,
  expert_fn: ExpertFn,
  params: Any,
  *,
  method: str = 'sorted',
  backend: str = 'auto',
  capacity_factor: float = 1.25,
  block_size: int = 64,
  axis_name: AxisName | None = None,
) -> jax.Array:
  r"""Computes the experts that were chosen, and adds them up by their gates.

  .. math:: y_t = \sum_{i \in S_t} g_{ti} f(\theta_i, x_t)

  Args:
    x: [..., D].
    routing: what `route` returned. A token without an expert gets zeros.
    expert_fn: `expert_fn(matmul, params, x)`, the same function for the rows
      of each expert, which acts on each row alone and does all products with
      parameters by `matmul(rows, params[...])`, like `jnp.matmul`. A bias is a
      product of a column of ones with [1, F]. It is static: what it closes over
      must not be traced.
    params: pytree of the parameters of all experts, leaves [E, ...], matrices
      [E, D, F]; with `axis_name` of this device's, [E / P, ...].
    method: "sorted": all choices. "capacity": the first C of each expert's, and
      nothing for the others, see `dropped_choices`; the shapes are those of
      balance. "dense": all experts for all tokens, E / k times the work.
    backend: of "sorted". "blocks": a loop over blocks of rows, see
      `apply_in_blocks`; "ragged": `jax.lax.ragged_dot`, for accelerators that
      have a kernel for it, which on CPU computes all experts; "auto": by the
      default backend.
    capacity_factor: C = T k / E times it, on each device, rounded up; E / k or
      more drops nothing.
    block_size: rows of a block: each expert's last one is filled up.
    axis_name: mapped axis or axes over which experts are split, in order, and
      tokens too. "sorted" sends buffers for the worst case, that all tokens of
      a device go to one other, as it drops nothing. Axes of data alone do not
      concern it: devices that hold the same experts.

  Returns:
    [..., D'], in the dtype of `x`, added up in float32 or better.

  Raises:
    ValueError: for another method or backend, shapes that do not fit, a number
      of experts that the devices do not divide, or "dense" over devices.

  Example:
    >>> from kexue.models import route
    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> routing = route(jnp.array([[9.0, 0.0], [0.0, 9.0]]), None, 1,
    ...                 score='softmax', renormalize=True)
    >>> scale = lambda matmul, params, x: matmul(x, params)
    >>> print(dispatch(x, routing, scale, jnp.stack([jnp.eye(2), -jnp.eye(2)])))
    [[ 1.  2.]
     [-3. -4.]]
  """
  require_one_of('method', method, METHODS)
  require_one_of('backend', backend, BACKENDS)
  require_count('block_size', block_size)
  _require_factor(capacity_factor)
  require_rank('x', x, 2, at_least=True)
  x = jnp.asarray(x)
  *shape, width = x.shape
  k = jnp.shape(routing.indices)[-1]
  require_shape('routing.indices', routing.indices, (*shape, k))
  require_shape('routing.gates', routing.gates, (*shape, k))
  experts = len(routing.load)
  own = _own_experts(experts, params, method, axis_name)

  rows, gates = x.reshape(-1, width), routing.gates.reshape(-1, k)
  chosen = routing.indices.reshape(-1, k)
  tokens = len(rows)
  if method == 'dense':
    y = to_all(
      expert_fn, params, rows, routing._replace(indices=chosen, gates=gates)
    )
  else:
    if method == 'capacity':
      most = _capacity(tokens, k, experts, capacity_factor)
      path = functools.partial(
        to_capacity, expert_fn, params, experts, most, axis_name
      )
    else:
      path = _sorted_path(expert_fn, params, own, backend, block_size)
      if axis_name is not None:
        room = tokens * min(k, own)
        path = functools.partial(to_devices, path, experts, room, axis_name)
    out = path(jnp.repeat(rows, k, axis=0), chosen.reshape(-1))
    y = jnp.sum(gates[..., None] * out.reshape(tokens, k, -1), axis=1)
  return y.astype(x.dtype).reshape(*shape, -1)
