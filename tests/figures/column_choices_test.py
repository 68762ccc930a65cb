"""The baselines: least squares of distinct columns, drawn as they should be."""

import jax
import numpy as np
import pytest

from kexue.figures.column_choices import BASELINES, OURS, choose, fit


@pytest.fixture(scope='module')
def a():
  rng = np.random.default_rng(0)
  return rng.normal(size=(20, 30)) * np.logspace(0, -2, 30)


@pytest.mark.parametrize('name', [*BASELINES, 'pivoted_qr'])
def test_coefficients_are_of_least_squares(name, a):
  with jax.enable_x64(True):
    indices, z = choose(name, a, 6, 0)
  assert len(set(np.asarray(indices))) == 6
  expected = np.linalg.lstsq(a[:, np.asarray(indices)], a)[0]
  np.testing.assert_allclose(z, expected, atol=1e-12)


def test_draws_depend_on_the_seed_and_the_weights(a):
  first = {name: np.zeros(30) for name in ('uniform', 'norms', 'leverage')}
  for name, counts in first.items():
    for seed in range(200):
      counts[BASELINES[name](a, 3, seed).indices] += 1
  half = {name: counts[:15].sum() / 600 for name, counts in first.items()}
  assert half['uniform'] == pytest.approx(0.5, abs=0.06)
  assert half['norms'] > 0.85 and half['leverage'] > 0.85


def test_optim_rid_pivots_among_some(a):
  everything = BASELINES['Optim-RID'](a[:, :24], 6, 0)
  pivots = BASELINES['SciPy-ID'](a[:, :24], 6, 0)
  assert set(everything.indices) == set(pivots.indices)
  chosen = {tuple(BASELINES['Optim-RID'](a, 2, s).indices) for s in range(9)}
  assert len(chosen) > 1


def test_columns_too_few_have_weight():
  a = np.zeros((5, 6))
  a[:, 2] = 1
  indices, z = BASELINES['norms'](a, 3, 0)
  assert 2 in indices and len(set(indices)) == 3 and np.isfinite(z).all()
  assert fit(a, np.array([2])).coefficients.tolist() == [[0, 0, 1, 0, 0, 0]]


def test_names_do_not_clash():
  assert not set(OURS) & set(BASELINES)
