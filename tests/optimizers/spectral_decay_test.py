"""Spectral decay against SVD and finite differences; its invariants."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from kexue.optimizers import (
  FusedDimensionNumbers,
  add_spectral_decay,
  schatten_gradient,
  spectral_norm,
)

KEY = jax.random.key(0)


def gaussian(*shape, seed=0, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def with_gap(m, n, gap=0.5, seed=0):
  """A matrix whose singular values fall by `gap` each."""
  r = min(m, n)
  generator = np.random.default_rng(seed)
  u = np.linalg.qr(generator.normal(size=(m, r)))[0]
  v = np.linalg.qr(generator.normal(size=(n, r)))[0]
  return jnp.asarray((u * gap ** np.arange(r)) @ v.T, jnp.float32)


def schatten_norm(w, order):
  s = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
  return (s ** (2 * order)).sum() ** (1 / (2 * order)) if order else s[0]


@pytest.mark.parametrize('shape', [(5, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize('order', [1, 2, 3, 8, None])
def test_gradient_by_finite_differences(shape, order):
  with jax.enable_x64(True):
    w = gaussian(*shape, dtype=jnp.float64)
    direction = gaussian(*shape, seed=1, dtype=jnp.float64)
    half = lambda t: schatten_norm(w + t * direction, order) ** 2 / 2
    numeric = (half(1e-5) - half(-1e-5)) / 2e-5
    ours = jnp.vdot(schatten_gradient(w, order), direction)
    np.testing.assert_allclose(ours, numeric, rtol=1e-7)


@pytest.mark.parametrize('order', [1, 2, 7, 16, 64])
@pytest.mark.parametrize('scale', [1e-25, 1.0, 1e25])
def test_singular_values_at_any_scale_and_high_order(order, scale):
  s = np.array([1.0, 0.97, 0.5, 1e-3])
  u, v = (np.linalg.qr(gaussian(n, 4, seed=n))[0] for n in (6, 9))
  w = jnp.asarray((u * s) @ v.T, jnp.float32) * scale
  norm = (s ** (2 * order)).sum() ** (1 / (2 * order))
  expected = (u * (s * (s / norm) ** (2 * order - 2))) @ v.T
  np.testing.assert_allclose(
    schatten_gradient(w, order) / scale, expected, atol=3e-6 * order
  )


def test_tends_to_the_rank_one_limit():
  w = with_gap(6, 4)
  limit = schatten_gradient(w, None)
  distances = [
    float(jnp.linalg.norm(schatten_gradient(w, k) - limit))
    for k in (1, 2, 4, 8, 64)
  ]
  assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-5


def test_batches_half_precision_and_zero():
  w = gaussian(3, 4, 6)
  each = jnp.stack([schatten_gradient(x, 3) for x in w])
  np.testing.assert_allclose(schatten_gradient(w, 3), each, rtol=1e-5)
  assert schatten_gradient(w.astype(jnp.bfloat16), 2).dtype == jnp.float32
  for order in (1, 2, 5, None):
    result = schatten_gradient(jnp.stack([jnp.zeros((4, 6)), w[0]]), order)
    assert not np.any(result[0]) and np.all(np.isfinite(result))
  assert float(spectral_norm(jnp.zeros((3, 4)), key=KEY)) == 0


def test_spectral_norm_is_the_largest_singular_value_from_below():
  w = gaussian(2, 30, 50)
  exact = np.linalg.norm(np.asarray(w), 2, axis=(1, 2))
  found = spectral_norm(w, iterations=200, key=KEY)
  np.testing.assert_allclose(found, exact, rtol=1e-4)
  early = spectral_norm(w, iterations=2, key=KEY)
  assert np.all(early <= exact * (1 + 1e-6))
  gap = with_gap(20, 30)
  np.testing.assert_allclose(spectral_norm(gap, key=KEY), 1.0, rtol=1e-6)
  np.testing.assert_allclose(spectral_norm(gap * 1e30, key=KEY), 1e30, 1e-5)
  np.testing.assert_allclose(spectral_norm(gap * 1e-30, key=KEY), 1e-30, 1e-5)


@hypothesis.given(
  shape=st.sampled_from([(1, 1), (1, 6), (7, 1), (5, 8), (9, 4)]),
  rate=st.floats(0, 1),
  seed=st.integers(0, 2**31 - 1),
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_any_unit_vector_never_increases_the_spectral_norm(shape, rate, seed):
  generator = np.random.default_rng(seed)
  w, v = generator.normal(size=shape), generator.normal(size=shape[1])
  v /= np.linalg.norm(v)
  after = w - rate * np.outer(w @ v, v)
  assert np.linalg.norm(after, 2) <= np.linalg.norm(w, 2) * (1 + 1e-12)
  # The transform with a `v` of its own choice, right or not.
  decay = add_spectral_decay(rate, key=jax.random.key(seed))
  params = {'w': jnp.asarray(w, jnp.float32)}
  zeros = {'w': jnp.zeros(shape)}
  updates, _ = decay.update(zeros, decay.init(params), params)
  ours = np.asarray(params['w'] - updates['w'], np.float64)
  assert np.linalg.norm(ours, 2) <= np.linalg.norm(w, 2) * (1 + 1e-5)


def test_exact_direction_shrinks_the_top_value_alone():
  w = with_gap(5, 8)
  decay = add_spectral_decay(0.1)
  updates, _ = decay.update({'w': 0 * w}, decay.init({'w': w}), {'w': w})
  before = np.linalg.svd(w, compute_uv=False)
  after = np.linalg.svd(w - updates['w'], compute_uv=False)
  expected = before * np.where(np.arange(5) == 0, 0.9, 1.0)
  np.testing.assert_allclose(after, expected, atol=1e-5)


def test_the_direction_follows_a_slow_drift():
  decay = add_spectral_decay(1.0)
  a, b = with_gap(12, 10, seed=1), with_gap(12, 10, seed=2)
  state, update = decay.init({'w': a}), jax.jit(decay.update)
  for t in np.linspace(0, 1, 200):
    w = {'w': (1 - t) * a + t * b}
    updates, state = update({'w': 0 * a}, state, w)
  np.testing.assert_allclose(
    updates['w'], schatten_gradient(b, None), atol=2e-2
  )
  assert int(state.count) == 200


def test_order_one_is_weight_decay():
  params = {'w': gaussian(4, 6), 'b': jnp.ones(3)}
  mask = {'w': True, 'b': False}
  ours = add_spectral_decay(0.3, order=1, mask=mask)
  theirs = optax.add_decayed_weights(0.3, mask)
  a, _ = ours.update(params, ours.init(params), params)
  b, _ = theirs.update(params, theirs.init(params), params)
  chex.assert_trees_all_close(a, b, rtol=1e-6)


@pytest.mark.parametrize('order', [None, 2])
def test_heads_are_one_matrix_and_layers_a_batch(order):
  w = jnp.stack([with_gap(6, 8, seed=s) for s in (1, 2)])
  heads = w.reshape(2, 6, 4, 2)
  numbers = {'w': MuonDimensionNumbers((1,), (2, 3))}
  decay = add_spectral_decay(1.0, order=order, dimension_numbers=numbers)
  params = {'w': heads}
  updates, _ = decay.update({'w': 0 * heads}, decay.init(params), params)
  expected = jnp.stack([schatten_gradient(x, order) for x in w])
  np.testing.assert_allclose(updates['w'].reshape(2, 6, 8), expected, atol=1e-4)


@pytest.mark.parametrize('order', [None, 2])
def test_matrices_side_by_side_decay_apart(order):
  parts = [with_gap(6, n, seed=n) for n in (8, 3, 3)]
  params = {'qkv': jnp.concatenate(parts, axis=1)}
  numbers = {'qkv': FusedDimensionNumbers((8, 3, 3))}
  decay = add_spectral_decay(1.0, order=order, dimension_numbers=numbers)
  updates, _ = decay.update(
    {'qkv': 0 * params['qkv']}, decay.init(params), params
  )
  expected = [schatten_gradient(x, order) for x in parts]
  np.testing.assert_allclose(
    updates['qkv'], jnp.concatenate(expected, axis=1), atol=1e-4
  )


def test_state_is_stable_and_parameters_keep_their_dtype():
  params = {'w': gaussian(4, 6).astype(jnp.bfloat16)}
  decay = add_spectral_decay(0.1)
  state = decay.init(params)
  updates, after = jax.jit(decay.update)(params, state, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
  assert updates['w'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: add_spectral_decay(-1.0), 'weight_decay: got -1.0'),
    (lambda: add_spectral_decay(0.1, order=0), 'order: got 0'),
    (
      lambda: add_spectral_decay(0.1, power_iterations=0),
      'power_iterations: got 0',
    ),
    (lambda: add_spectral_decay(0.1).init({'b': jnp.ones(3)}), r"leaf \['b'\]"),
    (
      lambda: add_spectral_decay(0.1).update({}, None, None),
      'params: got None',
    ),
    (lambda: schatten_gradient(jnp.ones(3), 2), r'w: got shape \(3,\)'),
    (lambda: schatten_gradient(jnp.eye(3), 0), 'order: got 0'),
    (lambda: spectral_norm(jnp.ones(3), key=KEY), 'w: got shape'),
    (
      lambda: spectral_norm(jnp.eye(3), iterations=0, key=KEY),
      'iterations: got 0',
    ),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
