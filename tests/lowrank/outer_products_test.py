"""The terms of a product, their inner products and best weights, against numpy.

The oracle forms every outer product as a vector of length m n in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.lowrank.outer_products import (
  best_weights,
  inner_products,
  outer_products,
  squared_norm,
)

RANDOM = np.random.default_rng(0)


def matrices(m=5, l=8, n=4, *, dtype=np.float64):
  draw = lambda *shape: RANDOM.normal(size=shape)
  x, y = draw(m, l), draw(l, n)
  if np.issubdtype(dtype, np.complexfloating):
    x, y = x + 1j * draw(m, l), y + 1j * draw(l, n)
  return x.astype(dtype), y.astype(dtype)


def vectors(x, y):
  """[m n, l], what article 10427 calls v_i."""
  x, y = np.asarray(x), np.asarray(y)
  return np.einsum('ml,ln->mnl', x, y).reshape(-1, x.shape[1])


def residual(x, y, indices, weights):
  v = vectors(x, y)
  return np.linalg.norm(v[:, indices] @ np.asarray(weights) - v.sum(1))


decompose = jax.jit(outer_products)


def rebuilt(terms):
  x, y, sizes, exponent = map(np.asarray, terms)
  return (x * sizes) @ y * 2.0 ** float(exponent)


@pytest.mark.parametrize('dtype', [np.float32, np.complex64])
def test_terms_make_up_the_product(dtype):
  x, y = matrices(dtype=dtype)
  x[:, 2], y[5] = 0, 0
  terms = decompose(x, y)
  np.testing.assert_allclose(rebuilt(terms), x @ y, atol=1e-5)
  sizes = np.linalg.norm(vectors(x, y), axis=0)
  found = np.ldexp(terms.sizes, terms.exponent)
  np.testing.assert_allclose(found, sizes, rtol=1e-6)
  norms = np.linalg.norm(terms.x, axis=0)
  np.testing.assert_allclose(norms, np.arange(8) != 2, rtol=1e-6)
  assert terms.sizes.dtype == np.float32


@given(
  st.lists(st.integers(-37, 37), min_size=8, max_size=8),
  st.lists(st.integers(-37, 37), min_size=8, max_size=8),
)
@settings(max_examples=15, deadline=None)
def test_sizes_are_relative_at_any_scale(left, right):
  x, y = (np.ones((3, 8)), np.ones((8, 3)))
  powers = np.float64(left) + right
  terms = decompose(
    np.float32(x * 10.0 ** np.array(left)),
    np.float32((y.T * 10.0 ** np.array(right)).T),
  )
  expected = 10.0 ** (powers - powers.max())
  ratio = terms.sizes / np.max(terms.sizes)
  np.testing.assert_allclose(ratio, expected, rtol=1e-5, atol=1e-37)
  assert 0.1 < np.max(terms.sizes) < 10


def test_zeros_have_size_zero():
  terms = decompose(np.zeros((5, 8)), np.ones((8, 4)))
  assert not terms.sizes.any() and terms.exponent == 0
  assert np.isfinite(terms.x).all() and not squared_norm(terms)


def test_inner_products_are_those_of_the_vectors():
  x, y = matrices(dtype=np.complex64)
  terms = decompose(x, y)
  v = vectors(terms.x, terms.y)
  np.testing.assert_allclose(
    inner_products(terms, terms), v.conj().T @ v, atol=1e-6
  )


@pytest.mark.parametrize('shape', [(9, 2, 9), (3, 9, 4)])
def test_squared_norm_either_way(shape):
  x, y = matrices(*shape)
  terms = decompose(np.float32(x), np.float32(y))
  found = squared_norm(terms) * 4.0 ** float(terms.exponent)
  np.testing.assert_allclose(found, np.linalg.norm(x @ y) ** 2, rtol=1e-5)


@jax.jit
def weights_of(x, y, indices, there):
  return best_weights(outer_products(x, y), indices, there)


def weigh(x, y, indices, there=None):
  indices = jnp.asarray(indices)
  there = jnp.ones(len(indices), bool) if there is None else there
  return np.asarray(weights_of(x, y, indices, jnp.asarray(there)))


@pytest.mark.parametrize('dtype', [np.float64, np.complex128])
def test_best_weights_are_those_of_least_squares(dtype):
  x, y = matrices(dtype=dtype)
  indices = np.array([6, 1, 3])
  v = vectors(x, y)
  expected = np.linalg.lstsq(v[:, indices], v.sum(1))[0]
  with jax.enable_x64(True):
    found = weigh(x, y, indices)
  np.testing.assert_allclose(found, expected, rtol=1e-10)
  single = weigh(x.astype(np.complex64), y.astype(np.complex64), indices)
  np.testing.assert_allclose(single, expected, rtol=1e-3)


def test_best_weights_where_terms_depend_on_each_other():
  x, y = matrices()
  x[:, 4], y[4] = 3 * x[:, 1], y[1] / 2  # Parallel terms.
  x[:, 5] = 0
  indices = np.array([1, 4, 4, 1, 5, 0])
  v = vectors(x, y)
  coefficients = np.linalg.lstsq(v[:, indices], v.sum(1))[0]
  best = residual(x, y, indices, coefficients)
  for bits in (32, 64):
    with jax.enable_x64(bits == 64):
      weights = weigh(*(a.astype(f'f{bits // 8}') for a in (x, y)), indices)
    assert residual(x, y, indices, weights) < best * (1 + 1e-6)
    assert weights[4] == 0 and np.abs(weights).max() < 100
    # Of the many best ones, those that share alike, as far as rounding lets.
    assert weights[0] == pytest.approx(weights[3], rel=0.1)


def test_best_weights_of_what_is_there():
  x, y = matrices()
  there = np.array([True, False, True])
  with jax.enable_x64(True):
    found = weigh(x, y, [6, 1, 3], there)
    expected = weigh(x, y, [6, 3])
  np.testing.assert_allclose(found[there], expected)
  assert found[1] == 0


def test_best_weights_of_all_are_one_at_any_scale():
  x, y = matrices(6, 5, 6)
  scale = np.float32([1e-18, 1e30, 1, 1e-18, 1e-36])
  x, y = np.float32(x) * scale, np.float32(y)
  found = weigh(x, y, [1, 0, 4])
  assert found[0] == pytest.approx(1) and np.isfinite(found).all()
  assert np.isfinite(x[:, [1, 0, 4]] * found).all()
