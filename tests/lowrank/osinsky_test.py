"""Osinsky's selection against its definition, and its bound."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kexue.lowrank.osinsky import osinsky_columns


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def problem(kind, *, m=15, n=12, rank=5, seed=0):
  """A matrix, its leading right singular vectors and what they leave."""
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(m, n))
  if kind == 'complex':
    a = a + 1j * rng.normal(size=(m, n))
  if kind == 'graded':
    a = a * 10.0 ** rng.uniform(-4, 4, n)
  if kind == 'sparse':
    a = a * (rng.random((m, n)) < 0.2)
  if kind == 'alike':
    a = a[:, rng.integers(0, 6, n)] + 1e-3 * a
  vh = np.linalg.svd(a, full_matrices=False)[2]
  v = vh[:rank].conj().T
  return a, v, a - a @ v @ v.conj().T


def oblique(v, indices):
  """V_J^-H V^H, or with less than r columns the shortest that fits them."""
  return np.linalg.pinv(v[indices]).conj().T @ v.conj().T


@pytest.mark.parametrize('kind', ['real', 'complex'])
def test_each_step_has_the_least_quotient(kind):
  _, v, residual = problem(kind)
  chosen = np.asarray(osinsky_columns(v, residual)).tolist()
  for i, j in enumerate(chosen):
    before = chosen[:i]
    e, w = residual, v
    if before:
      e = residual - residual[:, before] @ oblique(v, before)
      w = v - v @ np.linalg.pinv(v[before]) @ v[before]
    cost, weight = (np.linalg.norm(x, axis=0) for x in (e, w.T))
    weight[before] = 1e-30
    quotient = cost / weight
    quotient[before] = np.inf
    assert np.argmin(quotient) == j


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(
  kind=st.sampled_from(['real', 'complex', 'graded', 'sparse', 'alike']),
  seed=st.integers(0, 9999),
)
def test_the_bound_holds(kind, seed):
  a, v, residual = problem(kind, seed=seed)
  j = np.asarray(osinsky_columns(v, residual))
  assert len(set(j)) == 5
  error = np.linalg.norm(a - a[:, j] @ oblique(v, j))
  bound = np.sqrt(6) * np.linalg.norm(residual)
  assert error <= bound * (1 + 1e-9) + 1e-12 * np.linalg.norm(a)


def test_a_rotation_of_the_sketch_changes_nothing():
  _, v, residual = problem('real')
  turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(15, 15)))
  expected = osinsky_columns(v, residual)
  np.testing.assert_array_equal(osinsky_columns(v, turn @ residual), expected)


def test_of_a_zero_residual_the_heaviest_is_next():
  _, v, residual = problem('real')
  chosen = np.asarray(osinsky_columns(v, 0 * residual)).tolist()
  assert chosen[0] == np.argmax(np.linalg.norm(v, axis=1))
  assert len(set(chosen)) == 5
  # As pivoted QR of the rows has it.
  w = v.copy()
  for j in chosen:
    sizes = np.linalg.norm(w, axis=1)
    assert sizes[j] == pytest.approx(sizes.max())
    w = w - w @ np.outer(w[j], w[j]) / sizes[j] ** 2


def test_what_cannot_be_chosen_well_is_chosen_once():
  for v in (np.zeros((12, 5)), np.eye(12, 5), np.eye(12)[:, ::-1][:, :5]):
    for residual in (np.zeros((15, 12)), np.ones((15, 12))):
      chosen = np.asarray(osinsky_columns(v, residual))
      assert len(set(chosen)) == 5
      if v.any():  # No more rows than these are not zero.
        np.testing.assert_array_equal(sorted(chosen), np.flatnonzero(v.sum(1)))


def test_a_weightless_column_without_residual_is_left_out():
  v, residual = np.eye(12, 5), np.ones((15, 12))
  v[7, 2] = 1e-12
  residual[:, 7] = 0
  assert 7 not in osinsky_columns(v, residual)


@pytest.mark.parametrize('power', [-600, 600])
def test_no_scale_matters(power):
  _, v, residual = problem('real')
  expected = osinsky_columns(v, residual)
  scaled = osinsky_columns(v, 2.0**power * residual)
  np.testing.assert_array_equal(scaled, expected)
  assert expected.dtype == jnp.int32


def test_vmap():
  problems = [problem('real', seed=seed)[1:] for seed in range(3)]
  v, residual = map(np.stack, zip(*problems, strict=True))
  together = jax.vmap(osinsky_columns)(v, residual)
  for i, arrays in enumerate(problems):
    np.testing.assert_array_equal(together[i], osinsky_columns(*arrays))


def test_wrong_arguments_are_named():
  v, residual = np.eye(4, 2), np.ones((3, 4))
  for message, arguments in {
    'v: got shape': (v[0], residual),
    r'v: got \(2, 4\)': (v.T, residual[:, :2]),
    'residual: got shape': (v, residual.T),
  }.items():
    with pytest.raises(ValueError, match=f'^{message}'):
      osinsky_columns(*arguments)
