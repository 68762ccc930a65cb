"""Every way of rows to their experts, over one device and over eight."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.models.expert_paths import (
  to_blocks,
  to_capacity,
  to_devices,
  to_ragged,
)

RNG = np.random.default_rng(0)
EXPERTS, ROWS = 4, 24
WEIGHTS = jnp.array(RNG.normal(size=(ROWS, 2)), jnp.float32)


def expert(matmul, params, x):
  """With a bias, as a product with ones."""
  hidden = matmul(x, params['a']) + matmul(
    jnp.ones_like(x[..., :1]), params['c']
  )
  return matmul(jnp.tanh(hidden), params['b'])


def problem(experts=EXPERTS):
  shapes = {
    'a': (experts, 3, 5),
    'b': (experts, 5, 2),
    'c': (experts, 1, 5),
  }
  params = {
    name: jnp.array(RNG.normal(size=shape), jnp.float32)
    for name, shape in shapes.items()
  }
  return params, jnp.array(RNG.normal(size=(ROWS, 3)), jnp.float32)


def oracle(params, rows, chosen, capacity=ROWS):
  """One row after the other, in float64."""
  a, b, c = (np.asarray(params[n], np.float64) for n in 'abc')
  out, taken = np.zeros((len(rows), 2)), np.zeros(len(a), int)
  for i, e in enumerate(chosen):
    if e < len(a) and taken[e] < capacity:
      out[i] = np.tanh(rows[i] @ a[e] + c[e][0]) @ b[e]
      taken[e] += 1
  return out


def copies(params, rows, chosen):
  """A copy of the parameters for each row, as an oracle of gradients."""
  own = jax.tree.map(lambda p: p[chosen], params)
  out = jax.vmap(lambda p, x: expert(jnp.matmul, p, x[None])[0])(own, rows)
  return jnp.where((chosen < EXPERTS)[:, None], out, 0)


PATHS = {
  'blocks': lambda p: functools.partial(to_blocks, expert, p, EXPERTS, 5),
  'ragged': lambda p: functools.partial(to_ragged, expert, p, EXPERTS),
  'capacity': lambda p: functools.partial(
    to_capacity, expert, p, EXPERTS, ROWS, None
  ),
  'copies': lambda p: functools.partial(copies, p),
}


@jax.jit
def every(params, rows, chosen):
  """Values and gradients of all paths, in one program."""

  def of(path):
    def loss(params, rows):
      out = path(params)(rows, chosen)
      return jnp.sum(out * WEIGHTS), out

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, rows)

  return {name: of(path) for name, path in PATHS.items()}


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(
  st.lists(st.integers(0, EXPERTS), min_size=ROWS, max_size=ROWS)
)
@hypothesis.example([2] * ROWS)
@hypothesis.example([EXPERTS] * ROWS)
@hypothesis.example([0, 3] * (ROWS // 2))
def test_all_paths_agree(chosen):
  params, rows = problem()
  found = every(params, rows, jnp.array(chosen))
  expected = found.pop('copies')
  for (_, out), gradients in found.values():
    np.testing.assert_allclose(
      out, oracle(params, rows, chosen), rtol=1e-4, atol=1e-5
    )
    for a, b in zip(
      *map(jax.tree.leaves, (gradients, expected[1])), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('capacity', [1, 4])
def test_capacity_takes_the_first(capacity):
  params, rows = problem()
  chosen = RNG.integers(0, EXPERTS + 1, ROWS)
  found = to_capacity(
    expert, params, EXPERTS, capacity, None, rows, jnp.array(chosen)
  )
  expected = oracle(params, rows, chosen, capacity)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert np.any(found == 0) and np.any(found != 0)


def over_devices(mesh, experts, capacity):
  """Values and gradients with rows and experts split over "expert"."""
  devices = mesh.shape['expert']
  own = experts // devices
  axes, room = mesh.axis_names, 6  # All that a device has.

  def path(params, rows, chosen):
    if capacity is None:
      local = functools.partial(to_blocks, expert, params, own, 5)
      send = functools.partial(to_devices, local, experts, room, 'expert')
    else:
      send = functools.partial(
        to_capacity, expert, params, experts, capacity, 'expert'
      )
    return send(rows, chosen)

  return jax.shard_map(
    path,
    mesh=mesh,
    in_specs=(P('expert'), P(axes), P(axes)),
    out_specs=P(axes),
  )


@pytest.mark.parametrize(('shape', 'capacity'), [((1, 8), None), ((2, 4), 6)])
def test_over_devices_and_data(shape, capacity):
  """Eight experts; a capacity of all rows of a device drops nothing."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh(shape, ('data', 'expert'), auto)
  params, rows = problem(8)
  rows = jnp.concatenate([rows, rows[::-1]])
  mapped = over_devices(mesh, 8, capacity)
  weights = jnp.concatenate([WEIGHTS, 2 * WEIGHTS])

  @jax.jit
  def both(params, rows, chosen):
    def loss(params, rows):
      out = mapped(params, rows, chosen)
      return jnp.sum(out * weights), out

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, rows)

  @jax.jit
  def alone(params, rows, chosen):
    path = functools.partial(to_blocks, expert, params, 8, 5)
    loss = lambda p, r: jnp.sum(to_blocks(expert, p, 8, 5, r, chosen) * weights)
    return path(rows, chosen), jax.grad(loss, (0, 1))(params, rows)

  one_device = np.concatenate([[0] * 3 + [8] * 3, np.arange(6)] * 4)
  for chosen in (RNG.integers(0, 9, 48), np.full(48, 5), one_device):
    expected, gradients = alone(params, rows, jnp.array(chosen))
    (_, found), moved = both(params, rows, jnp.array(chosen))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (moved, gradients)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
