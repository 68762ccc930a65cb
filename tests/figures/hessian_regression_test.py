"""Averages of pixels, a minimum by hand, the covariance of descent."""

import jax
import numpy as np
import pytest

from kexue.figures.hessian_regression import Quadratic, look, regression


def made_up(n=64):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (n, 4, 6, 1)).astype(np.uint8)
  image[:, :2, :2] = 7  # One average that never varies.
  return {'image': image, 'label': rng.integers(0, 3, n)}


def test_pixels_are_averaged_and_centred():
  images = made_up()
  x, y = regression(images)
  assert x.shape == (64, 5)
  block = images['image'][:, :2, 2:4, 0].mean((1, 2)) / 255
  np.testing.assert_allclose(x[:, 0], block - block.mean(), atol=1e-12)
  of_class = images['label'] == 0
  np.testing.assert_allclose(y, of_class - of_class.mean())


def test_a_minimum_by_hand():
  x, y = regression(made_up())
  at = Quadratic.of(x, y)
  each = x * (x @ at.minimum - y)[:, None]
  np.testing.assert_allclose(each.mean(0), 0, atol=1e-12)
  np.testing.assert_allclose(at.noise, np.cov(each.T, bias=True), atol=1e-12)
  np.testing.assert_allclose(at.hessian, np.cov(x.T, bias=True), atol=1e-12)


@pytest.mark.parametrize('steps', [1, 7, 300])
def test_the_covariance_of_descent_is_that_of_its_recursion(steps):
  x, y = regression(made_up())
  at, rate, batch_size = Quadratic.of(x, y), 3.0, 4
  keep = np.eye(5) - rate * at.hessian
  covariance, total = np.zeros((5, 5)), 0
  for _ in range(steps):
    covariance = keep @ covariance @ keep + rate**2 * at.noise / batch_size
    total = total + np.diag(at.hessian @ covariance @ at.hessian)
  found = at.descent(rate, batch_size, steps)
  np.testing.assert_allclose(found, np.sqrt(total / steps), rtol=1e-9)


def test_runs_and_draws_are_on_their_theories():
  x, y = regression(made_up(512))
  options = dict(batch_size=32, steps=3000, draws=5000, learning_rate=1e-4)
  rows = [*look(x, y, jax.random.key(0), **options)]
  assert len(rows) == 5
  for row in rows:
    assert row['isotropic'] == pytest.approx(row['row'], rel=0.05)
    assert row['isotropic_eigen'] == pytest.approx(row['eigenvalue'], rel=0.05)
    assert row['descent'] == pytest.approx(row['descent_theory'], rel=0.15)
    assert row['adam'] == pytest.approx(row['noise'], rel=0.1)
  hessian = x.T @ x / len(x)
  found = [row['eigenvalue'] for row in rows]
  np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian))
