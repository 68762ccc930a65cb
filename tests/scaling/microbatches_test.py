"""Accumulated gradients against whole batches, and the noise beside them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import accumulate_gradients, two_batch_noise_scale

GRADIENTS = np.array([[1.0, 2, 0], [0, 1, -1], [2, 0, 1], [1, 1, 0]])


def linear(w, x):
  """An example's gradient is the example."""
  return jnp.mean(x @ w)


def loss(params, batch):
  hidden = jnp.tanh(batch['x'] @ params['w'])
  return jnp.mean((hidden @ params['v'] - batch['y']) ** 2)


def network():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {'w': normal(3, 4), 'v': normal(4)}, {
    'x': normal(16, 3),
    'y': normal(16),
  }


@pytest.mark.usefixtures('double')
def test_worked_example():
  x = np.repeat(GRADIENTS, 2, axis=0)
  found = accumulate_gradients(linear, jnp.zeros(3), x, microbatches=4)
  np.testing.assert_allclose(found.gradient, [1, 1, 0])
  assert found[2:] == (3.5, 2.0, 2, 8)
  expected = (2.6666667, 1.5, 4)
  np.testing.assert_allclose(found.noise_scale, expected, rtol=5e-8)
  # Pitfall 2: the plug-in ratio.
  np.testing.assert_allclose(found.noise_scale.trace / found.big_sq_norm, 2)


@functools.partial(jax.jit, static_argnums=2)
def expected_moments(params, batch, parts):
  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
  value, gradient = jax.value_and_grad(loss)(params, batch)
  each = jax.vmap(jax.grad(loss), (None, 0))(params, split)
  norm = lambda g: jnp.sum(g**2)
  small = jax.tree.map(lambda g: norm(g) / parts, each)
  rows = len(batch['y'])
  big = jax.tree.map(norm, gradient)
  return value, gradient, small, big, rows // parts, rows


@pytest.mark.parametrize('parts', [1, 4])
def test_accumulation_is_the_whole_batch(parts):
  params, batch = network()
  run = functools.partial(accumulate_gradients, loss, microbatches=parts)
  found = jax.jit(run)(params, batch)
  expected = expected_moments(params, batch, parts)
  chex.assert_trees_all_close(tuple(found), expected, rtol=1e-5)


@pytest.mark.parametrize('how', ['pmap', 'shard_map', 'unchecked'])
@pytest.mark.parametrize('parts', [1, 2])
def test_one_device_is_eight(how, parts):
  params, batch = network()

  def run(params, batch):
    moments = accumulate_gradients(
      loss, params, batch, microbatches=parts, axis_name='data'
    )
    assert moments[4:] == (2 // parts, 16)
    return tuple(moments[:4])

  if how == 'pmap':
    split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    found = jax.pmap(run, 'data', in_axes=(None, 0))(params, split)
    found = jax.tree.map(lambda v: v[0], found)
  else:
    found = sharded(run, how == 'shard_map')(params, batch)
  expected = expected_moments(params, batch, 8 * parts)[:4]
  chex.assert_trees_all_close(found, expected, rtol=1e-5)


REPLICATED = P()


def sharded(run, check_vma=True, out_specs=REPLICATED):
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  return jax.jit(
    jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(P(), P('data')),
      out_specs=out_specs,
      check_vma=check_vma,
    )
  )


def test_the_trap_of_shard_map():
  """Pitfall 10: local gradients that have been added up have no noise left."""
  params, batch = network()

  def naive(params, batch):
    gradient = jax.grad(loss)(params, batch)
    norms = lambda g: optax.tree.norm(g, squared=True)
    small = jax.lax.pmean(norms(gradient), 'data')
    big = norms(jax.lax.pmean(gradient, 'data'))
    return two_batch_noise_scale(small, big, 2, 16)

  right = accumulate_gradients(loss, params, batch, microbatches=8).noise_scale
  wrong = sharded(naive)(params, batch)
  assert float(right.trace) > 1 and abs(float(wrong.trace)) < 0.1
  assert float(wrong.gradient_sq_norm) > 30 * float(right.gradient_sq_norm)


def test_without_an_axis_nothing_is_reduced():
  params, batch = network()

  def run(params, batch):
    moments = accumulate_gradients(loss, params, batch)
    return moments.loss[None]

  found = sharded(run, out_specs=P('data'))(params, batch)
  split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
  expected = jax.vmap(loss, (None, 0))(params, split)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert 'psum' not in str(
    jax.make_jaxpr(sharded(run, out_specs=P('data')))(params, batch)
  )


