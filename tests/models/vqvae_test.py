"""The autoencoder: shapes, tokens, masks, training on one and many devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.models import (
  VQVAE,
  FiniteScalarQuantizer,
  VectorQuantizer,
  VQVAEConfig,
)
from kexue.training import init_state, make_step, parallelize

KEY = jax.random.key(0)
SMALL = VQVAEConfig(channels=1, width=8, latent=4, downsamplings=1, blocks=1)
IMAGES = jax.random.uniform(KEY, (16, 4, 4, 1))
QUANTIZER = VectorQuantizer(
  16,
  estimator='rotation',
  decay=0.5,
  revival_threshold=0.7,
  bias_rate=0.01,
  max_scale=5.0,
)


@functools.cache
def build(quantizer=QUANTIZER, **options):
  model = VQVAE(quantizer, dataclasses.replace(SMALL, **options))
  return model, jax.jit(model.init)(KEY, IMAGES)


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def apply(model, variables, *args, **options):
  return model.apply(variables, *args, **options)


def loss(model, params, variables, batch, key):
  del key
  out, variables = model.apply(
    {'params': params, **variables}, batch, train=True, mutable=['codebook']
  )
  return sum(out.losses.values()), (variables, out.losses | out.metrics)


def test_tokens_out_and_back():
  for quantizer in (QUANTIZER, FiniteScalarQuantizer((5, 5, 5, 5))):
    model, variables = build(quantizer)
    out = apply(model, variables, IMAGES)
    assert out.reconstruction.shape == IMAGES.shape
    assert out.indices.shape == (16, 2, 2)
    tokens = apply(model, variables, IMAGES, method='encode')
    np.testing.assert_array_equal(tokens, out.indices)
    again = apply(model, variables, tokens, method='decode_indices')
    np.testing.assert_allclose(again, out.reconstruction, atol=1e-6)
    error = jnp.mean((again - IMAGES) ** 2)
    np.testing.assert_allclose(out.losses['reconstruction'], error, rtol=1e-5)


def test_sizes():
  config = VQVAEConfig(downsamplings=3, width=4, latent=2, blocks=0, channels=2)
  assert config.factor == 8
  model = VQVAE(FiniteScalarQuantizer((5, 5)), config)
  x = jnp.ones((1, 16, 8, 2), jnp.bfloat16)
  out, variables = jax.jit(model.init_with_output)(KEY, x)
  assert out.reconstruction.shape == x.shape and out.indices.shape == (1, 2, 1)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
  half = VQVAE(model.quantizer, dataclasses.replace(config, dtype=jnp.bfloat16))
  out = apply(half, variables, x)
  assert out.reconstruction.dtype == jnp.float32
  assert not variables.get('codebook')


def test_what_is_masked_does_not_count():
  model, variables = build()
  mask = jnp.ones((16, 4, 4), bool).at[8:].set(False).at[0, :, 2:].set(False)
  spoilt = jnp.where(mask[..., None], IMAGES, jnp.nan)
  out = apply(model, variables, spoilt, mask=mask)
  zeros = jnp.where(mask[..., None], IMAGES, 0)[:8]
  plain = apply(model, variables, zeros)
  np.testing.assert_allclose(
    out.reconstruction[:8], plain.reconstruction, atol=1e-6
  )
  square = ((plain.reconstruction - zeros) ** 2)[mask[:8]]
  np.testing.assert_allclose(
    out.losses['reconstruction'], jnp.mean(square), rtol=1e-5
  )
  # Thirty latents count: of the first image the left half.
  used = np.concatenate([np.ravel(plain.indices[1:]), plain.indices[0, :, 0]])
  assert len(used) == 30
  usage = len(np.unique(used)) / 16
  np.testing.assert_allclose(out.metrics['usage'], usage, rtol=1e-6)
  tokens = apply(model, variables, spoilt, mask=mask, method='encode')
  np.testing.assert_array_equal(tokens, out.indices)
  nothing = apply(model, variables, spoilt, mask=mask & False)
  assert all(float(value) == 0 for value in nothing.losses.values())


def run(how, images, steps=2):
  model, variables = build()
  variables = dict(variables)
  optimizer = optax.sgd(0.1)
  state = init_state(variables.pop('params'), optimizer, variables)
  step = parallelize(make_step(loss, optimizer, model=model), how)
  batches = np.broadcast_to(images, (steps, *images.shape))
  state, metrics = step(state, batches, KEY)
  variables = {'params': state.params, **state.variables}
  tokens = apply(model, variables, images, method='encode')
  return state, metrics, tokens


def test_eight_devices_train_what_one_trains():
  """Parameters, running means, revived codes, bias, metrics and tokens."""
  images = np.asarray(IMAGES)
  one = run('jit', images)
  before = build()[1]
  for how in ('pmap', 'shard_map'):
    many = run(how, images)
    for ours, theirs in zip(many[:2], one[:2], strict=True):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours,
        theirs,
      )
    np.testing.assert_array_equal(many[2], one[2])
  tokens = one[0].variables['codebook']['tokens']
  start = before['codebook']['tokens']
  for name in ('state', 'bias', 'key'):
    leaf = lambda tree, name=name: np.ravel(jax.tree.leaves(tree[name])[0])
    assert np.any(leaf(tokens) != leaf(start)), name
  assert np.any(one[0].params['encoder']['Conv_0']['bias'])


def test_it_learns():
  images = np.asarray(IMAGES)
  _, metrics, _ = run('jit', images, steps=40)
  losses = np.asarray(metrics['reconstruction'])
  assert losses[-1] < 0.7 * losses[0]
  assert metrics['usage'][-1] > 0.5


@pytest.mark.parametrize(
  'x, options, message',
  [
    (IMAGES[0], {}, 'x: got shape'),
    (IMAGES[:, :3], {}, r'x: got \(\(16, 3, 4, 1\), .float32.\), expected 1'),
    (IMAGES[..., [0, 0]], {}, 'x: got'),
    (IMAGES.astype(int), {}, "x: got .*'int32'"),
    (IMAGES, dict(mask=jnp.ones((16, 2, 2), bool)), 'mask: got shape'),
  ],
)
def test_wrong_arguments_are_named(x, options, message):
  model, variables = build()
  with pytest.raises(ValueError, match=message):
    model.apply(variables, x, **options)


@pytest.mark.parametrize(
  'options', [dict(width=0), dict(blocks=-1), dict(latent=2.0)]
)
def test_wrong_sizes_are_named(options):
  (name,) = options
  with pytest.raises(ValueError, match=f'{name}: got'):
    VQVAEConfig(**options)
