"""Declared varying, with one device and with eight; means and sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.mapped_axes import devices_along, mean_over, sum_over, vary_together


@jax.custom_vjp
def product(w, x):
  return w * x


product.defvjp(
  lambda w, x: (w * x, (w, x)),
  lambda pair, g: (jnp.sum(g * pair[1]), g * pair[0]),
)


def test_without_devices_nothing_happens():
  assert vary_together(1.0, 2.0) == (1.0, 2.0)
  assert jax.jit(lambda a, b: sum(vary_together(a, b)))(1.0, 2.0) == 3
  tree = {'x': 3.0}
  assert mean_over(tree, None) is sum_over(tree, None) is tree
  assert devices_along(None) == 1


def test_means_and_sums_over_two_axes():
  def measured(x):
    names = ('a', 'b')
    tree = {'x': x}
    count = devices_along(names)
    return mean_over(tree, names)['x'], sum_over(tree, names)['x'] / count

  mapped = jax.vmap(jax.vmap(measured, axis_name='b'), axis_name='a')
  x = jnp.arange(6.0).reshape(2, 3)
  for value in mapped(x):
    np.testing.assert_allclose(value, 2.5)


@pytest.mark.parametrize('shape', [(8,), (2, 4)])
def test_the_gradient_of_what_does_not_vary_is_a_sum(shape):
  names = ('a', 'b')[: len(shape)]
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  mesh = jax.make_mesh(shape, names, auto)
  mapped = functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(P(), P(names)), out_specs=P()
  )
  x = jnp.arange(16.0)

  def gradient(w, x):
    return jax.grad(lambda w: product(*vary_together(w, x)).sum())(w)

  np.testing.assert_array_equal(jax.jit(mapped(gradient))(2.0, x), x.sum())
  wrong = lambda w, x: jax.grad(lambda w: product(w, x).sum())(w)
  with pytest.raises((TypeError, ValueError)):
    jax.jit(mapped(wrong))(2.0, x)
