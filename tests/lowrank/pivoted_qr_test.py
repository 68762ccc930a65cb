"""Pivoted QR against LAPACK's, and where ranks and digits run out."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

from kexue.lowrank.pivoted_qr import (
  PivotedQR,
  pivoted_qr,
  qr_of_columns,
  residual_squares,
  solve_chosen,
)

DTYPES = (np.float32, np.complex128)


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def gaussian(*shape, seed=0, dtype=np.float64):
  rng = np.random.default_rng(seed)
  a = rng.normal(size=shape)
  if np.issubdtype(dtype, np.complexfloating):
    a = a + 1j * rng.normal(size=shape)
  return a.astype(dtype)


def decaying(m, n, decades, *, seed=0, dtype=np.float64):
  """Singular values from 1 down to 10^-decades."""
  k = min(m, n)
  u, v = (
    np.linalg.qr(gaussian(x, k, seed=seed + x, dtype=dtype))[0] for x in (m, n)
  )
  return (u * np.logspace(0, -decades, k).astype(dtype)) @ v.conj().T


def left(a, indices):
  """What the projection on columns leaves, in double precision."""
  a = np.asarray(a, np.result_type(a, np.float64))
  q, _ = np.linalg.qr(a[:, np.asarray(indices)])
  a = a - q @ (q.conj().T @ a)
  return np.linalg.norm(a - q @ (q.conj().T @ a))


def test_lapack_makes_the_same_choices():
  a = decaying(30, 20, 6, dtype=np.complex128)
  _, r, pivots = scipy.linalg.qr(a, mode='economic', pivoting=True)
  ours = pivoted_qr(a, 12)
  np.testing.assert_array_equal(ours.indices, pivots[:12])
  phase = np.diag(r).conj() / np.abs(np.diag(r))
  np.testing.assert_allclose(
    ours.r[:, pivots], (phase[:, None] * r)[:12], atol=1e-13
  )
  np.testing.assert_allclose(ours.q.conj().T @ ours.q, np.eye(12), atol=1e-14)
  np.testing.assert_allclose(ours.q.conj().T @ a, ours.r, atol=1e-14)
  np.testing.assert_allclose(
    ours.q @ ours.r[:, ours.indices], a[:, ours.indices], atol=1e-14
  )


@hypothesis.settings(deadline=None, max_examples=15, derandomize=True)
@hypothesis.given(
  dtype=st.sampled_from(DTYPES),
  decades=st.integers(0, 12),
  seed=st.integers(0, 999),
)
def test_factors_of_any_conditioning(dtype, decades, seed):
  a = decaying(30, 20, decades, seed=seed, dtype=dtype)
  q, r, indices = map(np.asarray, pivoted_qr(a, 12))
  assert q.dtype == r.dtype == a.dtype and indices.dtype == np.int32
  eps = np.finfo(dtype).eps
  live = np.abs(q).sum(0) > 0
  gram = q[:, live].conj().T @ q[:, live]
  np.testing.assert_allclose(gram, np.eye(live.sum()), atol=30 * eps)
  triangle = r[:, indices]
  np.testing.assert_array_equal(np.tril(triangle, -1), 0)
  diagonal = np.diag(triangle)
  assert np.all(diagonal.imag == 0) and np.all(diagonal.real >= 0)
  assert np.all(diagonal[1:].real <= diagonal[:-1].real * 1.01 + 30 * eps)
  chosen = a[:, indices]
  np.testing.assert_allclose(q @ triangle, chosen, atol=30 * eps)
  lapack = scipy.linalg.qr(a, mode='r', pivoting=True)[-1][:12]
  floor = 30 * eps * np.linalg.norm(a)
  assert left(a, indices) <= 1.5 * left(a, lapack) + floor


def test_norms_that_lost_their_digits_are_computed_anew():
  """Columns alike but for 1e-3, then 1e-6, of float32's seven digits."""
  rng = np.random.default_rng(0)
  sizes = np.r_[np.full(9, 1e-3), np.logspace(-4, -6, 11)]
  a = np.float32(1 + sizes * rng.normal(size=(30, 20)))
  indices = pivoted_qr(a, 12).indices
  lapack = scipy.linalg.qr(np.float64(a), mode='r', pivoting=True)[-1][:12]
  assert left(a, indices) <= 1.2 * left(a, lapack)


def test_past_the_numerical_rank_all_is_zero():
  a, b = (gaussian(*s, dtype=np.float32) for s in ((30, 7), (7, 20)))
  a = a @ b
  q, r, indices = pivoted_qr(a, 20)
  assert sorted(np.asarray(indices)) == list(range(20))
  np.testing.assert_array_equal(q[:, 7:], 0)
  np.testing.assert_array_equal(r[7:], 0)
  np.testing.assert_allclose(q @ r, a, atol=1e-5 * np.abs(a).max())


def test_what_is_small_beside_others_is_not_zero():
  """Rows of roundings of a large column must not hide a small one."""
  a = np.zeros((30, 20), np.float32)
  a[:, :8] = gaussian(30, 1) @ gaussian(1, 8, seed=1)
  a[3, 17] = 1e-12
  q, _, indices = pivoted_qr(a, 12)
  assert int(indices[1]) == 17
  np.testing.assert_array_equal(np.abs(q).sum(0) > 0, np.arange(12) < 2)


