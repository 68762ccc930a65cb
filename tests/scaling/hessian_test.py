"""Diagonal and row norms of real Hessians, and the table of slopes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import (
  adam_hessian_alignment,
  hessian_diagonal,
  hessian_row_norms,
)

KEY = jax.random.key(0)
ESTIMATORS = (hessian_diagonal, hessian_row_norms)


def loss(params, x):
  return jnp.mean(jnp.sin(x @ params['w']) @ params['v'] + x[:, 0] ** 2) ** 2


@functools.cache
def network():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {'w': normal(3, 2), 'v': normal(2)}, normal(16, 3)


@functools.cache
def draws(estimator):
  """Estimates of 20000 keys with two probes each, flat."""
  params, x = network()
  estimate = lambda key: estimator(loss, params, x, key=key, probes=2)
  found = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 20_000))
  flat = [np.float64(v).reshape(20_000, -1) for v in jax.tree.leaves(found)]
  return np.concatenate(flat, axis=1)


def exact():
  params, x = network()
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  return np.float64(jax.hessian(lambda p: loss(unravel(p), x))(flat))


def test_diagonal_is_unbiased_with_the_variance_it_says():
  h, found = exact(), draws(hessian_diagonal)
  variance = (np.sum(h**2, axis=1) - np.diag(h) ** 2) / 2
  error = np.abs(found.mean(axis=0) - np.diag(h))
  assert np.all(error < 4.5 * np.sqrt(variance / 20_000))
  np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.1)
  # Hutchinson's trace is the sum.
  trace = found.sum(axis=1)
  variance = (np.sum(h**2) - np.sum(np.diag(h) ** 2)) * 2 / 2
  assert abs(trace.mean() - np.trace(h)) < 4 * np.sqrt(variance / 20_000)
  np.testing.assert_allclose(trace.var(), variance, rtol=0.1)


def test_squares_of_row_norms_are_unbiased():
  h, found = exact(), draws(hessian_row_norms) ** 2
  expected = np.sum(h**2, axis=1)
  deviation = found.std(axis=0) / np.sqrt(20_000)
  assert np.all(np.abs(found.mean(axis=0) - expected) < 4.5 * deviation)
  # They are not the diagonal.
  assert np.all(expected > 1.1 * np.diag(h) ** 2)


def test_one_device_is_eight():
  params, x = network()
  # A loss that is a mean, so that the devices' mean is the whole.
  mean_loss = lambda params, x: jnp.mean(
    (jnp.sin(x @ params['w']) @ params['v'] + x[:, 0] ** 2) ** 2
  )

  def run(params, x, axis_name='data'):
    return [
      estimator(mean_loss, params, x, key=KEY, probes=3, axis_name=axis_name)
      for estimator in ESTIMATORS
    ]

  expected = jax.jit(functools.partial(run, axis_name=None))(params, x)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    run, mesh=mesh, in_specs=(P(), P('data')), out_specs=P()
  )
  chex.assert_trees_all_close(jax.jit(mapped)(params, x), expected, rtol=1e-4)
  shards = x.reshape(8, 2, 3)
  found = jax.pmap(run, 'data', in_axes=(None, 0))(params, shards)
  found = jax.tree.map(lambda v: v[0], found)
  chex.assert_trees_all_close(found, expected, rtol=1e-4)


def stationary(noise_power):
  """Mean squares of gradients where SGD with a diagonal Hessian ends up."""
  h = np.geomspace(0.01, 1, 40)
  rate, batch = 1e-5, 8
  noise = h ** (2 * noise_power)
  spread = rate * noise / (batch * h * (2 - rate * h))
  return h, h**2 * spread, h**2 * spread + noise / batch


@pytest.mark.parametrize(
  'noise_power, full_batch, minibatch',
  [(0, 0.5, 0.0), (0.5, 1.0, 0.5), (1, 1.5, 1.0)],
)
def test_slopes_of_sgd(noise_power, full_batch, minibatch):
  with jax.enable_x64(True):
    h, full, mini = stationary(noise_power)
    for square, slope in ((full, full_batch), (mini, minibatch)):
      found = adam_hessian_alignment(square, -h, h)
      np.testing.assert_allclose(found.diagonal.slope, slope, atol=5e-4)
      np.testing.assert_allclose(found.row_norm, found.diagonal)
      if slope:
        np.testing.assert_allclose(found.diagonal.correlation, 1, atol=1e-6)


def test_isotropic_parameters_give_row_norms():
  """E[g g^T] = s^2 H^2: slope 1 against the norms of the rows alone."""
  rng = np.random.default_rng(1)
  d = np.geomspace(0.01, 1, 60)
  turned = np.eye(60) + 0.02 * rng.normal(size=(60, 60))
  q, _ = np.linalg.qr(turned)
  h = (q * d) @ q.T
  g = rng.normal(size=(20_000, 60)) @ h
  rows = np.linalg.norm(h, axis=1)
  found = adam_hessian_alignment(np.mean(g**2, axis=0), np.diag(h), rows)
  np.testing.assert_allclose(found.row_norm, (1, 1), atol=0.01)
  assert float(found.diagonal.slope) < 0.9
  root = np.sqrt(np.mean(g**2, axis=0))
  expected = np.polyfit(np.log(np.abs(np.diag(h))), np.log(root), 1)[0]
  np.testing.assert_allclose(found.diagonal.slope, expected, rtol=1e-4)
  correlation = np.corrcoef(np.log(np.abs(np.diag(h))), np.log(root))[0, 1]
  np.testing.assert_allclose(found.diagonal[1], correlation, rtol=1e-4)


def test_dead_entries_are_left_out():
  v, h = jnp.array([1.0, 4.0, 0.0, 16.0]), jnp.array([1.0, 2.0, 3.0, 4.0])
  found = adam_hessian_alignment({'a': v}, {'a': h}, {'a': h.at[1].set(0)})
  np.testing.assert_allclose(found.diagonal, (1, 1), rtol=1e-5)
  np.testing.assert_allclose(found.row_norm, (1, 1), rtol=1e-5)
  found = adam_hessian_alignment(0 * v, h, h)
  assert all(np.isnan(jax.tree.leaves(found)))


def test_wrong_arguments_are_named():
  params, x = network()
  for estimator in ESTIMATORS:
    with pytest.raises(ValueError, match='^probes: got 0'):
      estimator(loss, params, x, key=KEY, probes=0)
    with pytest.raises(ValueError, match='^batch: got'):
      estimator(loss, params, (x, x[:2]), key=KEY, probes=1)
  one, two = jnp.ones(1), jnp.ones(2)
  with pytest.raises(ValueError, match='^hessian_diagonal: got'):
    adam_hessian_alignment(one, two, one)
  with pytest.raises(ValueError, match='^hessian_row_norms: got'):
    adam_hessian_alignment(one, one, two)
