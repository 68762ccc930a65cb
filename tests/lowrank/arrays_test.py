"""Types, shapes and scales that every decomposition starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank.arrays import (
  as_matrix,
  over_batch,
  precise,
  require_decomposition_rank,
  unit,
  wide,
)


@pytest.mark.parametrize(
  ('dtype', 'expected'),
  [
    ('bfloat16', 'float32'),
    ('float16', 'float32'),
    ('int32', 'float32'),
    ('bool', 'float32'),
    ('float32', 'float32'),
    ('complex64', 'complex64'),
    ('float64', 'float64'),
    ('complex128', 'complex128'),
  ],
)
def test_types_become_wide(dtype, expected):
  with jax.enable_x64(True):
    assert wide(jnp.ones(2, dtype)).dtype == expected
    assert as_matrix('a', jnp.ones((2, 2), dtype)).dtype == expected


def test_matrices_have_two_axes_and_entries():
  assert as_matrix('a', np.ones((4, 2, 3))).shape == (4, 2, 3)
  for shape in [(), (3,), (0, 3), (3, 0), (2, 0, 3)]:
    with pytest.raises(ValueError, match='^a: got'):
      as_matrix('a', np.ones(shape))


def test_ranks_are_integers_in_range():
  for rank in (1, 3):
    require_decomposition_rank(rank, (7, 5, 3))
  for rank in (0, -1, 4, 2.0, None, jnp.int32(1)):
    with pytest.raises(ValueError, match='^rank: got .*1..3'):
      require_decomposition_rank(rank, (7, 5, 3))


@pytest.mark.parametrize('scale', [3e38, 1e30, 1.0, 1e-30, 1e-37])
@pytest.mark.parametrize('dtype', [np.float32, np.complex64])
def test_unit_is_exact_at_every_scale(scale, dtype):
  a = np.random.default_rng(0).uniform(0.2, 1, size=(2, 3, 4))
  a = (a * [[[1.0]], [[0.0]]] * scale).astype(dtype)
  x, power = jax.jit(unit)(a)
  assert x.dtype == dtype and power.dtype == np.float32
  assert power.shape == (2, 1, 1)
  np.testing.assert_array_equal(x * power, a)
  assert 0.6 < np.abs(x[0]).max() < 4
  mantissa, _ = np.frexp(power)
  np.testing.assert_array_equal(mantissa, 0.5)
  np.testing.assert_array_equal(x[1], 0)
  assert np.isfinite(np.abs(x).astype(np.float32) ** 2).all()


def test_unit_leaves_what_is_not_finite():
  for value in (np.inf, np.nan):
    x, power = unit(np.full((1, 1), value, np.float32))
    np.testing.assert_array_equal(x, value)
    assert power.item() == 1


def test_the_power_is_constant_for_derivatives():
  a = np.array([[3.0, 1.0]], np.float32)
  _, power = unit(a)
  slope = jax.grad(lambda a: unit(a)[0].sum() + 5 * unit(a)[1].sum())(a)
  np.testing.assert_array_equal(slope, 1 / power + 0 * a)


def test_over_batch_maps_all_leading_axes():
  x, y = np.ones((2, 3, 4, 5)), np.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
  seen = []
  result = over_batch(lambda x, y: seen.append(x.shape) or x @ y, x, y)
  np.testing.assert_array_equal(result, x @ y)
  assert seen == [(4, 5)]
  np.testing.assert_array_equal(
    over_batch(jnp.trace, y[0, 0]), np.trace(y[0, 0])
  )


def test_precise_asks_for_full_products():
  text = str(jax.make_jaxpr(precise(jnp.dot))(np.ones((2, 2)), np.ones((2, 2))))
  assert text.count('HIGHEST') == 2
