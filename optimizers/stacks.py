"""One function over many matrices: in a loop, batched, or over devices.

Shapes: a stack is [L, m, n], L matrices of one shape. On CPU one product fills
the machine, batched ones are slower and small matrices run side by side as
separate products; on GPU and TPU launches cost and equal shapes go in one
batched product. Over devices the axis L is shared out, whole matrices to each:
split matrices would communicate in every product.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank
from ..mapped_axes import AxisName
from .newton_schulz import (
  SMALL,
  Coefficients,
  divide_by_largest,
  newton_schulz,
)

Function = Callable[[jax.Array], jax.Array]
STRATEGIES = ('auto', 'loop', 'batched')
_SIDE_BY_SIDE = 4  # Small matrices in one turn of a loop on CPU.
_STACK_SIZE = 8  # More hardly gain, and have run others out of memory.


def _in_groups(stack: jax.Array, size: int, function: Function) -> jax.Array:
  """Applies `function` to `size` matrices of the stack after the other."""
  if len(stack) <= size:
    return function(stack)

  def replace(i, stack):  # In place, where `lax.map` would hold two stacks.
    group = lax.dynamic_slice_in_dim(stack, i * size, size)
    return lax.dynamic_update_slice_in_dim(stack, function(group), i * size, 0)

  whole = len(stack) // size
  result = lax.fori_loop(0, whole, replace, stack)
  rest = len(stack) - whole * size
  if rest:
    last = function(stack[-rest:])
    result = lax.dynamic_update_slice_in_dim(result, last, whole * size, 0)
  return result


def _solve(
  stack: jax.Array, function: Function, strategy: str, stack_size: int
) -> jax.Array:
  """One stack on one device."""
  if strategy == 'batched':
    return _in_groups(stack, stack_size, function)
  small = stack.shape[1] * stack.shape[2] < SMALL
  each = lambda group: jnp.stack([function(x) for x in group])
  return _in_groups(stack, min(_SIDE_BY_SIDE, stack_size) if small else 1, each)


def _sharded(
  stack: jax.Array, solve: Function, axis_name: AxisName, mesh: Mesh | None
) -> jax.Array:
  """Each device solves its share of whole matrices; one reshard in and out."""
  names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
  if mesh is None:
    devices = lax.axis_size(names)
  else:
    devices = 1
    for name in names:
      devices *= mesh.shape[name]
  share = -(-len(stack) // devices)
  padding = [(0, share * devices - len(stack)), (0, 0), (0, 0)]
  padded = jnp.pad(stack, padding)

  def solve_and_gather(mine):
    # Gathered as one value on all devices, which `check_vma` can see.
    return lax.all_gather(solve(mine), names, tiled=True, to='invarying')

  if mesh is None:
    start = lax.axis_index(names) * share
    mine = lax.dynamic_slice_in_dim(padded, start, share)
    return solve_and_gather(mine)[: len(stack)]
  spec = PartitionSpec(names)
  if AxisType.Explicit in mesh.axis_types:
    padded = jax.sharding.reshard(padded, NamedSharding(mesh, spec))
  whole = jax.shard_map(
    solve_and_gather, mesh=mesh, in_specs=spec, out_specs=PartitionSpec()
  )(padded)
  return whole[: len(stack)]


def check_strategy(
  strategy: str,
  stack_size: int | None,
  axis_name: AxisName | None,
  mesh: Mesh | None,
) -> None:
  """Refuses arguments of `map_matrices` that do not go together."""
  require_one_of('strategy', strategy, STRATEGIES)
  whole = isinstance(stack_size, int) and stack_size >= 1
  fine = stack_size is None or whole
  require(fine, 'stack_size', stack_size, 'an integer of 1 or more, or None')
  if mesh is None:
    return
  names = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
  known = bool(names) and all(name in mesh.shape for name in names)
  require(known, 'axis_name', axis_name, f'axes of the mesh {dict(mesh.shape)}')


def map_matrices(
  function: Function,
  stacks: Sequence[jax.Array],
  *,
  strategy: str = 'auto',
  stack_size: int | None = None,
  axis_name: AxisName | None = None,
  mesh: Mesh | None = None,
) -> list[jax.Array]:
  """Applies a function of matrices [..., m, n] to stacks of many shapes.

  Args:
    function: keeps the shape, takes [m, n] and [L, m, n]; what it returns is
      cast to the dtype of the stack. Jitted, it is traced once for each shape.
    stacks: arrays [L, m, n], each of its own L, m and n.
    strategy: "loop" over matrices, "batched" over equal shapes, or "auto":
      loop on CPU, batched elsewhere. All give the same up to rounding.
    stack_size: at most so many matrices at a time, which bounds memory; `None`:
      eight.
    axis_name: mapped axis over which equal shapes are shared out, whole
      matrices to each device, and gathered once. The stacks must be equal on
      all devices.
    mesh: with it `axis_name` is an axis of this mesh and the call stands under
      `jax.jit` instead of inside `pmap` or `shard_map`.

  Returns:
    The results, in the order of `stacks`.

  Example:
    >>> a, b = map_matrices(jnp.negative, [jnp.ones((2, 3, 4)),
    ...                                    jnp.ones((1, 5, 5))])
    >>> a.shape, b.shape
    ((2, 3, 4), (1, 5, 5))
  """
  check_strategy(strategy, stack_size, axis_name, mesh)
  if strategy == 'auto':
    strategy = 'loop' if jax.default_backend() == 'cpu' else 'batched'
  size = _STACK_SIZE if stack_size is None else stack_size
  same = lambda x: function(x).astype(x.dtype)
  solve = lambda stack: _solve(stack, same, strategy, size)
  results = list(stacks)
  by_shape: dict[Any, list[int]] = {}
  for i, x in enumerate(stacks):
    if axis_name is None and strategy == 'loop' and len(x) == 1:
      results[i] = solve(x)  # Nothing is gained by stacking it.
    else:
      by_shape.setdefault((x.shape[1:], x.dtype), []).append(i)
  for members in by_shape.values():
    stack = jnp.concatenate([stacks[i] for i in members])
    if axis_name is None:
      stack = solve(stack)
    else:
      stack = _sharded(stack, solve, axis_name, mesh)
    start = 0
    for i in members:
      results[i] = stack[start : start + len(stacks[i])]
      start += len(stacks[i])
  return results


def distributed_newton_schulz(
  x: ArrayLike,
  *,
  axis_name: AxisName,
  mesh: Mesh | None = None,
  coefficients: str | Coefficients = 'polar_express',
  steps: int | None = None,
  dtype: jax.typing.DTypeLike | None = None,
  strategy: str = 'auto',
  stack_size: int | None = None,
) -> jax.Array:
  """`newton_schulz` of a stack, shared out over devices.

  Each device holds whole matrices, so that nothing is communicated inside the
  iteration: one reshard in, one out (Moonlight's Algorithm 1 without its
  gather of each matrix).

  Args:
    x: matrices [L, m, n], the same on all devices; L is padded to a multiple of
      their number.
    axis_name: mapped axis of `pmap` or `shard_map`, or of `mesh`.
    mesh: see `map_matrices`.
    coefficients: see `newton_schulz`.
    steps: see `newton_schulz`.
    dtype: see `newton_schulz`; halved, it halves the gathered bytes too.
    strategy: see `map_matrices`.
    stack_size: see `map_matrices`.

  Returns:
    Array [L, m, n] in `dtype`, the same on all devices.

  Raises:
    ValueError: if `x` has not three axes or an argument is unknown.

  Example:
    >>> mesh = jax.make_mesh((jax.device_count(),), ('data',))
    >>> x = jnp.stack([jnp.eye(3), -2 * jnp.eye(3)])
    >>> signs = jax.jit(
    ...   lambda x: distributed_newton_schulz(x, axis_name='data', mesh=mesh)
    ... )(x)
    >>> print(f'{signs[0, 0, 0]:.3f} {signs[1, 0, 0]:.3f}')
    1.000 -1.000

  References:
    Liu et al., `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, 2025.
  """
  x = jnp.asarray(x)
  require_rank('x', x, 3)
  sign = lambda m: newton_schulz(
    m, coefficients=coefficients, steps=steps, dtype=dtype
  )
  if dtype is not None:
    x = divide_by_largest(x).astype(dtype)  # Before it is sent.
  elif not jnp.issubdtype(x.dtype, jnp.inexact):
    x = x.astype(jnp.float32)
  (signs,) = map_matrices(
    sign,
    [x],
    strategy=strategy,
    stack_size=stack_size,
    axis_name=axis_name,
    mesh=mesh,
  )
  return signs
