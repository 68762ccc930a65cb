"""Statistics of updates against SVD in float64; nothing else changes."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

from kexue.optimizers import (
  FusedDimensionNumbers,
  MuonState,
  muon,
  scale_by_muon,
  update_statistics,
  with_update_statistics,
)
from kexue.training import data_mesh

NAMES = {'update_rms', 'weight_rms', 'spectral_norm', 'orthogonality_residual'}


def gaussian(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def tree(seed=0):
  return {
    'embedding': gaussian(7, 4, seed=seed),
    'query': gaussian(2, 4, 2, 3, seed=seed + 1),  # Layers of heads.
    'mlp': {'up': gaussian(4, 9, seed=seed + 2), 'bias': gaussian(9)},
  }


NUMBERS = {
  'embedding': None,
  'query': MuonDimensionNumbers((1,), (2, 3)),
  'mlp': {'up': MuonDimensionNumbers(), 'bias': None},
}


def matrices(params):
  """The three matrices of `tree` in float64."""
  query, up = (
    np.asarray(x, float) for x in (params['query'], params['mlp']['up'])
  )
  return [*query.reshape(2, 4, 6), up]


def rms(*leaves):
  return np.sqrt(np.mean(np.concatenate([np.ravel(x) for x in leaves]) ** 2))


def residual(u):
  s = np.linalg.svd(u, compute_uv=False) ** 2
  return np.sqrt(np.mean((s / s.mean() - 1) ** 2))


@functools.partial(jax.jit, static_argnums=0)
def run(optimizer, params, grads):
  """Steps over gradients [S, ...]: last updates, state, weights before it."""

  def step(carry, g):
    params, state, *_ = carry
    updates, state = optimizer.update(g, state, params)
    return (optax.apply_updates(params, updates), state, updates, params), None

  start = (params, optimizer.init(params), params, params)
  (_, state, updates, before), _ = jax.lax.scan(step, start, grads)
  return updates, state, before


def stack(trees):
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def test_statistics_equal_numpy():
  inner = muon(0.1, dimension_numbers=NUMBERS, weight_decay=0.1)
  optimizer = with_update_statistics(
    inner, dimension_numbers=NUMBERS, max_norm=7.5, power_iterations=60
  )
  grads = [jax.tree.map(lambda x, c=c: c * x, tree(9)) for c in (1, 2, 3, 0.5)]
  updates, state, params = run(optimizer, tree(), stack(grads))
  got = update_statistics(state)
  update, weight = matrices(updates), matrices(params)
  others = lambda t: (t['embedding'], t['mlp']['bias'])
  norms = lambda leaves: np.linalg.norm([np.linalg.norm(x) for x in leaves])
  exceed = lambda leaves: np.mean([norms(leaves(g)) > 7.5 for g in grads])
  expected = {
    'muon': {
      'update_rms': rms(*update),
      'weight_rms': rms(*weight),
      'spectral_norm': max(np.linalg.norm(w, 2) for w in weight),
      'orthogonality_residual': np.mean([residual(u) for u in update]),
      'clip_fraction': exceed(matrices),
    },
    'adamw': {
      'update_rms': rms(*others(updates)),
      'weight_rms': rms(*others(params)),
      'clip_fraction': exceed(others),
    },
  }
  assert {k: set(v) for k, v in got.items()} == {
    k: set(v) for k, v in expected.items()
  }
  chex.assert_trees_all_close(got, expected, rtol=1e-5)
  assert 0 < expected['muon']['clip_fraction'] < 1
  assert expected['muon']['clip_fraction'] != expected['adamw']['clip_fraction']
  assert int(state.count) == 4


@pytest.mark.parametrize(
  'inner',
  [muon(0.1, weight_decay=0.1, dimension_numbers=NUMBERS), optax.adam(0.1)],
)
def test_updates_and_inner_state_keep_every_bit(inner):
  optimizer = with_update_statistics(inner, dimension_numbers=NUMBERS)

  @jax.jit
  def ours(g, state, params):
    updates, state = optimizer.update(g, state, params)
    # The statistics must not be read: whatever else a program does with an
    # update, even adding it, may make XLA fuse and round differently.
    return updates, state._replace(statistics={})

  theirs = jax.jit(inner.update)
  params, plain = tree(), inner.init(tree())
  state = jax.jit(optimizer.init)(params)
  for seed in range(2):
    g = tree(seed + 5)
    updates, state = ours(g, state, params)
    expected, plain = theirs(g, plain, params)
    chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal(state.inner_state, plain)


@jax.jit
def measured(u):
  """Statistics of an update `u` that passes through."""
  tx = with_update_statistics(optax.identity())
  _, state = tx.update({'w': u}, tx.init({'w': u}), {'w': u})
  return update_statistics(state)['muon']


@hypothesis.given(
  shape=st.sampled_from([(3, 5), (5, 3)]),
  rank=st.integers(1, 3),
  exponent=st.integers(-30, 15),
  seed=st.integers(0, 10**6),
)
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
def test_residual_is_that_of_the_spectrum_at_any_scale(
  shape, rank, exponent, seed
):
  generator = np.random.default_rng(seed)
  left, right = (generator.normal(size=(n, rank)) for n in shape)
  of = lambda x: measured(np.asarray(x * 10.0**exponent, np.float32))[
    'orthogonality_residual'
  ]
  low_rank = left @ right.T
  np.testing.assert_allclose(of(low_rank), residual(low_rank), rtol=1e-4)
  # A matrix sign of rank k; zero for full rank.
  sign = np.linalg.qr(left)[0] @ np.linalg.qr(right)[0].T
  np.testing.assert_allclose(of(sign), np.sqrt(3 / rank - 1), atol=1e-5)


def test_a_zero_update_has_residual_one():
  values = measured(jnp.zeros((3, 4)))
  np.testing.assert_allclose(values['orthogonality_residual'], 1.0, rtol=1e-6)
  assert float(values['update_rms']) == float(values['spectral_norm']) == 0.0


def test_spectral_norm_comes_from_below_and_stays_warm():
  # The top two values are close: a cold iteration would never get there.
  u, v = (np.linalg.qr(gaussian(12, 12, seed=i))[0] for i in (1, 2))
  w = {'w': jnp.asarray(u * np.linspace(1.0, 0.9, 12) @ v)}
  tx = with_update_statistics(optax.set_to_zero())
  state, update = tx.init(w), jax.jit(tx.update)
  norms = []
  for _ in range(300):
    _, state = update(w, state, w)
    norms.append(float(update_statistics(state)['muon']['spectral_norm']))
  assert max(norms) <= 1 + 1e-6
  assert norms[0] < 0.999 and norms[-1] > 0.9999


def test_a_clip_after_muon_shows():
  """What bounds a step by its norm shrinks Muon's by the size of the model."""
  lr = 0.02
  params = {'w': gaussian(40, 60)}
  shares = {}
  for name, inner in {
    'none': muon(lr),
    'after': optax.chain(muon(lr), optax.clip_by_global_norm(0.1)),
  }.items():
    _, state, _ = run(
      with_update_statistics(inner), params, stack([params] * 2)
    )
    values = update_statistics(state)['muon']
    shares[name] = float(values['update_rms']) / (0.2 * lr)
    # The direction is as orthogonal as ever: the norm alone tells.
    assert float(values['orthogonality_residual']) < 0.4
  assert 0.8 < shares['none'] < 1.1
  np.testing.assert_allclose(
    shares['after'], 0.1 / (0.2 * lr * 2400**0.5), rtol=1e-4
  )


