"""DEIM against its definition, Q-DEIM against LAPACK, and the bound."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import deim, deim_bound, q_deim


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def basis(n=24, k=5, *, seed=0, dtype=np.float64, batch=()):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, *batch, n, k))
  x = x[0] + 1j * x[1] if np.issubdtype(dtype, np.complexfloating) else x[0]
  return np.linalg.qr(x)[0].astype(dtype)


def interpolated(v, size):
  """The definition: a solve with the rows so far for each column."""
  chosen = []
  for j in range(v.shape[1]):
    column = v[:, j]
    if chosen:
      coefficients = np.linalg.solve(v[chosen, :j], v[chosen, j])
      column = column - v[:, :j] @ coefficients
    chosen.append(int(np.argmax(size(column))))
  return chosen


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('seed', range(4))
def test_deim_is_its_definition(dtype, seed):
  v = basis(seed=seed, dtype=dtype)
  indices = deim(v)
  assert indices.dtype == jnp.int32
  assert indices.tolist() == interpolated(v, np.abs)


@pytest.mark.parametrize('seed', range(4))
def test_deim_of_complex_columns(seed):
  v = basis(seed=seed, dtype=np.complex128)
  size = lambda x: np.abs(x.real) + np.abs(x.imag)
  assert deim(v).tolist() == interpolated(v, size)


@pytest.mark.parametrize('dtype', [np.float64, np.complex128])
def test_q_deim_is_pivoted_qr(dtype):
  v = basis(dtype=dtype)
  _, _, order = scipy.linalg.qr(v.conj().T, mode='economic', pivoting=True)
  assert q_deim(v).tolist() == order[:5].tolist()


def kahan(n, theta=1.2):
  s, c = np.sin(theta), np.cos(theta)
  upper = np.eye(n) - c * np.triu(np.ones((n, n)), 1)
  ridge = 25 * np.finfo(float).eps * np.arange(n, 0, -1)
  return np.diag(s ** np.arange(n)) @ upper + np.diag(ridge)


def test_kahan_takes_deim_to_its_worst_and_not_q_deim():
  u, s, vh = np.linalg.svd(kahan(90))
  u, v = u[:, :89], vh[:89].T
  worst = deim_bound(u, v, deim(u), deim(v), s[89])
  good = deim_bound(u, v, q_deim(u), q_deim(v), s[89])
  assert worst.eta_columns > 1e11
  assert good.eta_rows < 2 and good.eta_columns < 2


def projected(a, rows, columns):
  c, r = np.linalg.qr(a[:, columns])[0], np.linalg.qr(a[rows].T.conj())[0]
  return c @ (c.conj().T @ a @ r) @ r.conj().T


SPECTRA = {
  'fast': lambda j: 10.0 ** -(j / 2),
  'slow': lambda j: 1 / (j + 1),
  'step': lambda j: np.where(j < 5, 1.0, 1e-6),
  'flat': np.ones_like,
}


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(
  spectrum=st.sampled_from([*SPECTRA]),
  count=st.sampled_from([5, 8]),
  seed=st.integers(0, 2**31),
  exact=st.booleans(),
  dtype=st.sampled_from([np.float64, np.complex128]),
)
def test_the_bound_holds_for_any_rows_and_bases(
  spectrum, count, seed, exact, dtype
):
  rng = np.random.default_rng(seed)
  left, right = (
    basis(24, 18, seed=seed, dtype=dtype),
    basis(18, 18, seed=seed + 1, dtype=dtype),
  )
  s = SPECTRA[spectrum](np.arange(18.0))
  a = left * s @ right.conj().T
  u, v = left[:, :5], right[:, :5]
  if not exact:
    u = np.linalg.qr(u + 0.1 * basis(24, 5, seed=seed + 2))[0]
    v = np.linalg.qr(v + 0.1 * basis(18, 5, seed=seed + 3))[0]
  rows, columns = (rng.choice(n, count, replace=False) for n in a.shape)
  error = a - projected(a, rows, columns)
  left_over = a - u @ (u.conj().T @ a), a - (a @ v) @ v.conj().T
  for order in (2, 'fro'):
    residual = max(np.linalg.norm(x, order) for x in left_over)
    bound = deim_bound(u, v, rows, columns, residual)
    norm = np.linalg.norm(error, order)
    assert norm <= bound.error * (1 + 1e-10) + 1e-12
    etas = [
      np.linalg.norm(np.linalg.pinv(x[i]), 2)
      for x, i in ((u, rows), (v, columns))
    ]
    np.testing.assert_allclose(bound[:2], etas, rtol=1e-8)
    np.testing.assert_allclose(bound.error, np.hypot(*etas) * residual)


def test_the_bound_is_attained():
  # The chosen column is nearly blind to what is left out, the row is not.
  angle = 0.01
  c, s = np.cos(angle), np.sin(angle)
  v = np.array([[s, c], [c, -s]])
  a = v.T * np.array([1.0, 1e-6])[:, None]
  first = np.array([0])
  bound = deim_bound(np.eye(2)[:, :1], v[:, :1], first, first, 1e-6)
  error = np.linalg.norm(a - projected(a, first, first), 2)
  assert 0.9 * bound.error < error <= bound.error
  np.testing.assert_allclose(bound.eta_columns, 1 / s)


def test_nothing_is_guaranteed_where_rows_miss_the_subspace():
  u, rows = np.eye(4)[:, :2], np.array([0, 2])
  for residual in (0.0, 1.0):
    bound = deim_bound(u, u, rows, np.array([0, 1]), residual)
    assert np.isinf(bound.eta_rows) and np.isinf(bound.error)
    assert bound.eta_columns == 1


@pytest.mark.parametrize('choose', [deim, q_deim])
@pytest.mark.parametrize('fill', [0.0, 1.0])
def test_degenerate_columns_leave_rows_distinct(choose, fill):
  for shape in ((6, 3), (3, 3), (5, 1), (1, 1)):
    indices = choose(np.full(shape, fill, np.float32)).tolist()
    assert len(set(indices)) == shape[1] and max(indices) < shape[0]


def test_batches_are_vmapped_and_sharded():
  v = jnp.asarray(basis(batch=(8,)))
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

  @jax.jit
  def every(v):
    rows, columns = deim(v), q_deim(v)
    bound = deim_bound(v, v, rows, columns, jnp.ones(v.shape[:-2]))
    return rows, columns, bound

  expected = jax.tree.map(lambda *x: np.stack(x), *[every(x) for x in v])
  shard = jax.shard_map(every, mesh=mesh, in_specs=P('x'), out_specs=P('x'))
  for run in (every, jax.vmap(every), jax.jit(shard)):
    for got, want in zip(
      *map(jax.tree.leaves, (run(v), expected)), strict=True
    ):
      np.testing.assert_allclose(got, want, rtol=1e-12)


def test_wrong_arguments_are_named():
  v, i = np.ones((4, 2)), np.arange(2)
  for name, call in (
    ('v: got shape', lambda: deim(v[0])),
    (r'v: got \(2, 4\)', lambda: deim(v.T)),
    (r'v: got \(2, 4\)', lambda: q_deim(v.T)),
    ('u: got', lambda: deim_bound(v.T, v, i, i, 1.0)),
    ('v: got shape', lambda: deim_bound(v, v[:, :1], i, i, 1.0)),
    ('rows: got shape', lambda: deim_bound(v, v, i[None], i, 1.0)),
    ('columns: got', lambda: deim_bound(v, v, i, i[:1], 1.0)),
  ):
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
