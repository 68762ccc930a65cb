"""Manhattan and preconditioned noise scales: worked example and bounds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import preconditioned_noise_scale, sign_noise_scale

GRADIENTS = np.array([[1.0, 2, 0], [0, 1, -1], [2, 0, 1], [1, 1, 0]])


def loss(w, x):
  """An example's gradient is the example."""
  return jnp.mean(x @ w)


@pytest.mark.usefixtures('double')
def test_worked_example():
  x = np.repeat(GRADIENTS, 2, axis=0)
  found = sign_noise_scale(loss, jnp.zeros(3), x, microbatches=4)
  np.testing.assert_allclose(found.scale, 3)
  np.testing.assert_allclose(found.noise_l1, 3 * 1.1547005, rtol=5e-8)
  np.testing.assert_allclose(found.gradient_l1, 2)
  # Even and odd microbatches: (1.5, 1, .5) and (.5, 1, -.5).
  np.testing.assert_allclose(found.cross_l1, (1.0 + 2.0) / 2)
  np.testing.assert_allclose(found.scale_above, (3 * 1.1547005 / 1.5) ** 2)


def test_the_truth_lies_between(problem):
  """The plug-in norm of the gradient is too long, that across halves short."""
  g, deviation, _ = problem.values()
  rng = np.random.default_rng(0)
  x = rng.normal(g, deviation, (5000, 64, 4)).astype(np.float32)
  estimate = functools.partial(
    sign_noise_scale, loss, jnp.zeros(4), microbatches=64
  )
  found = jax.jit(jax.vmap(estimate))(x)
  length, noise = np.sum(np.abs(g)), np.sum(deviation)
  np.testing.assert_allclose(np.mean(found.noise_l1), noise, rtol=0.01)
  assert np.mean(found.gradient_l1) > 1.03 * length
  assert np.mean(found.cross_l1) < 0.95 * length
  above = np.mean(found.noise_l1) / np.mean(found.cross_l1)
  below = np.mean(found.noise_l1) / np.mean(found.gradient_l1)
  assert below < noise / length < above


def test_small_noise_on_a_large_gradient():
  """Where a sum of squares minus a square knows nothing in float32."""
  rng = np.random.default_rng(1)
  x = np.float32(1000 + 0.01 * rng.normal(size=(16, 50)))
  run = functools.partial(sign_noise_scale, loss, microbatches=16)
  found = jax.jit(run)(jnp.zeros(50), x)
  exact = np.sum(np.std(np.float64(x), axis=0, ddof=1))
  np.testing.assert_allclose(found.noise_l1, exact, rtol=1e-2)
  naive = np.sum(x**2, axis=0) - 16 * np.mean(x, axis=0) ** 2
  wrong = np.sum(np.sqrt(np.maximum(naive / 15, 0)))
  assert abs(wrong / exact - 1) > 0.5


def test_preconditioned_is_the_noise_scale_of_scaled_gradients():
  x, v = np.repeat(GRADIENTS, 2, axis=0), np.array([4.0, 0.25, 0.0])
  run = functools.partial(
    preconditioned_noise_scale, loss, jnp.zeros(3), microbatches=4
  )
  run = jax.jit(run, static_argnames='eps')
  scaled = GRADIENTS / (np.sqrt(v) + 0.5)
  big = np.sum(scaled.mean(axis=0) ** 2)
  trace = 2 * np.sum(np.var(scaled, axis=0, ddof=1))
  square = big - trace / 8
  expected = trace / square, square, trace
  np.testing.assert_allclose(run(x, v, eps=0.5), expected, rtol=1e-5)
  # An entry that nothing ever moved has no scale, and no part.
  found, without = run(x, v, eps=0.0), run(x * [1, 1, 0], v, eps=0.0)
  chex.assert_trees_all_close(found, without, rtol=1e-6)
  # All alike it is the plain one.
  found = run(x, np.full(3, 9.0))
  np.testing.assert_allclose(found.scale, 4 / 1.5, rtol=1e-5)


def test_one_device_is_eight():
  rng = np.random.default_rng(2)
  x = np.float32(rng.normal(0.5, 1, (32, 3)))
  w, v = jnp.zeros(3), jnp.array([1.0, 4.0, 0.1])

  def run(x, microbatches=2, axis_name='data'):
    options = dict(microbatches=microbatches, axis_name=axis_name)
    return (
      sign_noise_scale(loss, w, x, **options),
      preconditioned_noise_scale(loss, w, x, v, **options),
    )

  # Microbatches of a device alternate between halves, as on one device.
  expected = jax.jit(lambda x: run(x, 16, None))(x)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=P())
  chex.assert_trees_all_close(jax.jit(mapped)(x), expected, rtol=1e-4)
  found = jax.pmap(run, 'data')(x.reshape(8, 4, 3))
  found = jax.tree.map(lambda v: v[0], found)
  chex.assert_trees_all_close(found, expected, rtol=1e-4)


def test_wrong_arguments_are_named():
  x, w = jnp.ones((6, 3)), jnp.zeros(3)
  for name, call in {
    'microbatches: got 3, expected an even': lambda: sign_noise_scale(
      loss, w, x, microbatches=3
    ),
    'microbatches: got 4': lambda: sign_noise_scale(loss, w, x, microbatches=4),
    'eps: got -1': lambda: preconditioned_noise_scale(
      loss, w, x, w, microbatches=2, eps=-1
    ),
    'big: got 6': lambda: preconditioned_noise_scale(
      loss, w, x, w, microbatches=1
    ),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
