"""Matrices and formulas against autodiff, a run recorded once, the numbers."""

import dataclasses

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.gradient_field import (
  COLORS,
  MOSAIC,
  Config,
  descent,
  drift_by_formula,
  matrix,
  measured,
  plot,
  pull_by_formula,
  run,
)

KEY = jax.random.key(0)
SMALL = Config(grid=3, angles=4, dims=(2, 3), frames=2)


@pytest.mark.parametrize('kind', COLORS)
@pytest.mark.parametrize('dim', [2, 5])
def test_matrices_are_those_of_autodiff(kind, dim):
  z, q, g = np.random.default_rng(dim).normal(size=(3, 4, dim))
  moved = descent(kind, z, q, g)
  for i in range(4):
    exact = matrix(kind, z[i], q[i])
    np.testing.assert_allclose(moved[i], -exact.T @ g[i], atol=2e-5)


def test_a_rotation_turns_and_a_reflection_mirrors():
  z, q = np.random.default_rng(0).normal(size=(2, 4))
  length = np.linalg.norm
  turn, mirror = matrix('rotation_no_rescale', z, q), matrix('reflection', z, q)
  np.testing.assert_allclose(turn @ z / length(z), q / length(q))
  np.testing.assert_allclose(turn.T @ turn, np.eye(4), atol=1e-12)
  assert np.linalg.det(turn) == pytest.approx(1)
  np.testing.assert_allclose(mirror @ z, q)
  assert np.linalg.det(mirror) < 0


@pytest.mark.parametrize('kind', COLORS)
@pytest.mark.parametrize('dim', [2, 3, 8])
def test_formulas_are_what_is_measured(kind, dim):
  noise = np.random.default_rng(0).normal(size=(2000, dim, dim))
  radius = 0.03
  for angle in (0, 60, 90, 180):
    about = kind, dim, np.cos(np.deg2rad(angle)), radius
    found = measured(noise, kind, angle, radius)
    unit = max(radius**2, abs(pull_by_formula(kind, dim, 1.0, radius)))
    assert abs(found['pull'] - pull_by_formula(*about)) < 0.03 * unit
    drift = drift_by_formula(*about)
    assert abs(found['drift'] - drift) < 0.02 * max(1, drift)


def test_only_diveq_keeps_every_distance():
  z, g = np.random.default_rng(1).normal(size=(2, 6, 3))
  q = z + 0.1
  along = lambda kind: np.sum((z - q) * descent(kind, z, q, g), axis=1)
  np.testing.assert_allclose(along('diveq'), 0, atol=1e-6)
  assert np.abs(along('ste')).max() > 0.01


def test_a_run_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  SMALL.check()
  rows = run(SMALL, KEY, tmp_path)
  assert len(rows) == len(COLORS) * (9 + 2 + 4)
  monkeypatch.setattr('kexue.figures.gradient_field.descent', None)
  assert run(SMALL, KEY, tmp_path) == rows
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert set(numbers) == set(COLORS)
  for found in numbers.values():
    assert found['largest_error_of_the_field'] < 1e-4
  assert numbers['rotation_no_rescale']['pull']['2'] == pytest.approx(
    -0.5, 0.01
  )
  assert numbers['rotation']['pull']['2'] == pytest.approx(0, abs=0.01)
  assert numbers['reflection']['drift']['2'] == pytest.approx(-1, 0.01)
  assert numbers['ste']['error_of_the_drift'] < 1e-6
  assert 'against the formulas of the pull' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
  # A measured pull that is wrong is seen.
  wrong = [r | ({'pull': 1.0} if 'kind' in r else {}) for r in rows]
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  assert plot(wrong, axes)['ste']['error_of_the_pull'] > 100
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(grid=1), 'config.grid: got 1'),
    (dict(angles=3), 'config.angles: got 3'),
    (dict(frames=0), 'config.frames: got 0'),
    (dict(dims=(1, 2)), r'config.dims: got \(1, 2\)'),
    (dict(dims=(3, 2)), 'ascending'),
    (dict(radius=0.3), 'config.radius: got 0.3'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
