"""Measurements of every task, and estimates against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.measurements import (
  FACTOR,
  SEEN,
  LinearMaps,
  cubic,
  inconsistency,
  measure,
  measured_entries,
  tasks,
)

KEY = jax.random.key(0)
SHAPE = (8, 8, 1)
TASKS = tasks(SHAPE)


@pytest.fixture(scope='module')
def images():
  """Smooth ones: sums of a few waves."""
  rng = np.random.default_rng(0)
  at = np.arange(8) / 8 * np.pi
  waves = [
    np.outer(np.cos(i * at), np.cos(j * at))
    for i in (0, 1, 2)
    for j in (0, 1, 2)
  ]
  x = np.einsum('nk,khw->nhw', rng.normal(size=(400, 9)), np.array(waves))
  return np.float32(x[..., None] / 4)


@pytest.fixture(scope='module')
def maps(images):
  return LinearMaps(images[:300])


@pytest.mark.parametrize('name', [*TASKS])
def test_noise_is_where_something_is_measured(name):
  task, x0 = TASKS[name], jnp.zeros((500, *SHAPE))
  there = measured_entries(task, SHAPE)
  y = measure(task, x0, 0.5, KEY)
  assert y.shape[1:] == there.shape
  np.testing.assert_array_equal(np.any(np.asarray(y) != 0, axis=0), there)
  assert np.std(np.asarray(y)[:, there]) == pytest.approx(0.5, rel=0.03)
  np.testing.assert_array_equal(measure(task, x0, 0.0, KEY), 0.0)
  # The error of the originals is the noise, masks or not.
  assert inconsistency(task, x0, y) == pytest.approx(0.5, rel=0.03)


def test_what_is_left_out():
  ones = jnp.ones((1, *SHAPE))
  box = np.asarray(TASKS['box'].operator(ones))[0, ..., 0]
  assert box.sum() == 64 - 16 and box[2:6, 2:6].sum() == 0
  large = tasks((28, 28, 1))
  seen = np.mean(large['pixels'].operator(jnp.ones((1, 28, 28, 1))))
  assert seen == pytest.approx(SEEN, abs=0.04)
  small = TASKS['pooled'].operator(jnp.arange(64.0).reshape(1, *SHAPE))
  assert small.shape == (1, 2, 2, 1) and small[0, 0, 0, 0] == 13.5
  shown = TASKS['pooled'].shown(small)
  assert shown.shape == (1, *SHAPE)
  np.testing.assert_array_equal(shown[0, :FACTOR, :FACTOR], 13.5)
  coloured = tasks((8, 8, 3))
  y = coloured['grey'].operator(
    jnp.array([3.0, 6.0, 0.0]) * jnp.ones((1, 8, 8, 3))
  )
  np.testing.assert_allclose(
    coloured['grey'].shown(y), 3 * np.ones((1, 8, 8, 3))
  )
  assert 'grey' not in TASKS


@pytest.mark.parametrize('name', [*TASKS])
def test_the_pseudo_inverse_explains(name, maps, images):
  task, x0 = TASKS[name], jnp.asarray(images[300:])
  y = measure(task, x0, 0.0, KEY)
  found = jnp.asarray(maps.pseudo_inverse(task, y), jnp.float32)
  size = float(jnp.sqrt(jnp.mean(y**2)))
  assert inconsistency(task, found, y) < 0.05 * size
  # Of all that do, that of least norm.
  assert np.sum(found**2) < np.sum(x0**2)


@pytest.mark.parametrize('name', [*TASKS])
def test_the_filter_is_the_best_linear_map(name, maps, images):
  """A regression on many noisy measurements finds no better one."""
  task, noise = TASKS[name], 0.2
  x0 = jnp.asarray(np.repeat(images[:300], 20, axis=0))
  y = measure(task, x0, noise, KEY)
  found = maps.filtered(task, y, noise)
  error = np.mean((found - np.asarray(x0)) ** 2)
  there = measured_entries(task, SHAPE)
  inputs = np.c_[np.float64(y)[:, there], np.ones(len(y))]
  outputs = np.float64(x0).reshape(len(x0), -1)
  fitted = inputs @ np.linalg.lstsq(inputs, outputs, rcond=None)[0]
  least = np.mean((fitted - outputs) ** 2)
  assert least <= error < 1.05 * least
  worse = np.mean((maps.filtered(task, y, 3 * noise) - np.asarray(x0)) ** 2)
  assert error < worse
  plain = maps.pseudo_inverse(task, y)
  assert error < np.mean((plain - np.asarray(x0)) ** 2)


def test_cubic_splines_enlarge():
  y = jnp.full((2, 2, 2, 1), 0.3)
  np.testing.assert_allclose(
    cubic(y, SHAPE), np.full((2, *SHAPE), 0.3), rtol=1e-6
  )