def test_one_scalar_for_each_leaf_is_all_that_is_reduced_beside_the_gradient():
  params, batch = network()

  def run(params, batch):
    moments = accumulate_gradients(loss, params, batch, axis_name='data')
    return tuple(moments[:4])

  text = sharded(run).lower(params, batch).as_text()
  sizes = []
  for part in text.split('stablehlo.all_reduce')[1:]:
    shape = part.split('}) : (tensor<')[1].split('>')[0]
    sizes.append(int(np.prod([int(n) for n in shape.split('x')[:-1]])))
  assert sorted(sizes) == [1, 1, 1, 4, 12]  # Loss, two norms, two leaves.


def test_memory_does_not_grow_with_microbatches():
  params = {'w': jnp.zeros((200, 200)), 'v': jnp.zeros(200)}
  batch = {'x': jnp.zeros((64, 200)), 'y': jnp.zeros(64)}

  def temporary(parts):
    run = functools.partial(accumulate_gradients, loss, microbatches=parts)
    compiled = jax.jit(run).lower(params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # All gradients at once would take 64 times the parameters.
  assert max(temporary(4), temporary(64)) < 2 * params['w'].nbytes


def test_half_precision_is_squared_in_single():
  value = jnp.bfloat16(1.4921875)
  x = jnp.full((4, 1000), value)
  found = accumulate_gradients(linear, x[0], x, microbatches=4)
  assert found.gradient.dtype == jnp.bfloat16
  exact = 1000 * float(value) ** 2
  np.testing.assert_allclose(found[2:4], exact, rtol=1e-5)
  np.testing.assert_allclose(found.noise_scale.trace, 0, atol=1e-2)


def test_a_multiplier_reaches_the_norms_alone():
  x, m = np.repeat(GRADIENTS, 2, axis=0), jnp.array([2.0, 0.5, 1.0])
  run = functools.partial(accumulate_gradients, linear, microbatches=4)
  found = run(jnp.zeros(3), x, multiplier=m)
  plain, scaled = run(jnp.zeros(3), x), run(jnp.zeros(3), x * m)
  np.testing.assert_allclose(found.gradient, plain.gradient)
  np.testing.assert_allclose(found[2:], scaled[2:])


def test_consecutive_steps_are_no_big_batch():
  """Pitfall 5: the gradient's way down the hill counts as noise."""
  x = jnp.ones((4, 3))  # All examples alike.
  bowl = lambda w, x: 0.5 * jnp.mean(jnp.sum((x - w) ** 2, axis=-1))
  found = accumulate_gradients(bowl, jnp.zeros(3), x, microbatches=4)
  assert float(found.noise_scale.trace) == 0
  w, gradients = jnp.zeros(3), []
  for row in x:
    gradients.append(jax.grad(bowl)(w, row[None]))
    w = w - 0.2 * gradients[-1]
  g = jnp.stack(gradients)
  small, big = (
    jnp.mean(jnp.sum(g**2, axis=1)),
    jnp.sum(jnp.mean(g, axis=0) ** 2),
  )
  assert float(two_batch_noise_scale(small, big, 1, 4).trace) > 0.1


def test_a_loss_that_sums_has_another_unit():
  """Pitfall 8: both parts are off, by powers of the batch size."""
  x = np.repeat(GRADIENTS, 2, axis=0)
  summed = lambda w, x: jnp.sum(x @ w)
  right = accumulate_gradients(linear, jnp.zeros(3), x, microbatches=4)
  wrong = accumulate_gradients(summed, jnp.zeros(3), x, microbatches=4)
  ratio = wrong.noise_scale.trace / right.noise_scale.trace
  np.testing.assert_allclose(ratio, 4, rtol=1e-5)


def test_unequal_token_counts_are_another_gradient():
  """Pitfall 8: a mean over tokens does not average over microbatches."""
  x, mask = GRADIENTS.astype(np.float32), np.array([1.0, 1, 1, 0])

  def per_token(w, batch):
    x, mask = batch
    return jnp.sum(mask * (x @ w)) / jnp.sum(mask)

  whole = jax.grad(per_token)(jnp.zeros(3), (x, mask))
  found = accumulate_gradients(
    per_token, jnp.zeros(3), (x, mask), microbatches=2
  )
  assert np.max(np.abs(found.gradient - whole)) > 0.1
  # Equal weights of examples: the mask as a factor.
  weighted = lambda w, batch: jnp.mean(batch[1] * (batch[0] @ w)) * 4 / 3
  found = accumulate_gradients(
    weighted, jnp.zeros(3), (x, mask), microbatches=2
  )
  np.testing.assert_allclose(found.gradient, whole, rtol=1e-6)


def test_wrong_arguments_are_named():
  x = jnp.ones((8, 3))
  run = functools.partial(accumulate_gradients, linear, jnp.zeros(3))
  for name, call in {
    'microbatches: got 3': lambda: run(x, microbatches=3),
    'microbatches: got 0': lambda: run(x, microbatches=0),
    'microbatches: got 2.0': lambda: run(x, microbatches=2.0),
    'batch: got': lambda: run((x, x[:4]), microbatches=2),
    'big: got 8': lambda: run(x).noise_scale,
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
