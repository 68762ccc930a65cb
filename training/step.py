"""The training step: state, gradient, update; one device's view of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ..checks import require
from ..mapped_axes import AxisName
from .parallel import (
  as_varying,
  mean_gradient,
  value_and_grad,
)


class TrainState(NamedTuple):
  """All that a run changes, and all that a checkpoint holds.

  `step`: int32 scalar, steps taken. `params`: what gradients train.
  `opt_state`: the optimizer's. `variables`: state that is no parameter (an EMA
  codebook, an expert bias, trackers).
  """

  step: jax.Array
  params: Any
  opt_state: Any = ()
  variables: Any = ()


def init_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  variables: Any = (),
) -> TrainState:
  """The state before the first step, in buffers of its own.

  Copied, because the state will be donated: the caller's parameters stay, and
  variables may start as the parameters do.

  >>> state = init_state({'w': jnp.ones(2)}, optax.sgd(0.1))
  >>> int(state.step)
  0
  """
  state = TrainState(
    step=jnp.zeros([], jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    variables=variables,
  )
  return jax.tree.map(jnp.array, state)


def _accumulated(loss, axis_name, parts):
  """`value_and_grad` over `parts` micro-batches, reduced over devices once."""
  if parts == 1:
    return value_and_grad(loss, axis_name)
  local = jax.value_and_grad(loss, has_aux=True)

  def mean_over_parts(params, variables, batch, key):
    rows = jax.tree.leaves(batch)[0].shape[0]
    require(
      rows % parts == 0,
      'accumulate',
      parts,
      f'a divisor of the {rows} examples on each device',
    )
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    varying = as_varying(params, axis_name)

    def body(carry, inputs):
      variables, total = carry
      index, micro = inputs
      (value, (variables, metrics)), grads = local(
        varying, variables, micro, jax.random.fold_in(key, index)
      )
      return (variables, jax.tree.map(jnp.add, total, grads)), (value, metrics)

    # Summed in float32 or better: half precision forgets small parts.
    wide = lambda x: jnp.zeros_like(x, jnp.promote_types(x.dtype, jnp.float32))
    start = (variables, jax.tree.map(wide, varying))
    (variables, total), values = lax.scan(
      body, start, (jnp.arange(parts), split)
    )
    grads = jax.tree.map(
      lambda g, x: (g / parts).astype(x.dtype), total, params
    )
    value, metrics = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
    if axis_name is not None:
      value, metrics = lax.pmean((value, metrics), axis_name)
      grads = mean_gradient(grads, params, axis_name)
    return (value, (variables, metrics)), grads

  return mean_over_parts


def _norm(grads: Any) -> jax.Array:
  """Of all gradients, those of parameters split over devices among them."""

  def square(g):
    total = optax.tree.norm(g, squared=True)
    split = tuple(jax.typeof(total).mat.varying)
    return lax.psum(total, split) if split else total

  return jnp.sqrt(sum(map(square, jax.tree.leaves(grads))))


def make_step(
  loss: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  *,
  model: Any = None,
  accumulate: int = 1,
  after: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
  """A training step that runs unchanged under jit, pmap and shard_map.

  Args:
    loss: `loss(params, variables, batch, key) -> (scalar, (variables,
      metrics))`, the mean over the batch's leading axis. With `model` given it
      is called `loss(model, params, variables, batch, key)`.
    optimizer: any optax transformation; gradients reach it averaged.
    model: a flax module. If it has a field `axis_name`, the loss gets a clone
      that knows the mapped axis.
    accumulate: splits each device's batch into so many parts, one after the
      other; the mean gradient is the same and activations take less memory.
    after: `after(variables) -> variables`, what happens to them once a step,
      however many parts there are: where biases of experts move.

  Returns:
    `step(state, batch, key, *, axis_name=None) -> (state, metrics)`. The key is
    folded with the device's index, so that noise differs between devices; the
    metrics are the loss's own and `loss` and `grad_norm`.

  Raises:
    ValueError: if `accumulate` is below one or does not divide the batch.

  Example:
    >>> loss = lambda w, variables, x, key: (jnp.mean((w - x) ** 2), ((), {}))
    >>> optimizer = optax.sgd(0.5)
    >>> state = init_state(jnp.zeros(()), optimizer)
    >>> step = make_step(loss, optimizer)
    >>> state, metrics = step(state, jnp.array([1.0, 3.0]), jax.random.key(0))
    >>> float(state.params), float(metrics['loss'])
    (2.0, 5.0)
  """
  require(accumulate >= 1, 'accumulate', accumulate, '1 or more')

  def step(
    state: TrainState,
    batch: Any,
    key: jax.Array,
    *,
    axis_name: AxisName | None = None,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    bound = loss
    if model is not None:
      aware = hasattr(model, 'axis_name')
      bound = functools.partial(
        loss, model.clone(axis_name=axis_name) if aware else model
      )
    if axis_name is not None:
      key = jax.random.fold_in(key, lax.axis_index(axis_name))
    gradient = _accumulated(bound, axis_name, accumulate)
    (value, (variables, metrics)), grads = gradient(
      state.params, state.variables, batch, key
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {**metrics, 'loss': value, 'grad_norm': _norm(grads)}
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      variables=variables if after is None else after(variables),
    )
    return state, metrics

  return step
