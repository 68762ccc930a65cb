"""The optimum of a grid: planted parabolas, edges, divergence, coverage."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.scaling import optimal_learning_rate

RATES = np.geomspace(1e-3, 1, 13)


def parabola(vertex, width=1.0, floor=2.0, rates=RATES):
  """Losses whose logarithm is a parabola in that of the learning rate."""
  return floor * np.exp(np.log(rates / vertex) ** 2 / (2 * width**2))


@settings(max_examples=20, deadline=None)
@given(
  vertex=st.floats(2e-3, 0.5), width=st.floats(0.5, 3), seed=st.integers(0, 9)
)
def test_a_parabola_is_found_exactly(vertex, width, seed):
  rng = np.random.default_rng(seed)
  # Unequal steps.
  rates = RATES * np.exp(0.1 * rng.uniform(-1, 1, RATES.size))
  with jax.enable_x64(True):
    losses = parabola(vertex, width, rates=rates)[None]
    found = optimal_learning_rate(rates, losses, resamples=1)
  np.testing.assert_allclose(found.learning_rate, vertex, rtol=1e-9)
  assert not found.at_edge
  # One seed does not know its noise.
  assert np.isnan(found.low) and np.isnan(found.high)


def test_edges_and_divergence():
  rising, falling = parabola(1e-4), parabola(30.0)
  diverged = parabola(0.1)
  best = np.argmin(diverged)
  diverged[best + 1 :] = [np.inf, np.nan] * 2 + [np.inf] * (
    len(RATES) - best - 5
  )
  nothing = np.full_like(RATES, np.nan)
  losses = np.stack([rising, falling, diverged, nothing])[:, None]
  found = optimal_learning_rate(RATES, losses, resamples=1)
  np.testing.assert_array_equal(found.at_edge, [True, True, False, True])
  expected = [RATES[0], RATES[-1], RATES[best], np.nan]
  np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-5)


def test_one_diverged_seed_is_a_diverged_rate():
  losses = np.stack([parabola(0.1), parabola(0.1)])
  best = np.argmin(losses[0])
  losses[1, best + 1] = np.inf
  found = optimal_learning_rate(RATES, losses)
  np.testing.assert_allclose(found.learning_rate, RATES[best], rtol=1e-5)
  # Resamples without that seed have their parabola: the interval knows both.
  np.testing.assert_allclose(
    sorted([found.low, found.high]), sorted([RATES[best], 0.1]), rtol=1e-4
  )


@jax.jit
def noisy_optima(keys):
  """Six seeds with a common shift each, and noise of their own."""

  def one(key):
    shift, noise, boot = jax.random.split(key, 3)
    losses = jnp.asarray(parabola(0.1), jnp.float32)
    logs = (
      jnp.log(losses)
      + 0.1 * jax.random.normal(shift, (6, 1))
      + 0.01 * jax.random.normal(noise, (6, 13))
    )
    return optimal_learning_rate(RATES, jnp.exp(logs), key=boot, resamples=300)

  return jax.vmap(one)(keys)


def test_the_interval_covers():
  """The percentile bootstrap of six covers about 88 of 95 per cent."""
  found = noisy_optima(jax.random.split(jax.random.key(0), 400))
  covered = np.mean((found.low < 0.1) & (0.1 < found.high))
  assert 0.82 < covered < 0.97
  # Seeds drawn whole: their shift, ten times the noise, cancels.
  width = np.median(np.log(found.high / found.low))
  scatter = np.std(np.log(found.learning_rate))
  assert 2.5 * scatter < width < 4.5 * scatter
  assert scatter < 0.05


def test_batch_axes_own_grids_and_all_ways_to_run():
  vertices = np.geomspace(0.01, 0.1, 8)
  own = np.float32(RATES * vertices[:, None] / 0.03)
  losses = np.float32(
    [
      [parabola(v, floor=f, rates=r) for f in (2.0, 2.1)]
      for v, r in zip(vertices, own, strict=True)
    ]
  )
  run = functools.partial(optimal_learning_rate, resamples=20)
  found = run(own, losses)
  np.testing.assert_allclose(found.learning_rate, vertices, rtol=1e-3)
  # [seeds, batches, rates].
  other = run(own, np.moveaxis(np.moveaxis(losses, 1, 0), 0, -2))
  chex.assert_trees_all_equal(other, found)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  each = jax.vmap(run)
  sharded = jax.shard_map(each, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  chex.assert_trees_all_close(jax.jit(sharded)(own, losses), found, rtol=1e-5)


@pytest.mark.parametrize(
  'rates, losses, name',
  [
    (np.float32(0.1), RATES[None], 'learning_rates'),
    (RATES[:2], RATES[None, :2], 'learning_rates'),
    (-RATES, RATES[None], 'learning_rates'),
    (RATES[::-1], RATES[None], 'learning_rates'),
    (RATES, RATES, 'losses'),
    (RATES, RATES[None, 1:], 'losses'),
    (RATES, RATES[None][:0], 'losses'),
    (RATES, 1 - RATES[None], 'losses'),
  ],
)
def test_wrong_grids_are_named(rates, losses, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    optimal_learning_rate(rates, losses)


@pytest.mark.parametrize('option', [{'resamples': 0}, {'confidence': 1.0}])
def test_wrong_options_are_named(option):
  with pytest.raises(ValueError, match=f'^{[*option][0]}: got'):
    optimal_learning_rate(RATES, RATES[None], **option)
