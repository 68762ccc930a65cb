"""Exact moments, curvatures and searches on a model of a few parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from kexue.figures.image_model import ImageTask, Sizes
from kexue.figures.one_step_search import (
  CHUNK,
  article_law,
  curvatures,
  draws,
  exact_moments,
  noise_signs,
  random_signs,
  search,
  theory,
)
from kexue.scaling import SignLaw, sign_optimal_lr
from kexue.training.data import Dataset

KEY = jax.random.key(0)
COUNT = 2 * CHUNK


@pytest.fixture(scope='module')
def problem():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (COUNT, 2, 2, 1)).astype(np.uint8)
  label = (image[:, 0, 0, 0] // 128).astype(np.int64)
  arrays = {'image': image, 'label': label}
  task = ImageTask(Dataset(arrays, arrays, ''), Sizes(2), batch_size=8)
  params = task.init(KEY)
  point, unflatten = ravel_pytree(params)
  loss = lambda x, batch: task.mean_loss(unflatten(x), batch)
  singles = jax.tree.map(lambda x: x[:, None], task.population)
  each = jax.vmap(jax.grad(loss), (None, 0))(point, singles)
  hessian = jax.jit(jax.hessian(loss))(point, task.population)
  return task, params, np.asarray(each), np.asarray(hessian)


flat = lambda tree: np.asarray(ravel_pytree(tree)[0])


def test_moments_are_those_of_all_gradients(problem):
  task, params, each, _ = problem
  mean, std = map(flat, exact_moments(task, params))
  np.testing.assert_allclose(mean, each.mean(0), atol=1e-6)
  np.testing.assert_allclose(std, each.std(0), atol=1e-6)


def test_curvatures_and_theories_are_those_of_the_dense_hessian(problem):
  task, params, each, hessian = problem
  signs = random_signs(KEY, params, 256)
  v = np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(signs))
  assert {*np.unique(v)} == {-1, 1} and abs(v.mean()) < 0.1
  dense = np.einsum('ki,ij,kj->k', v, hessian, v)
  found = curvatures(task, params, signs)
  np.testing.assert_allclose(found, dense, rtol=1e-3, atol=1e-5)
  moments = exact_moments(task, params)
  g, std = each.mean(0), each.std(0)
  exact = sign_optimal_lr(16, gradient=g, noise_std=std, hessian=hessian)
  got = theory(task, params, moments, signs, 16, 0.0)
  assert got == pytest.approx(float(exact), rel=0.05)  # Of 256 signs.
  law = article_law(task, params, moments, signs)
  expected = SignLaw.from_moments(gradient=g, noise_std=std, hessian=hessian)
  for name in ('curvature_ratio', 'noise_scale', 'gradient_l1', 'rate'):
    value = float(getattr(expected, name))
    assert float(getattr(law, name)) == pytest.approx(value, rel=0.1), name


def test_noise_signs_are_of_differences(problem):
  task, params, *_ = problem
  pairs = draws(task, KEY, 3, 8)
  assert pairs['image'].shape == (3, 8, 2, 2, 1)
  signs = noise_signs(task, params, pairs)
  half = lambda i: jax.tree.map(lambda x: x[1, 4 * i : 4 * i + 4], pairs)
  first, second = (
    flat(jax.grad(task.mean_loss)(params, half(i))) for i in (0, 1)
  )
  got = flat(jax.tree.map(lambda x: x[1], signs))
  clear = np.abs(first - second) > 1e-6
  np.testing.assert_array_equal(got[clear], np.sign(first - second)[clear])


class Quadratic:
  """Distances to points, with curvatures of their own."""

  def __init__(self):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(256, 6)).astype(np.float32) + 0.3
    self.images = {'image': points, 'label': np.zeros(256, np.int32)}
    self.population = jax.tree.map(jnp.asarray, self.images)

  def mean_loss(self, params, batch):
    far = (params - batch['image']) ** 2
    return jnp.mean(far @ jnp.arange(1.0, 7.0)) / 2


def test_the_probe_is_where_the_search_is():
  task = Quadratic()
  row = search(task, jnp.zeros(6), 32, KEY, searched=200, probed=400)
  assert not row['at_edge']
  assert row['probe_low'] < row['probe'] < row['probe_high']
  assert row['measured_low'] <= row['measured'] <= row['measured_high']
  assert row['probe'] == pytest.approx(row['measured'], rel=0.1)
  assert row['quadratic'] == pytest.approx(row['probe'], rel=0.01)
  hessian = np.diag(np.arange(1.0, 7.0))
  x = task.images['image'] @ hessian
  exact = sign_optimal_lr(
    32, gradient=-x.mean(0), noise_std=x.std(0), hessian=hessian
  )
  assert row['probe'] == pytest.approx(float(exact), rel=0.1)
  large = search(task, jnp.zeros(6), 32, KEY, searched=8, probed=8, eps=1e3)
  assert large['measured'] > 100 * row['measured']  # Times epsilon: SGD's.


def test_signs_fit_the_parameters(problem):
  _, params, *_ = problem
  signs = random_signs(KEY, params, 5)
  shapes = jax.tree.map(
    lambda s, x: s.shape == (5, *jnp.shape(x)), signs, params
  )
  assert all(jax.tree.leaves(shapes))
