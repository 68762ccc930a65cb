"""Local gradients where jax would add them up, and sums in single precision."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import hessian_vector_product, squared_norms
from kexue.scaling.gradients import (
  inner_product,
  local_gradient_and_product,
  local_value_and_grad,
)


def loss(params, batch):
  """Two layers, whose gradient and Hessian differ from example to example."""
  hidden = jnp.tanh(batch['x'] @ params['w'])
  return jnp.mean((hidden @ params['v'] - batch['y']) ** 2)


def network():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'w': normal(3, 4), 'v': normal(4)}
  direction = {'w': normal(3, 4), 'v': normal(4)}
  return params, {'x': normal(16, 3), 'y': normal(16)}, direction


def on_devices(how, function, out):
  """`function(params, batch shard)` on eight devices."""
  if how == 'pmap':
    mapped = jax.pmap(function, 'data', in_axes=(None, 0))
    split = lambda x: x.reshape(8, -1, *x.shape[1:])
    return lambda params, batch: mapped(params, jax.tree.map(split, batch))
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  return jax.jit(
    jax.shard_map(
      function,
      mesh=mesh,
      in_specs=(P(), P('data')),
      out_specs=out,
      check_vma=how == 'shard_map',
    )
  )


@pytest.mark.parametrize('how', ['shard_map', 'unchecked', 'pmap'])
def test_gradients_are_of_this_device_alone(how):
  params, batch, _ = network()
  rows = lambda g: jax.tree.map(lambda x: x[None], g)
  local = lambda p, b: rows(local_value_and_grad(loss, p, b)[1])
  found = on_devices(how, local, P('data'))(params, batch)
  if how == 'pmap':
    found = jax.tree.map(lambda x: x[:, 0], found)
  split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
  expected = jax.vmap(jax.grad(loss), (None, 0))(params, split)
  chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_what_jax_does_by_itself_is_the_sum():
  params, batch, _ = network()
  rows = lambda g: jax.tree.map(lambda x: x[None], g)
  plain = lambda p, b: rows(jax.grad(loss)(p, b))
  found = on_devices('shard_map', plain, P(None))(params, batch)
  split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
  each = jax.vmap(jax.grad(loss), (None, 0))(params, split)
  total = jax.tree.map(lambda x: jnp.sum(x, axis=0)[None], each)
  chex.assert_trees_all_close(found, total, atol=1e-4)


def test_hessian_vector_product_is_the_hessian_times_the_vector():
  params, batch, direction = network()
  flat, unravel = jax.flatten_util.ravel_pytree(params)
  vector, _ = jax.flatten_util.ravel_pytree(direction)
  product = functools.partial(hessian_vector_product, loss)
  expected, found, both, gradient = jax.jit(
    lambda: (
      unravel(jax.hessian(lambda p: loss(unravel(p), batch))(flat) @ vector),
      product(params, batch, direction),
      local_gradient_and_product(loss, params, batch, direction),
      jax.grad(loss)(params, batch),
    )
  )()
  chex.assert_trees_all_close(found, expected, atol=1e-4)
  chex.assert_trees_all_close(both, (gradient, found), atol=1e-6)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), direction)
  found = jax.eval_shape(product, params, batch, half)
  chex.assert_trees_all_equal_dtypes(found, params)


@pytest.mark.parametrize('how', ['shard_map', 'pmap'])
def test_hessian_vector_product_over_devices(how):
  params, batch, direction = network()
  product = functools.partial(hessian_vector_product, vector=direction)
  mean = lambda p, b: product(loss, p, b, axis_name='data')
  found = on_devices(how, mean, P())(params, batch)
  if how == 'pmap':
    found = jax.tree.map(lambda x: x[0], found)
  expected = product(loss, params, batch)
  chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_sums_are_in_single_precision_or_better():
  x = jnp.full(10_000, 1.4921875, jnp.bfloat16)
  exact = 10_000 * float(x[0]) ** 2
  norms = squared_norms({'x': x, 'integer': jnp.arange(4)})
  np.testing.assert_allclose(norms['x'], exact, rtol=1e-5)
  assert norms['integer'] == 14
  np.testing.assert_allclose(
    inner_product((x, x), (x, x)), 2 * exact, rtol=1e-5
  )
  # The wrong way: squares that are rounded to eight bits.
  squares = np.square(np.asarray(x)).astype(np.float64)
  assert abs(squares.sum() / exact - 1) > 1e-3
  with jax.enable_x64(True):
    assert squared_norms(jnp.ones(3, jnp.float64)).dtype == jnp.float64


def test_large_gradients_overflow_to_infinity_as_documented():
  assert float(squared_norms(jnp.array([1e18]))) < np.inf
  assert float(squared_norms(jnp.array([1e20]))) == np.inf
  assert float(squared_norms(jnp.array([1e-30]))) == 0
