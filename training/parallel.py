"""One training step on every device: jit, pmap and shard_map.

The only file that names them. A step is `step(state, batch, key, *,
axis_name=None) -> (state, metrics)`, written for one device's share of the
batch; it calls `value_and_grad` below, which averages over the axis.

Why a helper: under `shard_map`, which tracks what varies over devices, the
gradient of a replicated parameter is already summed over them, and a `pmean`
after it is silently N times too large; under `pmap`, `grad(pmean(loss))` is
wrong. Declaring the parameters varying first makes one order right everywhere.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..checks import require, require_one_of
from ..mapped_axes import AxisName

MODES = ('pmap', 'shard_map', 'jit')


def as_varying(tree: Any, axis_name: AxisName | None) -> Any:
  """Declares replicated leaves as varying over the axis, where that is tracked.

  Gradients with respect to the result are those of this device's loss alone.

  Args:
    tree: pytree of arrays.
    axis_name: mapped axis or axes; `None`: no axis, nothing to do.

  Returns:
    The same values.
  """
  names = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
  manual = set(jax.sharding.get_abstract_mesh().manual_axes)

  def cast(x):
    missing = tuple(n for n in names if n in manual - jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(cast, tree)


def value_and_grad(
  loss: Callable[..., Any], axis_name: AxisName | None = None
) -> Callable[..., Any]:
  """Like `jax.value_and_grad(has_aux=True)`, averaged over the mapped axis.

  Args:
    loss: `loss(params, *args) -> (scalar, (variables, metrics))`, the mean over
      this device's examples.
    axis_name: mapped axis or axes of the data; `None`: one device.

  Returns:
    A function of the same arguments that returns `((value, (variables,
    metrics)), grads)`. Value, gradients and metrics are means over the axis;
    variables are as the loss left them: whoever writes one reduces it. For
    parameters split over an axis see `mean_gradient`.

  Example:
    >>> loss = lambda w, x: (jnp.mean(w * x), ({}, {'mean': jnp.mean(x)}))
    >>> (value, _), grad = value_and_grad(loss)(2.0, jnp.array([1.0, 3.0]))
    >>> float(value), float(grad)
    (4.0, 2.0)
  """
  local = jax.value_and_grad(loss, has_aux=True)
  if axis_name is None:
    return local

  @functools.wraps(loss)
  def averaged(params, *args):
    (value, (variables, metrics)), grads = local(
      as_varying(params, axis_name), *args
    )
    value, metrics = lax.pmean((value, metrics), axis_name)
    grads = mean_gradient(grads, params, axis_name)
    return (value, (variables, metrics)), grads

  return averaged


def mean_gradient(grads: Any, params: Any, axis_name: AxisName) -> Any:
  """The gradient of the mean loss over devices, from those of each device's.

  Where parameters are split over an axis, as experts are, each device has seen
  the rows of all others along it: what it has is a sum over them already.

  Args:
    grads: of `as_varying(params, axis_name)`, each device's.
    params: as the step got them.
    axis_name: mapped axis or axes.

  Returns:
    Gradients, split as the parameters are.
  """
  names = (axis_name,) if isinstance(axis_name, str) else axis_name

  def mean(g, p):
    split = jax.typeof(p).mat.varying
    own = tuple(name for name in names if name in split)
    rest = tuple(name for name in names if name not in split)
    g = lax.pmean(g, rest) if rest else g
    return g / lax.axis_size(own) if own else g

  return jax.tree.map(mean, grads, params)


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """All devices along one axis called `data`."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def parallelize(
  step: Callable[..., Any],
  how: str = 'pmap',
  mesh: Mesh | None = None,
  *,
  state_spec: Any = P(),  # noqa: B008  (a constant)
) -> Callable[..., Any]:
  """Turns a step for one device into a program of many steps on all devices.

  The program scans over the steps, so that nothing returns to Python between
  them. The key of each step is `fold_in(key, state.step)`.

  Args:
    step: `step(state, batch, key, *, axis_name=None) -> (state, metrics)`, with
      metrics already averaged over the axis.
    how: "pmap", "shard_map" (which checks that what should be equal on all
      devices is) or "jit" (`axis_name=None`; the compiler splits the batch).
    mesh: devices; `None`: all, along one axis `data`.
    state_spec: prefix tree of partition specs of the state; anything but `P()`
      needs "shard_map" or "jit".

  Returns:
    `run(state, batches, key) -> (state, metrics)`. `batches` are global, leaves
    [S, B, ...] for S steps, on the host, the same in every process; B is split
    over all devices of the mesh. The state is donated: use the one returned.
    Metrics are [S], the same on all devices. `run.place(state)` is the state
    where the program wants it.

  Raises:
    ValueError: for an unknown `how`, a sharded state under pmap, or (by `run`)
      a batch that the devices do not divide.

  Example:
    >>> def step(total, batch, key, *, axis_name=None):
    ...   mean = jnp.mean(batch)
    ...   mean = mean if axis_name is None else lax.pmean(mean, axis_name)
    ...   return total._replace(step=total.step + 1, params=mean), mean
    >>> from kexue.training import TrainState
    >>> state = TrainState(step=jnp.zeros((), int), params=jnp.zeros(()))
    >>> run = parallelize(step, 'shard_map', data_mesh(jax.devices()[:1]))
    >>> state, means = run(state, np.ones((3, 2)), jax.random.key(0))
    >>> int(state.step), means.shape
    (3, (3,))
  """
  require_one_of('how', how, MODES)
  mesh = data_mesh() if mesh is None else mesh
  if how == 'pmap':
    require(
      len(mesh.axis_names) == 1 and state_spec == P(),
      'how',
      how,
      'shard_map or jit for a mesh of several axes or a sharded state',
    )
  if how == 'pmap':
    program = _pmap(step, mesh)
    place = functools.partial(_rows_for_pmap, mesh)
  else:
    program = _jit(step, mesh, state_spec if how == 'shard_map' else None)
    split = NamedSharding(mesh, P(None, mesh.axis_names))
    place = lambda x: _put(x, split)
  shardings = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    state_spec,
    is_leaf=lambda x: isinstance(x, P),
  )

  def place_state(state):
    return jax.device_put(state, shardings)

  def run(state, batches, key):
    for x in jax.tree.leaves(batches):
      require(
        jnp.ndim(x) >= 2 and x.shape[1] % mesh.size == 0,
        'batches',
        jnp.shape(x),
        f'[steps, batch, ...] with a batch that {mesh.size} devices divide',
      )
    return program(place_state(state), jax.tree.map(place, batches), key)

  run.place = place_state
  return run


