"""Bases of blocks: their span, at any rank and condition; its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank.orthonormalize import condition, orthonormal_basis

KEY = jax.random.key(0)


def block(m, l, dtype, steepness):
  """Columns whose singular values fall to 10^-steepness of the largest."""
  draw = lambda i, *shape: jax.random.normal(
    jax.random.fold_in(KEY, i), shape, dtype
  )
  u, _ = jnp.linalg.qr(draw(0, m, l))
  v, _ = jnp.linalg.qr(draw(1, l, l))
  s = 10.0 ** -jnp.linspace(0, steepness, l)
  return u * s.astype(u.real.dtype) @ v.mT.conj()


def projector(q):
  return q @ q.mT.conj()


@pytest.mark.parametrize(
  'dtype, steepness', [('float32', 4), ('float64', 11), ('complex128', 11)]
)
def test_condition_keeps_the_span_and_loses_the_condition(dtype, steepness):
  with jax.enable_x64(True):
    y = block(40, 6, dtype, steepness)
    for scale in (1e-30, 1.0, 1e30):
      found = condition(jnp.asarray(scale, y.dtype) * y)
      assert found.dtype == y.dtype
      assert jnp.linalg.cond(found) < 1.1
    expected = np.linalg.svd(np.asarray(y), full_matrices=False)[0]
    error = projector(jnp.linalg.qr(found)[0]) - projector(expected)
    # A rounding of y turns its last direction by eps over its size.
    assert jnp.abs(error).max() < 10 * jnp.finfo(dtype).eps * 10.0**steepness


def test_conditioning_again_and_again_loses_no_direction():
  s = jnp.array([1.0, 1e-2, 1e-4, 1e-6])
  y = jnp.eye(8, 4)
  for _ in range(10):
    y = condition(y * jnp.pad(s, (0, 4), constant_values=0.0)[:, None])
  assert jnp.linalg.cond(y) < 2


@jax.jit
def slopes(y):
  cubes = lambda f: jax.grad(lambda y: jnp.sum(f(y) ** 3))(y)
  return cubes(condition), cubes(orthonormal_basis)


def test_zero_and_deficient_blocks_are_finite():
  assert not condition(jnp.zeros((5, 3))).any()
  for y in (
    jnp.zeros((5, 3)),
    jnp.ones((5, 3)),
    jnp.eye(5, 1) @ jnp.ones((1, 3)),
  ):
    assert jnp.isfinite(condition(y)).all()
    q = orthonormal_basis(y)
    np.testing.assert_allclose(q.mT @ q, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(q @ (q.mT @ y), y, atol=1e-6)
    for slope in slopes(y):
      assert jnp.isfinite(slope).all()


@pytest.mark.parametrize('dtype', ['float64', 'complex128'])
def test_derivative_of_what_depends_on_the_span(dtype):
  with jax.enable_x64(True):
    y = block(7, 3, dtype, 1)
    dy = jax.random.normal(jax.random.key(3), y.shape, dtype)
    weight = jax.random.normal(jax.random.key(4), (7, 7))

    @jax.jit
    def function(t):
      p = projector(orthonormal_basis(y + t * dy))
      return jnp.sum(weight * p.real)

    h = 1e-5
    expected = float(function(h) - function(-h)) / (2 * h)
    # By the transpose, which holds the JVP as well.
    assert jax.grad(function)(0.0) == pytest.approx(expected, rel=1e-7)