def test_degenerate_matrices():
  every = np.arange(20) % 3
  for a, rank in {
    'zero': (np.zeros((30, 20)), 0),
    'constant': (np.full((30, 20), -2.5), 1),
    'duplicated': (gaussian(30, 3)[:, every], 3),
    'one huge column': (gaussian(30, 20) * np.r_[1e12, np.ones(19)], 12),
  }.values():
    q, r, indices = map(np.asarray, pivoted_qr(np.float32(a), 12))
    assert len(set(indices)) == 12
    assert (np.abs(q).sum(0) > 0).sum() == rank
    sizes = np.linalg.norm(a, axis=0) + 1e-30
    if rank < 12:
      np.testing.assert_allclose(q @ r / sizes, a / sizes, atol=1e-5)


def test_one_row():
  row = np.float32([[1.0, -3.0, 2.0]])
  q, r, indices = pivoted_qr(row, 1)
  assert (q.tolist(), indices.tolist()) == ([[-1.0]], [1])
  np.testing.assert_array_equal(r, -row)


@pytest.mark.parametrize('power', [-100, 100])
def test_no_scale_matters(power):
  a = decaying(30, 20, 3, dtype=np.float32)
  size = np.float32(2.0**power)  # About 1e30, and exact.
  plain, scaled = pivoted_qr(a, 12), pivoted_qr(size * a, 12)
  np.testing.assert_array_equal(plain.indices, scaled.indices)
  np.testing.assert_array_equal(plain.q, scaled.q)
  np.testing.assert_allclose(scaled.r / size, plain.r, rtol=1e-5, atol=2e-8)


def test_types():
  for dtype in (jnp.bfloat16, jnp.float16, jnp.int32):
    a = jnp.asarray(gaussian(30, 20) * 5, dtype)
    result = pivoted_qr(a, 12)
    assert result.q.dtype == result.r.dtype == jnp.float32
    same = pivoted_qr(a.astype(jnp.float32), 12)
    np.testing.assert_array_equal(result.r, same.r)


def test_batches_and_devices():
  """Norms are computed anew at another step in each."""
  a = np.stack([decaying(30, 20, d, dtype=np.float32) for d in range(0, 14, 2)])
  a = np.concatenate([a, np.zeros_like(a[:1])])
  run = functools.partial(pivoted_qr, rank=12)
  mesh = jax.make_mesh((4,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  mapped = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
  batched = jax.jit(mapped)(a)  # Two to a device.
  for i in range(8):
    alone = run(a[i])
    assert isinstance(alone, PivotedQR)
    np.testing.assert_array_equal(batched.indices[i], alone.indices)
    np.testing.assert_allclose(batched.r[i], alone.r, atol=1e-6)


def test_qr_of_given_columns():
  a = gaussian(30, 20, dtype=np.complex128)
  a[:, 5] = a[:, 2] * 1j  # Of the chosen, one depends on another.
  chosen = jnp.array([2, 11, 5, 7])
  q, r, indices = qr = jax.jit(qr_of_columns)(a, chosen)
  assert sorted(np.asarray(indices)) == [2, 5, 7, 11]
  assert int(indices[-1]) in (2, 5)
  np.testing.assert_array_equal(q[:, 3], 0)
  basis = scipy.linalg.orth(a[:, np.asarray(chosen)], rcond=1e-10)
  projection = basis @ basis.conj().T
  np.testing.assert_allclose(q @ q.conj().T, projection, atol=1e-13)
  np.testing.assert_allclose(q @ r, projection @ a, atol=1e-13)
  squares = np.linalg.norm(a - projection @ a, axis=0) ** 2
  squares[np.asarray(chosen)] = 0
  found = jax.jit(residual_squares)(a, q, r)
  np.testing.assert_allclose(found, squares, atol=1e-12)
  np.testing.assert_array_equal(found[chosen], 0)
  x = gaussian(4, 6, seed=3, dtype=np.complex128)
  triangle = np.asarray(r)[:3, np.asarray(indices)[:3]]
  for adjoint, matrix in ((False, triangle), (True, triangle.conj().T)):
    solve = functools.partial(solve_chosen, adjoint=adjoint)
    solved = jax.jit(solve)(qr, x)
    np.testing.assert_array_equal(solved[3], 0)
    np.testing.assert_allclose(matrix @ solved[:3], x[:3], atol=1e-12)


def test_nan_ends():
  a = gaussian(30, 20, dtype=np.float32)
  a[3, 4] = np.nan
  assert np.isnan(pivoted_qr(a, 12).r).any()


def test_wrong_arguments_are_named():
  a = np.ones((3, 2))
  for message, arguments in {
    'a: got shape': (np.ones(3), 1),
    'a: got ': (np.ones((0, 3)), 1),
    'rank: got 3': (a, 3),
    'rank: got 0': (a, 0),
    'rank: got 1.0': (a, 1.0),
  }.items():
    with pytest.raises(ValueError, match=f'^{message}'):
      pivoted_qr(*arguments)
