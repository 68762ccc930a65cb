"""Against SciPy: optimal from any bias, a permutation of whatever numbers."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy.optimize import linear_sum_assignment

from kexue.models import balanced_assignment, quantile_bias
from kexue.models.assignment import reduced, settle, turn_bias

assign = jax.jit(balanced_assignment)
ROWS = np.arange(24)


def costs(kind, n=24, seed=0):
  """Costs in float32, of integers where they are to be summed exactly."""
  rng = np.random.default_rng(seed)
  a, b = rng.random((2, n, 2))
  return {
    'uniform': lambda: rng.random((n, n)),
    'points': lambda: np.linalg.norm(a[:, None] - b, axis=-1),
    'one factor': lambda: np.outer(a[:, 0], b[:, 0]),
    'heavy tails': lambda: np.exp(4 * rng.normal(size=(n, n))),
    'few integers': lambda: rng.integers(0, 3, (n, n)),
    'integers': lambda: rng.integers(-500, 500, (n, n)),
    'zero': lambda: np.zeros((n, n)),
    'one row is all': lambda: np.eye(n)[:1].T * np.ones(n),
    'rank one of integers': lambda: np.outer(*rng.integers(0, 40, (2, n))),
  }[kind]().astype(np.float32)


KINDS = (
  'uniform',
  'points',
  'one factor',
  'heavy tails',
  'few integers',
  'integers',
  'zero',
  'one row is all',
  'rank one of integers',
)


def total(cost, columns):
  """In float64, after a look whether it is a permutation."""
  n = len(cost)
  np.testing.assert_array_equal(np.sort(columns), np.arange(n))
  return np.float64(cost)[np.arange(n), columns].sum()


def least(cost):
  return total(cost, linear_sum_assignment(np.float64(cost))[1])


@pytest.mark.parametrize('kind', KINDS)
def test_the_optimum_after_any_number_of_turns(kind):
  for seed in range(4):
    cost = costs(kind, seed=seed)
    for steps in (1, 4, 60):
      found = total(cost, assign(cost, steps=steps))
      if 'integers' in kind:
        assert found == least(cost)
      else:
        # 24 units in the last place of the largest cost.
        assert abs(found - least(cost)) <= 24 * 2.0**-23 * cost.max()


@pytest.mark.parametrize('n', [1, 2, 3, 65])
def test_sizes(n):
  cost = costs('uniform', n)
  found = balanced_assignment(cost, steps=3)
  assert found.dtype == jnp.int32
  assert total(cost, found) == pytest.approx(least(cost), rel=1e-6)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
  st.lists(st.floats(width=32), min_size=25, max_size=25), st.integers(1, 5)
)
def test_always_a_permutation(numbers, steps):
  """Infinities, NaN, subnormal numbers, and the largest ones there are."""
  cost = np.array(numbers, np.float32).reshape(5, 5)
  total(np.zeros((5, 5)), assign(cost, steps=steps))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
  st.lists(st.integers(-9, 9), min_size=25, max_size=25), st.integers(1, 5)
)
def test_integers_are_exact(numbers, steps):
  cost = np.array(numbers, np.float32).reshape(5, 5)
  assert total(cost, assign(cost, steps=steps)) == least(cost)


@pytest.mark.parametrize('kind', ['points', 'integers'])
def test_the_optimum_from_any_bias_and_its_proof(kind):
  """The dual of the last bias is the cost: no assignment is below it."""
  cost = np.array(reduced(costs(kind)))
  cost /= cost.max()
  for size in (0.0, 0.1, 100.0):
    start = size * np.random.default_rng(1).normal(size=24)
    found = jax.jit(settle)(cost, jnp.float32(start))
    value = total(cost, found.columns)
    tolerance = 1e-5 * max(1, size)
    assert value == pytest.approx(least(cost), abs=tolerance)
    bias = np.float64(found.bias)
    dual = np.min(cost - bias, axis=1).sum() + bias.sum()
    assert dual == pytest.approx(value, abs=tolerance)
    # The bias it began with proves nothing.
    before = np.min(cost - start, axis=1).sum() + start.sum()
    assert before < value - 1e-2
    assert found.scanned >= found.paths > 0


def test_turns_equal_the_formula():
  cost, bias = costs('points'), np.linspace(0, 0.3, 24, dtype=np.float32)
  middle = lambda x, axis: np.sort(x, axis).take([0, 1], axis).mean(axis)
  alpha = middle(cost - bias, 1)
  expected = middle(cost - alpha[:, None], 0)
  found = turn_bias(cost, bias)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # One row would choose each column.
  one = np.sum(cost - alpha[:, None] < np.array(found), axis=0)
  np.testing.assert_array_equal(one, 1)


def test_a_turn_is_a_quantile_but_for_the_middle():
  """`quantile_bias` takes the second of a column: above the middle."""
  cost, bias = costs('uniform'), np.zeros(24, np.float32)
  alpha = np.sort(cost, 1)[:, :2].mean(1)
  second = np.sort(cost - alpha[:, None], 0)[1]
  np.testing.assert_allclose(quantile_bias(-cost, bias, 1), second, atol=1e-6)
  assert np.all(turn_bias(cost, bias) <= second)


def test_turns_leave_fewer_rows_to_paths():
  """And the bound of the dual rises towards the optimum."""
  cost = reduced(costs('uniform', 64))

  @jax.jit
  def after(steps):
    turn = lambda _, bias: turn_bias(cost, bias)
    bias = jax.lax.fori_loop(0, steps, turn, jnp.zeros(64))
    dual = jnp.sum(jnp.min(cost - bias, axis=1)) + jnp.sum(bias)
    return settle(cost, bias), dual

  optimum = least(cost)
  paths, gaps = [], []
  for steps in (0, 2, 16, 256):
    found, dual = after(steps)
    assert total(cost, found.columns) == pytest.approx(optimum, abs=1e-5)
    paths.append(int(found.paths))
    gaps.append(optimum - dual)
  assert paths[0] > paths[1] > 2 * paths[2] and paths[3] == 0
  assert gaps[0] > 2 * gaps[1] > 8 * gaps[2] > 0
  assert gaps[3] == pytest.approx(0, abs=1e-4)
  # Choices alone, without paths, are no permutation.
  assert len({*np.array(cost).argmin(1)}) < 50


@pytest.mark.parametrize('scale', [1e-30, 1e-3, 3e35])
def test_any_scale_and_any_offset(scale):
  cost = costs('integers')
  expected = least(cost)
  assert total(cost, assign(cost * np.float32(scale), steps=4)) == expected
  rng = np.random.default_rng(0)
  shifts = rng.integers(-9999, 9999, (2, 24))
  shifted = cost + shifts[0][:, None] + shifts[1]
  assert total(cost, assign(shifted.astype(np.int32), steps=4)) == expected


def test_what_is_not_finite_is_avoided():
  cost = costs('uniform')
  cost[np.random.default_rng(1).random((24, 24)) < 0.6] = np.inf
  found = assign(cost, steps=4)
  assert total(cost, found) == pytest.approx(least(cost), rel=1e-4)
  cost[3] = np.nan  # All the same: the others choose.
  rest = np.delete(np.arange(24), 3)
  best = cost[rest][:, linear_sum_assignment(cost[rest])[1]]
  columns = np.array(assign(cost, steps=4))
  assert sorted(columns) == [*range(24)]
  assert cost[rest, columns[rest]].sum() == pytest.approx(
    np.diag(best).sum(), rel=1e-4
  )


def test_double_precision_stays():
  with jax.enable_x64(True):
    cost = np.float64(costs('points'))
    bias = jnp.zeros(24)
    found = settle(reduced(cost), bias)
    assert found.bias.dtype == jnp.float64
    columns = balanced_assignment(cost, steps=4)
    assert columns.dtype == jnp.int32
    assert total(cost, columns) == pytest.approx(least(cost), rel=1e-13)


def test_every_transform():
  batch = np.stack([costs('uniform', seed=i) for i in range(8)])
  run = functools.partial(balanced_assignment, steps=4)
  expected = [linear_sum_assignment(cost)[1] for cost in batch]
  np.testing.assert_array_equal(jax.jit(jax.vmap(run))(batch), expected)
  np.testing.assert_array_equal(jax.pmap(run)(batch), expected)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    lambda x: run(x[0])[None],
    mesh=mesh,
    in_specs=P('data'),
    out_specs=P('data'),
  )
  np.testing.assert_array_equal(jax.jit(mapped)(batch), expected)


def test_the_gradient_is_the_permutation():
  """None passes through the choice, as it is flat but for jumps."""
  cost = costs('uniform')
  value = lambda x: jnp.sum(x[ROWS, balanced_assignment(x, steps=2)])
  gradient = jax.grad(value)(jnp.asarray(cost))
  expected = np.eye(24)[linear_sum_assignment(cost)[1]]
  np.testing.assert_array_equal(gradient, expected)


def test_wrong_arguments_are_named():
  for name, shape, steps in (
    ('cost', (3, 4), 1),
    ('cost', (3,), 1),
    ('cost', (2, 3, 3), 1),
    ('cost', (0, 0), 1),
    ('steps', (3, 3), 0),
    ('steps', (3, 3), -1),
    ('steps', (3, 3), 2.5),
  ):
    with pytest.raises(ValueError, match=f'^{name}: got'):
      balanced_assignment(np.zeros(shape), steps=steps)
