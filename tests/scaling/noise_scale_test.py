"""Two batch sizes against the tables, and the moments of what they estimate."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import (
  NoiseScale,
  per_example_noise_scale,
  two_batch_noise_scale,
)

DRAWS, N, SMALL = 20_000, 8, 2

TABLE = """
1 32 12 1.5 1.1612903 10.83871 9.3333333
1 64 5 0.2 0.12380952 4.8761905 39.384615
8 64 1.2 0.9 0.85714286 2.7428571 3.2
16 256 0.5 0.4 0.39333333 1.7066667 4.3389831
32 64 0.031 0.02 0.009 0.704 78.222222
4 4096 100 1 0.90322581 396.3871 438.85714
1 2 3 2 1 2 2
2 8 1 0.3 0.066666667 1.8666667 28
2 8 1 0.2 -0.066666667 2.1333333 -32
64 1024 0.01 0.0099 0.0098933333 0.0068266667 0.69002695
"""


@pytest.mark.parametrize('row', TABLE.strip().splitlines())
@pytest.mark.usefixtures('double')
def test_table(row):
  small, big, *norms, gradient_sq_norm, trace, scale = map(float, row.split())
  found = two_batch_noise_scale(*norms, int(small), int(big))
  expected = NoiseScale(scale, gradient_sq_norm, trace)
  chex.assert_trees_all_close(found, expected, rtol=5.1e-8)


def loss(w, x):
  """An example's gradient is the example."""
  return jnp.mean(x @ w)


@functools.cache
def examples():
  """Gaussian gradients [draws, N * SMALL, 3] of a known mean and covariance."""
  rng = np.random.default_rng(0)
  mean = np.array([0.6, -0.3, 0.2])
  factor = np.array([[1.0, 0, 0], [0.5, 0.8, 0], [-0.4, 0.3, 0.6]])
  noise = rng.normal(size=(DRAWS, N * SMALL, 3)) @ factor.T
  return mean, factor @ factor.T, mean + noise


def two_sizes():
  """Squared norms of the small batches [draws, N] and of the big one."""
  _, _, x = examples()
  gradients = x.reshape(DRAWS, N, SMALL, 3).mean(axis=2)
  squares = np.sum(gradients**2, axis=-1)
  return squares, np.sum(gradients.mean(axis=1) ** 2, axis=-1)


def z_score(x, expected):
  return abs(np.mean(x) - expected) / (np.std(x) / np.sqrt(len(x)))


@pytest.mark.parametrize('kind', ['per example', 'two batches'])
def test_unbiased_with_the_variance_it_says(kind):
  mean, covariance, x = examples()
  if kind == 'per example':
    estimate = functools.partial(per_example_noise_scale, loss, jnp.zeros(3))
    found = jax.jit(jax.vmap(estimate))(x.astype(np.float32))
    small, count = 1, N * SMALL
  else:
    squares, big = two_sizes()
    found = two_batch_noise_scale(squares.mean(axis=1), big, SMALL, N * SMALL)
    small, count = SMALL, N
  square, trace = mean @ mean, np.trace(covariance)
  gradient_sq_norm = np.float64(found.gradient_sq_norm)
  assert z_score(gradient_sq_norm, square) < 4
  assert z_score(np.float64(found.trace), trace) < 4
  twice = 2 * np.trace(covariance @ covariance)
  rows = small * count
  variances = [
    4 * mean @ covariance @ mean / rows
    + twice / (small**2 * count * (count - 1)),
    twice / (count - 1),
  ]
  found = np.cov(gradient_sq_norm, found.trace)
  np.testing.assert_allclose(np.diag(found), variances, rtol=0.05)
  expected = -twice / (small * count * (count - 1))
  np.testing.assert_allclose(found[0, 1], expected, rtol=0.15)


def test_plug_in_norm_caps_the_scale():
  """Pitfall 2: with |mean|^2 for |G|^2 no noise scale exceeds the batch."""
  mean, covariance, x = examples()
  weak, rows = x - 0.9 * mean, N * SMALL  # A tenth of the gradient.
  scale = np.trace(covariance) / np.sum((0.1 * mean) ** 2)
  small = np.mean(np.sum(weak**2, axis=-1), axis=1)
  big = np.sum(np.mean(weak, axis=1) ** 2, axis=-1)
  found = two_batch_noise_scale(small, big, 1, rows)
  plug_in = np.mean(found.trace) / np.mean(big)
  np.testing.assert_allclose(plug_in, scale / (1 + scale / rows), rtol=0.02)
  assert plug_in < rows < scale / 20
  ours = np.mean(found.trace) / np.mean(found.gradient_sq_norm)
  assert ours > 5 * rows


def test_averaging_norms_before_squaring_is_biased():
  """Pitfall 3."""
  _, covariance, _ = examples()
  squares, big = two_sizes()
  wrong = np.sqrt(squares).mean(axis=1) ** 2
  found = two_batch_noise_scale(wrong, big, SMALL, N * SMALL).trace
  assert z_score(np.float64(found), np.trace(covariance)) > 50
  assert np.mean(found) < 0.9 * np.trace(covariance)


