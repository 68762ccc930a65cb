"""Loss-free balancing: both rules, exact counts, a collapsed codebook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kexue.models import (
  CodebookMetrics,
  code_counts,
  max_violation,
  nearest_code,
  update_bias,
  violation_floor,
)

RNG = np.random.default_rng(0)


def test_equals_the_formulas():
  bias = RNG.normal(size=(2, 7)).astype(np.float32)
  load = RNG.integers(0, 100, (2, 7))
  error = load / load.sum(1, keepdims=True) - 1 / 7
  rms = np.sqrt(np.mean(error**2, 1, keepdims=True))
  for rule, step in {'sign': np.sign(error), 'rms': error / rms}.items():
    found = update_bias(bias, load, rate=0.1, rule=rule)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, bias - 0.1 * step, rtol=1e-5, atol=1e-6)
  violation = load.max(1) / load.mean(1) - 1
  np.testing.assert_allclose(max_violation(load), violation, rtol=1e-6)


@pytest.mark.parametrize('rule', ['sign', 'rms'])
def test_balance_and_nothing_change_nothing(rule):
  bias = jnp.array([0.5, -1.0, 2.0])
  for load in ([0, 0, 0], [4, 4, 4], [2**24 + 1] * 3):
    np.testing.assert_array_equal(
      update_bias(bias, jnp.array(load), rule=rule), bias
    )
    assert max_violation(jnp.array(load)) == 0


def test_counts_are_compared_exactly():
  """One in seventeen million; float32 and bfloat16 take them for equal."""
  load = 2**24 + jnp.array([0, 1, 0, 0])
  for dtype in ('float32', 'bfloat16'):
    assert len(np.unique(load.astype(dtype))) == 1
  moved = update_bias(jnp.zeros(4), load, rate=1.0)
  assert moved.tolist() == [1, -1, 1, 1]
  moved = update_bias(jnp.zeros(4), load, rate=1.0, rule='rms')
  np.testing.assert_allclose(moved, np.array([1, -3, 1, 1]) / np.sqrt(3))


def test_a_small_step_is_not_lost():
  assert jnp.bfloat16(0.5) + jnp.bfloat16(1e-3) == 0.5
  moved = update_bias(jnp.array([0.5, 0.5]), jnp.array([1, 3]))
  np.testing.assert_allclose(moved, [0.501, 0.499], rtol=1e-6)


def test_the_step_of_rms_has_the_size_of_the_rate():
  load = jnp.array(RNG.integers(0, 1000, 50))
  step = update_bias(jnp.zeros(50), load, rate=0.3, rule='rms')
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(step**2)), 0.3, rtol=1e-5)
  np.testing.assert_allclose(jnp.sum(step), 0, atol=1e-5)


def test_limits_of_the_violation():
  assert max_violation(jnp.array([0, 0, 9, 0, 0])) == 4
  loads = jnp.array([[3, 3], [5, 1]])
  np.testing.assert_allclose(jax.vmap(max_violation)(loads), [0, 2 / 3])
  random = np.bincount(RNG.integers(0, 16, 1024), minlength=16)
  assert 0.05 < max_violation(random) < np.sqrt(2 * np.log(16) / 64) * 1.3


@pytest.mark.parametrize('rule', ['sign', 'rms'])
def test_a_bias_brings_a_collapsed_codebook_back(rule):
  """Half of the codes are far away; none moves, only the bias does."""
  rng = np.random.default_rng(0)
  z = jnp.array(rng.normal(size=(1024, 4)), jnp.float32)
  codebook = jnp.array(rng.normal(size=(64, 4)), jnp.float32)
  codebook = codebook.at[32:].multiply(4.0)
  nearest = codebook[nearest_code(z, codebook)]
  rate = 0.1 * jnp.mean(jnp.sum(jnp.square(z - nearest), axis=-1))

  def load_of(bias):
    return code_counts(nearest_code(z, codebook, bias=bias), 64)

  def step(bias, _):
    return update_bias(bias, load_of(bias), rate=rate, rule=rule), None

  run = jax.jit(lambda bias: lax.scan(step, bias, length=900)[0])
  before, after = load_of(None), load_of(run(jnp.zeros(64)))
  perplexity, usage = CodebookMetrics.from_counts(before)
  assert perplexity < 30 and usage < 0.6
  perplexity, usage = CodebookMetrics.from_counts(after)
  assert perplexity > 58 and usage > 0.95
  assert max_violation(after) < 0.5 * max_violation(before)


def test_a_recentred_bias_chooses_the_same():
  bias, load = jnp.array([0.3, -0.2, 0.1]), jnp.array([7, 1, 1])
  plain = update_bias(bias, load, rate=0.1)
  found = update_bias(bias, load, rate=0.1, recenter=True)
  np.testing.assert_allclose(found, plain - jnp.mean(plain), atol=1e-7)
  assert abs(jnp.mean(plain)) > 0.05


def test_random_choices_violate_as_much_as_the_floor_says():
  for tokens, n, k in ((512, 16, 2), (2000, 8, 3), (1000, 4, 1)):
    ranks = RNG.random((300, tokens, n)).argsort(-1)[..., :k]
    loads = np.stack([np.bincount(r.ravel(), minlength=n) for r in ranks])
    found = np.asarray(max_violation(loads))
    floor = violation_floor(tokens, n, k)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - floor) < 4 * error + 0.04 * floor
  # Of two normals the larger is 1 / sqrt(pi) on average.
  np.testing.assert_allclose(
    violation_floor(100, 2, 1), (2 / 100 / np.pi) ** 0.5, rtol=1e-5
  )
  floors = violation_floor(jnp.array([64, 256]), 16, 2)
  np.testing.assert_allclose(floors[0], 2 * floors[1], rtol=1e-6)
  assert violation_floor(10, 4, 4) == violation_floor(10, 1, 1) == 0


def test_wrong_arguments_are_named():
  bias, load = jnp.zeros(3), jnp.array([1, 2, 3])
  for name, call in {
    'rule: got': lambda: update_bias(bias, load, rule='raw'),
    'rate: got -1': lambda: update_bias(bias, load, rate=-1),
    'bias: got dtype': lambda: update_bias(bias.astype('bfloat16'), load),
    'bias: got shape': lambda: update_bias(bias[:2], load),
    'load: got dtype': lambda: update_bias(bias, load * 1.0),
    'load: got dtyp': lambda: max_violation(load.astype('bfloat16')),
    'load: got shape': lambda: max_violation(3),
    'k: got 5': lambda: violation_floor(10, 4, 5),
    'k: got 0': lambda: violation_floor(10, 4, 0),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
