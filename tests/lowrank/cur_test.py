"""CUR against its definitions and bounds, and where roundings spoil it.

A program takes seconds to compile, so that one batch has all matrices.
"""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import CUR, cur, cur_approximation, deim_bound
from kexue.lowrank.cur import CORES, METHODS

RANK = 5
SPECTRA = {
  'fast': 10.0 ** -(np.arange(24) / 4),
  'slow': 1 / np.arange(1, 25),
  'step': np.where(np.arange(24) < RANK, 1.0, 1e-3),
  'flat': np.ones(24),
  'rank 3': 1.0 * (np.arange(24) < 3),
  'rank 5': 1.0 * (np.arange(24) < RANK),
}
# "osinsky" and "deim" for the rest, whose rows are chosen in the same way.
CASES = [(method, 'optimal') for method in METHODS]
CASES += [('osinsky', 'intersection'), ('deim', 'intersection')]


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


def orthonormal(n, k, seed, dtype=np.float64):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, n, k))
  x = x[0] + 1j * x[1] if np.issubdtype(dtype, np.complexfloating) else x[0]
  return np.linalg.qr(x)[0]


def matrix(s, m=30, n=24, *, seed=0, dtype=np.float64):
  s = np.asarray(s)
  u, v = (orthonormal(x, len(s), seed + i, dtype) for i, x in enumerate((m, n)))
  return ((u * s) @ v.conj().T).astype(dtype)


def matrices(seed=0):
  """16 of them by name."""
  result = {
    (name, i): matrix(s, seed=10 * (seed + i))
    for name, s in SPECTRA.items()
    for i in range(2)
  }
  return result | {
    'zeros': np.zeros((30, 24)),
    'ones': np.ones((30, 24)),
    'huge': 1e150 * result['slow', 0],
    'tiny': 1e-150 * result['slow', 0],
  }


def solve(method, core, seed=0):
  """What is found for each of `matrices`, on which nothing is compiled anew."""
  batch = matrices(seed)
  found = jax.device_get(
    cur(np.stack([*batch.values()]), RANK, method=method, core=core)
  )
  every = map(CUR, *found)
  return dict(zip(batch, zip(batch.values(), every, strict=True), strict=True))


solved = functools.cache(solve)


def optimum(a, rank=RANK):
  return np.linalg.norm(np.linalg.svd(a, compute_uv=False)[rank:])


def product(found):
  return np.asarray(found.c) @ (np.asarray(found.u) @ np.asarray(found.r))


def error(a, approximation):
  return np.linalg.norm(a - approximation) / optimum(a)


def expected_core(a, found, core):
  if core == 'intersection':
    return np.linalg.inv(a[np.ix_(found.rows, found.columns)])
  return np.linalg.pinv(found.c) @ a @ np.linalg.pinv(found.r)


@pytest.mark.parametrize('method, core', CASES)
def test_every_method_is_its_definition(method, core):
  for name, (a, found) in solved(method, core).items():
    assert found.rows.dtype == found.columns.dtype == np.int32
    assert len({*found.rows}) == len({*found.columns}) == RANK
    np.testing.assert_array_equal(found.c, a[:, found.columns])
    np.testing.assert_array_equal(found.r, a[found.rows])
    chex.assert_tree_all_finite(found)
    if name[0] in ('fast', 'slow', 'step', 'flat'):
      u = expected_core(a, found, core)
      np.testing.assert_allclose(found.u, u, rtol=1e-7, atol=1e-9)
    near = product(found)
    if core == 'intersection':
      scale = np.abs(a).max() + 1e-300
      gap = (near - a) / scale
      np.testing.assert_allclose(gap[found.rows], 0, atol=1e-9)
      np.testing.assert_allclose(gap[:, found.columns], 0, atol=1e-9)
    if name in ('zeros', 'ones') or name[0] in ('rank 3', 'rank 5'):
      np.testing.assert_allclose(near, a, atol=1e-9)


@pytest.mark.parametrize('method', METHODS)
def test_no_scale_matters(method):
  found = solved(method, 'optimal')
  _, plain = found['slow', 0]
  for name, size in (('huge', 1e150), ('tiny', 1e-150)):
    _, scaled = found[name]
    np.testing.assert_allclose(
      product(scaled) / size, product(plain), atol=1e-10
    )


