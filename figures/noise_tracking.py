"""A training step that tracks its noise scale, and what else can be known.

From the gradients that a step has anyway: two trackers. From some batches and
their Hessians at a look: the noise scale of the learning rate, the surge index
and the noise scale of the sign.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ..scaling import (
  NoiseScaleTracker,
  accumulate_gradients,
  curvature_noise_scale,
  hessian_vector_product,
  sign_noise_scale,
  surge_index_estimate,
  tracked_noise_scale,
)
from ..scaling.jackknife import jackknife_ratio
from ..training import TrainState
from .language_model import Task

TRACKED = ('training', 'other')  # Trackers: of the batch, and of further ones.
PARTS = 8  # Microbatches of the estimates at a look.


def mean_loss(task: Task, params: Any, batch: jax.Array) -> jax.Array:
  """The loss as `kexue.scaling` takes it."""
  return task.loss(params, (), batch, None)[0]


def tracked_step(
  task: Task,
  optimizer: optax.GradientTransformation,
  tracker: NoiseScaleTracker,
  sizes: tuple[int, int],
  microbatches: int,
) -> Callable[..., Any]:
  """A training step that tracks the noise scale of two batches.

  Args:
    task: the model.
    optimizer: trains it on the first batch; the other is measured only.
    tracker: of both.
    sizes: sequences of both, which come in this order on each device.
    microbatches: of either, on all devices together; or a batch on each device.

  Returns:
    A step for `parallelize`; trackers by name are the state's variables.
  """
  loss = functools.partial(mean_loss, task)

  def step(state, batch, key, *, axis_name=None):
    del key
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    rows = sizes[0] // devices
    moments = {
      name: accumulate_gradients(
        loss,
        state.params,
        part,
        microbatches=max(1, microbatches // devices),
        axis_name=axis_name,
      )
      for name, part in zip(TRACKED, (batch[:rows], batch[rows:]), strict=True)
    }
    trackers = {
      name: tracker.update(state.variables[name], *of[2:])
      for name, of in moments.items()
    }
    here = moments['training']
    updates, opt_state = optimizer.update(
      here.gradient, state.opt_state, state.params
    )
    metrics = {
      'loss': here.loss,
      'grad_norm': optax.tree.norm(here.gradient),
      'one_step': here.noise_scale.scale,
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, trackers), metrics

  return step


def part_of(path: tuple) -> str:
  """The part of the model that a leaf belongs to.

  >>> key = jax.tree_util.DictKey
  >>> part_of((key('layers_1'), key('mlp'), key('up'), key('kernel')))
  'mlp 1'
  >>> part_of((key('layers_1'), key('mlp_norm'), key('scale')))
  'norms'
  """
  names = [entry.key for entry in path]
  if any('norm' in name for name in names):
    return 'norms'
  if names[0].startswith('layers_'):
    return f'{names[1]} {names[0].removeprefix("layers_")}'
  return names[0]


def by_part(tree: Any) -> dict[str, Any]:
  """Sums of the leaves of each part."""
  parts: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = part_of(path)
    parts[name] = parts.get(name, 0) + leaf
  return parts


def _with_ends(name: str, middle, low, high) -> dict[str, Any]:
  return {name: middle, f'{name}_low': low, f'{name}_high': high}


@jax.jit
def tracked(trackers: dict[str, Any]) -> dict[str, jax.Array]:
  """Columns of a row: both noise scales, and those of the parts."""
  columns = {}
  for name in TRACKED:
    columns |= _with_ends(name, *tracked_noise_scale(trackers[name])[:3])
  state = trackers['training']
  state = state._replace(
    gradient_sq_norm=by_part(state.gradient_sq_norm),
    trace=by_part(state.trace),
  )
  of = tracked_noise_scale(state, per_leaf=True)
  for part in of.scale:
    ends = of.scale[part], of.low[part], of.high[part]
    columns |= _with_ends(f'part {part}', *ends)
  return columns | {'effective_samples': of.effective_samples}


@functools.partial(jax.jit, static_argnums=0)
def moments_of(
  task: Task, params: Any, batches: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
  """Estimates [draws] whose means the other scales are ratios of.

  Args:
    task: the model.
    params: where it stands.
    batches: [draws, rows, ...]; the Hessian has the second half of the rows.
    key: of random signs.
  """
  loss = functools.partial(mean_loss, task)

  def of(inputs):
    batch, key = inputs
    half = len(batch) // 2
    curvature = curvature_noise_scale(
      loss, params, batch, key=key, microbatches=PARTS
    )
    surge = surge_index_estimate(loss, params, batch)
    sign = sign_noise_scale(loss, params, batch[:half], microbatches=PARTS)
    simple = accumulate_gradients(
      loss, params, batch[:half], microbatches=PARTS
    ).noise_scale
    signs = optax.tree.random_like(
      key, params, jax.random.rademacher, dtype=jnp.float32
    )
    product = hessian_vector_product(loss, params, batch[half:], signs)
    return {
      'gradient_sq_norm': simple.gradient_sq_norm,
      'noise': simple.trace,
      'curvature': curvature.curvature,
      'noise_curvature': curvature.trace,
      'aligned': surge.aligned,
      'noise_trace': surge.noise_trace,
      'trace': optax.tree.vdot(signs, product),
      'gradient_l1': sign.gradient_l1,
      'noise_l1': sign.noise_l1,
      'cross_l1': sign.cross_l1,
    }

  return lax.map(of, (batches, jax.random.split(key, len(batches))))


@jax.jit
def ratios(m: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Columns of a row, from `moments_of`."""
  mean = lambda name: jnp.mean(m[name])
  ratio = lambda name, a, b: _with_ends(name, *jackknife_ratio(a, b))
  return {
    **ratio('simple', m['noise'], m['gradient_sq_norm']),
    **ratio('curvature_scale', m['noise_curvature'], m['curvature']),
    **ratio('surge', m['aligned'], 2 * m['noise_trace']),
    **ratio('article_surge', m['aligned'], 2 * m['trace']),
    'sign_scale': (mean('noise_l1') / mean('gradient_l1')) ** 2,
    'sign_scale_above': (mean('noise_l1') / mean('cross_l1')) ** 2,
  }
