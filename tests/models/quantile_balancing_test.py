"""Quantile balancing: exact ranks, exact balance, padding, devices."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.models import max_violation, quantile_bias, route
from kexue.models.quantile_balancing import kth_largest

quantile = jax.jit(quantile_bias, static_argnames='k')
largest = jax.jit(kth_largest)


def uneven(tokens, experts, seed=0):
  """Scores in (0, 1), of which some experts get more."""
  z = np.random.default_rng(seed).normal(size=(tokens, experts))
  z += np.linspace(-2, 2, experts)
  return (1 / (1 + np.exp(-z))).astype(np.float32)


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
  st.lists(st.floats(width=32, allow_nan=False), min_size=12, max_size=12),
  st.integers(1, 4),
)
def test_ranks_are_those_of_sorting(numbers, rank):
  """Infinities, subnormal numbers, both zeros, ties."""
  x = np.array(numbers, np.float32).reshape(4, 3)
  expected = -np.sort(-x, axis=0)[rank - 1]
  np.testing.assert_array_equal(largest(x, rank), expected)


def test_too_few_numbers():
  x = jnp.ones((4, 3))
  mask = jnp.array([True, False, True, False])
  assert np.all(largest(x, 2, mask=mask) == 1)
  assert np.all(np.isnan(largest(x, 3, mask=mask)))


def test_equals_the_formula():
  scores, bias = uneven(32, 8), np.linspace(0.3, 0, 8, dtype=np.float32)
  ranked = -np.sort(-(scores + bias), axis=1)
  alpha = ranked[:, 2:4].mean(1, keepdims=True)
  expected = np.sort(alpha - scores, axis=0)[32 * 3 // 8]
  np.testing.assert_allclose(quantile(scores, bias, 3), expected, rtol=1e-6)


@pytest.mark.parametrize('shape', [(512, 16, 2), (96, 8, 1), (512, 16, 15)])
def test_turns_end_in_exact_balance(shape):
  """The article's lower end of alpha gets stuck, a few per cent off."""
  tokens, experts, k = shape
  scores = uneven(tokens, experts)

  @functools.partial(jax.jit, static_argnames='shift')
  def turns(shift):
    def turn(bias, _):
      # An alpha at the lower end, k + 1 in both places.
      low = -jnp.sort(-(scores + bias), axis=1)[:, k, None]
      beta = kth_largest(scores - low, tokens * k // experts + 1)
      return (-beta if shift else quantile_bias(scores, bias, k)), None

    return jax.lax.scan(turn, jnp.zeros(experts), length=300)[0]

  load_of = lambda b: np.bincount(
    np.asarray(jax.lax.top_k(scores + b, k)[1]).ravel(), minlength=experts
  )
  assert np.ptp(load_of(jnp.zeros(experts))) > tokens * k / experts / 8
  np.testing.assert_array_equal(load_of(turns(False)), tokens * k / experts)
  if k == 2:
    assert max_violation(load_of(turns(True))) > 0.02


def test_one_turn_already_evens_out():
  scores = uneven(1000, 16)
  load_of = lambda b: np.bincount(
    np.asarray(jax.lax.top_k(scores + b, 2)[1]).ravel(), minlength=16
  )
  before = max_violation(load_of(jnp.zeros(16)))
  after = max_violation(load_of(quantile(scores, jnp.zeros(16), 2)))
  assert before > 2 and after < 0.7


def test_padding_does_not_count():
  scores, bias = uneven(40, 6), jnp.zeros(6)
  mask = np.random.default_rng(1).random(40) < 0.6
  expected = quantile(scores[mask], bias, 2)
  scores[~mask] = np.nan
  found = quantile(scores, bias, 2, mask=mask)
  np.testing.assert_array_equal(found, expected)
  old = bias + 3
  np.testing.assert_array_equal(
    quantile(scores, old, 2, mask=mask & False), old
  )


def test_every_transform():
  """The quantile of all devices' tokens, not a mean of quantiles."""
  scores, bias = uneven(8 * 12, 6).reshape(8, 12, 6), jnp.linspace(0.2, 0, 6)
  mask = np.random.default_rng(1).random((8, 12)) < 0.6
  expected = quantile(scores, bias, 2, mask=mask)
  run = lambda s, m: quantile_bias(s, bias, 2, mask=m, axis_name='data')
  found = jax.pmap(run, 'data')(scores, mask)
  np.testing.assert_array_equal(found, [expected] * 8)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=P())
  np.testing.assert_array_equal(jax.jit(mapped)(scores, mask), expected)
  alone = lambda s, m: quantile_bias(s, bias, 2, mask=m)
  local = jax.shard_map(
    alone, mesh=mesh, in_specs=P('data'), out_specs=P('data')
  )
  each = jax.vmap(alone)(scores, mask)
  np.testing.assert_array_equal(jax.jit(local)(scores, mask), each.ravel())
  assert np.abs(each.mean(0) - expected).max() > 1e-3


def test_no_gradient_passes():
  gradient = jax.grad(lambda s, b: quantile_bias(s, b, 2).sum(), (0, 1))
  scores = jnp.array(uneven(12, 6))
  assert all(np.all(g == 0) for g in gradient(scores, jnp.zeros(6)))


def test_the_bias_is_that_of_route():
  logits = jnp.array(np.random.default_rng(0).normal(size=(512, 8)))
  logits = logits + jnp.linspace(-1, 1, 8)
  bias = jnp.zeros(8)
  for _ in range(30):
    load = route(logits, bias, 2).load
    bias = quantile(jax.nn.sigmoid(logits), bias, 2)
  assert max_violation(load) < 0.02


def test_wrong_arguments_are_named():
  scores, bias = jnp.ones((4, 6)), jnp.zeros(6)
  for name, call in {
    'k: got 6': lambda: quantile_bias(scores, bias, 6),
    'k: got 0': lambda: quantile_bias(scores, bias, 0),
    'bias: got': lambda: quantile_bias(scores, bias[:5], 1),
    'scores: got': lambda: quantile_bias(scores[0], bias, 1),
    'mask: got': lambda: quantile_bias(scores, bias, 1, mask=jnp.ones(3)),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
