"""Experts in blocks: a loop, its gradient, blocks that are not used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.models.expert_blocks import apply_in_blocks

RNG = np.random.default_rng(0)


def expert(params, x):
  return jnp.tanh(x @ params['a']) @ params['b'] + params['c']


def problem(blocks=6, experts=4, dtype=jnp.float32):
  shapes = {'a': (experts, 3, 5), 'b': (experts, 5, 2), 'c': (experts, 2)}
  params = {n: jnp.array(RNG.normal(size=s), dtype) for n, s in shapes.items()}
  x = jnp.array(RNG.normal(size=(blocks, 4, 3)), dtype)
  return params, x, jnp.array(RNG.normal(size=(blocks, 4, 2)), dtype)


def plainly(params, x, experts):
  """A copy of its parameters for each block, nothing for those not used."""
  used = experts < len(params['c'])
  copies = jax.tree.map(lambda p: p[experts], params)
  return jnp.where(used[:, None, None], jax.vmap(expert)(copies, x), 0)


@jax.jit
def both(params, x, experts, weights):
  def of(apply):
    loss = lambda p, x: jnp.sum(apply(p, x, experts) * weights)
    return jax.value_and_grad(loss, (0, 1))(params, x)

  return of(functools.partial(apply_in_blocks, expert)), of(plainly)


@pytest.mark.parametrize(
  'experts', [[0, 0, 1, 3, 3, 3], [2] * 6, [4] * 6, [3, 4, 1, 4, 0, 4]]
)
def test_value_and_gradients(experts):
  params, x, weights = problem()
  found, expected = both(params, x, jnp.array(experts), weights)
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_not_used_is_zero_whatever_it_holds():
  params, x, _ = problem(2)
  x = x.at[1].set(jnp.nan)
  experts = jnp.array([1, 4])
  value, pull = jax.vjp(
    lambda p, x: apply_in_blocks(expert, p, x, experts), params, x
  )
  assert np.all(value[1] == 0)
  for gradient in jax.tree.leaves(pull(jnp.ones_like(value))):
    assert np.all(np.isfinite(gradient))


def test_sums_of_gradients_are_in_float32():
  """One more than 256 is 256 in bfloat16."""
  w, x = jnp.ones((1, 1, 1), jnp.bfloat16), jnp.ones((300, 1, 1), jnp.bfloat16)
  experts = jnp.zeros(300, jnp.int32)
  run = lambda w: apply_in_blocks(lambda w, x: x @ w, w, x, experts)
  _, pull = jax.vjp(run, w)
  gradient = pull(jnp.ones_like(x))[0]
  assert gradient.dtype == jnp.bfloat16 and gradient == 300


def test_no_hidden_layer_of_all_rows_exists():
  """Nor zeros of the size of all matrices for each block."""
  apply = lambda w, x, e: apply_in_blocks(
    lambda w, x: jnp.tanh(x @ w) @ w.T, w, x, e
  )
  loss = lambda w, x, e: jnp.sum(apply(w, x, e) ** 2)
  shapes = ((16, 8, 512), 'float32'), ((64, 16, 8), 'float32'), ((64,), 'int32')
  shapes = [jax.ShapeDtypeStruct(*s) for s in shapes]
  step = jax.jit(jax.grad(loss)).lower(*shapes).compile()
  hidden = 64 * 16 * 512 * 4
  assert step.memory_analysis().temp_size_in_bytes < hidden / 2


def test_second_derivatives():
  params, x, _ = problem(2)
  experts = jnp.array([1, 0])

  def squared(f):
    loss = lambda x: jnp.sum(f(params, x, experts) ** 2)
    return jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)))(x)

  found = squared(functools.partial(apply_in_blocks, expert))
  np.testing.assert_allclose(found, squared(plainly), rtol=1e-4, atol=1e-5)


def test_every_transform():
  """Parameters that are the same on all devices get the sum of gradients."""
  params, x, weights = problem(8)
  experts = jnp.array([0, 3, 1, 4, 2, 2, 4, 1])

  def gradients(params, x, experts, weights):
    loss = lambda p, x: jnp.sum(
      apply_in_blocks(expert, p, x, experts) * weights
    )
    return jax.grad(loss, (0, 1))(params, x)

  expected = jax.jit(gradients)(params, x, experts, weights)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    gradients,
    mesh=mesh,
    in_specs=(P(), P('data'), P('data'), P('data')),
    out_specs=(P(), P('data')),
  )
  every = jax.vmap(gradients, (None, 0, 0, 0))
  split = [a[:, None] for a in (x, experts, weights)]
  of_each, of_x = every(params, *split)
  summed = jax.tree.map(lambda g: g.sum(0), of_each), of_x[:, 0]
  for found in (jax.jit(mapped)(params, x, experts, weights), summed):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
