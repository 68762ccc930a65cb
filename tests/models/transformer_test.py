"""The transformer: causality, positions, options, dimension numbers."""

import dataclasses
import functools

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from kexue.models import (
  MoEConfig,
  Transformer,
  TransformerConfig,
  next_token_loss,
  rotary,
)
from kexue.optimizers import matrix_labels

SMALL = TransformerConfig(vocab_size=11, layers=2, width=16, heads=2)
KEY = jax.random.key(0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 7)))


@functools.cache
def build(**options):
  model = Transformer(dataclasses.replace(SMALL, **options))
  return model, model.init(KEY, TOKENS)['params']


def test_equals_a_numpy_forward_pass():
  """Every formula again, slowly, in float64."""
  model, params = build()
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale

  def rotate(x):  # [T, H, K], pairs (i, i + K/2) as complex numbers.
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    angle = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
    z = z * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], -1)

  for sequence, logits in zip(
    np.asarray(TOKENS), model.apply({'params': params}, TOKENS), strict=True
  ):
    x = p['embedding']['embedding'][sequence]
    for i in range(2):
      layer = p[f'layers_{i}']
      a, h = layer['attention'], norm(x, layer['attention_norm']['scale'])
      q, k, v = (
        np.einsum('td,dhk->thk', h, a[name]['kernel'])
        for name in ('query', 'key', 'value')
      )
      q = rotate(norm(q, a['query_norm']['scale']))
      k = rotate(norm(k, a['key_norm']['scale']))
      for t in range(len(x)):
        score = np.einsum('hk,shk->hs', q[t], k[: t + 1]) / np.sqrt(8)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        mixed = np.einsum('hs,shk->hk', weight, v[: t + 1])
        x[t] += np.einsum('hk,hkd->d', mixed, a['out']['kernel'])
      h, m = norm(x, layer['mlp_norm']['scale']), layer['mlp']
      gate, up = h @ m['gate']['kernel'], h @ m['up']['kernel']
      x = x + (gate / (1 + np.exp(-gate)) * up) @ m['down']['kernel']
    expected = norm(x, p['final_norm']['scale']) @ p['head']['kernel']
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_no_token_sees_the_future(scan_layers):
  model, params = build(scan_layers=scan_layers)
  changed = TOKENS.at[:, 4].set((TOKENS[:, 4] + 1) % 11)
  before = model.apply({'params': params}, TOKENS)
  after = model.apply({'params': params}, changed)
  np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
  assert np.abs(before[:, 4:] - after[:, 4:]).max(axis=(0, 2)).min() > 1e-3


def test_scanned_layers_equal_layers_in_a_row():
  model, params = build()
  scanned, _ = build(scan_layers=True)
  stack = jax.tree.map(
    lambda *xs: jnp.stack(xs), params['layers_0'], params['layers_1']
  )
  same = {k: v for k, v in params.items() if not k.startswith('layers_')}
  same['layers'] = stack
  np.testing.assert_allclose(
    scanned.apply({'params': same}, TOKENS),
    model.apply({'params': params}, TOKENS),
    atol=1e-5,
  )


def test_rotary_makes_inner_products_of_distances():
  q, k = jax.random.normal(KEY, (2, 1, 1, 1, 8))
  at = lambda x: rotary(jnp.tile(x, (1, 9, 1, 1)))[0, :, 0]
  products = at(q) @ at(k).T
  for shift in range(-4, 5):
    diagonal = np.diagonal(products, shift)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
  np.testing.assert_allclose(
    np.linalg.norm(at(q), axis=-1), np.linalg.norm(q), rtol=1e-6
  )


def test_tied_head_has_no_kernel_and_trains_one_table():
  model, params = build(tie_embedding=True)
  assert 'head' not in params
  loss = lambda p: next_token_loss(model.apply({'params': p}, TOKENS), TOKENS)
  assert 0.0 < float(loss(params)) < 6.0
  assert np.abs(jax.grad(loss)(params)['embedding']['embedding']).max() > 0


def test_max_logits_are_the_largest_of_each_head():
  model, params = build(return_max_logits=True)
  plain, _ = build()
  logits, most = model.apply({'params': params}, TOKENS)
  np.testing.assert_allclose(
    logits, plain.apply({'params': params}, TOKENS), atol=1e-6
  )
  assert most.shape == (2, 2) and np.all(np.isfinite(most))
  # With normalised queries and keys no logit exceeds sqrt(K).
  assert float(jnp.max(most)) <= 8**0.5 + 1e-5
  one = [
    model.apply({'params': params}, TOKENS[i : i + 1])[1] for i in (0, 1, 2)
  ]
  np.testing.assert_allclose(most, np.max(one, axis=0), atol=1e-5)


