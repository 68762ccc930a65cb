r"""The noise scale along a run: averages of both parts, and how sure they are.

One step says next to nothing: where the noise scale is 50 times the batch, the
estimate of :math:`\|G\|^2` is negative in half of the steps, and ten percent on
it take tens of thousands of them. So numerator and denominator are averaged,
each for itself, and divided when they are read. What
is averaged is signed: clamping a step's negative :math:`\|G\|^2` would bias
exactly the runs in which it matters, and an average of ratios has no mean.

The interval is a jackknife over `K` groups of steps, dealt out in turn, so that
a drift along the run is the same in all of them. Each group is an exponential
average with the same decay, and their sum is the exponential average.

References:
  McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.1;
  Busing, Meijer and van der Leeden, `Delete-m Jackknife for Unequal m
  <https://doi.org/10.1023/A:1008800423698>`_, 1999.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, mean_over
from .jackknife import jackknife_ratio, require_confidence
from .noise_scale import two_batch_noise_scale


class NoiseScaleTrackerState(NamedTuple):
  """Steps seen, and sums over them by group, weighted by the decay.

  `gradient_sq_norm` and `trace` are trees like the parameters of arrays [K],
  `weight` [K] sums the weights and `square_weight` [] their squares.
  """

  count: jax.Array
  weight: jax.Array
  square_weight: jax.Array
  gradient_sq_norm: Any
  trace: Any


class NoiseScaleTracker(NamedTuple):
  """`init(params) -> state` and `update(state, ...) -> state`.

  Example:
    >>> tracker = noise_scale_tracker(decay=0.9)
    >>> int(tracker.init({'w': jnp.ones(3)}).count)
    0
  """

  init: Callable[[Any], NoiseScaleTrackerState]
  update: Callable[..., NoiseScaleTrackerState]


class TrackedNoiseScale(NamedTuple):
  r"""A noise scale and its interval, `low <= scale <= high`.

  All three are in examples, and infinite where the average of :math:`\|G\|^2`,
  or an end of its interval, is not above zero. `gradient_sq_norm` and `trace`
  are the averages as they are, and `effective_samples` is the number of steps
  of equal weight that would be worth as much.

  Example:
    >>> one = jnp.ones(())
    >>> tracked = TrackedNoiseScale(4 * one, 2 * one, 8 * one, one, 4 * one, 9)
    >>> float(tracked.inverse)
    0.25
  """

  scale: Any
  low: Any
  high: Any
  gradient_sq_norm: Any
  trace: Any
  effective_samples: jax.Array

  @property
  def inverse(self) -> Any:
    """1 / scale with its sign, which is what can be plotted and averaged."""
    return jax.tree.map(jnp.divide, self.gradient_sq_norm, self.trace)


def noise_scale_tracker(
  *,
  decay: float = 0.99,
  groups: int = 20,
  axis_name: AxisName | None = None,
) -> NoiseScaleTracker:
  r"""Exponential averages of :math:`\|G\|^2` and the noise, leaf by leaf.

  A step `t` enters the group t mod K of both sums with the weight
  :math:`(1 - d) d^{\mathrm{now} - t}`; what the sums are divided by is summed
  along, so that the averages are free of the start's bias.

  Args:
    decay: `d` in [0, 1); the average is worth (1 + d) / (1 - d) steps.
    groups: `K` for the interval, 3 or more. The effective samples should be a
      few times as many.
    axis_name: mapped axis or axes over which `update` gets what is local to a
      device. `None`: what it gets is the same on all devices, as
      `accumulate_gradients` returns it.

  Returns:
    `NoiseScaleTracker`. Its `update(state, small_sq_norm, big_sq_norm, small,
    big)` takes what `two_batch_noise_scale` does. With `axis_name` the squared
    norms of the small batch are those of this device's gradient, one scalar
    per leaf that it averages; batch sizes may change from step to step. Steps
    whose norms are not finite, as those that a loss scale has overflowed, are
    left out. Read it with `tracked_noise_scale`.

  Raises:
    ValueError: for a decay or a number of groups out of range.

  Example:
    >>> tracker = noise_scale_tracker(decay=0.5)
    >>> state = tracker.init({'w': jnp.ones(3)})
    >>> for small, big in ((3.0, 2.0), (3.5, 1.0), (4.5, 2.5)):
    ...   state = tracker.update(state, {'w': small}, {'w': big}, 2, 8)
    >>> tracked = tracked_noise_scale(state)
    >>> f'{tracked.scale:.3f} of {tracked.effective_samples:.2f} steps'
    '4.000 of 2.33 steps'
  """
  if isinstance(decay, int | float):
    require(0 <= decay < 1, 'decay', decay, 'a number in [0, 1)')
  good = isinstance(groups, int) and groups >= 3
  require(good, 'groups', groups, 'an integer of at least 3')

  def init(params):
    zeros = lambda x: jnp.zeros_like(wide(x), shape=(groups,))
    return NoiseScaleTrackerState(
      count=jnp.zeros([], jnp.int32),
      weight=jnp.zeros(groups),
      square_weight=jnp.zeros([]),
      gradient_sq_norm=jax.tree.map(zeros, params),
      trace=jax.tree.map(zeros, params),
    )

  def update(state, small_sq_norm, big_sq_norm, small, big):
    _, *parts = two_batch_noise_scale(
      mean_over(small_sq_norm, axis_name),
      big_sq_norm,
      small,
      big,
      per_leaf=True,
    )
    finite = jnp.all(jnp.isfinite(jnp.stack(jax.tree.leaves(parts))))
    here = jnp.arange(groups) == state.count % groups
    new = jnp.where(here & finite, 1 - decay, 0.0)

    def add(total, value):
      value = jnp.where(finite, value, 0.0)
      return (decay * total + new * value).astype(total.dtype)

    gradient_sq_norm, trace = (
      jax.tree.map(add, total, part)
      for total, part in zip(
        (state.gradient_sq_norm, state.trace), parts, strict=True
      )
    )
    return NoiseScaleTrackerState(
      state.count + 1,
      add(state.weight, 1.0),
      (decay**2 * state.square_weight + jnp.sum(new) ** 2).astype(
        state.square_weight.dtype
      ),
      gradient_sq_norm,
      trace,
    )

  return NoiseScaleTracker(init, update)


def _tracked(gradient_sq_norm, trace, state, confidence):
  """What can be said of one leaf's, or the total's, sums [K]."""
  ratio, low, high = jackknife_ratio(
    gradient_sq_norm, trace, state.weight, confidence=confidence
  )
  # Not |G|^2 / tr but its inverse; both ends change places.
  inverse = lambda x: jnp.where(x <= 0, jnp.inf, 1 / x)
  weight = jnp.sum(state.weight)
  return TrackedNoiseScale(
    inverse(ratio),
    inverse(high),
    inverse(low),
    jnp.sum(gradient_sq_norm) / weight,
    jnp.sum(trace) / weight,
    weight**2 / state.square_weight,
  )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _read(state, confidence, per_leaf):
  trees = state.gradient_sq_norm, state.trace
  if not per_leaf:
    totals = (sum(jax.tree.leaves(tree)) for tree in trees)
    return _tracked(*totals, state, confidence)
  leaves, structure = jax.tree.flatten(trees[0])
  read = [
    _tracked(g, t, state, confidence)
    for g, t in zip(leaves, jax.tree.leaves(trees[1]), strict=True)
  ]
  *fields, (effective_samples, *_) = zip(*read, strict=True)
  return TrackedNoiseScale(
    *(jax.tree.unflatten(structure, field) for field in fields),
    effective_samples,
  )


def tracked_noise_scale(
  state: NoiseScaleTrackerState,
  *,
  confidence: float = 0.95,
  per_leaf: bool = False,
) -> TrackedNoiseScale:
  r"""Reads a tracker: the noise scale with a confidence interval.

  The interval is `jackknife_ratio`'s for :math:`\|G\|^2 / \operatorname{tr}
  \Sigma`, turned upside down: the noise is known far better than the gradient,
  so that this ratio is nearly normal where its inverse has no moments, and an
  end at or below zero means that the noise scale may be infinite. Measured
  coverage of 95 % intervals: 94 to 96 %, see the tests.

  Args:
    state: of a `noise_scale_tracker`, of any decay.
    confidence: of the interval, in (0, 1).
    per_leaf: one noise scale for each leaf; otherwise of their sum.

  Returns:
    `TrackedNoiseScale` of scalars, or of trees if `per_leaf`. Before the third
    step the interval is [0, inf]; before the first, and for a gradient that was
    never anything but zero, `scale` is nan.

  Raises:
    ValueError: if `confidence` is not in (0, 1).

  Example:
    >>> tracker = noise_scale_tracker()
    >>> state = tracker.init({'w': jnp.ones(3)})
    >>> for small in (3.0, 3.5, 4.0, 3.5):
    ...   state = tracker.update(state, {'w': small}, {'w': 2.0}, 2, 8)
    >>> tracked = tracked_noise_scale(state)
    >>> print(f'{tracked.scale:.2f} in [{tracked.low:.2f}, {tracked.high:.2f}]')
    2.67 in [1.69, 6.45]
  """
  require_confidence(confidence)
  return _read(state, confidence, per_leaf)
