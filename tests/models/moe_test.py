"""The layer against a loop over experts, its state, and experts on devices."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from kexue.models import (
  BalanceState,
  MoE,
  MoEConfig,
  expert_specs,
  shared_expert_scale,
  update_balance,
)
from kexue.training import init_state, make_step, parallelize
from kexue.training.parallel import data_mesh

SIZES = dict(experts=8, chosen=2, hidden=8)
X = jax.random.normal(jax.random.key(0), (16, 4, 6))


def made(layer, x=X):
  return layer.init(jax.random.key(1), x)


def silu(x):
  return x / (1 + np.exp(-x))


def by_hand(variables, x, k, *, shared=0, normalized=False, scale=1.0):
  """Token for token in float64; sigmoid scores, the bias only chooses."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables['params'])
  bias = np.asarray(variables['balance']['state'].bias, np.float64)

  def expert(prefix, i, x):
    kernel = lambda name: p[prefix + name]['kernel'][i]
    y = silu(x @ kernel('gate')) * (x @ kernel('up')) @ kernel('down')
    return y / np.sqrt(np.mean(y**2)) if normalized else y

  rows = []
  for token in np.asarray(x, np.float64).reshape(-1, x.shape[-1]):
    score = 1 / (1 + np.exp(-token @ p['router']))
    y = sum((expert('shared_', i, token) for i in range(shared)), start=0.0)
    for i in np.argsort(-(score + bias), kind='stable')[:k]:
      y = y + scale * score[i] * expert('expert_', i, token)
    rows.append(y * p.get('scale', 1.0))
  return np.reshape(rows, x.shape)


@pytest.mark.parametrize('options', [{}, {'shared': 2, 'normalized': True}])
def test_a_loop_over_experts_gives_the_same(options):
  layer = MoE(MoEConfig(**SIZES, **options, scale=1.5))
  variables = made(layer)
  bias = jnp.linspace(-0.2, 0.2, 8)
  state = variables['balance']['state']._replace(bias=bias)
  variables = {**variables, 'balance': {'state': state}}
  expected = by_hand(variables, X, 2, **options, scale=1.5)
  np.testing.assert_allclose(layer.apply(variables, X), expected, atol=2e-5)


def test_the_bias_is_no_parameter_and_gets_no_gradient():
  layer = MoE(MoEConfig(**SIZES, balance_weight=0.1, z_weight=0.1))
  variables = made(layer)
  assert {*variables} == {'params', 'balance'}
  names = {'router', 'expert_gate', 'expert_up', 'expert_down'}
  assert {*variables['params']} == names
  assert 'bias' not in str(jax.tree.structure(optax.adam(0.1).init(variables)))

  def loss(bias):
    state = variables['balance']['state']._replace(bias=bias)
    new = {**variables, 'balance': {'state': state}}
    y, sown = layer.apply(new, X, mutable=['losses'])
    return jnp.sum(y**2) + sum(jax.tree.leaves(sown))

  assert not np.any(jax.grad(loss)(jnp.zeros(8)))
  even = loss(jnp.zeros(8))
  assert loss(jnp.full(8, 0.25)) == even  # The same choice, the same gates.
  assert loss(jnp.linspace(0, 1, 8)) != even


def train_step(layer, variables, x):
  """What training does to the state of a layer, before the bias moves."""
  _, changed = layer.apply(variables, x, train=True, mutable=['balance'])
  return {**variables, **changed}


