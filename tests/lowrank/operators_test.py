"""Operators: a product and its adjoint, whatever they are made from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank.operators import (
  Operator,
  as_operator,
  as_product,
  is_operator,
)
from kexue.lowrank.svd import SVD

RNG = np.random.default_rng(0)


def gaussian(*shape):
  return RNG.normal(size=shape) + 1j * RNG.normal(size=shape)


def functions(a):
  return lambda x: a @ x, lambda y: a.conj().T @ y, a.shape, a.dtype


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def check(operator, a):
  """Product and adjoint are those of the matrix, and the type is kept."""
  *batch, m, n = a.shape
  x, y = gaussian(*batch, n, 3), gaussian(*batch, m, 2)
  assert operator.shape == a.shape and operator.dtype == a.dtype
  np.testing.assert_allclose(operator.matvec(jnp.asarray(x)), a @ x, atol=1e-12)
  adjoint = np.swapaxes(a, -1, -2).conj() @ y
  np.testing.assert_allclose(
    operator.rmatvec(jnp.asarray(y)), adjoint, atol=1e-12
  )


def test_arrays_and_functions():
  a = gaussian(5, 4)
  check(as_operator('a', a), a)
  check(as_operator('a', functions(a)), a)
  check(as_operator('a', Operator(*functions(a))), a)
  batch = gaussian(2, 3, 5, 4)
  check(as_operator('a', batch), batch)
  # A block without the leading axes meets all of them.
  x = jnp.asarray(gaussian(4, 2))
  assert as_operator('a', batch).matvec(x).shape == (2, 3, 5, 2)


def test_products():
  u, s, vh = gaussian(5, 3), gaussian(3), gaussian(3, 4)
  check(as_product('a', SVD(u, s, vh)), (u * s) @ vh)
  check(as_product('a', (u, vh)), u @ vh)
  check(as_product('a', (u, s, s, vh)), (u * s**2) @ vh)
  check(as_product('a', (vh,)), vh)
  u, s, vh = gaussian(2, 5, 3), gaussian(2, 3), gaussian(2, 3, 4)
  check(as_product('a', (u, s, vh)), (u * s[:, None]) @ vh)
  # Square, so that a diagonal is told from a matrix by its axes alone.
  u, s, vh = gaussian(3, 3, 3), gaussian(3, 3), gaussian(3, 3, 3)
  check(as_product('a', (u, s, vh)), (u * s[:, None]) @ vh)


def test_half_precision_is_multiplied_in_single():
  seen = []
  times = lambda x: seen.append(x.dtype) or x.astype(jnp.bfloat16)
  operator = as_operator('a', (times, times, (2, 2), jnp.bfloat16))
  result = operator.matvec(jnp.ones((2, 1), jnp.float64))
  assert operator.dtype == result.dtype == jnp.float32
  assert seen == [jnp.float32]
  assert as_operator('a', jnp.ones((2, 2), jnp.int8)).dtype == jnp.float32
  assert as_product('a', (jnp.ones((2, 2), jnp.int8),)).dtype == jnp.float32


def test_operators_are_told_from_products():
  a = gaussian(2, 2)
  assert is_operator(functions(a))
  assert not is_operator((a, a, a, a)) and not is_operator(functions(a)[:3])


def test_wrong_arguments_are_named():
  a = gaussian(3, 4)
  matvec, rmatvec, shape, dtype = functions(a)
  for wrong in (a[0], (a, a.T), (matvec, rmatvec, shape), (matvec, None, a, a)):
    with pytest.raises(ValueError, match='^a: got'):
      as_operator('a', wrong)
  for shape in ((3,), (3, 0), (3, 4.0), 3):
    with pytest.raises(ValueError, match='^a.shape: got'):
      as_operator('a', (matvec, rmatvec, shape, dtype))
  for factors in (
    (),
    (a, a),
    (a[0], a),
    (a, a[0], a),
    (a, a[0, 0]),
    (a, a[None]),
  ):
    with pytest.raises(ValueError, match='^a: got'):
      as_product('a', factors)
