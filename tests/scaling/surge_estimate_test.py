"""The surge index of P1, whose noise is independent or correlated."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import SurgeIndex, surge_index_estimate

PAIRS = 10_000


def quadratic(hessian):
  """At zero, an example's gradient is the example."""
  hessian = jnp.asarray(hessian, jnp.float32)
  return lambda w, x: jnp.mean(x @ w) + 0.5 * w @ hessian @ w


def gaussian(problem, correlation):
  g, deviation, hessian = problem.values()
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(2 * PAIRS, 4)) @ np.linalg.cholesky(correlation).T
  return np.float32(g + noise * deviation), hessian


@pytest.mark.parametrize('correlated', [False, True])
def test_p1(problem, correlation, correlated):
  correlation = correlation if correlated else np.eye(4)
  x, hessian = gaussian(problem, correlation)
  run = functools.partial(
    surge_index_estimate, quadratic(hessian), jnp.zeros(4)
  )
  found = jax.jit(lambda x: run(x, pairs=PAIRS, hessian_batch=x[:1]))(x)
  exact = 2 / np.pi * np.sum(np.arcsin(correlation) * hessian)
  np.testing.assert_allclose(exact, 21 if correlated else 13)
  sign = np.sign(x[0::2] - x[1::2])
  each = np.sum((sign @ hessian) * sign, axis=1)
  np.testing.assert_allclose(found.noise_trace, np.mean(each), rtol=1e-4)
  error = np.std(each) / np.sqrt(PAIRS)
  assert abs(found.noise_trace - exact) < 4 * error
  assert float(found.aligned) == 37
  index = 0.88095238 if correlated else 37 / 26
  np.testing.assert_allclose(found.index, index, atol=0.02)
  if correlated:
    # The wrong way, the trace, sees a surge where the index is below one.
    assert found.index < 1 < found.aligned / (2 * np.trace(hessian))


def test_a_part_of_the_batch_is_left_to_the_hessian(problem):
  """Its second half: its examples alone curve the loss."""
  x = np.ones((8, 4), np.float32)
  x[1::2] = -2
  curve = np.repeat(np.float32([0.0, 1.0]), 4)

  def loss(w, batch):
    x, curve = batch
    return jnp.mean(x @ w) + 0.5 * jnp.mean(curve) * w @ w

  run = functools.partial(surge_index_estimate, loss, jnp.zeros(4), pairs=2)
  found = jax.jit(run)((x, curve))
  np.testing.assert_allclose(found, (0.5, 4, 4))
  swapped = jax.jit(run)((x, curve[::-1]))
  assert float(swapped.aligned) == 0 and np.isinf(swapped.index)


def test_one_device_is_eight():
  rng = np.random.default_rng(2)
  x = np.float32(rng.normal(0.5, 1, (32, 3)))
  other = np.float32(rng.normal(size=(8, 3)))
  w = jnp.array([1.0, -0.5, 0.3])
  loss = lambda w, x: jnp.mean((x @ w) ** 4)
  split = lambda x: x.reshape(8, -1, 3)

  @jax.jit
  def single(x, other):
    estimate = functools.partial(surge_index_estimate, loss, w)
    aligned = estimate(x, pairs=8, hessian_batch=other).aligned
    # A device's own Hessian goes with its own pairs.
    each = lambda x, other: estimate(x, hessian_batch=other).noise_trace
    traces = jax.vmap(each)(split(x), split(other))
    return SurgeIndex.from_moments(aligned, jnp.mean(traces))

  expected = single(x, other)

  def run(x, other):
    return surge_index_estimate(
      loss, w, x, hessian_batch=other, axis_name='data'
    )

  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=P())
  chex.assert_trees_all_close(jax.jit(mapped)(x, other), expected, rtol=1e-4)
  found = jax.pmap(run, 'data')(split(x), split(other))
  found = jax.tree.map(lambda v: v[0], found)
  chex.assert_trees_all_close(found, expected, rtol=1e-4)


def test_wrong_arguments_are_named():
  x = jnp.ones((8, 4))
  run = functools.partial(
    surge_index_estimate, quadratic(np.eye(4)), jnp.zeros(4)
  )
  for name, call in {
    'pairs: got 0': lambda: run(x, pairs=0),
    'pairs: got 6': lambda: run(x, pairs=3),
    'batch: got 7': lambda: run(x[:7]),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
