"""A training step that keeps the noise scale of its gradients.

For `parallelize` and `fit`, like those of `make_step`: the tracker is the
state's `variables`, and so in every checkpoint.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..scaling import (
  NoiseScaleTracker,
  accumulate_gradients,
  tracked_noise_scale,
)
from ..training import TrainState
from ..training.parallel import AxisName


def preconditioner(opt_state: Any, step: jax.Array, b2: float) -> Any:
  """What Adam multiplies gradients by; `None` for an optimizer that does not.

  Entries whose second moment is zero have no scale and do not count.

  >>> params = {'w': jnp.ones(2)}
  >>> print(preconditioner(optax.sgd(0.1).init(params), jnp.array(0), 0.999))
  None
  """
  second = optax.tree.get(opt_state, 'nu')
  if second is None:
    return None
  whole = 1 - b2 ** jnp.maximum(step, 1)
  scale = lambda v: jnp.sqrt(whole / jnp.where(v > 0, v, 1))
  return jax.tree.map(lambda v: jnp.where(v > 0, scale(v), 0.0), second)


def tracked_step(
  loss_fn: Callable[[Any, Any], jax.Array],
  optimizer: optax.GradientTransformation,
  tracker: NoiseScaleTracker,
  *,
  microbatches: int,
  b2: float = 0.999,
  after: int = 0,
) -> Callable[..., Any]:
  """Like `make_step`, its gradient accumulated and its noise scale tracked.

  Args:
    loss_fn: as `kexue.scaling` takes losses.
    optimizer: any; with Adam the noise scale is that of gradients over the
      root of its second moment.
    tracker: what the state's `variables` belong to.
    microbatches: of a device in a step.
    b2: decay of the second moment.
    after: steps that are not tracked. Adam's first should not be: a gradient
      over the root of the average of a few squares has no moments.

  Returns:
    `step(state, batch, key, *, axis_name=None) -> (state, metrics)`.
  """

  def step(
    state: TrainState,
    batch: Any,
    key: jax.Array,
    *,
    axis_name: AxisName | None = None,
  ):
    del key
    moments = accumulate_gradients(
      loss_fn,
      state.params,
      batch,
      microbatches=microbatches,
      axis_name=axis_name,
      multiplier=preconditioner(state.opt_state, state.step, b2),
    )
    updates, opt_state = optimizer.update(
      moments.gradient, state.opt_state, state.params
    )
    # Reduced already, so that the tracker needs no axis.
    tracked = jax.tree.map(
      functools.partial(jnp.where, state.step >= after),
      tracker.update(state.variables, *moments[2:]),
      state.variables,
    )
    metrics = {
      'loss': moments.loss,
      'grad_norm': optax.tree.norm(moments.gradient),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, tracked), metrics

  return step


def noise_columns(state: TrainState) -> dict[str, jax.Array]:
  """What a row of a tracked run says of its noise."""
  tracked = tracked_noise_scale(state.variables)
  return {
    'noise_scale': tracked.scale,
    'noise_low': tracked.low,
    'noise_high': tracked.high,
    'effective_samples': tracked.effective_samples,
  }