def test_half_precision_is_measured_in_single():
  params = {'w': jnp.full((20, 30), 0.01, jnp.bfloat16)}
  tx = with_update_statistics(optax.identity())
  updates, state, _ = run(tx, params, stack([params]))
  assert updates['w'].dtype == jnp.bfloat16
  values = update_statistics(state)['muon']
  chex.assert_tree_all_finite(values)
  exact = float(params['w'][0, 0])
  np.testing.assert_allclose(values['weight_rms'], exact, rtol=1e-6)
  np.testing.assert_allclose(
    values['spectral_norm'], exact * 600**0.5, rtol=1e-6
  )
  assert {x.dtype for x in jax.tree.leaves(values)} == {np.dtype('float32')}


@pytest.mark.parametrize('x64', [False, True])
def test_state_has_one_type_from_the_start(x64):
  with jax.enable_x64(x64):
    params = {'w': jnp.ones((3, 4)), 'bias': jnp.ones(4, jnp.bfloat16)}
    tx = with_update_statistics(optax.sgd(0.1), max_norm=1.0)
    state = tx.init(params)
    step = lambda state, _: (tx.update(params, state, params)[1], None)
    after, _ = jax.lax.scan(step, state, length=3)
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    # Buffers of its own each, or the state could not be donated.
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_labels_are_the_callers():
  params = {'u': jnp.ones((2, 3)), 'w': 2 * jnp.ones((3, 3)), 'b': jnp.ones(2)}
  labels = {'u': 'first', 'w': 'rest', 'b': 'rest'}
  for form in (labels, lambda params: labels):
    tx = with_update_statistics(optax.sgd(1.0), labels=form)
    _, state, _ = run(tx, params, stack([params]))
    values = update_statistics(state)
    assert set(values['first']) == set(values['rest']) == NAMES
    np.testing.assert_allclose(values['rest']['spectral_norm'], 6.0, rtol=1e-5)
    np.testing.assert_allclose(
      values['rest']['weight_rms'], np.sqrt(38 / 11), rtol=1e-6
    )


