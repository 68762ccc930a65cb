"""The products of the figure: shapes, and the gradient of its layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.column_row_data import (
  gaussian,
  labelled_images,
  layer_gradient,
)


def test_images_are_flat_and_between_zero_and_one():
  name, images, labels = labelled_images('digits', None)
  assert name == 'digits' and images.shape == (len(labels), 64)
  assert images.min() == 0 and images.max() == 1
  with pytest.raises(ValueError, match='config.images'):
    labelled_images('photos', None)


def test_columns_of_different_sizes():
  x, y = gaussian(40, 60, 30)
  assert x.shape == (40, 60) and y.shape == (60, 30)
  sizes = np.log(np.linalg.norm(x, axis=0) / 40**0.5)
  assert np.std(sizes) == pytest.approx(1, abs=0.3)


def test_the_gradient_is_that_of_the_second_layer():
  """At the start, where the weights are known, against plain derivatives."""
  random = np.random.default_rng(0)
  images = np.float32(random.random(size=(16, 6)))
  labels = random.integers(0, 10, size=16)
  x, y = layer_gradient(images, labels, 0, 8)
  assert x.shape == (6, 8) and y.shape == (8, 6)
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = ((6, 6), (6, 6), (6, 10))
  first, second, last = (
    jax.random.normal(k, s) * (2 / 6) ** 0.5
    for k, s in zip(keys, shapes, strict=True)
  )

  def loss(second):
    hidden = jax.nn.relu(jax.nn.relu(images[:8] @ first) @ second)
    log = jax.nn.log_softmax(hidden @ last)
    return -jnp.sum(log[jnp.arange(8), labels[:8]])

  np.testing.assert_allclose(x @ y, jax.grad(loss)(second), atol=1e-5)
  trained = layer_gradient(images, labels, 2, 8)
  assert np.abs(trained[1] - y).max() > 1e-5
