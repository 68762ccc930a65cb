"""Strong RRQR: its bounds by other means, and where pivoted QR fails."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kexue.lowrank.pivoted_qr import pivoted_qr
from kexue.lowrank.strong_rrqr import StrongRRQR, strong_rrqr


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def kahan(n, angle=1.2):
  """Pivots in order, though one swap makes all the difference."""
  s, c = np.sin(angle), np.cos(angle)
  upper = np.eye(n) - c * np.triu(np.ones((n, n)), 1)
  ties = 25 * np.finfo(float).eps * np.diag(np.arange(n, 0.0, -1.0))
  return s ** np.arange(n)[:, None] * upper + ties


def parts(a, indices):
  """Coefficients of the others and what is left, by least squares."""
  indices = np.asarray(indices)
  c, others = a[:, indices], np.delete(a, indices, axis=1)
  coefficients = np.linalg.lstsq(c, others, rcond=1e-13)[0]
  return coefficients, others - c @ coefficients


def error(a, indices):
  return np.linalg.norm(parts(a, indices)[1])


def test_kahan():
  a = kahan(90)
  optimum = np.linalg.svd(a, compute_uv=False)[-1]
  pivoted = pivoted_qr(a, 89).indices
  assert error(a, pivoted) > 1e9 * optimum
  indices, converged, swaps = strong_rrqr(a, 89)
  assert bool(converged) and int(swaps) >= 1
  assert error(a, indices) <= np.sqrt(1 + 89) * optimum
  assert np.abs(parts(a, indices)[0]).max() <= 1.05 + 1e-6


def cosines(seed):
  rng = np.random.default_rng(seed)
  x, y = rng.uniform(size=20), rng.uniform(size=30)
  return np.cos(12 * np.pi * np.outer(x, y)) + 0j


@hypothesis.settings(deadline=None, max_examples=12, derandomize=True)
@hypothesis.given(
  kind=st.sampled_from(['cosines', 'gaussian', 'complex', 'alike']),
  threshold=st.sampled_from([1.02, 1.5]),
  seed=st.integers(0, 999),
)
def test_the_bounds_hold(kind, threshold, seed):
  rng = np.random.default_rng(seed)
  a = cosines(seed) if kind == 'cosines' else rng.normal(size=(20, 30))
  a = a + 1j * (rng.normal(size=a.shape) if kind == 'complex' else 0)
  if kind == 'alike':
    a = a[:, rng.integers(0, 9, 30)] + 1e-2 * a
  indices, converged, _ = strong_rrqr(a, 8, threshold=threshold)
  assert bool(converged) and len(set(np.asarray(indices))) == 8
  coefficients, left = parts(a, indices)
  assert np.abs(coefficients).max() <= threshold + 1e-9
  s = np.linalg.svd(a, compute_uv=False)
  factor = np.sqrt(1 + threshold**2 * 8 * 22)
  assert np.linalg.norm(left, 2) <= factor * s[8]
  chosen = a[:, np.asarray(indices)]
  small = np.linalg.svd(chosen, compute_uv=False)
  assert np.all(small >= s[:8] / factor)
  # No swap at all raises the volume by more than the threshold.
  volume = lambda c: np.sqrt(np.abs(np.linalg.det(c.mT.conj() @ c)))
  swapped = np.tile(chosen, (8, 30, 1, 1))
  for i in range(8):
    swapped[i, :, :, i] = a.T
  assert volume(swapped).max() <= volume(chosen) * threshold * (1 + 1e-6)


def test_swaps_run_out():
  a = cosines(0)
  run = functools.partial(strong_rrqr, a, 8, threshold=1.0001)
  result = run()
  needed = int(result.swaps)
  assert bool(result.converged) and needed >= 2
  less = run(max_swaps=needed - 1)
  assert not less.converged and int(less.swaps) == needed - 1
  none = run(max_swaps=0)
  assert not none.converged
  np.testing.assert_array_equal(none.indices, pivoted_qr(a, 8).indices)


def test_a_column_is_not_swapped_with_itself():
  """Whose coefficient of one exceeds a threshold of one by rounding."""
  indices, converged, swaps = strong_rrqr(cosines(0), 8, threshold=1.0)
  assert len(set(np.asarray(indices))) == 8
  assert bool(converged) and int(swaps) < 50


def test_degenerate_matrices():
  rng = np.random.default_rng(0)
  deficient = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 30))
  for a in (np.zeros((20, 30)), np.ones((20, 30)), deficient):
    a = a.astype(complex)
    indices, converged, swaps = strong_rrqr(a, 8)
    assert len(set(np.asarray(indices))) == 8
    assert bool(converged) and int(swaps) <= 10
    assert error(a, indices) <= 1e-12 * (1 + np.linalg.norm(a))


def test_batches_and_devices():
  a = np.stack([cosines(seed) for seed in range(8)])
  run = functools.partial(strong_rrqr, rank=8)
  mesh = jax.make_mesh((4,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  mapped = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
  batched = jax.jit(mapped)(a)  # Two to a device.
  assert batched.indices.shape == (8, 8) and batched.swaps.shape == (8,)
  for i in range(8):
    alone = run(a[i])
    assert isinstance(alone, StrongRRQR) and bool(alone.converged)
    np.testing.assert_array_equal(batched.indices[i], alone.indices)
    assert alone.swaps == batched.swaps[i]


@pytest.mark.parametrize('scale', [2.0**-600, 2.0**600])
def test_no_scale_matters(scale):
  a = cosines(1)
  expected = strong_rrqr(a, 8).indices
  found = strong_rrqr(a * scale, 8).indices
  np.testing.assert_array_equal(found, expected)


def test_wrong_arguments_are_named():
  a = np.ones((3, 2))
  for message, call in {
    'a: got shape': lambda: strong_rrqr(a[0], 1),
    'rank: got 3': lambda: strong_rrqr(a, 3),
    'threshold: got 0.9': lambda: strong_rrqr(a, 1, threshold=0.9),
    'max_swaps: got -1': lambda: strong_rrqr(a, 1, max_swaps=-1),
  }.items():
    with pytest.raises(ValueError, match=f'^{message}'):
      call()
