"""What varies over devices, before a derivative of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.models.varying import vary_together

pytestmark = pytest.mark.usefixtures('quick_compilation')


@jax.custom_vjp
def product(w, x):
  return w * x


product.defvjp(
  lambda w, x: (w * x, (w, x)),
  lambda pair, g: (jnp.sum(g * pair[1]), g * pair[0]),
)


def test_without_devices_nothing_happens():
  assert vary_together(1.0, 2.0) == [1.0, 2.0]
  assert jax.jit(lambda a, b: sum(vary_together(a, b)))(1.0, 2.0) == 3


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
