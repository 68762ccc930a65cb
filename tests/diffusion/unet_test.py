"""Parts against numpy and flax, and what reaches which pixel of the whole."""

import contextlib
import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import UNet, UNetConfig
from kexue.diffusion.unet import (
  Attention,
  Norm,
  depth_to_space,
  space_to_depth,
  timestep_features,
)
from kexue.figures.fast_convolutions import fast_convolutions
from kexue.optimizers import matrix_labels

KEY = jax.random.key(0)
SMALL = UNetConfig(width=4, heads=2, num_classes=3)
T = jnp.array([1, 500])
LABEL = jnp.array([2, 0])


def normal(seed, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def stirred(module, *inputs):
  """Variables of which none is zero: at the start the network says nothing."""
  leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, KEY, *inputs))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.float32(0.3 * rng.normal(size=x.shape))
  return jax.tree.unflatten(tree, [*map(draw, leaves)])


@pytest.fixture(scope='module')
def small():
  x = normal(0, 2, 8, 8, 1)
  network = UNet(SMALL)
  variables = stirred(network, x, T)
  return jax.jit(lambda *a: network.apply(variables, *a)), variables, x


@pytest.mark.parametrize(
  'side, changes',
  [
    (28, dict()),
    (32, dict(channels=3, outputs=6, multipliers=(1, 2, 3))),
    (7, dict(patch=1, multipliers=(2,), num_classes=0)),
  ],
)
def test_sizes_and_a_start_at_zero(side, changes):
  config = dataclasses.replace(SMALL, **changes)
  network, x = UNet(config), jnp.ones((2, side, side, config.channels))
  y, _ = jax.eval_shape(network.init_with_output, KEY, x, T)
  assert y.shape == (2, side, side, config.outputs or config.channels)
  last = lambda key: network.init(key, x, T)['params']['Conv_1']
  assert not any(map(np.any, jax.jit(last)(KEY).values()))


def test_every_pixel_timestep_and_class_is_seen(small):
  apply, _, x = small
  # One corner of the output sees the other by norms and attention.
  corner = lambda x: apply(x, T, LABEL)[0, 0, 0, 0]
  reach = jax.grad(corner)(x)
  assert np.all(reach[0] != 0) and not np.any(reach[1])
  y = apply(x, T, LABEL)
  for other in (apply(x, T + 1, LABEL), apply(x, T, LABEL - 1)):
    assert np.all(np.any(y != other, axis=(1, 2, 3)))


def test_no_label_is_the_last_class(small):
  apply, _, x = small
  for i, label in enumerate(LABEL):
    none = apply(x, T, jnp.full(2, 3))
    np.testing.assert_allclose(apply(x, T), none, atol=1e-6)
    some = apply(x, T, jnp.full(2, label))
    assert np.any(np.abs(some[i] - none[i]) > 1e-3)


def test_patches():
  x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  y = space_to_depth(jnp.array(x), 2)
  assert y.shape == (2, 2, 3, 12)
  for i, j in np.ndindex(2, 3):
    patch = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
    np.testing.assert_array_equal(y[:, i, j], patch.reshape(2, 12))
  np.testing.assert_array_equal(depth_to_space(y, 2), x)


def test_features_of_timesteps():
  t = np.array([1.0, 37.0, 1000.0])
  angles = t[:, None] * 10_000.0 ** -np.array([0, 0.25, 0.5, 0.75])
  expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  np.testing.assert_allclose(timestep_features(t, 8), expected, atol=1e-4)


@pytest.mark.parametrize('width, groups', [(16, 8), (12, 4), (6, 2)])
def test_norm_is_that_of_flax_and_listens(width, groups):
  x, e = 3 + 2 * normal(1, 2, 3, 5, width), normal(2, 2, 7)
  variables = stirred(Norm(), x, e)
  p = variables['params']
  own = {k: p[k] for k in ('scale', 'bias')}
  layer = nn.GroupNorm(num_groups=groups, epsilon=1e-5)
  plain = layer.apply({'params': own}, x)
  np.testing.assert_allclose(Norm().apply({'params': own}, x), plain, atol=2e-5)
  told = e @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  gain, shift = jnp.split(told[:, None, None], 2, axis=-1)
  expected = plain * (1 + gain) + shift
  found = Norm().apply(variables, x, e)
  np.testing.assert_allclose(found, expected, atol=5e-5)


