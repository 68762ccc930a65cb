"""The best learning rate of one step of SGD: searched, probed, and its law.

At a point of a training run, on a finite population of images; batches are
drawn from it with replacement. `one_step_search` is the same for the sign.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..scaling import (
  SgdLaw,
  accumulate_gradients,
  curvature_noise_scale,
  optimal_learning_rate,
)
from ..scaling.jackknife import jackknife_ratio
from .comparison import Row
from .image_model import ImageTask
from .one_step_search import FRESH, GRID, draws, probes

PARTS = 16  # Microbatches of a draw of the law.
LEAST = 32  # Draws of a search, and of a probe.
SGD = optax.sgd(1.0)


@functools.partial(jax.jit, static_argnums=0)
def law_moments(
  task: ImageTask, params: Any, batches: Any, key: jax.Array
) -> dict[str, jax.Array]:
  """Unbiased estimates [draws] of what the law is made of.

  Args:
    task: the model.
    params: where it stands.
    batches: leaves [draws, rows, ...]; the Hessian has the second half.
    key: of random signs.
  """

  def of(inputs):
    batch, key = inputs
    found = curvature_noise_scale(
      task.mean_loss, params, batch, key=key, microbatches=PARTS
    )
    half = jax.tree.map(lambda x: x[: len(x) // 2], batch)
    noise = accumulate_gradients(
      task.mean_loss, params, half, microbatches=PARTS
    ).noise_scale
    return {
      'gradient_sq_norm': noise.gradient_sq_norm,
      'trace': noise.trace,
      'curvature': found.curvature,
      'noise_curvature': found.trace,
    }

  keys = jax.random.split(key, len(batches['label']))
  return jax.lax.map(of, (batches, keys))


def law_of(moments: dict[str, jax.Array], batch_size: int) -> Row:
  """The law at one batch size and both noise scales, with intervals."""
  m = moments
  ratio = lambda name, a, b: dict(
    zip(
      (name, f'{name}_low', f'{name}_high'),
      map(float, jackknife_ratio(a, b)),
      strict=True,
    )
  )
  square, curvature, noise = (
    float(jnp.mean(m[name]))
    for name in ('gradient_sq_norm', 'curvature', 'noise_curvature')
  )
  decrease_max = square**2 / (2 * curvature)
  law = SgdLaw(square / curvature, noise / curvature, decrease_max)
  # At one batch size the law is a ratio of means too.
  along = m['curvature'] + m['noise_curvature'] / batch_size
  return {
    **ratio('law', m['gradient_sq_norm'], along),
    'law_decrease': float(law.loss_decrease(batch_size)),
    'lr_max': law.lr_max,
    **ratio('noise_scale', m['noise_curvature'], m['curvature']),
    **ratio('simple', m['trace'], m['gradient_sq_norm']),
  }


@functools.partial(jax.jit, static_argnums=(0, 3))
def _changes(
  task: ImageTask, params: Any, batches: Any, batch_size: int, rates: jax.Array
) -> jax.Array:
  """Of the loss of fresh images by a step of SGD, by draw and learning rate."""

  def of(batch):
    used, fresh = (
      jax.tree.map(lambda x, part=part: x[part], batch)
      for part in (slice(batch_size), slice(batch_size, None))
    )
    gradient = jax.grad(task.mean_loss)(params, used)
    moved = lambda rate: jax.tree.map(
      lambda x, g: x - rate * g, params, gradient
    )
    after = jax.lax.map(lambda rate: task.mean_loss(moved(rate), fresh), rates)
    return after - task.mean_loss(params, fresh)

  return jax.lax.map(of, batches)


def search(
  task: ImageTask,
  params: Any,
  batch_size: int,
  key: jax.Array,
  *,
  loss: float,
  searched: int,
  probed: int,
) -> Row:
  """Probes the best step of SGD, then searches about it.

  Each draw has a batch for the step and `FRESH` images more for its loss. Small
  batches take more draws, because each of theirs says less.

  Args:
    task: the model.
    params: where it stands.
    batch_size: B.
    key: of the draws, which probe and search do not share.
    loss: of the population there.
    searched: images in all batches of the search, of `LEAST` draws or more.
    probed: the same for the probe.

  Returns:
    `probe` and `measured` learning rates with intervals; `decrease`, of the
    loss at the best one, with twice its standard error over draws.
  """
  batches = lambda key, images: draws(
    task, key, max(LEAST, images // batch_size), batch_size + FRESH
  )
  first, second = jax.random.split(key)
  _, probe = probes(task, params, batches(first, probed), SGD, batch_size)
  rates = probe.learning_rate * jnp.array(GRID)
  changes = _changes(task, params, batches(second, searched), batch_size, rates)
  changes = np.asarray(changes, np.float64)
  best = optimal_learning_rate(rates, np.maximum(loss + changes, 1e-6))
  middle = np.argmin(changes.mean(0))
  error = changes[:, middle].std(ddof=1) / np.sqrt(len(changes))
  return {
    'probe': float(probe.learning_rate),
    'probe_low': float(probe.low),
    'probe_high': float(probe.high),
    'measured': float(best.learning_rate),
    'measured_low': float(best.low),
    'measured_high': float(best.high),
    'at_edge': int(best.at_edge),
    'decrease': vertex(np.asarray(rates), -changes.mean(0)),
    'decrease_error': float(2 * error),
  }


def vertex(x: np.ndarray, y: np.ndarray) -> float:
  """The top of the parabola through the largest value and its neighbours.

  >>> x = np.array([0.0, 1.0, 3.0, 4.0])
  >>> round(vertex(x, 5 - (x - 2) ** 2), 6)
  5.0
  """
  middle = int(np.clip(np.argmax(y), 1, len(x) - 2))
  near = slice(middle - 1, middle + 2)
  a, b, c = np.polyfit(x[near], y[near], 2)
  return float(c - b**2 / (4 * a)) if a < 0 else float(np.max(y))