def test_bfloat16_computes_near_float32_and_returns_it():
  model, params = build(dtype=jnp.bfloat16)
  plain, _ = build()
  chex.assert_type(jax.tree.leaves(params), jnp.float32)
  logits = model.apply({'params': params}, TOKENS)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(
    logits, plain.apply({'params': params}, TOKENS), atol=0.15
  )


@pytest.mark.parametrize('scan_layers', [False, True])
def test_dimension_numbers_name_every_matrix_and_no_other(scan_layers):
  model, params = build(scan_layers=scan_layers)
  labels = matrix_labels(params, model.dimension_numbers)
  paths = {
    '/'.join(k): v for k, v in flax.traverse_util.flatten_dict(labels).items()
  }
  muon = {k for k, v in paths.items() if v == 'muon'}
  assert len(muon) == 7 if scan_layers else 14
  assert all(k.endswith('kernel') and 'head' not in k for k in muon)


MOE = MoEConfig(experts=4, chosen=2, shared=1, balance_weight=0.1)


def test_layers_of_experts_are_those_named():
  model, params = build(moe=MOE, moe_layers=(1,))
  assert 'mlp' in params['layers_0'] and 'moe' in params['layers_1']
  kernel = params['layers_1']['moe']['expert_up']['kernel']
  # As much work for a token as dense: 48 hidden units over 3, in eights.
  assert kernel.shape == (4, 16, 16)
  assert params['layers_1']['moe']['shared_up']['kernel'].shape == (1, 16, 16)
  labels = matrix_labels(params, model.dimension_numbers)
  assert labels['layers_1']['moe']['expert_up']['kernel'] == 'muon'
  assert labels['layers_1']['moe']['router'] == 'adamw'
  numbers = model.dimension_numbers(params)['layers_1']['moe']
  for name in ('expert_up', 'expert_down', 'shared_gate'):  # A batch of them.
    assert numbers[name]['kernel'] == MuonDimensionNumbers((1,), (2,))


def test_stacked_layers_of_experts_equal_layers_in_a_row():
  run = lambda model, variables: model.apply(
    variables, TOKENS, train=True, mutable=['balance', 'losses']
  )
  model = Transformer(dataclasses.replace(SMALL, moe=MOE))
  variables = model.init(KEY, TOKENS)
  assert {*variables} == {'params', 'balance'}
  logits, changed = run(model, variables)
  scanned = Transformer(dataclasses.replace(SMALL, moe=MOE, scan_layers=True))

  def stacked(tree):
    stack = jax.tree.map(
      lambda *xs: jnp.stack(xs), tree['layers_0'], tree['layers_1']
    )
    same = {k: v for k, v in tree.items() if not k.startswith('layers_')}
    return {**same, 'layers': stack}

  same = {name: stacked(tree) for name, tree in variables.items()}
  again, expected = run(scanned, same)
  np.testing.assert_allclose(again, logits, atol=1e-5)
  for name in ('balance', 'losses'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
      expected[name],
      stacked(changed[name]),
    )
  load = changed['balance']['layers_0']['moe']['state'].load
  assert load.sum() == TOKENS.size * 2


def test_loss_is_the_cross_entropy():
  logits = jax.random.normal(KEY, (2, 3, 5))
  targets = jnp.array([[0, 1, 2], [3, 4, 0]])
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  picked = np.take_along_axis(p, np.asarray(targets)[..., None], -1)
  np.testing.assert_allclose(
    next_token_loss(logits, targets), -np.log(picked).mean(), rtol=1e-5
  )


def test_runs_inside_nnx():
  model = nnx.bridge.ToNNX(Transformer(SMALL), rngs=nnx.Rngs(0))
  model.lazy_init(TOKENS)
  assert model(TOKENS).shape == (3, 7, 11)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: TransformerConfig(width=100, heads=3), 'width: got 100'),
    (lambda: TransformerConfig(layers=0), 'layers: got 0'),
    (lambda: TransformerConfig(hidden=-8), 'hidden: got -8'),
    (lambda: TransformerConfig(heads=2.0), 'heads: got 2.0'),
    (lambda: rotary(jnp.ones((1, 2, 1, 3))), 'an even last axis'),
    (lambda: TransformerConfig(moe_layers=(0,)), r'moe_layers: got \(0,\)'),
    (lambda: TransformerConfig(moe=MOE, moe_layers=(4,)), 'layers in 0..3'),
    (lambda: Transformer(SMALL).init(KEY, TOKENS[0]), r'tokens: got shape \(7'),
    (lambda: rotary(jnp.ones((2, 3))), r'x: got shape \(2, 3\)'),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
