"""What quantisers have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.models.quantized import checked_vectors, global_mean


def test_mean_of_weighted_means_is_the_mean_of_all():
  values = jnp.arange(24.0).reshape(4, 6) ** 2
  mask = jnp.arange(6) < jnp.array([[6], [0], [5], [1]])

  def on_device(values, mask):
    local = jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)
    weighted = global_mean(local, mask, 'data')
    return jax.lax.pmean((local, weighted), 'data')

  plain, weighted = jax.vmap(on_device, axis_name='data')(values, mask)
  expected = np.asarray(values)[np.asarray(mask)].mean()
  np.testing.assert_allclose(weighted, expected, rtol=1e-6)
  assert np.abs(plain - expected).min() > 1
  nothing = jax.vmap(on_device, axis_name='data')(values, mask & False)
  np.testing.assert_array_equal(nothing[1], 0)


def test_nothing_to_weight_without_a_mask_or_an_axis():
  x = jnp.float32(2)
  assert global_mean(x, None, 'data') is global_mean(x, x, None) is x


def test_vectors_are_checked():
  x = jnp.ones((2, 3, 4))
  assert checked_vectors(x.astype('float16'), x[..., 0]).dtype == 'float32'
  with pytest.raises(ValueError, match=r'mask: got shape \(2, 3, 4\)'):
    checked_vectors(x, x)
  with pytest.raises(ValueError, match='x: got shape'):
    checked_vectors(x[0, 0], None)
  with pytest.raises(ValueError, match="x: got 'int32', expected a floating"):
    checked_vectors(x.astype(int), None)
