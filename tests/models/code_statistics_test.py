"""Counts and sums by code, perplexity and usage."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.models import CodebookMetrics, code_counts, codebook_metrics
from kexue.models.code_statistics import code_sums

RNG = np.random.default_rng(0)


@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(
  st.lists(st.integers(1, 5), min_size=0, max_size=3),
  st.integers(1, 40),
  st.sampled_from(['float32', 'bfloat16']),
  st.booleans(),
)
def test_equals_a_loop(shape, codes, dtype, masked):
  indices = RNG.integers(0, codes, shape)
  z = jnp.array(RNG.integers(-8, 9, (*shape, 2)), dtype)
  mask = RNG.random(shape) < 0.5 if masked else None
  counts, sums = np.zeros(codes, int), np.zeros((codes, 2))
  for place in np.ndindex(*shape):
    if mask is None or mask[place]:
      counts[indices[place]] += 1
      sums[indices[place]] += z[place]
  found = code_counts(indices, codes, mask=mask)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, counts)
  found = code_sums(z, indices, codes, mask=mask)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, sums)


def test_half_precision_is_added_up_in_float32():
  z, indices = jnp.ones((300, 1), jnp.bfloat16), jnp.zeros(300, int)
  assert code_sums(z, indices, 1) == 300
  assert jnp.zeros((1, 1), z.dtype).at[indices].add(z) == 256  # Stuck.


def test_what_is_masked_out_may_be_anything():
  z = jnp.array([[1.0], [jnp.nan], [jnp.inf]])
  mask = jnp.array([True, False, False])
  assert code_sums(z, jnp.zeros(3, int), 2, mask=mask).tolist() == [[1], [0]]


def test_limits_of_perplexity_and_usage():
  chex.assert_trees_all_close(
    codebook_metrics(jnp.full(50, 7), 64), CodebookMetrics(1.0, 1 / 64)
  )
  chex.assert_trees_all_close(
    codebook_metrics(jnp.arange(4096) % 1024, 1024),
    CodebookMetrics(1024.0, 1.0),
    rtol=1e-5,
  )
  nothing = codebook_metrics(jnp.arange(4), 4, mask=jnp.zeros(4, bool))
  chex.assert_trees_all_close(nothing, CodebookMetrics(1.0, 0.0))


def test_perplexity_is_the_exponential_of_the_entropy():
  counts = RNG.integers(0, 9, 33)
  share = np.float64(counts[counts > 0]) / counts.sum()
  metrics = CodebookMetrics.from_counts(jnp.array(counts))
  expected = np.exp(-np.sum(share * np.log(share)))
  np.testing.assert_allclose(metrics.perplexity, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics.usage, np.mean(counts > 0))


def test_devices_add_counts_and_do_not_average_metrics():
  """Every device uses two codes of its own: 16 in all, where the mean is 2."""
  indices = jnp.arange(16).reshape(8, 2).repeat(3, 1)
  z = jnp.ones((8, 6, 2)) * indices[..., None]
  mask = jnp.ones((8, 6), bool).at[0].set(False)

  def measure(z, indices, mask, axis_name=None):
    where = {'mask': mask, 'axis_name': axis_name}
    return codebook_metrics(indices, 32, **where), code_sums(
      z, indices, 32, **where
    )

  expected = measure(z, indices, mask)
  np.testing.assert_allclose(expected[0].perplexity, 14, rtol=1e-5)
  over = functools.partial(measure, axis_name='data')
  found = jax.pmap(over, 'data', out_axes=None)(z, indices, mask)
  chex.assert_trees_all_close(found, expected)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(over, mesh=mesh, in_specs=P('data'), out_specs=P())
  chex.assert_trees_all_close(jax.jit(mapped)(z, indices, mask), expected)
  alone = jax.vmap(measure)(z, indices, mask)[0]
  np.testing.assert_allclose(alone.perplexity, [1] + [2] * 7, rtol=1e-6)


def test_wrong_arguments_are_named():
  indices, z = jnp.arange(4), jnp.ones((4, 2))
  for name, call in {
    'num_codes: got 0': lambda: code_counts(indices, 0),
    'num_codes: got 2.0': lambda: codebook_metrics(indices, 2.0),
    'indices: got dtype': lambda: code_counts(indices * 1.0, 4),
    'mask: got': lambda: code_counts(indices, 4, mask=jnp.ones(3, bool)),
    'indices: got shape': lambda: code_sums(z, indices[:3], 4),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
