"""Averages against the recursion by hand, and where they are found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.optimizers import parameter_average, with_parameter_average


def run(tx, gradients, start):
  params, state = jnp.float32(start), tx.init(jnp.float32(start))
  path = []
  for g in gradients:
    updates, state = tx.update(jnp.float32(g), state, params)
    params = optax.apply_updates(params, updates)
    path.append((float(params), float(parameter_average(state))))
  return np.array(path).T


@pytest.mark.parametrize('warmup', [True, False])
def test_the_recursion(warmup):
  gradients = np.random.default_rng(0).normal(size=30)
  tx = with_parameter_average(optax.sgd(0.5), decay=0.7, warmup=warmup)
  params, averages = run(tx, gradients, 3.0)
  np.testing.assert_allclose(params, 3 - 0.5 * np.cumsum(gradients), rtol=1e-5)
  expected = 3.0
  for n, (value, average) in enumerate(zip(params, averages, strict=True), 1):
    kept = min(0.7, (1 + n) / (10 + n)) if warmup else 0.7
    expected = kept * expected + (1 - kept) * value
    assert average == pytest.approx(expected, rel=1e-5)


def test_the_start_is_forgotten():
  """Without warm-up a long memory is still at the start after 50 updates."""
  still = np.zeros(50)
  still[0] = 2.0  # One step from 1 to 0, and there the run stays.
  for warmup, low, high in [(True, 0.0, 1e-6), (False, 0.9, 1.0)]:
    tx = with_parameter_average(optax.sgd(0.5), decay=0.999, warmup=warmup)
    assert low <= run(tx, still, 1.0)[1][-1] <= high


def test_it_averages_the_update_of_this_step():
  tx = with_parameter_average(optax.sgd(1.0), decay=0.0)
  _, averages = run(tx, [1.0, 2.0], 0.0)
  assert averages.tolist() == [-1.0, -3.0]


def test_half_precision_is_averaged_in_float32():
  params = {'w': jnp.ones(3, jnp.bfloat16)}
  tx = with_parameter_average(optax.sgd(2.0**-7), decay=0.9, warmup=False)
  state = tx.init(params)
  for _ in range(3):
    _, state = tx.update(params, state, params)
  average = parameter_average(state)['w']
  assert average.dtype == jnp.float32
  # In bfloat16 a tenth of a step of 2^-7 would be lost.
  expected = 1 - 2.0**-7 * (1 - 0.9**3)
  np.testing.assert_allclose(average, expected, rtol=1e-6)


def test_it_is_found_inside_others():
  tx = optax.chain(optax.identity(), with_parameter_average(optax.adam(0.1)))
  state = tx.init({'w': jnp.arange(3.0)})
  assert parameter_average(state)['w'].tolist() == [0.0, 1.0, 2.0]
  with pytest.raises(ValueError, match='got 0, expected 1'):
    parameter_average(optax.adam(0.1).init(jnp.ones(2)))
  with pytest.raises(ValueError, match='got 2, expected 1'):
    parameter_average((state, state))


def test_wrong_arguments():
  for decay in (-0.1, 1.0):
    with pytest.raises(ValueError, match='decay'):
      with_parameter_average(optax.sgd(0.1), decay=decay)
  tx = with_parameter_average(optax.sgd(0.1))
  with pytest.raises(ValueError, match='params: got None'):
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_the_start_is_copied():
  """A state may be donated while the parameters go on."""
  params = jnp.ones(2)
  average = parameter_average(with_parameter_average(optax.sgd(1)).init(params))
  pointers = [x.unsafe_buffer_pointer() for x in (params, average)]
  assert pointers[0] != pointers[1]
  jax.block_until_ready(average)
