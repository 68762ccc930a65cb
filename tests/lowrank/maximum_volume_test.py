"""No swap enlarges the volume, however bad the start."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import maximum_volume, q_deim


def basis(n=24, k=5, *, seed=0, batch=(), dtype=np.float64):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, *batch, n, k))
  x = x[0] + 1j * x[1] if np.issubdtype(dtype, np.complexfloating) else x[0]
  return np.linalg.qr(x)[0].astype(dtype)


def largest(v, rows):
  v, rows = np.asarray(v, np.result_type(v, np.float64)), np.asarray(rows)
  return np.abs(v @ np.linalg.inv(v[rows])).max()


@hypothesis.settings(deadline=None, max_examples=30, derandomize=True)
@hypothesis.given(
  seed=st.integers(0, 2**31),
  dtype=st.sampled_from([np.float32, np.float64, np.complex64]),
)
def test_no_swap_enlarges_the_volume(seed, dtype):
  tolerance = 0.01
  v = basis(seed=seed, dtype=dtype)
  with jax.enable_x64(dtype == np.float64):
    rows = maximum_volume(v, tolerance=tolerance)
  assert rows.dtype == jnp.int32 and len({*rows.tolist()}) == 5
  assert largest(v, rows) <= 1 + tolerance + 1e-5
  # Hence the chosen rows are well conditioned.
  chosen = v[np.asarray(rows)]
  inverse = np.linalg.norm(np.linalg.inv(chosen), 2)
  assert inverse <= np.sqrt(1 + 5 * 19 * (1 + tolerance) ** 2)
  volume = lambda rows: np.abs(np.linalg.det(v[np.asarray(rows)]))
  assert volume(rows) >= volume(q_deim(v)) * (1 - 1e-4)


def test_swaps_are_needed_and_can_be_limited():
  with jax.enable_x64(True):
    v = basis(200, 10, seed=8)
    start = maximum_volume(v, max_swaps=0)
    assert start.tolist() == q_deim(v).tolist()
    assert largest(v, start) > 1.05
    once = maximum_volume(v, max_swaps=1)
    assert len({*once.tolist()} & {*start.tolist()}) == 9
    det = lambda rows: np.abs(np.linalg.det(v[rows]))
    # As much as the entry that was swapped in.
    np.testing.assert_allclose(det(once), largest(v, start) * det(start))
    for seed in range(20):
      v = basis(200, 10, seed=seed)
      assert largest(v, maximum_volume(v)) <= 1.01 + 1e-9


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_bad_starts(dtype):
  # Kahan's matrix, bad for QR; and that of which LU takes the rows in order,
  # all but blind to the noise below.
  s, c = np.sin(1.2), np.cos(1.2)
  lower = np.tril(np.ones((61, 60)), -1)
  kahan = s ** np.arange(60) * (np.eye(61, 60) - c * lower)
  noise = np.random.default_rng(0).uniform(-0.5, 0.5, size=(10, 60))
  wilkinson = np.vstack([np.eye(61, 60) - lower, noise])
  for v in (kahan, wilkinson):
    with jax.enable_x64(dtype == np.float64):
      v = v.astype(dtype)
      assert largest(v, q_deim(v)) > 1.05
      assert largest(v, maximum_volume(v)) <= 1.011
  # And without the last column, which is zero, as good.
  v = np.hstack([v, 0 * v[:, :1]])
  with jax.enable_x64(dtype == np.float64):
    *rows, last = maximum_volume(v).tolist()
  others = np.delete(v[:, :-1], last, axis=0).astype(np.float64)
  assert np.abs(others @ np.linalg.inv(v[rows, :-1])).max() <= 1.011


@pytest.mark.parametrize('fill', [0.0, 1.0])
def test_deficient_rank_leaves_rows_distinct(fill):
  for shape in ((6, 3), (3, 3), (5, 1), (1, 1)):
    rows = maximum_volume(np.full(shape, fill, np.float32)).tolist()
    assert len({*rows}) == shape[1] and max(rows) < shape[0]


def test_batches_are_vmapped_and_sharded():
  v = jnp.asarray(basis(batch=(8,), dtype=np.float32))
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  expected = np.stack([maximum_volume(x) for x in v])
  shard = jax.shard_map(
    maximum_volume, mesh=mesh, in_specs=P('x'), out_specs=P('x')
  )
  for run in (maximum_volume, jax.vmap(maximum_volume), jax.jit(shard)):
    np.testing.assert_array_equal(run(v), expected)


def test_wrong_arguments_are_named():
  v = np.ones((4, 2))
  for name, call in {
    'v: got shape': lambda: maximum_volume(v[0]),
    'v: got': lambda: maximum_volume(v.T),
    'tolerance: got 0': lambda: maximum_volume(v, tolerance=0),
    'max_swaps: got -1': lambda: maximum_volume(v, max_swaps=-1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
