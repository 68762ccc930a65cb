"""The same values and gradients as flax, inside a scan as well."""

import contextlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.fast_convolutions import (
  convolved,
  fast_convolutions,
  upsampled,
)
from kexue.models import VQVAE, FiniteScalarQuantizer, VQVAEConfig

KEY = jax.random.key(0)
normal = lambda i, shape: jax.random.normal(jax.random.fold_in(KEY, i), shape)


@pytest.mark.parametrize('side, stride', [(8, 2), (7, 1)])
def test_a_convolution_by_hand(side, stride):
  x, kernel = normal(0, (2, side, side, 3)), normal(1, (4, 4, 3, 5))
  found, pull = jax.vjp(lambda *a: convolved(*a, stride), x, kernel)
  g = normal(2, found.shape)
  x, kernel, g = map(np.float64, (x, kernel, g))
  expected = np.zeros(found.shape)
  to_x, to_kernel = np.zeros(x.shape), np.zeros(kernel.shape)
  for i, j in np.ndindex(found.shape[1:3]):
    rows, columns = (slice(stride * k, stride * k + 4) for k in (i, j))
    patch = x[:, rows, columns]
    expected[:, i, j] = np.einsum('bhwi,hwio->bo', patch, kernel)
    to_x[:, rows, columns] += np.einsum('bo,hwio->bhwi', g[:, i, j], kernel)
    to_kernel += np.einsum('bo,bhwi->hwio', g[:, i, j], patch)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  for got, wanted in zip(pull(jnp.float32(g)), (to_x, to_kernel), strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_transposed_convolution_is_that_of_flax():
  x, layer = normal(0, (2, 3, 5, 4)), nn.ConvTranspose(6, (4, 4), (2, 2))
  variables = layer.init(KEY, x)
  kernel = variables['params']['kernel']
  expected = layer.apply(variables, x)
  assert expected.shape == (2, 6, 10, 6)
  np.testing.assert_allclose(upsampled(x, kernel), expected, atol=1e-5)


def test_a_model_trains_alike_in_a_scan():
  sizes = VQVAEConfig(channels=1, width=4, latent=2, blocks=1)
  model, x = (
    VQVAE(FiniteScalarQuantizer((5, 5)), sizes),
    normal(0, (2, 8, 8, 1)),
  )
  params = model.init(KEY, x)['params']

  def gradient(params):
    def loss(params):
      return model.apply({'params': params}, x).losses['reconstruction']

    step = lambda carry, _: (carry, jax.value_and_grad(loss)(params))
    return jax.lax.scan(step, 0, None, length=2)[1]

  forms, found = [], []
  for context in (contextlib.nullcontext(), fast_convolutions()):
    with context:
      lowered = jax.jit(lambda params: gradient(params)).lower(params)
    forms.append(
      {*re.findall('dim_numbers = (.*?), window', lowered.as_text())}
    )
    found.append(jax.tree.leaves(lowered.compile()(params)))
  # One form, the one of the fast kernels, in place of several.
  assert len(forms[0]) > 1
  assert forms[1] == {'[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'}
  for a, b in zip(*found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_starts_are_those_of_flax():
  layer, x = nn.Conv(3, (3, 3)), normal(0, (1, 4, 4, 2))
  with fast_convolutions():
    assert layer.init(KEY, x)['params']['kernel'].shape == (3, 3, 2, 3)