@hypothesis.settings(deadline=None, max_examples=12, derandomize=True)
@hypothesis.given(method=st.sampled_from(METHODS), seed=st.integers(0, 10**6))
def test_errors_stay_within_the_bound(method, seed):
  for name, (a, found) in solve(method, 'optimal', seed).items():
    if isinstance(name, tuple):
      u, s, vh = np.linalg.svd(a)
      bases = u[:, :RANK], vh[:RANK].T
      bound = deim_bound(*bases, found.rows, found.columns, s[RANK])
      gap = np.linalg.norm(a - product(found), 2)
      assert gap <= float(bound.error) * (1 + 1e-8) + 1e-12
      if method == 'osinsky':  # sqrt(r + 1) for each factor, nearly.
        gap = np.linalg.norm(a - product(found))
        assert gap <= np.sqrt(2 * (RANK + 1)) * optimum(a) + 1e-12


def mean_error(method, spectrum):
  found = [solved(method, 'optimal')[spectrum, i] for i in range(2)]
  found += [solve(method, 'optimal', s)[spectrum, 0] for s in (5, 6, 7)]
  return np.mean([error(a, product(one)) for a, one in found])


def test_osinsky_is_the_best_where_singular_values_fall():
  best = mean_error('osinsky', 'fast')
  assert best < 1.6
  for method in ('randomized', 'pivoted_qr', 'deim', 'leverage'):
    assert mean_error(method, 'fast') > 1.05 * best


def test_rows_of_an_intersection_are_chosen_given_the_columns():
  given, apart = [], []
  for seed in range(4):
    crossed = solve('deim', 'intersection', 10 * seed)
    singly = solve('deim', 'optimal', 10 * seed)
    for i in range(2):
      a, found = crossed['slow', i]
      _, other = singly['slow', i]
      near = cur_approximation(
        a, other.rows, other.columns, core='intersection'
      )
      given.append(error(a, product(found)))
      apart.append(error(a, near))
  assert max(given) < 2
  assert max(apart) > 1.25 * max(given)


@pytest.mark.parametrize('core', CORES)
def test_the_approximation_is_the_product(core):
  # Of fewer columns than rows, of a batch, and where the columns are copies.
  for rows, columns in (([1, 4, 2, 3], [0, 5]), ([1, 4, 2], [0, 5, 5])):
    rows, columns = (np.array([x, x]) for x in (rows, columns))
    a = np.stack([matrix(SPECTRA['slow'], seed=i) for i in range(2)])
    near = cur_approximation(a, rows, columns, core=core)
    for one, i, j, got in zip(a, rows, columns, near, strict=True):
      c, r = one[:, j], one[i]
      u = np.linalg.pinv(one[np.ix_(i, j)])
      if core == 'optimal':
        u = np.linalg.pinv(c) @ one @ np.linalg.pinv(r)
      np.testing.assert_allclose(got, c @ u @ r, atol=1e-10)


@pytest.mark.parametrize('core', CORES)
def test_an_ill_conditioned_core(core):
  a = matrix(10.0 ** -np.arange(16.0))
  found = cur(a, 14, method='pivoted_qr', core=core)
  near = cur_approximation(a, found.rows, found.columns, core=core)
  assert np.linalg.norm(a - near) < 30 * optimum(a, 14) + 1e-14
  # The product is good to the root of the precision.
  assert np.linalg.norm(a - product(found)) < 2e-7
  assert np.abs(found.u).max() < 1e10


def test_vectors_and_full_rank():
  column = np.arange(1.0, 8, dtype=np.float32)[:, None]
  full = matrix(SPECTRA['slow'][:7], 9, 7).astype(np.float32)
  for a, rank, method in (
    (column, 1, 'pivoted_qr'),
    (column.T, 1, 'osinsky'),
    (full, 7, 'deim'),
  ):
    found = cur(a, rank, method=method)
    chex.assert_type(found[2:], jnp.float32)
    np.testing.assert_allclose(product(found), a, atol=1e-4)


def test_half_precision_is_computed_in_single():
  for method, core in CASES:
    run = functools.partial(cur, rank=RANK, method=method, core=core)
    half = jax.ShapeDtypeStruct((30, 24), jnp.bfloat16)
    found = jax.eval_shape(run, half)
    chex.assert_type(found, (jnp.int32,) * 2 + (jnp.float32,) * 3)


