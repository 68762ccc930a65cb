"""The layer: codes out and back, state, gradients, masks, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from kexue.models import VectorQuantizer
from kexue.models.codebook import CodebookState

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 6, 4)) + jnp.array([3.0, 0.0, 0.0, 0.0])
G = jax.random.normal(jax.random.key(1), X.shape)
OPTIONS = {
  'ema': dict(revival_threshold=0.5, bias_rate=0.01),
  'learned': dict(
    codebook='learned',
    estimator='rotation',
    max_scale=2.0,
    init_method='data',
  ),
  'linear': dict(
    codebook='linear', bias_rate=0.01, bias_rule='rms', init_method='data'
  ),
  'cosine': dict(
    distance='cosine',
    estimator='diveq',
    codebook='learned',
    init_method='data',
  ),
}


@functools.cache
def build(**options):
  layer = VectorQuantizer(num_codes=8, **options)
  return layer, jax.jit(layer.init)(KEY, X)


@functools.partial(jax.jit, static_argnums=0)
def train(layer, variables, x, mask=None):
  """The output, and what the variables become."""
  out, state = layer.apply(
    variables, x, train=True, mask=mask, mutable=['codebook']
  )
  return out, variables | state


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def apply(layer, variables, x, method=None):
  return layer.apply(variables, x, method=method)


def codes_of(variables, layer):
  return apply(layer, variables, jnp.arange(8), method='decode_indices')


@pytest.mark.parametrize('name', OPTIONS)
def test_codes_out_and_back(name):
  layer, variables = build(**OPTIONS[name])
  codes = codes_of(variables, layer)
  out, _ = train(layer, variables, X)
  assert out.indices.shape == (8, 6) and out.indices.dtype == jnp.int32
  assert len(np.unique(out.indices)) > 3
  np.testing.assert_array_equal(out.quantized, codes[out.indices])
  still = apply(layer, variables, X)
  np.testing.assert_array_equal(still.quantized, out.quantized)
  tokens = apply(layer, variables, X, method='encode')
  np.testing.assert_array_equal(tokens, out.indices)
  # No bias yet: the nearest.
  z = X / jnp.linalg.norm(X, axis=-1, keepdims=True) if name == 'cosine' else X
  square = jnp.sum((z[..., None, :] - codes) ** 2, axis=-1)
  np.testing.assert_array_equal(jnp.argmin(square, axis=-1), tokens)
  error = jnp.mean(jnp.min(square, axis=-1)) / 4
  np.testing.assert_allclose(
    out.metrics['quantization_error'], error, rtol=1e-5
  )
  np.testing.assert_allclose(out.losses['commitment'], error / 4, rtol=1e-5)
  if name != 'ema':
    np.testing.assert_allclose(out.losses['codebook'], error, rtol=1e-5)
  if name == 'cosine':
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, rtol=1e-5)


def test_what_is_trained_and_what_is_state():
  collections = {
    name: {c: sorted(v) for c, v in build(**options)[1].items()}
    for name, options in OPTIONS.items()
  }
  assert collections == {
    'ema': {'codebook': ['bias', 'key', 'state']},
    'learned': {'params': ['codebook']},
    'linear': {'codebook': ['bias', 'frozen'], 'params': ['kernel']},
    'cosine': {'params': ['codebook']},
  }


def test_running_means_in_closed_form():
  """Three steps; each quantises with the codebook before it."""
  layer, variables = build(decay=0.7, init_method='data')
  state = variables['codebook']['state']
  assert isinstance(state, CodebookState)
  counts, sums = (np.float64(x) for x in (state.counts, state.sums))
  for step in range(3):
    x = X + step
    before = codes_of(variables, layer)
    out, variables = train(layer, variables, x)
    np.testing.assert_array_equal(out.quantized, before[out.indices])
    one_hot = np.eye(8)[np.ravel(out.indices)]
    counts = 0.7 * counts + 0.3 * one_hot.sum(0)
    sums = 0.7 * sums + 0.3 * one_hot.T @ np.reshape(x, (-1, 4))
    smooth = (counts + 1e-5) / (counts.sum() + 8e-5) * counts.sum()
    state = variables['codebook']['state']
    np.testing.assert_allclose(state.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(
      state.codebook, sums / smooth[:, None], rtol=1e-4
    )
  assert np.abs(codes_of(variables, layer) - before).max() > 0.1


def test_evaluation_changes_nothing():
  for name in ('ema', 'linear'):
    layer, variables = build(**OPTIONS[name])
    _, after = jax.jit(functools.partial(layer.apply, mutable=['codebook']))(
      variables, X
    )
    jax.tree.map(
      np.testing.assert_array_equal, after, {'codebook': variables['codebook']}
    )


def test_gradients():
  def loss(variables, x, layer):
    out = layer.apply(variables, x)
    return jnp.sum(G * out.quantized) + sum(out.losses.values())

  def by_variables(name, **more):
    layer, variables = build(**OPTIONS[name], **more)
    grads = jax.jit(jax.grad(loss, (0, 1), allow_int=True), static_argnums=2)(
      variables, X, layer
    )
    out = apply(layer, variables, X)
    return layer, variables, out, *grads

  # Straight through and the commitment; nothing reaches the running means.
  _, _, out, grads, by_x = by_variables('ema')
  assert not np.any(grads['codebook']['state'].codebook)
  expected = G + 0.25 * 2 * (X - out.quantized) / X.size
  np.testing.assert_allclose(by_x, expected, atol=1e-6)
  # A learned codebook moves to its vectors.
  _, variables, out, grads, _ = by_variables('learned')
  one_hot = jax.nn.one_hot(out.indices.ravel(), 8)
  pull = 2 * one_hot.T @ (out.quantized - X).reshape(-1, 4) / X.size
  np.testing.assert_allclose(grads['params']['codebook'], pull, atol=1e-6)
  # SimVQ: through the matrix alone.
  _, variables, out, grads, _ = by_variables('linear')
  assert not np.any(grads['codebook']['frozen'])
  pull = 2 * one_hot_pull(variables, out)
  np.testing.assert_allclose(grads['params']['kernel'], pull, atol=1e-6)


def one_hot_pull(variables, out):
  frozen = variables['codebook']['frozen'][out.indices].reshape(-1, 4)
  return frozen.T @ (out.quantized - X).reshape(-1, 4) / X.size


def test_simvq_is_frozen_vectors_times_a_matrix():
  layer, variables = build(**OPTIONS['linear'])
  np.testing.assert_array_equal(variables['params']['kernel'], np.eye(4))
  kernel = jax.random.normal(KEY, (4, 4))
  variables = variables | {'params': {'kernel': kernel}}
  expected = variables['codebook']['frozen'] @ kernel
  np.testing.assert_allclose(codes_of(variables, layer), expected, atol=1e-5)


@pytest.mark.parametrize('name', ['ema', 'linear'])
def test_masked_vectors_do_not_count(name):
  layer, variables = build(**OPTIONS[name])
  mask = jnp.arange(6) < jnp.arange(1, 9)[:, None]
  spoilt = jnp.where(mask[..., None], X, jnp.nan)
  rows = X[mask]
  out, after = train(layer, variables, spoilt, mask)
  alone, expected = train(layer, variables, rows)
  np.testing.assert_array_equal(out.indices[mask], alone.indices)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, out[2:], alone[2:])
  jax.tree.map(close, after, expected)


def test_dead_codes_come_back_and_stay():
  layer, variables = build(revival_threshold=0.5, decay=0.9, init_method='data')
  far = variables['codebook']['state']
  far = far._replace(
    codebook=far.codebook.at[:4].set(100.0),
    sums=far.sums.at[:4].set(0.0),
    counts=far.counts.at[:4].set(0.0),
  )
  variables = {'codebook': variables['codebook'] | {'state': far}}
  out, after = train(layer, variables, X)
  assert float(out.metrics['usage']) <= 0.5
  codes = codes_of(after, layer)
  rows = np.asarray(X.reshape(-1, 4))
  for code in codes[:4]:
    assert np.abs(rows - code).sum(-1).min() < 1e-6
  # The next step takes them along instead of back, by another key.
  out, later = train(layer, after, X)
  assert float(out.metrics['usage']) > 0.5
  assert np.abs(codes_of(later, layer)).max() < 10
  keys = [v['codebook']['key'] for v in (variables, after, later)]
  assert len({tuple(np.asarray(key)) for key in keys}) == 3


@pytest.mark.parametrize('rule', ['sign', 'rms'])
def test_the_bias_balances_and_follows_the_scale(rule):
  """Frozen codes in a cloud that is dense in the middle."""
  x = jax.random.normal(KEY, (1000, 4))
  x = x * jnp.sum(x**2, axis=-1, keepdims=True)
  layer = VectorQuantizer(
    8, codebook='linear', init_method='data', bias_rate=0.01, bias_rule=rule
  )
  violation = {}
  for scale in (1.0, 1000.0):
    variables = layer.init(KEY, scale * x)
    np.testing.assert_array_equal(variables['codebook']['bias'], 0)
    out, _ = train(layer, variables, scale * x)
    violation[scale, 0] = 8 * np.bincount(out.indices).max() / 1000 - 1
    for _ in range(150):
      old = variables['codebook']['bias']
      out, variables = train(layer, variables, scale * x)
    load = np.bincount(out.indices, minlength=8)
    violation[scale, 150] = 8 * load.max() / 1000 - 1
    moved = np.asarray(variables['codebook']['bias'] - old)
    np.testing.assert_array_equal(np.sign(moved), -np.sign(load - 125))
  assert violation[1.0, 150] < violation[1.0, 0] / 4, violation
  np.testing.assert_allclose(
    violation[1000.0, 150], violation[1.0, 150], rtol=0.1
  )


@pytest.mark.parametrize('name', ['ema', 'linear'])
def test_eight_devices_are_one(name):
  """State, metrics and mean losses, also with unequal masks."""
  layer, variables = build(**OPTIONS[name])
  mask = jnp.arange(6) < jnp.arange(8)[:, None]  # Nothing on the first.
  expected, after = train(layer, variables, X, mask)
  on_many = layer.clone(axis_name='data')
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))

  def step(variables, x, mask):
    out, variables = train(on_many, variables, x, mask)
    mean = lambda tree: jax.lax.pmean(tree, 'data')
    return out[:2], mean(out.losses), mean(out.metrics), variables

  sharded = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(P(), P('data'), P('data')),
    out_specs=(P('data'), P(), P(), P()),
  )
  outs, losses, metrics, state = jax.jit(sharded)(variables, X, mask)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, outs, tuple(expected[:2]))
  jax.tree.map(close, (losses, metrics), tuple(expected[2:]))
  jax.tree.map(close, state, after)


def test_zero_vectors_and_half_precision():
  layer, variables = build(**OPTIONS['cosine'])
  x = jnp.zeros((3, 4), jnp.bfloat16).at[1].set(2)
  loss = lambda x: jnp.sum(layer.apply(variables, x).quantized * G[0, :3])
  grads = jax.grad(loss)(x)
  assert grads.dtype == jnp.bfloat16
  assert bool(jnp.all(jnp.isfinite(grads.astype(jnp.float32))))
  assert layer.apply(variables, x).quantized.dtype == jnp.float32


def test_starts_in_the_data():
  """K-means finds clusters; a batch that holds fewer vectors is refused."""
  centres = 10 * jax.random.normal(KEY, (8, 4))
  x = jnp.repeat(centres, 5, axis=0)
  layer = VectorQuantizer(8)
  out, _ = jax.jit(layer.init_with_output)(KEY, x)
  np.testing.assert_allclose(out.quantized, x, atol=1e-4)
  with pytest.raises(ValueError, match="x: got '7 vectors', expected a batch"):
    layer.init(KEY, x[:7])
  VectorQuantizer(8, init_method='normal').init(KEY, x[:7])


@pytest.mark.parametrize(
  'options, x, message',
  [
    (dict(codebook='x'), X, "codebook: got 'x', expected one of 'ema'"),
    (
      dict(codebook='learned', revival_threshold=1.0),
      X,
      'revival_threshold: got 1.0',
    ),
    (dict(estimator='x'), X, "estimator: got 'x'"),
    (dict(bias_rule='x'), X, "bias_rule: got 'x'"),
    (dict(bias_rate=-1.0), X, 'bias_rate: got -1.0'),
    (dict(num_codes=0), X, 'num_codes: got 0'),
    (dict(distance='x'), X, "distance: got 'x'"),
    (dict(init_method='x'), X, "init_method: got 'x'"),
    ({}, X[0, 0], 'x: got shape'),
    ({}, X.astype(int), "x: got 'int32'"),
  ],
)
def test_wrong_arguments_are_named(options, x, message):
  with pytest.raises(ValueError, match=message):
    VectorQuantizer(**dict(num_codes=8) | options).init(KEY, x)
  layer, variables = build()
  with pytest.raises(ValueError, match=r'mask: got shape \(8,\)'):
    layer.apply(variables, X, mask=jnp.ones(8, bool))
  with pytest.raises(ValueError, match='z: got'):
    layer.apply(variables, X[..., :3])
