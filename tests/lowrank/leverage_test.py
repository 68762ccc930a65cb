"""Leverage as the diagonal of a projector, and how often rows are sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.lowrank import leverage_rows, leverage_scores


def basis(n=12, k=4, *, seed=0, batch=(), dtype=np.float32):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, *batch, n, k))
  x = x[0] + 1j * x[1] if np.issubdtype(dtype, np.complexfloating) else x[0]
  return np.linalg.qr(x)[0].astype(dtype)


@pytest.mark.parametrize('dtype', [np.float32, np.complex64])
def test_scores_are_the_diagonal_of_the_hat_matrix(dtype):
  v = basis(dtype=dtype)
  scores = leverage_scores(v)
  assert scores.dtype == jnp.float32
  # Of any matrix with these columns: the diagonal of X X^+.
  x = v @ np.array(np.random.default_rng(1).normal(size=(4, 4)), dtype)
  hat = np.diagonal(x @ np.linalg.pinv(x)).real
  np.testing.assert_allclose(scores, hat, atol=1e-5)
  np.testing.assert_allclose(scores.sum(), 4, rtol=1e-6)


def test_the_largest_scores():
  v = basis()
  order = np.argsort(-np.sum(v**2, axis=1))
  indices = leverage_rows(v, 5)
  assert indices.dtype == jnp.int32
  assert indices.tolist() == order[:5].tolist()


def test_rows_are_sampled_by_their_leverage_without_replacement():
  v = basis(5, 2)
  share = np.sum(v.astype(np.float64) ** 2, axis=1) / 2
  keys = jax.random.split(jax.random.key(0), 20_000)
  pairs = np.asarray(jax.vmap(lambda key: leverage_rows(v, 2, key=key))(keys))
  assert (pairs[:, 0] != pairs[:, 1]).all()
  for i in range(5):
    for j in {*range(5)} - {i}:
      expected = share[i] * share[j] / (1 - share[i])
      error = np.mean((pairs == (i, j)).all(axis=1)) - expected
      assert abs(error) < 5 * np.sqrt(expected / len(pairs))


def test_rows_without_leverage_come_last():
  v = np.zeros((6, 2), np.float32)
  v[2, 0] = v[4, 1] = 1
  for seed in range(3):
    indices = leverage_rows(v, 4, key=jax.random.key(seed)).tolist()
    assert {*indices[:2]} == {2, 4} and len({*indices}) == 4
  zeros = leverage_rows(0 * v, 6, key=jax.random.key(0)).tolist()
  assert sorted(zeros) == [*range(6)]


def test_batches_are_vmapped_and_sharded():
  v = jnp.asarray(basis(batch=(8,)))
  key = jax.random.key(3)
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  every = lambda v: (leverage_scores(v), leverage_rows(v, 3, key=key))
  expected = jax.tree.map(lambda *x: np.stack(x), *[every(x) for x in v])
  shard = jax.shard_map(every, mesh=mesh, in_specs=P('x'), out_specs=P('x'))
  for run in (every, jax.jit(jax.vmap(every)), jax.jit(shard)):
    for got, want in zip(run(v), expected, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-6)


def test_wrong_arguments_are_named():
  v = np.ones((4, 2))
  for name, call in {
    'v: got shape': lambda: leverage_scores(v[0]),
    'v: got': lambda: leverage_rows(v.T, 2),
    'count: got 0': lambda: leverage_rows(v, 0),
    'count: got 5': lambda: leverage_rows(v, 5),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
