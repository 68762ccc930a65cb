"""Estimates against dense moments of a small model; search against the law."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from kexue.figures.image_model import ImageTask, Sizes
from kexue.figures.one_step_search import FRESH, draws
from kexue.figures.sgd_step import law_moments, law_of, search, vertex
from kexue.training.data import Dataset

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def problem():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (256, 2, 2, 1)).astype(np.uint8)
  label = (image[:, 0, 0, 0] // 128).astype(np.int64)
  arrays = {'image': image, 'label': label}
  task = ImageTask(Dataset(arrays, arrays, ''), Sizes(2), batch_size=8)
  params = task.init(KEY)
  point, unflatten = ravel_pytree(params)
  loss = lambda x, batch: task.mean_loss(unflatten(x), batch)
  singles = jax.tree.map(lambda x: x[:, None], task.population)
  each = np.asarray(
    jax.vmap(jax.grad(loss), (None, 0))(point, singles), np.float64
  )
  hessian = np.asarray(jax.jit(jax.hessian(loss))(point, task.population))
  moments = law_moments(task, params, draws(task, KEY, 200, 2 * FRESH), KEY)
  return task, params, each, hessian, moments


def exact(each, hessian):
  g, noise = each.mean(0), np.cov(each.T, bias=True)
  return {
    'gradient_sq_norm': g @ g,
    'trace': np.trace(noise),
    'curvature': g @ hessian @ g,
    'noise_curvature': np.trace(noise @ hessian),
  }


def within(row, name, value):
  """Of four standard errors, half of them an interval of 95 %."""
  low, high = row[f'{name}_low'], row[f'{name}_high']
  assert 0 < high - low < 0.5 * row[name]
  return abs(value - row[name]) < high - low


def test_estimates_are_unbiased(problem):
  _, _, each, hessian, moments = problem
  for name, value in exact(each, hessian).items():
    found = np.asarray(moments[name], np.float64)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - value) < 4 * error, name
    assert error < 0.1 * abs(value), name


def test_the_law_is_that_of_the_exact_moments(problem):
  _, _, each, hessian, moments = problem
  e = exact(each, hessian)
  for batch_size in (1, 64):
    row = law_of(moments, batch_size)
    along = e['curvature'] + e['noise_curvature'] / batch_size
    best = e['gradient_sq_norm'] / along
    assert within(row, 'law', best)
    assert row['law'] == pytest.approx(best, rel=0.1)
    decrease = best * e['gradient_sq_norm'] / 2
    assert row['law_decrease'] == pytest.approx(decrease, rel=0.1)
  assert row['lr_max'] == pytest.approx(
    e['gradient_sq_norm'] / e['curvature'], rel=0.1
  )
  for name, a, b in (
    ('noise_scale', 'noise_curvature', 'curvature'),
    ('simple', 'trace', 'gradient_sq_norm'),
  ):
    assert within(row, name, e[a] / e[b])


def test_search_and_probe_find_what_gradient_descent_does(problem):
  task, params, each, hessian, _ = problem
  e = exact(each, hessian)
  loss = float(task.mean_loss(params, task.population))
  found = search(task, params, 8, KEY, loss=loss, searched=1024, probed=1024)
  best = e['gradient_sq_norm'] / (e['curvature'] + e['noise_curvature'] / 8)
  # The best step is so long that the loss is no quadratic.
  assert best > 1.5 * found['measured']
  assert found['probe'] == pytest.approx(found['measured'], rel=0.12)
  assert found['probe_low'] < found['measured_high']
  # By hand, on the whole population.
  batches = draws(task, jax.random.key(1), 400, 8)
  rates = found['measured'] * np.array([1 / 1.4, 1, 1.4])

  @jax.jit
  def after(params, rates, batches):
    def of(batch):
      gradient = jax.grad(task.mean_loss)(params, batch)
      moved = lambda r: jax.tree.map(lambda x, g: x - r * g, params, gradient)
      return jax.lax.map(
        lambda r: task.mean_loss(moved(r), task.population), rates
      )

    return jax.lax.map(of, batches)

  by_hand = loss - np.asarray(after(params, rates, batches), np.float64)
  below, at, above = by_hand.mean(0)
  assert at > below and at > above
  error = np.hypot(2 * by_hand[:, 1].std() / 20, found['decrease_error'])
  assert abs(at - found['decrease']) < 2 * error < 0.5 * at
  assert found['measured_low'] < found['measured'] < found['measured_high']
  assert found['at_edge'] == 0


def test_the_top_of_a_parabola():
  x = np.array([0.5, 1.0, 1.5, 3.0])
  assert vertex(x, 2 - (x - 1.2) ** 2) == pytest.approx(2)
  # At an edge the nearest parabola is continued; without a top, the largest.
  assert vertex(x, 2 - (x - 4) ** 2) == pytest.approx(2)
  assert vertex(x, x**2) == pytest.approx(9)
