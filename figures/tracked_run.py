"""A training step that keeps the noise scale of its gradients.

For `parallelize` and `fit`, like those of `make_step`: the tracker is the
state's `variables`, and so in every checkpoint.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from ..scaling import (
  NoiseScaleTracker,
  accumulate_gradients,
  tracked_noise_scale,
)
from ..training import TrainState
from ..training.parallel import AxisName


def tracked_step(
  loss_fn: Callable[[Any, Any], jax.Array],
  optimizer: optax.GradientTransformation,
  tracker: NoiseScaleTracker,
  *,
  microbatches: int,
) -> Callable[..., Any]:
  """Like `make_step`, its gradient accumulated and its noise scale tracked.

  Args:
    loss_fn: as `kexue.scaling` takes losses.
    optimizer: any.
    tracker: what the state's `variables` belong to. The noise scale is that of
      plain gradients, for Adam too: over the root of its second moment entries
      that have had hardly a gradient yet outweigh all others.
    microbatches: of a device in a step.

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
    )
    updates, opt_state = optimizer.update(
      moments.gradient, state.opt_state, state.params
    )
    # Reduced already, so that the tracker needs no axis.
    tracked = tracker.update(state.variables, *moments[2:])
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
