"""The guarantees as numbers, and matrices that need them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank.interpolation_bound import interpolation_bound


def test_the_formulas():
  s = np.float32([[5.0, 3.0, 2.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
  bound = interpolation_bound(4, 6, 2, s, threshold=1.5)
  np.testing.assert_allclose(bound.frobenius, [np.sqrt(3 * 5), 0], rtol=1e-6)
  strong = np.sqrt(1 + 1.5**2 * 2 * 4)
  np.testing.assert_allclose(bound.spectral, [2 * strong, 0], rtol=1e-6)
  np.testing.assert_allclose(bound.pivoted, [2 * 4 * 2, 0], rtol=1e-6)
  jitted = jax.jit(lambda s: interpolation_bound(4, 6, 2, s, threshold=1.5))
  np.testing.assert_allclose(jitted(s), bound, rtol=1e-6)
  # Rows are chosen among four.
  assert float(interpolation_bound(6, 4, 2, s[0]).pivoted) == pytest.approx(
    4 * np.sqrt(2) * 2
  )


def test_some_columns_do_no_better():
  """The corners of a simplex, seen from a point far below its centre."""
  rank = 3
  corners = np.eye(rank + 1) - 1 / (rank + 1)
  a = np.r_[corners, 1e-4 * np.ones((1, rank + 1))]
  s = np.linalg.svd(a, compute_uv=False)
  q, _ = np.linalg.qr(a[:, 1:])  # All choices are alike.
  error = np.linalg.norm(a - q @ (q.T @ a))
  bound = interpolation_bound(rank + 2, rank + 1, rank, s)
  assert error == pytest.approx(float(bound.frobenius), rel=1e-5)
  assert error <= float(bound.spectral) * (1 + 1e-5)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_scales(scale):
  s = np.float32([4.0, 3.0, 2.0])
  bound = interpolation_bound(3, 3, 1, s)
  scaled = interpolation_bound(3, 3, 1, np.float32(scale) * s)
  np.testing.assert_allclose(
    np.array(scaled) / np.float32(scale), bound, rtol=1e-6
  )


def test_full_and_enormous_rank():
  assert [*map(float, interpolation_bound(3, 3, 3, np.ones(3)))] == [0, 0, 0]
  s = np.zeros(3000)
  assert float(interpolation_bound(3000, 3000, 2000, s).pivoted) == 0
  assert np.isinf(interpolation_bound(3000, 3000, 2000, s + 1).pivoted)


def test_types():
  assert interpolation_bound(2, 2, 1, [2, 1]).frobenius.dtype == jnp.float32
  with jax.enable_x64(True):
    bound = interpolation_bound(2, 2, 1, np.array([2.0, 1.0]))
    assert bound.spectral.dtype == jnp.float64


def test_wrong_arguments_are_named():
  s = np.ones(3)
  for message, call in {
    'rank: got 4': lambda: interpolation_bound(5, 3, 4, s),
    'singular_values: got': lambda: interpolation_bound(5, 4, 2, s),
    'threshold: got 0.5': lambda: interpolation_bound(
      5, 3, 2, s, threshold=0.5
    ),
  }.items():
    with pytest.raises(ValueError, match=f'^{message}'):
      call()
