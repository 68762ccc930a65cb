"""Delivered against requested tolerance, and the rank against the least one."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import Range, adaptive_range

KEY = jax.random.key(0)
M, N, MOST = 60, 50, 30
J = np.arange(N)
SPECTRA = {
  'fast': 10 ** (-J / 4),
  'slow': 1 / (J + 1.0),
  'step': np.where(J < 12, 1, 1e-4),
  'spike': np.where(J < 16, 1, 0) + np.where(J == 16, 0.1, 1e-6),
  'low': np.where(J < 5, 1.0, 0),
  'one': np.where(J < 1, 1.0, 0),
}


def gaussian(*shape, seed=0, imaginary=False):
  rng = np.random.default_rng(seed)
  real, other = rng.normal(size=shape), rng.normal(size=shape)
  return real + 1j * other if imaginary else real


def with_values(m, n, s, *, seed=0, imaginary=False):
  u, v = (
    np.linalg.qr(gaussian(k, len(s), seed=seed + k, imaginary=imaginary))[0]
    for k in (m, n)
  )
  return (u * s) @ v.conj().T


def least_rank(s, rtol):
  tails = np.sqrt(np.cumsum(s[::-1] ** 2)[::-1]) / np.linalg.norm(s)
  return int(np.sum(tails > rtol))


def functions(a):
  return lambda x: a @ x, lambda y: a.conj().T @ y, a.shape, a.dtype


def projected(q, a):
  """What is found, whatever the basis of equal or tiny singular values."""
  return q @ (q.swapaxes(-1, -2).conj() @ a)


def check(result, a, rtol, *, atol):
  """Zero past the rank, orthonormal before; the error is within `rtol`."""
  q, rank = np.asarray(result.q, np.complex128), int(result.rank)
  assert result.rank.dtype == jnp.int32
  assert not q[:, rank:].any()
  gram = q.conj().T @ q
  np.testing.assert_allclose(gram[:rank, :rank], np.eye(rank), atol=atol)
  error = np.linalg.norm(a - projected(q, a))
  assert error <= rtol * np.linalg.norm(a)
  return rank


@functools.partial(jax.jit, static_argnames='power_iterations')
def of_keys(a, rtol, keys, power_iterations=1):
  """Ranges of several keys in one program."""
  settings = dict(max_rank=MOST, block=8, power_iterations=power_iterations)
  return jax.vmap(
    lambda key: adaptive_range(a, rtol=rtol, key=key, **settings)
  )(keys)


def of_one(a, rtol, max_rank=20):
  return adaptive_range(a, rtol=rtol, max_rank=max_rank, key=KEY, block=10)


@hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
@hypothesis.given(
  name=st.sampled_from([*SPECTRA]),
  digits=st.floats(0.3, 5),
  seed=st.integers(0, 2**31 - 100),
)
def test_the_tolerance_is_kept_at_nearly_the_least_rank(name, digits, seed):
  s, rtol = SPECTRA[name], 10**-digits
  least = least_rank(s, rtol)
  hypothesis.assume(least < MOST - 2)
  a = with_values(M, N, s, seed=seed)
  keys = jax.random.split(jax.random.key(seed), 4)
  ranges = of_keys(np.float32(a), np.float32(rtol), keys)
  for q, rank in zip(*ranges, strict=True):
    rank = check(Range(q, rank), a, rtol, atol=1e-5)
    assert least <= rank <= 1.15 * least + 1


def test_double_precision_without_power_iterations():
  with jax.enable_x64(True):
    keys = jax.random.split(KEY, 4)
    for name, rtol in [('fast', 1e-6), ('step', 1e-3), ('low', 1e-12)]:
      a = with_values(M, N, SPECTRA[name])
      ranges = of_keys(a, rtol, keys, power_iterations=0)
      for q, rank in zip(*ranges, strict=True):
        rank = check(Range(q, rank), a, rtol, atol=1e-12)
        assert rank <= least_rank(SPECTRA[name], rtol) + 2


def test_complex_functions_without_a_matrix():
  a = with_values(M, N, SPECTRA['fast'], imaginary=True)
  matrix = jnp.asarray(a, jnp.complex64)
  run = lambda: adaptive_range(
    functions(matrix), rtol=1e-3, max_rank=MOST, key=KEY
  )
  result = jax.jit(run)()
  assert result.q.dtype == jnp.complex64
  rank = check(result, a, 1e-3, atol=1e-5)
  assert rank <= least_rank(SPECTRA['fast'], 1e-3) + 1


@pytest.mark.parametrize('shape', [(1, 5), (4, 1)])
def test_every_scale_and_shape(shape):
  a = np.float32(gaussian(*shape))
  q, ranks = of_one(np.stack([a, 0 * a, 1e-30 * a, 1e30 * a]), 1e-3, max_rank=1)
  assert ranks.tolist() == [1, 0, 1, 1]
  assert not q[1].any()
  for x in q[::2]:
    np.testing.assert_allclose(projected(x, a), a, rtol=1e-5)


def test_what_a_basis_of_rounding_errors_would_find():
  low = np.float32(with_values(M, N, np.ones(3)))
  assert check(of_one(low, 1e-6), low, 1e-6, atol=1e-5) == 3
  assert int(of_one(low, 1e-9).rank) == 3  # Not told from rounding.
  ones = np.ones((M, N), np.float32)
  assert check(of_one(ones, 1e-5), ones, 1e-5, atol=1e-5) == 1
  ones[:, 3] = 1e6  # One huge column.
  assert check(of_one(ones, 1e-2), ones, 1e-2, atol=1e-5) == 1


def test_a_block_wider_than_what_is_left():
  a = np.float32(gaussian(6, 6))
  result = adaptive_range(a, rtol=1e-5, max_rank=6, key=KEY, block=4)
  assert check(result, a, 1e-5, atol=1e-5) == 6


def test_the_limit_of_the_rank_is_reached():
  """What is added past `max_rank` serves those before it, and is cut off."""
  s = SPECTRA['slow']
  a = np.float32(with_values(M, N, s))
  best = np.linalg.norm(s[20:])
  rtol = 1.03 * best / np.linalg.norm(s)
  assert check(of_one(a, rtol), a, rtol, atol=1e-5) == 20
  short = of_one(a, 0.01)
  assert check(short, a, 1, atol=1e-5) == 20
  assert np.linalg.norm(a - projected(short.q, a)) < 1.03 * best
  eye = np.eye(M, N, dtype=np.float32)
  assert check(of_one(eye, 1e-2), eye, 1, atol=1e-5) == 20


def test_half_precision_is_computed_in_single():
  a = jnp.asarray(with_values(M, N, SPECTRA['fast']), jnp.bfloat16)
  result = of_one(a, 0.1)
  assert result.q.dtype == jnp.float32
  chex.assert_trees_all_equal(result, of_one(a.astype(jnp.float32), 0.1))


def test_batches_are_vmapped_and_sharded():
  decays = np.linspace(0.5, 3, 16)
  a = np.stack([with_values(12, 10, 10 ** (-J[:10] / d)) for d in decays])
  a = np.float32(a.reshape(8, 2, 12, 10))
  a[0, 0] = 0
  run = lambda a: adaptive_range(a, rtol=0.1, max_rank=6, key=KEY, block=4)
  result = run(a)
  assert result.q.shape == (8, 2, 12, 6) and result.rank.shape == (8, 2)
  assert np.unique(result.rank).size > 3
  for i in np.ndindex(8, 2):
    check(Range(result.q[i], result.rank[i]), a[i], 0.1, atol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(run, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  for same in (jax.jit(jax.vmap(jax.vmap(run)))(a), jax.jit(sharded)(a)):
    np.testing.assert_array_equal(same.rank, result.rank)
    np.testing.assert_allclose(
      projected(same.q, a), projected(result.q, a), atol=1e-4
    )


def test_wrong_arguments_are_named():
  a = np.ones((4, 3))
  run = functools.partial(adaptive_range, key=KEY)
  for name, call in {
    'a: got shape': lambda: run(a[0], rtol=0.1, max_rank=1),
    'a: got': lambda: run((a, a), rtol=0.1, max_rank=1),
    'rtol: got 0': lambda: run(a, rtol=0.0, max_rank=1),
    'rtol: got 1': lambda: run(a, rtol=1.0, max_rank=1),
    'max_rank: got 0': lambda: run(a, rtol=0.1, max_rank=0),
    'max_rank: got 4': lambda: run(a, rtol=0.1, max_rank=4),
    'max_rank: got 1.0': lambda: run(a, rtol=0.1, max_rank=1.0),
    'block: got 0': lambda: run(a, rtol=0.1, max_rank=1, block=0),
    'power_iterations: got -1': lambda: run(
      a, rtol=0.1, max_rank=1, power_iterations=-1
    ),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
