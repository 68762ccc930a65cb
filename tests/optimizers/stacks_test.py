"""Stacks of matrices: strategies, groups, devices and where they talk."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kexue.optimizers import (
  distributed_newton_schulz,
  msign,
  newton_schulz,
  scale_by_muon,
)
from kexue.optimizers.stacks import map_matrices

COLLECTIVES = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scat'


def gaussian(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def mesh(shape=(8,), names=('data',), kind=jax.sharding.AxisType.Auto):
  return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def collectives(text):
  """Collectives of a compiled program: all, and inside loops and branches."""
  computations, inner = {}, set()
  for block in re.split(r'\n\n', text):
    name = re.match(r'\s*(ENTRY )?%?([\w.\-]+)', block)
    if name:
      computations[name.group(2)] = block
    inner |= set(re.findall(r'(?:body|_computation)=%?([\w.\-]+)', block))
    for branches in re.findall(r'branch_computations={([^}]*)}', block):
      inner |= set(re.findall(r'%?([\w.\-]+)', branches))
  found = re.compile(rf' ({COLLECTIVES})[\w-]*\(')
  count = lambda blocks: sum(len(found.findall(b)) for b in blocks)
  return count(computations.values()), count(
    block for name, block in computations.items() if name in inner
  )


@pytest.mark.parametrize('size', [1, 2, 3, None])
@pytest.mark.parametrize('strategy', ['loop', 'batched', 'auto'])
def test_every_matrix_is_mapped_alone(strategy, size):
  stacks = [gaussian(7, 4, 6), gaussian(1, 5, 5), gaussian(2, 4, 6, seed=1)]
  results = map_matrices(
    newton_schulz, stacks, strategy=strategy, stack_size=size
  )
  for stack, result in zip(stacks, results, strict=True):
    each = jnp.stack([newton_schulz(x) for x in stack])
    np.testing.assert_allclose(result, each, atol=1e-5)


def test_no_more_than_the_stack_size_at_a_time():
  seen = []

  def spy(x):
    seen.append(x.shape)
    return x

  map_matrices(spy, [gaussian(7, 4, 6)], strategy='batched', stack_size=3)
  assert set(seen) == {(3, 4, 6), (1, 4, 6)}
  seen.clear()
  map_matrices(spy, [gaussian(7, 4, 6)], strategy='loop', stack_size=3)
  assert set(seen) == {(4, 6)}


def test_the_dtype_of_the_stack_is_kept():
  (result,) = map_matrices(msign, [gaussian(9, 4, 6).astype(jnp.bfloat16)])
  assert result.dtype == jnp.bfloat16


@pytest.mark.parametrize('length', [3, 8, 13])
@pytest.mark.parametrize('strategy', ['loop', 'batched'])
def test_devices_share_a_stack(strategy, length):
  x = gaussian(length, 6, 20)
  expected = newton_schulz(x)
  f = functools.partial(
    distributed_newton_schulz, axis_name='data', strategy=strategy
  )
  spec = PartitionSpec()
  mapped = jax.shard_map(f, mesh=mesh(), in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(jax.jit(mapped)(x), expected, atol=1e-5)
  pmapped = jax.pmap(lambda _, x: f(x), 'data', in_axes=(0, None))(
    jnp.arange(8), x
  )
  np.testing.assert_allclose(pmapped[5], expected, atol=1e-5)
  for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
    jitted = jax.jit(functools.partial(f, mesh=mesh(kind=kind)))
    np.testing.assert_allclose(jitted(x), expected, atol=1e-5)


def test_two_axes_share_a_stack():
  x, names = gaussian(5, 6, 20), ('data', 'model')
  f = functools.partial(distributed_newton_schulz, axis_name=names)
  grid = mesh((4, 2), names)
  spec = PartitionSpec()
  mapped = jax.shard_map(f, mesh=grid, in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(mapped(x), newton_schulz(x), atol=1e-5)
  jitted = jax.jit(functools.partial(f, mesh=grid))(x)
  np.testing.assert_allclose(jitted, newton_schulz(x), atol=1e-5)


def test_half_precision_is_cast_at_any_scale():
  x = gaussian(3, 6, 20)
  for scale in (1e-20, 1e20):
    signs = distributed_newton_schulz(
      x * scale, axis_name='data', mesh=mesh(), dtype=jnp.float16
    )
    assert signs.dtype == jnp.float16
    np.testing.assert_allclose(signs, newton_schulz(x), atol=0.02)
  whole = jnp.ones((2, 3, 3), jnp.int32)
  signs = distributed_newton_schulz(whole, axis_name='data', mesh=mesh())
  np.testing.assert_allclose(signs, np.full((2, 3, 3), 1 / 3), atol=1e-3)


@pytest.mark.parametrize('with_mesh', [True, False])
def test_devices_talk_once_a_shape_and_never_inside(with_mesh):
  grads = {
    'squares': [gaussian(300, 300, seed=i) for i in range(3)],
    'wide': [gaussian(6, 20, seed=i) for i in range(9)],
  }
  tx = scale_by_muon(axis_name='data', mesh=mesh() if with_mesh else None)
  state = tx.init(grads)
  update = lambda g: tx.update(g, state)[0]
  if not with_mesh:
    spec = PartitionSpec()
    update = jax.shard_map(
      update, mesh=mesh(), in_specs=spec, out_specs=spec, check_vma=True
    )
  program = jax.jit(update).lower(grads).compile()
  total, inside = collectives(program.as_text())
  assert inside == 0 and total == 2
  plain = scale_by_muon()
  expected, _ = plain.update(grads, plain.init(grads))
  for ours, theirs in zip(
    jax.tree.leaves(program(grads)), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_search_for_collectives_finds_those_of_split_matrices():
  split = NamedSharding(mesh(), PartitionSpec('data', None))
  x = jax.device_put(gaussian(304, 304), split)
  text = jax.jit(newton_schulz).lower(x).compile().as_text()
  total, inside = collectives(text)
  assert inside >= 5 and total > inside - 1


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: map_matrices(msign, [], strategy='x'), "strategy: got 'x'"),
    (lambda: map_matrices(msign, [], stack_size=0), 'stack_size: got 0'),
    (
      lambda: map_matrices(msign, [], axis_name='model', mesh=mesh()),
      "axis_name: got 'model', expected axes of the mesh",
    ),
    (
      lambda: distributed_newton_schulz(jnp.eye(3), axis_name='data'),
      r'x: got shape \(3, 3\)',
    ),
    (lambda: scale_by_muon(mesh=mesh()), 'axis_name: got None'),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
