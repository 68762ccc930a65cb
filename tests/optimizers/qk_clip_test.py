"""QK-clip: recomputed logits of real attentions, layouts, untouched bits."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.models import Transformer, TransformerConfig
from kexue.optimizers import qk_clip
from kexue.training import data_mesh

SETTINGS = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)


def gaussian(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def bits(x):
  return np.asarray(x).view(np.uint32)


def max_logits(params, x):
  """Largest logit of each head [H], grouped or not, in float64."""
  read = lambda name: np.asarray(params[name]['kernel'], np.float64)
  project = lambda name: (
    np.einsum('td,dhk->thk', x, read(name))
    + np.asarray(params[name].get('bias', 0.0), np.float64)
  )
  q, k = project('query'), project('key')
  k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
  return np.einsum('qhk,shk->hqs', q, k).max((1, 2))


@functools.cache
def language_model(scan_layers):
  model = Transformer(
    TransformerConfig(
      vocab_size=16,
      layers=2,
      width=8,
      heads=2,
      hidden=4,
      qk_norm=False,
      return_max_logits=True,
      scan_layers=scan_layers,
    )
  )
  tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 16)
  params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  # With no output of attention the layers see the same input before and after.
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if 'out' in jax.tree_util.keystr(path) else x, params
  )
  logits = jax.jit(lambda p: model.apply({'params': p}, tokens)[1])
  return params, logits


@pytest.mark.parametrize('scan_layers', [False, True])
def test_the_transformer_recomputes_the_threshold(scan_layers):
  params, logits = language_model(scan_layers)
  before = np.asarray(logits(params))
  threshold = float(np.median(before[before > 0]))
  clipped = jax.jit(functools.partial(qk_clip, threshold=threshold))(
    params, before
  )
  after = np.asarray(logits(clipped))
  over = before > threshold
  assert over.any() and not over.all()
  np.testing.assert_allclose(after[over], threshold, rtol=1e-4)
  np.testing.assert_array_equal(bits(after[~over]), bits(before[~over]))
  # Nothing else in the tree moved.
  others = lambda tree: [
    x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
    if not any(n in jax.tree_util.keystr(path) for n in ('query', 'key'))
  ]
  chex.assert_trees_all_equal(others(clipped), others(params))
  chex.assert_trees_all_equal_shapes_and_dtypes(clipped, params)


@hypothesis.given(
  groups=st.integers(1, 3),
  size=st.integers(1, 3),
  width=st.integers(1, 4),
  bias=st.booleans(),
  seed=st.integers(0, 10**6),
)
@SETTINGS
def test_grouped_queries_meet_the_threshold_and_never_grow(
  groups, size, width, bias, seed
):
  params = {
    'query': {'kernel': gaussian(5, groups * size, width, seed=seed)},
    'key': {'kernel': gaussian(5, groups, width, seed=seed + 1)},
  }
  if bias:
    params['query']['bias'] = gaussian(groups * size, width, seed=seed + 2)
    params['key']['bias'] = gaussian(groups, width, seed=seed + 3)
  x = np.random.default_rng(seed).normal(size=(7, 5))
  before = max_logits(params, x)
  threshold = max(float(np.median(before)), 1e-3)
  clip = functools.partial(qk_clip, threshold=threshold)
  clipped = jax.jit(clip)(params, jnp.asarray(before))
  np.testing.assert_allclose(
    max_logits(clipped, x), np.minimum(before, threshold), rtol=1e-5
  )
  for new, old in zip(
    jax.tree.leaves(clipped), jax.tree.leaves(params), strict=True
  ):
    assert np.all(np.abs(new) <= np.abs(old))
  over = (before > threshold).reshape(groups, size)
  for name, kept in (('query', ~over.ravel()), ('key', ~over.all(1))):
    for part in params[name]:
      np.testing.assert_array_equal(
        bits(clipped[name][part])[..., kept, :],
        bits(params[name][part])[..., kept, :],
      )


def test_both_halves_of_a_head_take_the_root():
  params = {'wq': jnp.ones((3, 2, 4)), 'wk': jnp.ones((3, 2, 4))}
  clipped = qk_clip(params, jnp.array([50.0, 400.0]))
  for name in params:
    np.testing.assert_allclose(clipped[name][:, 1], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(clipped[name][:, 0], 1.0)


@pytest.mark.parametrize(
  'logit', [100.0, 0.0, -5.0, np.nan, np.inf, -np.inf, 1e-45]
)
def test_such_a_logit_changes_no_bit(logit):
  odd = jnp.array([-0.0, 1e-45, -3e-39, jnp.nan, jnp.inf, 1.1])
  kernel = jnp.stack([odd, jnp.ones(6)]).reshape(1, 2, 6)
  params = {'query': kernel, 'key': kernel}
  clipped = jax.jit(qk_clip)(params, jnp.array([logit, 1e30]))
  for name in params:
    np.testing.assert_array_equal(bits(clipped[name])[:, 0], bits(kernel)[:, 0])
    np.testing.assert_allclose(clipped[name][:, 1], 1e-14, rtol=1e-5)


def test_latent_attention_scales_the_rotary_query_alone():
  gamma = np.array([1.0, 0.25, 0.04])
  root = np.sqrt(gamma)
  params = {
    'wq_b': {'kernel': gaussian(5, 3, 6)},
    'wkv_b': {'kernel': gaussian(5, 3, 7, seed=1)},
    'wkv_a': {'kernel': gaussian(5, 9, seed=2)},  # Latent and rotary key.
  }
  roles = {
    'wq_b': {'query': 4, 'rotary_query': 2},
    'wkv_b': {'key': 4, 'fixed': 3},
  }
  logits = jnp.array([3.0, 400.0, 2500.0])
  clipped = qk_clip(params, logits, roles=roles)
  q = np.concatenate([np.tile(root, (4, 1)), np.tile(gamma, (2, 1))]).T
  k = np.concatenate([np.tile(root, (4, 1)), np.ones((3, 3))]).T
  for name, factor in (('wq_b', q), ('wkv_b', k), ('wkv_a', 1.0)):
    expected = np.asarray(params[name]['kernel']) * factor
    np.testing.assert_allclose(clipped[name]['kernel'], expected, rtol=1e-6)

  # The same in DeepSeek's own layout [H K, D], and with the parts on their own.
  flat = jax.tree.map(lambda x: x.reshape(5, -1).T, params)
  fused = qk_clip(flat, logits, roles=roles, head_axis=-2, head_width=6)
  chex.assert_trees_all_equal(
    fused, jax.tree.map(lambda x: x.reshape(5, -1).T, clipped)
  )
  split = {
    'q': params['wq_b']['kernel'][..., :4],
    'qr': params['wq_b']['kernel'][..., 4:],
    'k': params['wkv_b']['kernel'][..., :4],
  }
  apart = qk_clip(
    split,
    logits,
    roles={'q': 'query', 'qr': 'rotary_query', 'k': 'key'},
  )
  np.testing.assert_array_equal(
    jnp.concatenate([apart['q'], apart['qr']], -1), clipped['wq_b']['kernel']
  )


def layers(names):
  return {
    name: {
      'query': gaussian(3, 2, 4, seed=i),
      'key': gaussian(3, 2, 4, seed=i + 9),
      'query_norm': {'scale': jnp.ones(4)},
    }
    for i, name in enumerate(names)
  }


ONE = layers(['a'])['a']
TWO = layers(['a', 'b'])


def test_heads_side_by_side_on_one_axis():
  logits = jnp.array([4.0, 400.0, 900.0, 250.0])
  params = {
    'query': {'w': gaussian(3, 4, 5), 'b': gaussian(4, 5)},
    'key': {'w': gaussian(3, 2, 5), 'b': gaussian(2, 5)},
  }
  flatten = lambda tree: jax.tree.map(
    lambda x: x.reshape(*x.shape[:-2], -1), tree
  )
  fused = qk_clip(flatten(params), logits, head_axis=-1, head_width=5)
  chex.assert_trees_all_equal(fused, flatten(qk_clip(params, logits)))


def test_rows_find_their_layers():
  names = ['layers_0', 'layers_2', 'layers_10']
  params = layers(names)
  logits = jnp.array([[1.0, 400.0], [900.0, 2.0], [3.0, 4.0]])
  expected = {
    name: qk_clip(params[name], row)
    for name, row in zip(names, logits, strict=True)
  }
  nested = {
    name: {'max_logits': (row,)}
    for name, row in zip(names, logits, strict=True)
  }
  deep = {name: {'attention': params[name]} for name in names}
  for form in (logits, list(logits), np.asarray(logits), nested):
    chex.assert_trees_all_equal(qk_clip(params, form), expected)
  plain = dict(zip(names, logits, strict=True))
  chex.assert_trees_all_equal(
    qk_clip(deep, plain),
    {name: {'attention': expected[name]} for name in names},
  )
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *params.values())
  for form in (logits, {'block': logits}):
    chex.assert_trees_all_equal(
      qk_clip({'block': stacked}, form)['block'],
      jax.tree.map(lambda *x: jnp.stack(x), *expected.values()),
    )


def test_the_name_closest_to_the_leaf_decides():
  towers = {tower: {'query': ONE['query'], 'key': ONE['key']} for tower in TWO}
  params = {'query': towers['a'], 'key': towers['b']}
  clipped = qk_clip(params, jnp.array([[1.0, 1.0], [400.0, 1.0]]))
  np.testing.assert_allclose(
    clipped['query']['key'][:, 0], params['query']['key'][:, 0] / 2, rtol=1e-6
  )
  chex.assert_trees_all_equal(clipped['key'], params['key'])


def test_half_precision_is_multiplied_in_single():
  x = gaussian(3, 1, 50).astype(jnp.bfloat16)
  clipped = qk_clip({'query': x, 'key': x}, jnp.array([300.0], jnp.bfloat16))
  expected = (x.astype(jnp.float32) * np.sqrt(1 / 3)).astype(jnp.bfloat16)
  assert clipped['key'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    clipped['key'].astype(jnp.float32), expected.astype(jnp.float32)
  )


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_the_maximum_is_taken_over_devices(how):
  params = ONE
  logits = 30.0 * jnp.arange(16.0).reshape(8, 2)  # One row for each device.
  clip = functools.partial(qk_clip, axis_name='data')
  if how == 'pmap':
    mapped = jax.pmap(clip, 'data', in_axes=(None, 0), out_axes=None)
  else:
    mapped = jax.jit(
      jax.shard_map(
        lambda params, x: clip(params, x[0]),
        mesh=data_mesh(),
        in_specs=(P(), P('data')),
        out_specs=P(),
      )
    )
  chex.assert_trees_all_equal(
    mapped(params, logits), jax.jit(qk_clip)(params, logits.max(0))
  )


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: qk_clip(ONE, jnp.ones(2), threshold=0), 'threshold: got 0'),
    (lambda: qk_clip(ONE, jnp.ones(2), head_width=0), 'head_width: got 0'),
    (
      lambda: qk_clip({'w': jnp.ones(3)}, jnp.ones(2)),
      r"leaves of queries and keys: got 0, expected some below .* \['query'",
    ),
    (
      lambda: qk_clip(ONE, jnp.ones(2), roles={'query': 'queries'}),
      "role of query: got 'queries', expected one of 'query'",
    ),
    (
      lambda: qk_clip(ONE, {'a': jnp.ones(2), 'b': jnp.ones(2)}),
      'entries of max_logits for : got 2, expected 1',
    ),
    (
      lambda: qk_clip({'a': {'key': ONE['key']}}, jnp.ones(2)),
      r"roles in a: got \['key'\], expected a query and a key",
    ),
    (
      lambda: qk_clip(ONE, jnp.ones(4)),
      r"leaf \['query'\]: got \(3, 2, 4\), expected 4 heads on axis -2",
    ),
    (
      lambda: qk_clip(ONE | {'key': jnp.ones((3, 3, 4))}, jnp.ones(2)),
      r"leaf \['key'\]: got \(3, 3, 4\), expected a divisor of 2 heads",
    ),
    (
      lambda: qk_clip(
        ONE | {'key': {'w': jnp.ones((3, 2, 4)), 'b': jnp.ones((1, 4))}},
        jnp.ones(2),
      ),
      r"leaf \['key'\]\['w'\]: .* the same for all keys",
    ),
    (
      lambda: qk_clip(ONE, jnp.ones((5, 2))),
      r"leaf \['key'\]: got \(3, 2, 4\), .* after the stacked axes \(5,\)",
    ),
    (
      lambda: qk_clip(ONE, jnp.ones(2), head_axis=3),
      r"leaf \['key'\]: got \(3, 2, 4\), expected heads on axis 3",
    ),
    (
      lambda: qk_clip(ONE, jnp.ones(2), head_axis=-1, head_width=3),
      r"leaf \['key'\]: .* a multiple of the width 3 on axis -1",
    ),
    (
      lambda: qk_clip(
        ONE,
        jnp.ones(2),
        roles={'query': 'query', 'key': {'key': 2, 'fixed': 1}},
      ),
      r"leaf \['key'\]: .* heads of width 3 on the last axis",
    ),
    (
      lambda: qk_clip(TWO, jnp.ones(2)),
      r'max_logits: got \(2,\), expected a row for each of 2 layers',
    ),
    (
      lambda: qk_clip(TWO, [jnp.ones(2)]),
      r'max_logits: got \[\(2,\)\], expected a row for each of 2 layers',
    ),
    (
      lambda: qk_clip(TWO, {'a': jnp.ones(2)}),
      'entries of max_logits for b: got 0, expected 1',
    ),
    (
      lambda: qk_clip(ONE, 3.0),
      r'max_logits: got shape \(\), expected 1 or more axes',
    ),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
