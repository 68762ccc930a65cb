"""The best learning rate of a measured grid, and how well it is known.

Shapes: `...` batch sizes, `S` seeds, `L` learning rates.

References:
  Efron and Tibshirani, `An Introduction to the Bootstrap`, 1993, chapter 13.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require, require_rank, require_shape
from ..lowrank.arrays import wide


class OptimalLearningRate(NamedTuple):
  """Optimum, its bootstrap interval, and whether the grid's edge hides it.

  Example:
    >>> losses = jnp.array([[3.0, 2.0, 3.0]])
    >>> best = optimal_learning_rate(jnp.array([0.1, 0.2, 0.4]), losses)
    >>> print(f'{best.learning_rate:.3f}', best.at_edge)
    0.200 False
  """

  learning_rate: jax.Array
  low: jax.Array
  high: jax.Array
  at_edge: jax.Array


@functools.partial(jnp.vectorize, signature='(n),(n)->(),()')
def _lowest(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Where the parabola through the lowest point and its neighbours is lowest.

  The lowest point itself if it is the first or last or next to an infinite one.
  """
  best = jnp.argmin(y).astype(jnp.int32)
  at_edge = (best == 0) | (best == len(x) - 1)
  middle = jnp.clip(best, 1, len(x) - 2)
  (x0, x1, x2), (y0, y1, y2) = (
    jax.lax.dynamic_slice_in_dim(z, middle - 1, 3) for z in (x, y)
  )
  slope = (y1 - y0) / (x1 - x0)
  curvature = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
  usable = ~at_edge & jnp.isfinite(curvature) & (curvature > 0)
  vertex = (x0 + x1) / 2 - slope / (2 * jnp.where(usable, curvature, 1))
  lowest = jnp.where(usable, vertex, x[best])
  return jnp.where(jnp.isfinite(y[best]), lowest, jnp.nan), at_edge


@functools.partial(jax.jit, static_argnums=(3, 4))
def _optimum(
  rates: jax.Array,
  losses: jax.Array,
  key: jax.Array,
  resamples: int,
  confidence: float,
) -> OptimalLearningRate:
  seeds = losses.shape[-2]
  losses = jnp.where(jnp.isfinite(losses) & (losses > 0), losses, jnp.inf)

  def of(losses):
    return _lowest(jnp.log(rates), jnp.log(jnp.mean(losses, axis=-2)))

  best, at_edge = of(losses)
  # A seed is drawn with all its learning rates: they share data and start.
  drawn = jax.random.randint(key, (resamples, seeds), 0, seeds)
  bests, _ = jax.vmap(lambda i: of(jnp.take(losses, i, axis=-2)))(drawn)
  tail = (1 - confidence) / 2
  low, high = jnp.nanquantile(bests, jnp.array([tail, 1 - tail]), axis=0)
  known = seeds > 1
  return OptimalLearningRate(
    jnp.exp(best),
    jnp.where(known, jnp.exp(low), jnp.nan),
    jnp.where(known, jnp.exp(high), jnp.nan),
    at_edge,
  )


def optimal_learning_rate(
  learning_rates: ArrayLike,
  losses: ArrayLike,
  *,
  key: jax.Array | None = None,
  resamples: int = 1000,
  confidence: float = 0.95,
) -> OptimalLearningRate:
  """The best learning rate of a measured grid, between its points.

  The vertex of the parabola through the best learning rate and its two
  neighbours, in logarithms of learning rate and mean loss over the seeds; the
  interval is the percentile bootstrap over seeds. Optima are flat: with 6 seeds
  they scatter by 30 per cent.

  A loss that is infinite or nan counts as diverged, and one diverged seed as a
  diverged learning rate. Next to a diverged one the best learning rate is taken
  as it is: a parabola has nothing to go through. At the grid's edge, the
  optimum may lie beyond: `at_edge` says so, and `fit_law` should not see it.

  Args:
    learning_rates: [..., L], increasing and positive, 3 or more; broadcast
      against the leading axes of the losses, so that each batch size may have
      its own.
    losses: [..., S, L], positive where finite. A grid [S, B, L] is
      `jnp.moveaxis(losses, 0, -2)`.
    key: of the bootstrap; `None`: a fixed one.
    resamples: of the bootstrap.
    confidence: of the interval, in (0, 1).

  Returns:
    `OptimalLearningRate`, each [...]: `low` and `high` are nan with one seed,
    which knows nothing about its noise; all are nan where everything diverged.

  Raises:
    ValueError: for wrong shapes, learning rates that do not increase, losses
      that are not positive, or an argument outside its range. Traced values are
      not looked at; a loss of 0 or less then counts as diverged.

  Example:
    >>> rates = jnp.array([0.01, 0.02, 0.04, 0.08])
    >>> losses = jnp.array([[2.2, 2.0, 2.1, jnp.inf], [2.3, 2.0, 2.1, 9.0]])
    >>> best = optimal_learning_rate(rates, losses)
    >>> print(f'{best.learning_rate:.4f}', best.at_edge)
    0.0231 False
  """
  require_rank('learning_rates', learning_rates, 1, at_least=True)
  require_rank('losses', losses, 2, at_least=True)
  count = jnp.shape(learning_rates)[-1]
  require(count >= 3, 'learning_rates', f'{count} of them', '3 or more')
  require_shape('losses', losses, (*jnp.shape(losses)[:-1], count))
  require(jnp.shape(losses)[-2] >= 1, 'losses', 'no seed', '1 or more')
  _require_grid(learning_rates, losses)
  require(0 < confidence < 1, 'confidence', confidence, 'a number in (0, 1)')
  require(resamples >= 1, 'resamples', resamples, '1 or more')
  key = jax.random.key(0) if key is None else key
  rates, losses = wide(learning_rates), wide(losses)
  return _optimum(rates, losses, key, resamples, confidence)


def _require_grid(rates: Any, losses: Any) -> None:
  """Checks values, where there are any."""
  if not isinstance(rates, jax.core.Tracer):
    rates = np.asarray(rates)
    good = np.all(rates > 0) and np.all(np.diff(rates) > 0)
    require(good, 'learning_rates', rates.tolist(), 'increasing positive ones')
  if not isinstance(losses, jax.core.Tracer):
    least = float(np.nanmin(np.append(np.asarray(losses), np.inf)))
    require(least > 0, 'losses', least, 'positive ones')
