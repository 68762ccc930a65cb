"""Squared gradients against a dense Hessian, perturbations, fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.hessian_network import (
  look,
  perturbed_gradients,
  squared_gradients,
)
from kexue.figures.image_model import ImageTask, Sizes
from kexue.training.data import Dataset

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def task():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (16, 2, 2, 1)).astype(np.uint8)
  arrays = {'image': image, 'label': rng.integers(0, 10, 16)}
  data = Dataset(arrays, arrays, 'made up')
  return ImageTask(data, Sizes(6, 2), batch_size=8)


@pytest.fixture(scope='module')
def params(task):
  return task.init(KEY)


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.fixture(scope='module')
def dense(task, params):
  """The Hessian [n, n] of the population, and the gradient of each image."""
  vector, unravel = jax.flatten_util.ravel_pytree(params)
  loss = lambda v, images: task.mean_loss(unravel(v), images)
  hessian = jax.jit(jax.hessian(loss))(vector, task.population)
  each = jax.tree.map(lambda x: x[:, None], task.population)
  gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(vector, each)
  return np.array(hessian), np.array(gradients)


def test_squares_over_drawn_labels_are_the_diagonal(task, params, dense):
  hessian, gradients = dense
  moment, diagonal = squared_gradients(task, params, task.population)
  expected = np.mean(gradients**2, 0)
  np.testing.assert_allclose(flat(moment), expected, rtol=1e-4, atol=1e-8)
  expected = np.diag(hessian)
  np.testing.assert_allclose(flat(diagonal), expected, rtol=1e-4, atol=1e-7)
  off = np.linalg.norm(hessian - np.diag(expected)) / np.linalg.norm(expected)
  assert off > 1  # Dense: row norms are something else.


def test_noise_on_the_weights_makes_row_norms(task, params, dense):
  hessian, gradients = dense
  centre, centred, raw = perturbed_gradients(
    task, params, task.population, KEY, 1e-4, 400
  )
  np.testing.assert_allclose(flat(centre), gradients.mean(0), atol=1e-6)
  rows = np.linalg.norm(hessian, axis=1)
  found = np.sqrt(flat(centred)) / 1e-4
  large = rows > 0.01 * rows.max()
  assert large.sum() > 50
  np.testing.assert_allclose(found[large], rows[large], rtol=0.2)
  of_both = gradients.mean(0) ** 2 + flat(centred)
  np.testing.assert_allclose(flat(raw), of_both, rtol=0.1, atol=1e-7)


def test_a_look_fits_every_measure(task, params, dense):
  hessian, gradients = dense
  second = jax.tree.map(
    jnp.square, squared_gradients(task, params, task.population)[1]
  )
  options = dict(probes=200, perturbations=400, size=1e-4, entries=20)
  first, *entries = look(task, params, second, KEY, **options)
  # A second moment that is the diagonal's square has its slope.
  assert first['adam_diagonal_slope'] == pytest.approx(1, rel=1e-4)
  assert first['adam_diagonal_correlation'] == pytest.approx(1, rel=1e-4)
  assert first['adam_estimated_slope'] == pytest.approx(1, rel=0.4)
  assert first['centred_over_row'] == pytest.approx(1, rel=0.1)
  assert first['centred_row_slope'] == pytest.approx(1, rel=0.1)
  variance = gradients.var(0).sum() / task.batch_size
  square = (gradients.mean(0) ** 2).sum()
  share = variance / (variance + square)
  assert first['noise_share'] == pytest.approx(share, rel=1e-3)
  loss = task.mean_loss(params, task.population)
  assert first['loss'] == pytest.approx(float(loss))
  assert len(entries) == 20
  diagonal = np.diag(hessian)
  rows = np.linalg.norm(hessian, axis=1)
  for entry in entries:
    assert entry['adam'] == pytest.approx(entry['diagonal'], rel=1e-5)
    place = np.argmin(abs(diagonal - entry['diagonal']))
    assert entry['diagonal'] == pytest.approx(diagonal[place], rel=1e-3)
    moment = gradients[:, place].var() / 8 + gradients[:, place].mean() ** 2
    assert entry['moment'] == pytest.approx(moment**0.5, rel=1e-3)
    assert entry['row'] == pytest.approx(rows[place], rel=0.3)