@pytest.mark.parametrize('rule', ['none', 'sign', 'rms', 'quantile'])
def test_the_bias_moves_once_a_step_and_only_in_training(rule):
  layer = MoE(MoEConfig(**SIZES, rule=rule))
  variables = made(layer)
  _, same = layer.apply(variables, X, mutable=['balance'])
  assert jax.tree.all(
    jax.tree.map(np.array_equal, same['balance'], variables['balance'])
  )
  whole = train_step(layer, variables, X)
  parts = train_step(layer, train_step(layer, variables, X[:8]), X[8:])
  state = parts['balance']['state']
  assert not np.any(state.bias)  # Microbatches choose by the old bias.
  np.testing.assert_array_equal(state.load, whole['balance']['state'].load)
  assert state.load.sum() == 16 * 4 * 2 and state.parts == 2
  moved = update_balance(parts['balance'], rule=rule, rate=0.01)['state']
  assert not np.any(moved.load) and not np.any(moved.proposals)
  assert moved.parts == 0
  if rule == 'none':
    assert not np.any(moved.bias)
  elif rule == 'sign':
    expected = -0.01 * np.sign(state.load - 16.0)
    np.testing.assert_allclose(moved.bias, expected, rtol=1e-6)
  elif rule == 'rms':
    excess = state.load - 16.0
    expected = -0.01 * excess / np.sqrt(np.mean(excess**2))
    np.testing.assert_allclose(moved.bias, expected, rtol=1e-5)
  else:
    biases = [
      update_balance(train_step(layer, variables, x)['balance'], rule=rule)
      for x in (X[:8], X[8:])
    ]
    mean = sum(balance['state'].bias for balance in biases) / 2
    assert np.any(mean)
    np.testing.assert_allclose(moved.bias, mean, atol=1e-6)


def test_no_batch_moves_no_bias():
  for rule in ('sign', 'rms', 'quantile'):
    state = BalanceState(
      jnp.ones((2, 3)),
      jnp.zeros((2, 3), jnp.int32),
      jnp.zeros((2, 3)),
      jnp.zeros(2, jnp.int32),
    )
    moved = update_balance([state, 'other'], rule=rule)
    np.testing.assert_array_equal(moved[0].bias, state.bias)
    assert moved[1] == 'other'


class Training(nn.Module):
  """The layer as it is while training."""

  @nn.compact
  def __call__(self, x):
    return MoE(MoEConfig(**SIZES), name='moe')(x, train=True)


def test_recomputing_a_layer_counts_once():
  layer = nn.remat(Training)()
  variables = made(layer)

  def loss(params):
    new = {**variables, 'params': params}
    y, changed = layer.apply(new, X, mutable=['balance'])
    return jnp.sum(y), changed

  _, changed = jax.grad(loss, has_aux=True)(variables['params'])
  assert changed['balance']['moe']['state'].load.sum() == 16 * 4 * 2


def test_padding_is_not_counted():
  layer = MoE(MoEConfig(**SIZES, z_weight=0.1, balance_weight=0.1))
  variables = made(layer)
  mask = jnp.arange(4) < 3
  mask = jnp.broadcast_to(mask, (16, 4))
  run = lambda x, mask: layer.apply(
    variables, x, mask=mask, train=True, mutable=['balance', 'losses']
  )
  y, changed = run(X.at[:, 3].set(jnp.nan), mask)
  short, expected = run(X[:, :3], None)
  np.testing.assert_allclose(y[:, :3], short, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), changed, expected
  )


def test_the_scale_of_the_geometric_form_is_learned():
  config = MoEConfig(**SIZES, normalized=True)
  layer = MoE(config, variance=0.25)
  variables = made(layer)
  assert variables['params']['scale'] == 0.5
  kernels = jax.tree.map(lambda a: 3 * a, variables['params'])
  kernels |= {name: variables['params'][name] for name in ('router', 'scale')}
  louder = {**variables, 'params': kernels}
  # Relative to its size each expert is the same up to the activation.
  assert not np.allclose(layer.apply(louder, X), layer.apply(variables, X))
  doubled = {
    **kernels,
    'expert_down': {'kernel': 2 * kernels['expert_down']['kernel']},
  }
  same = layer.apply({**louder, 'params': doubled}, X)
  np.testing.assert_allclose(same, layer.apply(louder, X), rtol=1e-4)
  zero = jax.tree.map(jnp.zeros_like, variables['params'])
  gradient = jax.grad(
    lambda p: jnp.sum(layer.apply({**variables, 'params': p}, X))
  )(zero)
  assert jax.tree.all(
    jax.tree.map(lambda g: bool(np.isfinite(g).all()), gradient)
  )


