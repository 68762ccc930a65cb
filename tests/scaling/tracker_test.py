"""Averages against plain loops, and intervals against many runs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from kexue.scaling import (
  noise_scale_tracker,
  squared_norms,
  tracked_noise_scale,
  two_batch_noise_scale,
)

SMALL, BIG = 1, 8


@functools.partial(jax.jit, static_argnums=0)
def run(tracker, small, big):
  """The state after norms, leaves [steps]."""
  start = tracker.init(jax.tree.map(lambda x: x[0], small))
  step = lambda state, norms: (tracker.update(state, *norms, SMALL, BIG), None)
  return lax.scan(step, start, (small, big))[0]


def squares(shape, scale, *, dimension=16, seed=0):
  """Squared norms [...] of both sizes, for |G|^2 = 1 and a noise scale."""
  rng = np.random.default_rng(seed)
  deviation = np.sqrt(scale / dimension)
  mean = rng.normal(size=shape) * deviation / np.sqrt(BIG) + 1
  other = rng.chisquare(dimension - 1, shape) * deviation**2 / BIG
  big = mean**2 + other
  freedom = dimension * (BIG - 1)
  small = big + rng.chisquare(freedom, shape) * deviation**2 / BIG
  return small.astype(np.float32), big.astype(np.float32)


def test_averages_are_those_of_a_plain_loop():
  decay, groups, steps = 0.9, 4, 30
  rng = np.random.default_rng(0)
  big = {k: rng.uniform(1, 2, steps) for k in 'ab'}
  small = {k: x + rng.uniform(1, 2, steps) for k, x in big.items()}
  with jax.enable_x64(True):
    tracker = noise_scale_tracker(decay=decay, groups=groups)
    state = run(tracker, *jax.tree.map(jnp.asarray, (small, big)))
    total = tracked_noise_scale(state)
    leaves = tracked_noise_scale(state, per_leaf=True)
    weights = decay ** np.arange(steps)[::-1]
    for leaf in 'ab':
      each = two_batch_noise_scale(small[leaf], big[leaf], SMALL, BIG)
      average = lambda x, w=weights: np.sum(w * x) / np.sum(w)
      np.testing.assert_allclose(
        leaves.trace[leaf], average(each.trace), rtol=1e-6
      )
      np.testing.assert_allclose(
        leaves.gradient_sq_norm[leaf], average(each.gradient_sq_norm), rtol=1e-6
      )
      for group in range(groups):
        mine = slice(group, None, groups)
        expected = (1 - decay) * np.sum(
          (weights * np.float64(each.trace))[mine]
        )
        np.testing.assert_allclose(
          state.trace[leaf][group], expected, rtol=1e-6
        )
  summed = lambda leaves: sum(float(x) for x in leaves.values())
  trace = summed(leaves.trace)
  gradient_sq_norm = summed(leaves.gradient_sq_norm)
  np.testing.assert_allclose(total.trace, trace, rtol=1e-6)
  np.testing.assert_allclose(total.scale, trace / gradient_sq_norm, rtol=1e-6)
  np.testing.assert_allclose(total.inverse, gradient_sq_norm / trace, rtol=1e-6)
  effective = np.sum(weights) ** 2 / np.sum(weights**2)
  np.testing.assert_allclose(total.effective_samples, effective, rtol=1e-5)
  assert leaves.effective_samples == total.effective_samples
  assert int(state.count) == steps


def test_effective_samples_are_what_the_average_is_worth():
  tracker = noise_scale_tracker(decay=0.95)
  small, big = squares(1000, 4.0)
  found = tracked_noise_scale(run(tracker, small, big))
  np.testing.assert_allclose(found.effective_samples, 1.95 / 0.05, rtol=1e-4)
  found = tracked_noise_scale(run(tracker, small[:3], big[:3]))
  np.testing.assert_allclose(found.effective_samples, 3, rtol=0.01)


@functools.cache
def runs(scale, decay, steps, count=4000):
  """What 4000 runs end with."""
  tracker = noise_scale_tracker(decay=decay)
  read = lambda *norms: tracked_noise_scale(run(tracker, *norms))
  return jax.jit(jax.vmap(read))(*squares((count, steps), scale))


@pytest.mark.parametrize(
  'scale, decay, steps',
  [
    (4.0, 0.99, 500),  # The gradient stands out of the noise of a step,
    (400.0, 0.99, 500),  # and does not in 200 effective steps.
    (40.0, 0.95, 200),  # Two effective steps for each group.
    (40.0, 0.999, 100),  # Far from stationary.
  ],
)
def test_coverage_of_the_95_percent_interval(scale, decay, steps):
  found = runs(scale, decay, steps)
  assert np.all((found.low <= found.scale) & (found.scale <= found.high))
  covered = np.mean((found.low <= scale) & (scale <= found.high))
  assert 0.94 < covered < 0.965, covered


def test_where_the_gradient_is_lost_the_interval_reaches_infinity():
  """Pitfall 6."""
  lost, sure = runs(400.0, 0.99, 500), runs(4.0, 0.99, 500)
  assert np.mean(np.isinf(lost.high)) > 0.5
  assert np.any(lost.gradient_sq_norm < 0) and np.any(np.isinf(lost.scale))
  assert np.all(np.isfinite(sure.high)) and np.all(sure.gradient_sq_norm > 0)
  # Its inverse has a mean even so.
  error = np.mean(lost.inverse) - 1 / 400
  assert abs(error) < 4 * np.std(lost.inverse) / np.sqrt(4000)
  # Ten percent on |G|^2 at a noise scale of 52 batches: 36 000 steps.
  small, big = squares(200_000, 52.0 * BIG)
  estimate = two_batch_noise_scale(small, big, SMALL, BIG).gradient_sq_norm
  steps = np.var(estimate) / 0.1**2
  assert 30_000 < steps < 50_000
  assert 0.3 < np.mean(estimate < 0) < 0.6


@pytest.mark.parametrize('scale', [0.24 * BIG, 52.0 * BIG])
def test_averaging_ratios_is_biased(scale):
  """Pitfall 1."""
  small, big = squares(200_000, scale)
  each = two_batch_noise_scale(small, big, SMALL, BIG)
  ratio = np.mean(each.trace) / np.mean(each.gradient_sq_norm)
  wrong = np.mean(each.scale)
  np.testing.assert_allclose(ratio, scale, rtol=0.02 if scale < BIG else 0.2)
  assert abs(wrong / scale - 1) > 0.04
  assert abs(wrong / scale - 1) > 2 * abs(ratio / scale - 1)
  tracked = tracked_noise_scale(
    run(noise_scale_tracker(decay=0.9999), small[:50_000], big[:50_000])
  )
  assert tracked.low < scale < tracked.high


def test_clamping_each_step_is_biased():
  """Pitfall 1: a negative estimate is what keeps the average right."""
  small, big = squares(50_000, 52.0 * BIG)
  each = two_batch_noise_scale(small, big, SMALL, BIG).gradient_sq_norm
  error = np.std(each) / np.sqrt(len(each))
  assert abs(np.mean(each) - 1) < 4 * error
  assert np.mean(np.maximum(each, 0)) - 1 > 20 * error


def test_one_device_is_eight():
  rng = np.random.default_rng(3)
  gradients = rng.normal(0.5, 1, (4, 8, 5)).astype(np.float32)
  tracker = noise_scale_tracker(decay=0.9, axis_name='data')

  def local(gradients, axis_name='data'):
    def step(state, g):
      mean = lax.pmean(g, axis_name)
      norms = squared_norms(g), squared_norms(mean)
      return tracker.update(state, *norms, 1, 8), None

    start = tracker.init(jnp.zeros(5))
    return lax.scan(step, start, gradients.reshape(4, 5))[0]

  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    local, mesh=mesh, in_specs=P(None, 'data'), out_specs=P()
  )
  found = jax.jit(mapped)(gradients)
  small = np.mean(np.sum(gradients**2, axis=-1), axis=1)
  big = np.sum(np.mean(gradients, axis=1) ** 2, axis=-1)
  expected = run(noise_scale_tracker(decay=0.9), small, big)
  chex.assert_trees_all_close(found, expected, rtol=1e-4)
  by_pmap = jax.pmap(local, 'data', in_axes=1)(gradients)
  by_pmap = jax.tree.map(lambda x: x[0], by_pmap)
  chex.assert_trees_all_close(by_pmap, expected, rtol=1e-4)


def test_steps_that_are_not_finite_are_left_out():
  tracker = noise_scale_tracker(decay=0.5, groups=3)
  small, big = squares(4, 4.0)
  finite = np.array([True, False, True, True])
  bad = np.where(finite, small, np.inf), np.where(finite, big, np.nan)
  state = run(tracker, *map(np.float32, bad))
  found = tracked_noise_scale(state)
  weights = np.array([0.125, 0, 0.5, 1])
  trace = two_batch_noise_scale(small, big, SMALL, BIG).trace
  expected = np.sum(weights * trace) / np.sum(weights)
  np.testing.assert_allclose(found.trace, expected, rtol=1e-5)
  assert int(state.count) == 4


def test_batch_sizes_may_change():
  tracker = noise_scale_tracker(decay=0.9)
  state = tracker.init(1.0)
  for sizes in ((1, 2), (2, 8), (4, 64), (4, 8)):
    norms = (1 + 12 / size for size in sizes)  # |G|^2 = 1, a trace of 12.
    state = tracker.update(state, *norms, *sizes)
  found = tracked_noise_scale(state)
  np.testing.assert_allclose(found[:3], 12, rtol=1e-4)


def test_nothing_and_no_noise():
  tracker = noise_scale_tracker(decay=0.9, groups=4)
  nothing = tracked_noise_scale(tracker.init(1.0))
  assert np.isnan(nothing.scale) and nothing[1:3] == (0, np.inf)
  zero = tracked_noise_scale(run(tracker, jnp.zeros(5), jnp.zeros(5)))
  assert np.isnan(zero.scale) and zero[1:3] == (0, np.inf)
  assert zero[3:5] == (0, 0)
  quiet = tracked_noise_scale(run(tracker, jnp.ones(5), jnp.ones(5)))
  assert quiet[:3] == (0, 0, 0)
  two = tracked_noise_scale(run(tracker, 2 * jnp.ones(2), jnp.ones(2)))
  assert np.isfinite(two.scale) and two[1:3] == (0, np.inf)


def test_wrong_arguments_are_named():
  for name, call in {
    'decay: got 1.0': lambda: noise_scale_tracker(decay=1.0),
    'groups: got 2': lambda: noise_scale_tracker(groups=2),
    'confidence: got 2': lambda: tracked_noise_scale(
      noise_scale_tracker().init(1.0), confidence=2
    ),
    'big: got 1': lambda: noise_scale_tracker().update(
      noise_scale_tracker().init(1.0), 1.0, 1.0, 1, 1
    ),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