def test_one_small_batch_is_noisier_than_all():
  """Pitfall 4."""
  squares, big = two_sizes()
  all_of_them = two_batch_noise_scale(squares.mean(axis=1), big, 2, 16).trace
  one = two_batch_noise_scale(squares[:, 0], big, 2, 16).trace
  assert np.std(one) > 2.5 * np.std(all_of_them)


def test_clipped_gradients_have_another_noise():
  """Pitfall 9: what is measured after clipping is no gradient's noise."""
  _, covariance, x = examples()
  shrink = 1 / np.maximum(1, np.linalg.norm(x, axis=-1, keepdims=True))
  estimate = functools.partial(per_example_noise_scale, loss, jnp.zeros(3))
  found = jax.jit(jax.vmap(estimate))((shrink * x).astype(np.float32))
  assert np.mean(found.trace) < 0.6 * np.trace(covariance)


def test_losses_between_examples_have_no_single_examples():
  """Pitfall 9: an example alone is its own batch mean."""
  _, _, x = examples()
  between = lambda w, x: jnp.mean(((x - jnp.mean(x, axis=0)) @ w) ** 2)
  found = per_example_noise_scale(between, jnp.ones(3), np.float32(x[0]))
  assert float(found.trace) == 0
  half = lambda x: jax.grad(between)(jnp.ones(3), x)
  assert np.any(half(np.float32(x[0, :8])) != half(np.float32(x[0, 8:])))


def test_drawing_without_replacement_multiplies_the_noise():
  """Pitfall 9: by 1 - B / n of what the examples' trace says."""
  rng = np.random.default_rng(1)
  population = rng.normal(size=(20, 3)).astype(np.float32)
  chosen = np.stack([rng.permutation(20)[:10] for _ in range(5000)])
  batches = population[chosen]
  estimate = functools.partial(per_example_noise_scale, loss, jnp.zeros(3))
  trace = jax.jit(jax.vmap(estimate))(batches).trace
  error = batches.mean(axis=1) - population.mean(axis=0)
  noise = np.mean(np.sum(error**2, axis=-1))
  np.testing.assert_allclose(noise / np.mean(trace / 10), 0.5, rtol=0.05)


def tree_loss(params, x):
  return jnp.mean(jnp.tanh(x @ params['w']) @ params['v'])


def tree_problem():
  rng = np.random.default_rng(2)
  params = {'w': rng.normal(size=(3, 4)), 'v': rng.normal(size=4)}
  x = rng.normal(size=(16, 3)).astype(np.float32)
  return jax.tree.map(np.float32, params), x


def test_leaves_add_up_to_the_total():
  params, x = tree_problem()
  estimate = functools.partial(per_example_noise_scale, tree_loss, params)
  total, leaves = jax.jit(lambda x: (estimate(x), estimate(x, per_leaf=True)))(
    x
  )
  for field in ('gradient_sq_norm', 'trace'):
    parts = getattr(leaves, field)
    assert parts.keys() == params.keys()
    np.testing.assert_allclose(
      sum(parts.values()), getattr(total, field), rtol=1e-5
    )
  expected = leaves.trace['w'] / leaves.gradient_sq_norm['w']
  np.testing.assert_allclose(leaves.scale['w'], expected, rtol=1e-6)
  # Negative estimates are legal, of leaves all the more.
  small, big = {'a': 1.0, 'b': 9.0}, {'a': 0.2, 'b': 8.0}
  found = two_batch_noise_scale(small, big, 2, 8, per_leaf=True)
  np.testing.assert_allclose(found.scale['a'], -32, rtol=1e-5)
  assert found.scale['b'] > 0


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_one_device_is_eight(how):
  params, x = tree_problem()
  expected = per_example_noise_scale(tree_loss, params, x)
  run = functools.partial(per_example_noise_scale, tree_loss, axis_name='data')
  if how == 'pmap':
    split = x.reshape(8, 2, 3)
    found = jax.pmap(run, 'data', in_axes=(None, 0))(params, split)
    found = jax.tree.map(lambda v: v[0], found)
  else:
    mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
      run, mesh=mesh, in_specs=(P(), P('data')), out_specs=P()
    )
    found = jax.jit(mapped)(params, x)
  chex.assert_trees_all_close(found, expected, rtol=1e-4)


def test_wrong_arguments_are_named():
  for name, call in {
    'small: got 0': lambda: two_batch_noise_scale(1.0, 1.0, 0, 2),
    'big: got 2': lambda: two_batch_noise_scale(1.0, 1.0, 2, 2),
    'batch: got .1 example': lambda: per_example_noise_scale(
      loss, jnp.zeros(3), jnp.zeros((1, 3))
    ),
    r'batch: got \[\(2, 3\), \(3,\)\]': lambda: per_example_noise_scale(
      loss, jnp.zeros(3), (jnp.zeros((2, 3)), jnp.zeros(3))
    ),
    'batch: got': lambda: per_example_noise_scale(loss, jnp.zeros(3), ()),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
