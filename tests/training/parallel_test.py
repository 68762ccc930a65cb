"""The same step under jit, pmap and shard_map, and the trap between them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from kexue.models import Transformer, TransformerConfig, next_token_loss
from kexue.optimizers import muon
from kexue.training import (
  MODES,
  TrainState,
  data_mesh,
  init_state,
  make_step,
  parallelize,
  value_and_grad,
)

KEY = jax.random.key(0)
DEVICES = 8


def quadratic(params, variables, batch, key):
  """A loss whose gradient differs from example to example."""
  error = batch @ params['w'] - 1.0
  return jnp.mean(error**2), (variables, {'error': jnp.mean(error)})


def train(how, devices, loss, params, optimizer, batches, **options):
  step = make_step(loss, optimizer, **options)
  mesh = data_mesh(jax.devices()[:devices])
  run = parallelize(step, how, mesh)
  fresh = jax.tree.map(jnp.array, params)  # The state is donated.
  return run(init_state(fresh, optimizer), batches, KEY)


CASES = [('jit', 1), *((how, DEVICES) for how in MODES)]


@pytest.mark.parametrize('how, devices', CASES)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_sgd_equals_numpy(how, devices, accumulate):
  # SGD, not Adam: Adam would hide a gradient that is N times too large.
  x = np.random.default_rng(0).normal(size=(3, 16, 4)).astype(np.float32)
  params = {'w': jnp.arange(4.0)}
  state, metrics = train(
    how, devices, quadratic, params, optax.sgd(0.1), x, accumulate=accumulate
  )
  w = np.arange(4.0)
  for batch in x.astype(np.float64):
    w = w - 0.1 * 2 * batch.T @ (batch @ w - 1) / len(batch)
  np.testing.assert_allclose(state.params['w'], w, rtol=2e-5)
  assert int(state.step) == 3
  assert metrics['loss'].shape == metrics['error'].shape == (3,)


def test_gradient_of_a_pmean_is_wrong_under_pmap():
  """The trap itself: why `value_and_grad` exists."""
  x = jnp.arange(8.0)
  wrong = jax.pmap(
    jax.grad(lambda w, x: jax.lax.pmean(w * x, 'data')),
    'data',
    in_axes=(None, 0),
  )(1.0, x)
  right = jax.pmap(
    lambda w, x: value_and_grad(lambda w, x: (w * x, ((), {})), 'data')(w, x)[
      1
    ],
    'data',
    in_axes=(None, 0),
  )(1.0, x)
  np.testing.assert_allclose(right, np.full(8, np.mean(x)), rtol=1e-6)
  assert not np.allclose(wrong, right)


def test_gradient_then_pmean_is_summed_under_shard_map():
  x = jnp.arange(8.0)
  mesh = data_mesh()
  mapped = functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(P(), P('data')), out_specs=P()
  )
  loss = lambda w, x: (jnp.mean(w * x), ((), {}))
  naive = mapped(
    lambda w, x: jax.lax.pmean(
      jax.grad(lambda w, x: loss(w, x)[0])(w, x), 'data'
    )
  )(1.0, x)
  ours = mapped(lambda w, x: value_and_grad(loss, 'data')(w, x)[1])(1.0, x)
  np.testing.assert_allclose(ours, 3.5, rtol=1e-6)
  np.testing.assert_allclose(naive, DEVICES * 3.5, rtol=1e-6)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_split_parameters_get_the_gradient_of_the_mean_loss(accumulate):
  w, x = np.arange(8.0), np.random.default_rng(0).normal(size=(16, 8))

  def loss(params, variables, batch, key):
    mine, all_have = params
    whole = jax.lax.all_gather(mine, 'data', tiled=True)
    value = jnp.mean(jnp.sin(batch @ whole) * all_have)
    return value, (variables, {})

  optimizer = optax.sgd(1.0)
  spec = TrainState(P(), (P('data'), P()), P(), P())
  step = make_step(loss, optimizer, accumulate=accumulate)
  run = parallelize(step, 'shard_map', state_spec=spec)
  start = init_state((jnp.asarray(w), jnp.ones(())), optimizer)
  state, metrics = run(start, x[None], KEY)
  gradient = (np.cos(x @ w)[:, None] * x).mean(0)
  of_scale = np.sin(x @ w).mean()
  np.testing.assert_allclose(state.params[0], w - gradient, atol=1e-5)
  np.testing.assert_allclose(state.params[1], 1 - of_scale, atol=1e-5)
  norm = np.sqrt(np.sum(gradient**2) + of_scale**2)
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)


@functools.cache
def language_model():
  model = Transformer(TransformerConfig(layers=2, width=32, heads=2))
  tokens = np.random.default_rng(1).integers(0, 256, (2, 16, 17))

  def loss(params, variables, batch, key):
    logits = model.apply({'params': params}, batch[:, :-1])
    return next_token_loss(logits, batch[:, 1:]), (variables, {})

  params = model.init(KEY, tokens[0, :, :-1])['params']
  return model, loss, params, tokens


def small_muon(model, **options):
  # Adam's first step is g / (|g| + eps): with the default 1e-8 it is the sign
  # of gradients that are nothing but rounding.
  return muon(
    0.02,
    weight_decay=0.1,
    adamw_eps=1e-4,
    dimension_numbers=model.dimension_numbers,
    **options,
  )


OPTIMIZERS = {'sgd': lambda model: optax.sgd(0.1), 'muon': small_muon}


@functools.cache
def reference(name):
  model, loss, params, tokens = language_model()
  optimizer = OPTIMIZERS[name](model)
  return train('jit', 1, loss, params, optimizer, tokens[:1])


@pytest.mark.parametrize('how', MODES)
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_language_model_step_agrees_on_one_and_eight_devices(how, name):
  model, loss, params, tokens = language_model()
  expected, expected_metrics = reference(name)
  state, metrics = train(
    how, DEVICES, loss, params, OPTIMIZERS[name](model), tokens[:1]
  )
  chex.assert_trees_all_close(state.params, expected.params, atol=1e-6)
  chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_muon_shared_over_devices_equals_muon_on_each(how):
  model, loss, params, tokens = language_model()
  expected, _ = reference('muon')
  optimizer = small_muon(model, axis_name='data')
  state, _ = train(how, DEVICES, loss, params, optimizer, tokens[:1])
  chex.assert_trees_all_close(state.params, expected.params, atol=1e-6)


def test_noise_differs_over_devices_and_variables_are_the_loss_own():
  def loss(params, variables, batch, key):
    noise = jax.random.normal(key) + 0.0 * jnp.sum(params)
    mean = jax.lax.pmean(noise, 'data')
    second = jax.lax.pmean(noise**2, 'data')
    return noise, ({'variance': second - mean**2}, {})

  optimizer = optax.sgd(0.0)
  run = parallelize(make_step(loss, optimizer), 'shard_map')
  state = init_state(jnp.zeros(1), optimizer, {'variance': jnp.zeros(())})
  state, _ = run(state, np.zeros((1, 8, 1)), KEY)
  assert float(state.variables['variance']) > 0.1


def test_model_clone_knows_the_axis():
  class Model:
    axis_name = None

    def clone(self, *, axis_name):
      other = Model()
      other.axis_name = axis_name
      return other

  seen = []

  def loss(model, params, variables, batch, key):
    seen.append(model.axis_name)
    return jnp.mean(params * batch), (variables, {})

  optimizer = optax.sgd(0.1)
  for how in ('pmap', 'jit'):
    run = parallelize(make_step(loss, optimizer, model=Model()), how)
    run(init_state(jnp.ones(()), optimizer), np.ones((1, 8, 1)), KEY)
  assert set(seen) == {'data', None}


@pytest.mark.parametrize('how', MODES)
def test_second_call_does_not_compile(how):
  optimizer = optax.sgd(0.1)
  traces = []

  def loss(params, variables, batch, key):
    traces.append(1)
    return quadratic(params, variables, batch, key)

  run = parallelize(make_step(loss, optimizer), how)
  state = init_state({'w': jnp.arange(4.0)}, optimizer)
  batches = np.ones((2, 8, 4), np.float32)
  state, _ = run(state, batches, KEY)
  before = len(traces)
  state, _ = run(state, batches, KEY)
  assert len(traces) == before


def test_steps_differ_in_their_keys_and_resuming_repeats_them():
  def loss(params, variables, batch, key):
    return 0.0 * jnp.sum(params) + jax.random.uniform(key), (variables, {})

  optimizer = optax.sgd(0.1)
  run = parallelize(make_step(loss, optimizer), 'pmap')
  fresh = lambda: init_state(jnp.zeros(2), optimizer)
  _, whole = run(fresh(), np.zeros((4, 8, 1)), KEY)
  state, first = run(fresh(), np.zeros((2, 8, 1)), KEY)
  _, second = run(state, np.zeros((2, 8, 1)), KEY)
  assert len(set(np.asarray(whole['loss']).tolist())) == 4
  np.testing.assert_array_equal(
    whole['loss'], np.concatenate([first['loss'], second['loss']])
  )


def test_wrong_arguments_are_named():
  step = make_step(quadratic, optax.sgd(0.1))
  with pytest.raises(ValueError, match="how: got 'vmap', expected one of"):
    parallelize(step, 'vmap')
  with pytest.raises(ValueError, match='sharded state'):
    parallelize(step, 'pmap', state_spec=P('data'))
  mesh = jax.make_mesh(
    (4, 2), ('data', 'expert'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  with pytest.raises(ValueError, match='several axes'):
    parallelize(step, 'pmap', mesh)
  run = parallelize(step, 'pmap')
  state = init_state({'w': jnp.zeros(4)}, optax.sgd(0.1))
  with pytest.raises(ValueError, match=r'batches: got \(1, 6, 4\).* 8 devices'):
    run(state, np.zeros((1, 6, 4)), KEY)
  with pytest.raises(ValueError, match='accumulate: got 0'):
    make_step(quadratic, optax.sgd(0.1), accumulate=0)
  run = parallelize(make_step(quadratic, optax.sgd(0.1), accumulate=3), 'jit')
  with pytest.raises(ValueError, match='accumulate: got 3, expected a divisor'):
    run(state, np.zeros((1, 8, 4)), KEY)
