"""Both losses: values, which side trains, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.models import codebook_loss, commitment_loss

RNG = np.random.default_rng(0)
Z, Q = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
MASK = RNG.random((3, 5)) < 0.5


@pytest.mark.parametrize('loss', [commitment_loss, codebook_loss])
def test_is_the_mean_over_vectors_and_dimensions(loss):
  gaps = np.float64(Z) - Q
  np.testing.assert_allclose(loss(Z, Q), np.mean(gaps**2), rtol=1e-6)
  masked = loss(Z, Q, mask=MASK)
  np.testing.assert_allclose(masked, np.mean(gaps[MASK] ** 2), rtol=1e-6)


@pytest.mark.parametrize('masked', [False, True])
def test_one_side_trains(masked):
  mask = MASK if masked else None
  kept = MASK[..., None] if masked else np.ones((3, 5, 1), bool)
  expected = 2 * np.where(kept, Z - Q, 0) / (kept.sum() * 4)
  for loss, signs in ((commitment_loss, (1, 0)), (codebook_loss, (0, -1))):
    gradients = jax.grad(loss, (0, 1))(Z, Q, mask=mask)
    for gradient, sign in zip(gradients, signs, strict=True):
      np.testing.assert_allclose(gradient, sign * expected, rtol=1e-5)


def test_what_is_masked_out_may_be_nan():
  z = np.where(MASK[..., None], Z, np.nan)
  expected = jax.value_and_grad(commitment_loss)(Z, Q, mask=MASK)
  found = jax.value_and_grad(commitment_loss)(z, Q, mask=MASK)
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_array_equal(found[1], expected[1])


def test_nothing_that_counts_is_no_loss():
  value, gradient = jax.value_and_grad(commitment_loss)(
    Z, Q, mask=np.zeros((3, 5), bool)
  )
  assert value == 0 and np.all(gradient == 0)


def test_half_precision_is_squared_in_float32():
  z, q = jnp.array([256.0, 1], jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
  loss, gradient = jax.value_and_grad(commitment_loss)(z, q)
  assert loss.dtype == jnp.float32 and loss == 255**2 / 2
  assert gradient.dtype == jnp.bfloat16


def test_wrong_arguments_are_named():
  for name, call in {
    'z: got': lambda: commitment_loss(1.0, 1.0),
    'q: got': lambda: commitment_loss(Z, Q[0]),
    'mask: got': lambda: codebook_loss(Z, Q, mask=MASK[0]),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