def test_matrices_side_by_side_are_measured_apart():
  params = {'qkv': gaussian(4, 10)}
  tx = with_update_statistics(
    optax.identity(),
    dimension_numbers={'qkv': FusedDimensionNumbers((6, 2, 2))},
    power_iterations=60,
  )
  _, state, _ = run(tx, params, stack([params]))
  parts = np.split(np.asarray(params['qkv'], float), [6, 8], axis=1)
  values = update_statistics(state)['muon']
  np.testing.assert_allclose(
    values['orthogonality_residual'], np.mean([*map(residual, parts)]), 1e-5
  )
  np.testing.assert_allclose(
    values['spectral_norm'],
    max(np.linalg.norm(x, 2) for x in parts),
    rtol=1e-5,
  )


def needs_value():
  def update(updates, state, params=None, *, value):
    return jax.tree.map(lambda g: g * value, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def test_extra_arguments_reach_the_inner_transformation():
  g = {'bias': jnp.ones(3)}
  refuses = optax.GradientTransformation(
    optax.init_empty_state, lambda updates, state, params=None: (updates, state)
  )
  for inner, value in ((needs_value(), 2.0), (refuses, 1.0)):
    tx = with_update_statistics(inner)
    updates, _ = tx.update(g, tx.init(g), g, value=2.0)
    np.testing.assert_allclose(updates['bias'], value)


def test_found_inside_other_transformations():
  params = {'w': gaussian(4, 6), 'bias': gaussian(6)}
  plain = with_update_statistics(optax.sgd(0.1))
  labels = {'w': 'x', 'bias': 'y'}
  parts = {'x': with_update_statistics(scale_by_muon()), 'y': plain}
  optimizers = {
    'chain': optax.chain(optax.clip(1.0), plain),
    'partition': optax.partition(parts, labels),
    'steps': optax.MultiSteps(plain, 2),
    'inject': optax.inject_hyperparams(with_update_statistics)(
      optax.sgd(0.1), max_norm=1.0
    ),
    'inner': with_update_statistics(optax.inject_hyperparams(muon)(0.1)),
    'both': with_update_statistics(
      optax.partition({'x': parts['x'], 'y': optax.sgd(0.1)}, labels),
      labels={'w': 'all', 'bias': 'all'},
    ),
  }
  for name, optimizer in optimizers.items():
    # The scan inside demands a state of one type.
    _, state, _ = jax.eval_shape(
      functools.partial(run, optimizer), params, stack([params])
    )
    expected = {'muon', 'all'} if name == 'both' else {'muon', 'adamw'}
    assert set(update_statistics(state)) == expected, name
  updates, state, _ = run(optimizers['both'], params, stack([params]))
  np.testing.assert_allclose(
    update_statistics(state)['all']['update_rms'],
    rms(updates['w'], updates['bias']),
    rtol=1e-5,
  )
  _, state, _ = run(optimizers['inject'], params, stack([params]))
  assert float(update_statistics(state)['muon']['clip_fraction']) == 1.0


def test_scale_by_muon_inside_keeps_its_state():
  params = {'w': gaussian(4, 5)}
  tx = with_update_statistics(scale_by_muon())
  state = tx.init(params)
  assert isinstance(state.inner_state, MuonState)
  assert not any(jax.tree.leaves(update_statistics(state)))


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_eight_devices_measure_what_one_does(how):
  params = {'w': gaussian(4, 6), 'bias': gaussian(6)}
  grads = jax.tree.map(lambda x: jnp.stack([x * i for i in range(8)]), params)
  tx = with_update_statistics(muon(0.1), max_norm=1.0)
  state = jax.jit(tx.init)(params)

  def step(params, state, g):
    g = jax.tree.map(lambda x: jax.lax.pmean(x[0], 'data'), g)
    return tx.update(g, state, params)

  if how == 'pmap':
    mapped = jax.pmap(step, 'data', in_axes=(None, None, 0), out_axes=None)
    shards = jax.tree.map(lambda x: x[:, None], grads)
  else:
    shards = grads
    specs = {'in_specs': (P(), P(), P('data')), 'out_specs': P()}
    mapped = jax.jit(jax.shard_map(step, mesh=data_mesh(), **specs))
  mean = jax.tree.map(lambda x: x.mean(0), grads)
  expected = jax.jit(tx.update)(mean, state, params)
  chex.assert_trees_all_close(
    mapped(params, state, shards), expected, rtol=1e-5, atol=1e-6
  )


SMALL = {'bias': jnp.ones(3)}


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: with_update_statistics(optax.identity(), max_norm=0.0),
      'max_norm: got 0.0, expected a number above 0',
    ),
    (
      lambda: with_update_statistics(optax.identity(), power_iterations=0),
      'power_iterations: got 0',
    ),
    (
      lambda: with_update_statistics(optax.identity()).update(SMALL, None),
      'params: got None',
    ),
    (
      lambda: with_update_statistics(optax.identity(), labels={}).init(SMALL),
      r"labels: got 'no entry', expected one for \['bias'\]",
    ),
    (
      lambda: update_statistics(optax.sgd(0.1).init(SMALL)),
      'states of with_update_statistics: got 0',
    ),
    (
      lambda: update_statistics(
        optax.chain(*[with_update_statistics(optax.identity())] * 2).init(SMALL)
      ),
      r"labels: got \['adamw'\], expected each in one",
    ),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
