import jax
import numpy as np
import pytest
import scipy.ndimage

from kexue.diffusion import average_pooling, blur, grey, masked

X = jax.random.normal(jax.random.key(0), (2, 12, 8, 3))


@pytest.mark.parametrize(
  'operator', [average_pooling(4), grey, blur(1.3), masked(X[0] > 0)]
)
def test_is_linear(operator):
  y = jax.random.normal(jax.random.key(1), X.shape)
  np.testing.assert_allclose(
    operator(2 * X - y), 2 * operator(X) - operator(y), atol=1e-5
  )


def test_pooling_takes_means():
  pooled = average_pooling(4)(X)
  assert pooled.shape == (2, 3, 2, 3)
  np.testing.assert_allclose(
    pooled[1, 2, 1], X[1, 8:, 4:].mean((0, 1)), atol=1e-6
  )


@pytest.mark.parametrize('deviation', [0.7, 2.0])
def test_blur_is_that_of_scipy(deviation):
  radius = int(np.ceil(3 * deviation))
  expected = scipy.ndimage.gaussian_filter(
    np.float64(X), (0, deviation, deviation, 0), mode='nearest', radius=radius
  )
  np.testing.assert_allclose(blur(deviation)(X), expected, atol=1e-5)


def test_refuses():
  with pytest.raises(ValueError, match='^factor: got 0'):
    average_pooling(0)
  with pytest.raises(ValueError, match='^x: got .* sides that 5 divides'):
    average_pooling(5)(X)
  with pytest.raises(ValueError, match='^deviation: got 0'):
    blur(0)