def steps_of(how, mesh, config, accumulate=1, spec=None):
  """Three steps of gradient descent; the state and the metrics."""
  layer = MoE(config)

  def loss(model, params, variables, batch, key):
    del key
    y, changed = model.apply(
      {'params': params, **variables},
      batch,
      train=True,
      mutable=['balance', 'losses'],
    )
    sown = changed.pop('losses', {})
    total = jnp.mean((y - batch) ** 2) + sum(jax.tree.leaves(sown))
    return total, (changed, {})

  after = lambda variables: {
    'balance': update_balance(variables['balance'], rule=config.rule, rate=0.02)
  }
  optimizer = optax.sgd(0.3)
  step = make_step(
    loss, optimizer, model=layer, accumulate=accumulate, after=after
  )
  variables = dict(made(layer, X[:1]))
  params = variables.pop('params')
  state = init_state(params, optimizer, variables)
  specs = P() if spec is None else expert_specs(state, spec)
  program = parallelize(step, how, mesh, state_spec=specs)
  batches = np.stack([np.roll(X, i, axis=0) for i in range(3)])
  return program(state, batches, jax.random.key(2))


@pytest.mark.parametrize('rule', ['sign', 'quantile'])
def test_devices_microbatches_and_split_experts_agree(rule):
  # The balance loss of parts is not that of the whole batch.
  weight = 0.1 if rule == 'quantile' else 0.0
  config = MoEConfig(**SIZES, rule=rule, balance_weight=weight, z_weight=0.01)
  one, metrics = steps_of('jit', data_mesh(jax.devices()[:1]), config)
  assert np.any(one.variables['balance']['state'].bias)
  split = dataclasses.replace(config, expert_axis='expert')
  mesh = lambda *shape: jax.make_mesh(
    shape,
    ('data', 'expert')[-len(shape) :],
    axis_types=(AxisType.Auto,) * len(shape),
  )
  runs = {
    'pmap': steps_of('pmap', data_mesh(jax.devices()[:4]), config),
    'shard_map': steps_of('shard_map', data_mesh(), config),
    '2 x 4': steps_of('shard_map', mesh(2, 4), split, spec='expert'),
    '8': steps_of('shard_map', mesh(8), split, spec='expert'),
  }
  if rule == 'sign':  # Quantiles of parts are averaged.
    mesh = data_mesh(jax.devices()[:2])
    runs['accumulated'] = steps_of('pmap', mesh, config, accumulate=4)
  for name, (state, own) in runs.items():
    compare = lambda a, b, name=name: np.testing.assert_allclose(
      a, b, atol=2e-5, err_msg=name
    )
    jax.tree.map(compare, state.params, one.params)
    compare(
      state.variables['balance']['state'].bias,
      one.variables['balance']['state'].bias,
    )
    compare(own['loss'], metrics['loss'])
    compare(own['grad_norm'], metrics['grad_norm'])
  kernel = runs['8'][0].params['expert_up']['kernel']
  assert kernel.addressable_shards[0].data.shape == (1, 6, 8)


def test_gates_of_shared_experts_can_be_balanced():
  scale = shared_expert_scale(10, 4, 2)
  assert MoEConfig(experts=8, chosen=2, shared=2, scale=scale).scale > 1


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(experts=0), 'experts: got 0'),
    (dict(chosen=9), 'chosen: got 9, expected at most 8'),
    (dict(chosen=8, rule='quantile'), 'at most 7'),
    (dict(hidden=0), 'hidden: got 0'),
    (dict(shared=-1), 'shared: got -1'),
    (dict(score='tanh'), "score: got 'tanh'"),
    (dict(gate='tanh'), "gate: got 'tanh'"),
    (dict(rule='mean'), "rule: got 'mean'"),
    (dict(form='cube'), "form: got 'cube'"),
    (dict(method='loop'), "method: got 'loop'"),
    (dict(backend='torch'), "backend: got 'torch'"),
    (dict(rate=-1.0), 'rate: got -1.0'),
    (dict(balance_weight=-1.0), 'balance_weight'),
    (dict(z_weight=-1.0), 'z_weight'),
  ],
)
def test_options_that_do_not_exist_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    MoEConfig(**SIZES | change)


def test_a_layer_without_a_width_is_refused():
  layer = MoE(MoEConfig(experts=4))
  with pytest.raises(ValueError, match='hidden: got None'):
    made(layer)
  assert MoEConfig(chosen=2, shared=1).hidden_width(100) == 40
  assert MoEConfig(hidden=12).hidden_width(100) == 12
  with pytest.raises(ValueError, match="rule: got 'mean'"):
    update_balance({}, rule='mean')
