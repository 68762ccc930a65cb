"""The codebook of running averages: starts, closed forms, revival, devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.models import (
  CodebookState,
  init_codebook,
  k_means,
  k_means_start,
  nearest_code,
  revive_codes,
  update_codebook,
)
from kexue.models.sample_rows import sample_rows

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(64, 3)).astype(np.float32)
EPS = 1e-5

update = jax.jit(update_codebook, static_argnames='distance')
revive = jax.jit(revive_codes, static_argnames='distance')


def state_of(codebook, counts):
  codebook = jnp.asarray(codebook, jnp.float32)
  counts = jnp.asarray(counts, jnp.float32)
  return CodebookState(codebook, counts, codebook * counts[:, None])


def smoothed(counts, sums):
  """The reference rule, in float64."""
  total = counts.sum()
  smooth = (counts + EPS) / (total + len(counts) * EPS) * total
  return sums / smooth[:, None]


def slow_update(counts, sums, z, indices, decay):
  one_hot = np.float64(indices[:, None] == np.arange(len(counts)))
  counts = decay * counts + (1 - decay) * one_hot.sum(0)
  sums = decay * sums + (1 - decay) * one_hot.T @ z
  return counts, sums


@pytest.mark.parametrize('steps', [1, 3])
def test_running_averages_in_closed_form(steps):
  """As in vector-quantize-pytorch: counts of one, sums of the codes."""
  start = state_of(RNG.normal(size=(4, 3)), np.ones(4))
  decay, state = 0.9, start
  n, m = np.zeros((steps, 4)), np.zeros((steps, 4, 3))
  for t in range(steps):
    z, indices = RNG.normal(size=(20, 3)), RNG.integers(0, 4, 20)
    state = update(state, z.astype('float32'), indices, decay=decay)
    np.add.at(n[t], indices, 1)
    np.add.at(m[t], indices, z)
  weights = 0.1 * decay ** np.arange(steps)[::-1]
  counts = decay**steps * start.counts + np.tensordot(weights, n, 1)
  sums = decay**steps * start.sums + np.tensordot(weights, m, 1)
  np.testing.assert_allclose(state.counts, counts, rtol=1e-5)
  np.testing.assert_allclose(state.sums, sums, atol=1e-5)
  codebook = smoothed(np.float64(counts), np.float64(sums))
  np.testing.assert_allclose(state.codebook, codebook, atol=1e-5)


def test_equals_averages_without_their_bias():
  """As in haiku, from nothing: the factor 1 - d^t drops out of the ratio."""
  state = CodebookState(jnp.zeros((4, 3)), jnp.zeros(4), jnp.zeros((4, 3)))
  counts, sums = np.zeros(4), np.zeros((4, 3))
  for t in range(1, 4):
    z, indices = RNG.normal(size=(40, 3)), np.arange(40) % 4
    state = update(state, z.astype('float32'), indices, decay=0.99)
    counts, sums = slow_update(counts, sums, z, indices, 0.99)
    unbiased = smoothed(counts / (1 - 0.99**t), sums / (1 - 0.99**t))
    np.testing.assert_allclose(state.codebook, unbiased, rtol=2e-3)


def test_masked_vectors_do_not_count():
  state, indices = state_of(Z[:5], np.ones(5)), RNG.integers(0, 5, 64)
  mask = RNG.random(64) < 0.6
  z = np.where(mask[:, None], Z, np.nan)
  found = update(state, z, indices, mask=mask)
  # Any leading shape, here two.
  again = update(
    state,
    Z.reshape(4, 16, 3),
    indices.reshape(4, 16),
    mask=mask.reshape(4, 16),
  )
  expected = slow_update(
    np.ones(5), np.float64(Z[:5]), Z[mask], indices[mask], 0.99
  )
  chex.assert_trees_all_close(tuple(found[1:]), expected, atol=1e-5)
  chex.assert_trees_all_equal(found, again)


def test_unused_codes_stay_for_ever():
  """Neither NaN nor, as with the smoothing alone, on the way to zero."""
  state = state_of([[1.0, 0], [5, 5], [-3, 2]], [4, 4, 0])
  z, indices = jnp.ones((8, 2)), jnp.zeros(8, int)

  @jax.jit
  def run(state):
    step = lambda _, state: update_codebook(state, z, indices)
    return jax.lax.fori_loop(0, 20_000, step, state)

  found = run(state)
  np.testing.assert_array_equal(found.codebook[1:], state.codebook[1:])
  np.testing.assert_allclose(found.codebook[0], 1, rtol=1e-4)
  counts, sums = np.float64(found.counts), np.float64(found.sums)
  assert np.abs(smoothed(counts, sums)[1:]).max() < 1e-9
  back = update(found, z, jnp.full(8, 1))
  np.testing.assert_allclose(back.codebook[1], 1, rtol=1e-3)


def test_decay_one_keeps_and_zero_forgets():
  state, indices = state_of(Z[:4], np.full(4, 16.0)), np.arange(64) % 4
  chex.assert_trees_all_close(
    update(state, Z, indices, decay=1.0), state, rtol=1e-5
  )
  found = update(state, Z, indices, decay=0.0)
  means = Z.reshape(16, 4, 3).mean(0)
  np.testing.assert_allclose(found.codebook, means, atol=1e-5)


def test_cosine_keeps_unit_vectors():
  state = init_codebook(Z, 4, key=KEY, distance='cosine')
  indices = nearest_code(Z, state.codebook, distance='cosine')
  lengths = 10.0 ** RNG.integers(-3, 4, (64, 1)).astype(np.float32)
  for z in (Z, Z * lengths):
    found = update(state, z, indices, decay=0.5, distance='cosine')
    for codes in (state.codebook, found.codebook):
      np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    sums = np.zeros((4, 3))
    np.add.at(sums, indices, unit)
    np.testing.assert_allclose(
      found.sums, 0.5 * state.sums + 0.5 * sums, atol=1e-5
    )
  revived = revive(found, Z * 9, key=KEY, threshold=1e9, distance='cosine')
  norms = np.linalg.norm(revived.codebook, axis=1)
  np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_no_gradient_and_the_dtype_of_the_state():
  state = state_of(Z[:4], np.ones(4))
  total = lambda z: sum(
    jnp.sum(x)
    for x in (
      *update_codebook(state, z, jnp.zeros(64, int)),
      *revive_codes(state, z, key=KEY, threshold=2),
    )
  )
  np.testing.assert_array_equal(jax.grad(total)(Z), 0)
  half = update(state, jnp.array(Z, jnp.bfloat16), jnp.zeros(64, int))
  chex.assert_trees_all_equal_dtypes(half, state)


@pytest.mark.parametrize('method', ['kmeans', 'data', 'normal', 'uniform'])
def test_starts(method):
  state = init_codebook(Z, 8, key=KEY, method=method)
  codes = np.asarray(state.codebook)
  np.testing.assert_allclose(state.sums, codes * state.counts[:, None])
  np.testing.assert_allclose(state.counts.sum(), 64)
  if method == 'kmeans':
    sample, _ = sample_rows(Z, 64, key=jax.random.split(KEY)[0])
    start = k_means_start(sample, 8, key=jax.random.split(KEY)[1])
    expected, counts = k_means(sample, start)
    np.testing.assert_allclose(codes, expected, atol=1e-6)
    np.testing.assert_array_equal(state.counts, counts)
  elif method == 'data':
    found = [np.flatnonzero((Z == code).all(1)) for code in codes]
    assert len(set(np.concatenate(found))) == 8
  elif method == 'normal':
    codes = init_codebook(Z, 999, key=KEY, method=method).codebook
    assert abs(np.std(codes) - 1) < 4 / np.sqrt(2 * codes.size)
    assert abs(np.mean(codes)) < 4 / np.sqrt(codes.size)
  else:
    assert 0.9 / 8 < np.abs(codes).max() <= 1 / 8
    np.testing.assert_allclose(
      init_codebook(Z, 8, key=KEY, method=method, scale=3.0).codebook,
      3 * codes,
    )


def test_kmeans_of_a_part_counts_vectors_of_the_batch():
  z = RNG.normal(size=(1000, 2)).astype(np.float32)
  state = init_codebook(z, 4, key=KEY)  # 32 vectors a code are looked at.
  np.testing.assert_allclose(state.counts.sum(), 1000, rtol=1e-6)
  np.testing.assert_allclose(state.counts * 128 / 1000 % 1, 0, atol=1e-5)


def test_a_masked_start_is_that_of_the_rest():
  mask = np.arange(64) < 40
  z = np.where(mask[:, None], Z, np.nan)
  for method in ('kmeans', 'data'):
    state = init_codebook(z, 4, key=KEY, method=method, mask=mask)
    assert np.isfinite(state.codebook).all()
    np.testing.assert_allclose(state.counts.sum(), 40, rtol=1e-6)


def test_more_codes_than_vectors():
  state = init_codebook(Z[:5], 12, key=KEY)
  assert len(np.unique(np.round(state.codebook, 5), axis=0)) == 5
  assert np.sum(state.counts == 0) == 7


def test_a_revived_code_survives_the_next_update():
  counts = np.array([5.0, 1.9, 0.0, 2.0])
  state = CodebookState(
    jnp.array(Z[:4]), jnp.array(counts), jnp.full((4, 3), 1e3)
  )
  found = revive(state, Z[10:], key=KEY, threshold=2)
  for k in (0, 3):
    chex.assert_trees_all_equal([x[k] for x in found], [x[k] for x in state])
  rows = [np.flatnonzero((Z == found.codebook[k]).all(1)) for k in (1, 2)]
  assert all(len(row) == 1 and row[0] >= 10 for row in rows)
  assert rows[0] != rows[1]
  # The mean of the counts, as it is above the threshold.
  np.testing.assert_allclose(found.counts[1:3], counts.mean(), rtol=1e-6)
  z, indices = found.codebook[2] + jnp.ones((1, 3)), jnp.array([2])
  moved = update(found, z, indices).codebook
  share = 0.01 / (0.99 * counts.mean() + 0.01)
  np.testing.assert_allclose(moved[2], found.codebook[2] + share, atol=1e-4)
  # Without its new sum the old one would have carried it away.
  stale = update(found._replace(sums=state.sums), z, indices).codebook
  assert np.abs(stale[2] - found.codebook[2]).max() > 100
  high = revive(state, Z, key=KEY, threshold=100)
  np.testing.assert_array_equal(high.counts, 100)


def test_nothing_dead_changes_nothing():
  for threshold, counts in ((0, [3, 2, 2, 0]), (2, [3, 2, 2, 2])):
    state = state_of(Z[:4], counts)
    chex.assert_trees_all_equal(
      revive(state, Z, key=KEY, threshold=threshold), state
    )


def test_more_dead_codes_than_vectors():
  """A random subset is revived, each vector used once."""
  state = state_of(np.full((20, 3), 9.0), np.zeros(20))
  mask = np.arange(8) < 5

  def run(key):
    return revive_codes(state, Z[:8], key=key, threshold=1, mask=mask).codebook

  codebooks = np.asarray(jax.vmap(run)(jax.random.split(KEY, 400)))
  revived = (codebooks != 9).any(-1)
  np.testing.assert_array_equal(revived.sum(1), 5)
  assert {tuple(row) for row in codebooks[0][revived[0]]} == {
    tuple(row) for row in Z[:5]
  }
  hits = revived.sum(0)  # 100 expected.
  assert np.abs(hits - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)
  none = revive(state, Z[:8], key=KEY, threshold=1, mask=np.zeros(8, bool))
  chex.assert_trees_all_equal(none, state)


def train(z, mask, axis_name=None):
  """Start, two updates and a revival: every state on the way."""
  where = {'mask': mask, 'axis_name': axis_name}
  states = [init_codebook(z, 12, key=KEY, **where)]
  for _ in range(2):
    indices = nearest_code(z, states[-1].codebook)
    states.append(update_codebook(states[-1], z, indices, decay=0.5, **where))
  key = jax.random.key(1)
  states.append(revive_codes(states[-1], z, key=key, threshold=15.0, **where))
  states.append(init_codebook(z, 12, key=KEY, method='data', **where))
  return states


def test_one_device_is_eight():
  z = RNG.normal(size=(8, 24, 3)).astype(np.float32)
  mask = RNG.random((8, 24)) < 0.8
  expected = jax.jit(train)(z.reshape(-1, 3), mask.reshape(-1))
  dead = expected[2].counts < 15
  assert 0 < dead.sum() < 12
  over = functools.partial(train, axis_name='data')
  found = jax.pmap(over, 'data')(z, mask)
  for device in range(8):
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x, i=device: x[i], found),
      jax.tree.map(lambda x: x[0], found),
    )
  first = jax.tree.map(lambda x: x[0], found)
  chex.assert_trees_all_close(first, expected, atol=1e-5)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(over, mesh=mesh, in_specs=P('data'), out_specs=P())
  found = jax.jit(mapped)(z.reshape(-1, 3), mask.reshape(-1))
  chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_wrong_arguments_are_named():
  state, indices = state_of(Z[:4], np.ones(4)), np.zeros(64, int)
  for name, call in {
    'num_codes: got 0': lambda: init_codebook(Z, 0, key=KEY),
    'method: got': lambda: init_codebook(Z, 4, key=KEY, method='random'),
    'distance: got': lambda: init_codebook(Z, 4, key=KEY, distance='l1'),
    'z: got shape': lambda: init_codebook(1.0, 4, key=KEY),
    'mask: got': lambda: init_codebook(Z, 4, key=KEY, mask=np.ones(3, bool)),
    r'z: got shape \(64, 2\)': lambda: update_codebook(
      state, Z[:, :2], indices
    ),
    'indices: got': lambda: update_codebook(state, Z, indices[:5]),
    'decay: got 1.1': lambda: update_codebook(state, Z, indices, decay=1.1),
    r'z: got shape \(3': lambda: revive_codes(
      state, Z[:3, :1], key=KEY, threshold=1
    ),
    'threshold: got -1': lambda: revive_codes(state, Z, key=KEY, threshold=-1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