def test_attention_by_hand():
  x = normal(3, 1, 2, 3, 8)
  layer = Attention(heads=2)
  variables = stirred(layer, x)
  p = jax.tree.map(np.float64, variables['params'])
  norm = nn.GroupNorm(num_groups=8, epsilon=1e-5)
  y = np.float64(norm.apply({'params': p['Norm_0']}, x)).reshape(6, 8)
  q, k, v = np.split(y @ p['Dense_0']['kernel'] + p['Dense_0']['bias'], 3, 1)
  mixed = []
  for head in (slice(0, 4), slice(4, 8)):
    weights = np.exp(q[:, head] @ k[:, head].T / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    mixed.append(weights @ v[:, head])
  out = np.concatenate(mixed, axis=1) @ p['Dense_1']['kernel']
  expected = np.float64(x) + (out + p['Dense_1']['bias']).reshape(x.shape)
  np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-4)


def test_muon_reads_every_kernel_as_a_matrix(small):
  _, variables, _ = small
  params = variables['params']
  numbers = UNet(SMALL).dimension_numbers(params)
  assert numbers['Conv_0']['kernel'] == ((0, 1, 2), 3)
  assert numbers['Attention_0']['Dense_0']['kernel'] == ((0,), 1)
  labels = jax.tree_util.tree_leaves_with_path(matrix_labels(params, numbers))
  for path, label in labels:
    assert label == ('muon' if path[-1].key == 'kernel' else 'adamw')


def test_convolutions_in_the_fast_form_train_alike(small):
  _, variables, x = small
  network, y = UNet(SMALL), normal(4, 2, 8, 8, 1)

  def gradient(variables):
    def loss(variables):
      return jnp.mean(jnp.square(network.apply(variables, x, T, LABEL) - y))

    step = lambda carry, _: (carry, jax.grad(loss)(variables))
    return jax.lax.scan(step, 0, None, length=1)[1]

  forms, found = [], []
  for context in (contextlib.nullcontext(), fast_convolutions()):
    with context:
      lowered = jax.jit(lambda v: gradient(v)).lower(variables)
    text = lowered.as_text()
    forms.append({*re.findall('dim_numbers = (.*?), window', text)})
    found.append(jax.tree.leaves(lowered.compile()(variables)))
  assert len(forms[0]) > 1 and len(forms[1]) == 1
  for a, b in zip(*found, strict=True):
    assert np.any(a)  # All parameters matter.
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(width=0), 'width: got 0'),
    (dict(patch=1.5), 'patch: got 1.5'),
    (dict(multipliers=()), 'multipliers'),
    (dict(multipliers=[1, 2]), 'multipliers: .* a tuple'),
    (dict(multipliers=(1, 0)), 'multipliers'),
    (dict(num_classes=-1), 'num_classes'),
    (dict(outputs=0), 'outputs'),
    (dict(heads=3), 'heads: got 3, expected a divisor of 8'),
  ],
)
def test_wrong_sizes(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
  'shape, t, label, changes, message',
  [
    ((2, 8, 8), 2, None, {}, 'x: .* 4 axes'),
    ((2, 8, 8, 3), 2, None, {}, 'channels: got 3, expected 1'),
    ((2, 8, 10, 1), 2, None, {}, 'x.shape: .* sides that 4 divides'),
    ((2, 8, 8, 1), 1, None, {}, 't: got shape'),
    ((2, 8, 8, 1), 2, 3, {}, 'label: got shape'),
    ((2, 8, 8, 1), 2, 2, {'num_classes': 0}, 'label: .* None'),
  ],
)
def test_wrong_inputs(shape, t, label, changes, message):
  network = UNet(dataclasses.replace(SMALL, **changes))
  label = label and jnp.zeros(label, int)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(network.init, KEY, jnp.zeros(shape), jnp.ones(t, int), label)