def _scan(step, axis_name, state, batches, key):
  """All steps of one program on one device."""

  def body(state, batch):
    key_now = jax.random.fold_in(key, state.step)
    return step(state, batch, key_now, axis_name=axis_name)

  return lax.scan(body, state, batches)


def _pmap(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """State and key go to all devices as they are, and come back so."""
  (axis_name,) = mesh.axis_names
  program = jax.pmap(
    functools.partial(_scan, step, axis_name),
    axis_name,
    in_axes=(None, 0, None),
    out_axes=None,
    devices=list(mesh.devices.flat),
    donate_argnums=0,
  )
  if jax.process_count() > 1:
    return _with_global_state(program, mesh)
  return program


def _jit(
  step: Callable[..., Any], mesh: Mesh, state_spec: Any | None
) -> Callable[..., Any]:
  """Split by the compiler, or by `shard_map` if there is a state spec."""
  if state_spec is None:
    return jax.jit(functools.partial(_scan, step, None), donate_argnums=0)
  names = mesh.axis_names
  mapped = jax.shard_map(
    functools.partial(_scan, step, names[0] if len(names) == 1 else names),
    mesh=mesh,
    in_specs=(state_spec, P(None, names), P()),
    out_specs=(state_spec, P()),
  )
  return jax.jit(mapped, donate_argnums=0)


def _put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Places a host array that every process holds whole."""
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


def _with_global_state(
  program: Callable[..., Any], mesh: Mesh
) -> Callable[..., Any]:
  """Pmap takes and gives what is local to a process; the rest wants global."""

  def to_local(x):
    if jax.local_device_count() == 1:  # There the utility below fails.
      return x.addressable_data(0)
    return multihost_utils.global_array_to_host_local_array(x, mesh, P())

  def run(state, batches, key):
    state, metrics = program(jax.tree.map(to_local, state), batches, key)
    state = multihost_utils.host_local_array_to_global_array(state, mesh, P())
    return state, metrics

  return run


def _rows_for_pmap(mesh: Mesh, x: np.ndarray) -> np.ndarray:
  """[S, B, ...] -> [devices of this process, S, B / all devices, ...]."""
  steps, batch, *rest = x.shape
  split = x.reshape(steps, mesh.size, batch // mesh.size, *rest).swapaxes(0, 1)
  process = jax.process_index()
  mine = [d.process_index == process for d in mesh.devices.flat]
  return split if all(mine) else split[np.array(mine)]
