"""Residual quantisation: each stage lowers the error, one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.models import (
  FiniteScalarQuantizer,
  ResidualQuantizer,
  VectorQuantizer,
)

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 16, 3))
STAGES = (
  VectorQuantizer(8),
  VectorQuantizer(8, codebook='learned'),
  FiniteScalarQuantizer((8, 8, 8)),
)


@pytest.fixture(scope='module')
def built():
  layer = ResidualQuantizer(STAGES)
  return layer, jax.jit(layer.init)(KEY, X)


def test_each_stage_quantises_what_is_left(built):
  layer, variables = built
  out, after = layer.apply(variables, X, train=True, mutable=['codebook'])
  assert out.indices.shape == (8, 16, 3)
  rest, errors, losses = X, [], 0
  for i, stage in enumerate(STAGES):
    own = {c: v.get(f'stage_{i}', {}) for c, v in variables.items()}
    single, state = stage.apply(own, rest, train=True, mutable=['codebook'])
    np.testing.assert_array_equal(single.indices, out.indices[..., i])
    rest = rest - single.quantized
    errors.append(float(jnp.mean(rest**2)))
    losses += single.losses.get('commitment', 0)
    if i == 0:
      jax.tree.map(
        np.testing.assert_array_equal,
        state['codebook'],
        after['codebook']['stage_0'],
      )
  assert errors[2] < errors[1] / 1.5 < errors[0] / 2
  np.testing.assert_allclose(out.losses['commitment'], losses, rtol=1e-6)
  np.testing.assert_allclose(X - out.quantized, rest, atol=1e-6)
  error = out.metrics['quantization_error']
  np.testing.assert_allclose(error, errors[2], rtol=1e-5)
  again = layer.apply(variables, out.indices, method='decode_indices')
  np.testing.assert_array_equal(again, out.quantized)
  tokens = layer.apply(variables, X, method='encode')
  np.testing.assert_array_equal(tokens, out.indices)
  coarse = layer.apply(variables, tokens[..., :1], method='decode_indices')
  np.testing.assert_allclose(jnp.mean((X - coarse) ** 2), errors[0], rtol=1e-5)


def test_the_gradient_comes_once(built):
  """Not once for each stage; every stage commits the input, though."""
  layer, variables = built

  def parts(x):
    out = layer.apply(variables, x)
    return jnp.sum(out.quantized), out.losses['commitment']

  through, commitment = jax.jit(jax.jacrev(parts))(X)
  np.testing.assert_array_equal(through, 1)
  tokens = layer.apply(variables, X, method='encode')
  rest = sum(
    X - layer.apply(variables, tokens[..., :i], method='decode_indices')
    for i in (1, 2)
  )
  expected = 0.25 * 2 * rest / X.size
  np.testing.assert_allclose(commitment, expected, rtol=1e-4, atol=1e-8)


def test_stages_know_the_axis(built):
  layer, variables = built

  def step(x):
    _, state = layer.clone(axis_name='data').apply(
      variables, x, train=True, mutable=['codebook']
    )
    return state

  many = jax.vmap(step, axis_name='data', out_axes=None)(X)
  _, one = layer.apply(variables, X, train=True, mutable=['codebook'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), many, one
  )


def test_wrong_arguments_are_named(built):
  layer, variables = built
  with pytest.raises(ValueError, match='stages: got'):
    ResidualQuantizer(()).init(KEY, X)
  with pytest.raises(ValueError, match="estimator: got 'diveq'"):
    ResidualQuantizer(STAGES, estimator='diveq').init(KEY, X)
  with pytest.raises(
    ValueError, match='indices: got .* expected 1 to 3 stages'
  ):
    indices = jnp.zeros((2, 4), int)
    layer.apply(variables, indices, method='decode_indices')