@pytest.mark.parametrize(
  'method, core, limit',
  [('osinsky', 'optimal', 1.5), ('q_deim', 'intersection', 2.5)],
)
def test_complex_numbers(method, core, limit):
  a = np.stack(
    [matrix(SPECTRA['fast'], seed=i, dtype=np.complex128) for i in range(8)]
  )
  found = jax.device_get(cur(a, RANK, method=method, core=core))
  chex.assert_type(found[2:], np.complex128)
  near = cur_approximation(a, *found[:2], core=core)
  every = [*zip(a, map(CUR, *found), near, strict=True)]
  for one, parts, approximation in every:
    expected = expected_core(one, parts, core)
    np.testing.assert_allclose(parts.u, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(approximation, product(parts), atol=1e-10)
  assert (
    np.mean([error(one, product(parts)) for one, parts, _ in every]) < limit
  )


def test_keys_decide_the_samples():
  a = np.stack([*matrices().values()])
  run = functools.partial(cur, a, RANK, method='leverage')
  _, first = solved('leverage', 'optimal')['slow', 0]
  same, other = run(key=jax.random.key(0)), run(key=jax.random.key(1))
  names = [*matrices()]
  i = names.index(('slow', 0))
  np.testing.assert_array_equal(same.rows[i], first.rows)
  assert (same.rows != other.rows).any()
  assert (same.columns != other.columns).any()


def test_batches_are_sharded():
  batch = matrices()
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  run = functools.partial(cur, rank=RANK)
  shard = jax.shard_map(run, mesh=mesh, in_specs=P('x'), out_specs=P('x'))
  got = jax.jit(shard)(np.stack([*batch.values()]))
  every = solved('osinsky', 'optimal')
  for name, *one in zip(batch, *got, strict=True):
    if name[0] in ('fast', 'slow'):
      chex.assert_trees_all_close(CUR(*one), every[name][1], rtol=1e-7)


def test_a_matrix_of_a_batch_is_as_alone():
  for name in (('fast', 0), ('slow', 1)):
    a, found = solved('deim', 'intersection')[name]
    alone = cur(a, RANK, method='deim', core='intersection')
    chex.assert_trees_all_close(jax.device_get(alone), found, rtol=1e-7)


@pytest.mark.parametrize('core', CORES)
def test_gradients_are_those_of_fixed_indices(core):
  a, weights = matrix(SPECTRA['slow']), matrix(SPECTRA['flat'], seed=2)
  run = functools.partial(cur, rank=RANK, method='pivoted_qr', core=core)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def ours(a):
    found = run(a)
    near = cur_approximation(a, *found[:2], core=core)
    return jnp.sum(weights * (found.c @ found.u @ found.r + near)), found

  def fixed(a):
    c, r = a[:, columns], a[rows]
    if core == 'intersection':
      u = jnp.linalg.inv(c[rows])
    else:
      u = jnp.linalg.pinv(c) @ a @ jnp.linalg.pinv(r)
    return 2 * jnp.sum(weights * (c @ u @ r))

  (value, (rows, columns, *_)), gradient = ours(a)
  expected, expected_gradient = jax.jit(jax.value_and_grad(fixed))(a)
  np.testing.assert_allclose(value, expected, rtol=1e-8)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8)


def test_wrong_arguments_are_named():
  a, i = np.ones((4, 3)), np.arange(2)
  for name, call in (
    ('a: got shape', lambda: cur(a[0], 1)),
    ('rank: got 4', lambda: cur(a, 4)),
    ('rank: got 0', lambda: cur(a, 0)),
    ("method: got 'svd'", lambda: cur(a, 2, method='svd')),
    ("core: got 'pinv'", lambda: cur(a, 2, core='pinv')),
    ("core: got 'pinv'", lambda: cur_approximation(a, i, i, core='pinv')),
    ('a: got shape', lambda: cur_approximation(a[0], i, i)),
    ('rows: got shape', lambda: cur_approximation(a, i[None], i)),
    ('columns: got shape', lambda: cur_approximation(a, i, i[None])),
  ):
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
