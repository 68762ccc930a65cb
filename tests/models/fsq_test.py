"""Finite scalar quantisation: grid, gradient, numbers of codes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.models import (
  FSQ_LEVELS,
  FiniteScalarQuantizer,
  fsq_codes,
  fsq_indices,
  fsq_quantize,
)

Z = np.random.default_rng(0).normal(size=(500, 4)) * 2


def oracle(z, levels, symmetric):
  """The formulas, dimension by dimension, in float64."""
  codes = np.empty_like(z)
  for i, level in enumerate(levels):
    if symmetric:
      digit = np.floor((level - 1) * (np.tanh(z[..., i]) + 1) / 2 + 0.5)
      codes[..., i] = 2 / (level - 1) * digit - 1
    else:
      half = (level - 1) * (1 + 1e-3) / 2
      offset = 0.5 if level % 2 == 0 else 0.0
      bounded = np.tanh(z[..., i] + np.arctanh(offset / half)) * half - offset
      codes[..., i] = np.round(bounded) / (level // 2)
  return codes


@pytest.mark.parametrize(
  'levels, symmetric',
  [((8, 5, 3, 6), False), ((8, 5, 2, 6), True), ((7, 4, 999, 1001), False)],
)
def test_equals_the_formulas(levels, symmetric):
  quantize = functools.partial(fsq_quantize, levels=levels, symmetric=symmetric)
  with jax.enable_x64(True):
    codes, pullback = jax.vjp(quantize, jnp.asarray(Z))
    (gradient,) = pullback(jnp.ones_like(Z))
  np.testing.assert_allclose(codes, oracle(Z, levels, symmetric), atol=1e-12)
  # Each level is taken somewhere, and the gradient is that before rounding.
  if max(levels) < 20:
    assert [len(np.unique(c)) for c in np.asarray(codes).T] == list(levels)
  size = np.array(levels)
  half = (size - 1) * (1 + 1e-3) / 2
  shift = np.where(size % 2 == 0, np.arctanh(0.5 / half), 0)
  slope = half / (size // 2) / np.cosh(Z + shift) ** 2
  slope = 1 / np.cosh(Z) ** 2 if symmetric else slope
  np.testing.assert_allclose(gradient, slope, atol=1e-12)


def test_zero_is_a_level_and_the_ends_are_reached():
  ends = jnp.array([[-50.0] * 5, [0.0] * 5, [50.0] * 5])
  levels = (3, 4, 5, 8, 1500)
  codes = fsq_quantize(ends, levels)
  expected = [[-1] * 5, [0] * 5, [1, 0.5, 1, 0.75, 749 / 750]]
  np.testing.assert_allclose(codes, expected, rtol=1e-6)
  expected = [[-1] * 5, [0, 1 / 3, 0, 1 / 7, 1 / 1499], [1] * 5]
  codes = fsq_quantize(ends, levels, symmetric=True)
  np.testing.assert_allclose(codes, expected, rtol=1e-6)


@pytest.mark.parametrize('count, levels', FSQ_LEVELS.items())
def test_level_sets_of_the_paper(count, levels):
  assert 0.9 * count < math.prod(levels) < 1.1 * count
  assert min(levels) >= 5


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize(
  'levels, symmetric', [((8, 8, 8, 6, 5), False), ((2, 7, 2, 8), True)]
)
def test_all_indices_come_back(levels, symmetric, dtype):
  indices = jnp.arange(math.prod(levels))
  options = dict(levels=levels, symmetric=symmetric)
  codes = fsq_codes(indices, dtype=dtype, **options)
  assert codes.dtype == dtype and codes.shape == (*indices.shape, len(levels))
  assert len(np.unique(np.float32(codes), axis=0)) == len(indices)
  back = fsq_indices(codes, **options)
  assert back.dtype == jnp.int32
  np.testing.assert_array_equal(back, indices)


def test_half_precision_would_lose_the_number():
  """What the integers are for: 15359 is 15360 in bfloat16, and out of range."""
  levels = FSQ_LEVELS[2**14]
  top = jnp.full(5, 9.0, jnp.bfloat16)
  codes = fsq_quantize(top, levels)
  assert codes.dtype == jnp.bfloat16
  assert int(fsq_indices(codes, levels)) == 15359
  size, basis = np.array(levels), np.cumprod([1, *levels[:-1]])
  half = jnp.asarray(size // 2, jnp.bfloat16)
  digits = codes * half + half
  wrong = jnp.sum(digits * jnp.asarray(basis, jnp.bfloat16))
  assert int(wrong) == 15360 == math.prod(levels)


@functools.partial(jax.jit, static_argnames=('levels', 'symmetric', 'dtype'))
def there_and_back(z, *, dtype, **options):
  codes = fsq_quantize(z, **options)
  indices = fsq_indices(codes, **options)
  return codes, indices, fsq_codes(indices, dtype=dtype, **options)


@settings(max_examples=10, deadline=None)
@given(
  lead=st.sampled_from([(), (3,), (2, 0), (2, 3)]),
  levels=st.lists(st.integers(3, 9), min_size=1, max_size=3).map(tuple),
  symmetric=st.booleans(),
  dtype=st.sampled_from(['bfloat16', 'float32']),
)
def test_codes_are_those_of_their_indices(lead, levels, symmetric, dtype):
  draw = np.random.default_rng(len(levels)).normal
  z = np.asarray(3 * draw(size=(*lead, len(levels))), jnp.dtype(dtype))
  codes, indices, again = map(
    np.asarray,
    there_and_back(z, levels=levels, symmetric=symmetric, dtype=dtype),
  )
  assert indices.shape == lead and codes.dtype == dtype
  assert ((indices >= 0) & (indices < math.prod(levels))).all()
  np.testing.assert_array_equal(codes, again)
  exact = oracle(np.float64(z), levels, symmetric)
  np.testing.assert_allclose(np.float64(codes), exact, rtol=4e-3, atol=1e-6)


def test_layer():
  layer = FiniteScalarQuantizer((8, 5, 3, 6))
  assert layer.num_codes == 720
  assert layer.init(jax.random.key(0), Z) == {}
  z = np.float32(Z).reshape(5, 100, 4)
  out = layer.apply({}, z, train=True)
  np.testing.assert_array_equal(out.quantized, fsq_quantize(z, layer.levels))
  np.testing.assert_array_equal(
    layer.apply({}, z, method='encode'), out.indices
  )
  back = layer.apply({}, out.indices, method='decode_indices')
  np.testing.assert_array_equal(back, out.quantized)
  used = np.unique(out.indices, return_counts=True)[1]
  np.testing.assert_allclose(out.metrics['usage'], len(used) / 720, rtol=1e-6)
  share = used / 500
  perplexity = np.exp(-np.sum(share * np.log(share)))
  np.testing.assert_allclose(out.metrics['perplexity'], perplexity, rtol=1e-5)
  # Counted over all devices, without what is masked.
  mask = np.arange(100) < 50
  many = jax.vmap(
    lambda z: layer.clone(axis_name='data').apply({}, z, mask=mask).metrics,
    axis_name='data',
    out_axes=None,
  )(z)
  rest = layer.apply({}, z[:, :50]).metrics
  np.testing.assert_allclose(many['perplexity'], rest['perplexity'], rtol=1e-5)


def test_two_levels_do_not_train():
  """The slope at zero that the refusal is about."""
  half = 0.5 * (1 + 1e-3)
  assert 1 - np.tanh(np.arctanh(0.5 / half)) ** 2 < 0.0021
  gradient = jax.grad(lambda z: fsq_quantize(z, (2,), symmetric=True)[0])(
    jnp.zeros(1)
  )
  np.testing.assert_allclose(gradient, 1)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: fsq_quantize(Z, (8, 5, 2, 5)), 'levels: got .*two levels need'),
    (lambda: fsq_quantize(Z, (8, 5, 1, 5), symmetric=True), 'levels: got'),
    (lambda: fsq_quantize(Z, (8, 5, 2.0, 5)), 'levels: got'),
    (lambda: fsq_quantize(Z, ()), 'levels: got'),
    (lambda: fsq_quantize(Z[:, :0], (2**10,) * 4), 'fewer than 2.31 codes'),
    (lambda: fsq_quantize(Z, (8, 5)), 'z: got .* a last axis of 2'),
    (lambda: fsq_quantize(1.0, (8,)), 'z: got shape'),
    (lambda: fsq_quantize(np.arange(2), (8, 5)), "z: got 'int32'"),
    (lambda: fsq_indices(Z, (8, 5)), 'codes: got .* a last axis of 2'),
    (lambda: fsq_indices(np.arange(2), (8, 5)), "codes: got 'int32'"),
    (lambda: fsq_indices(Z, (2,) * 4), 'levels: got'),
    (lambda: fsq_codes(np.ones(2), (8, 5)), "indices: got 'float32'"),
    (lambda: fsq_codes(np.arange(2), (2,)), 'levels: got'),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
