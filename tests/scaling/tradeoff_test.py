"""The hyperbola of steps and examples: tables, fits, adaptive batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from kexue.scaling import (
  adaptive_batch_gain,
  adaptive_batch_size,
  fit_tradeoff,
  steps_examples_tradeoff,
  steps_to_target,
)

LEAST = dict(min_steps=1000, min_examples=64000)
# B, S, E, S / Smin, E / Emin, overhead.
TABLE = """
1 65000 65000 65 1.015625 0.015625
8 9000 72000 9 1.125 0.125
32 3000 96000 3 1.5 0.5
64 2000 128000 2 2 1
128 1500 192000 1.5 3 2
512 1125 576000 1.125 9 8
4096 1015.625 4160000 1.015625 65 64
"""
BATCHES = 4.0 ** np.arange(1, 8)


@pytest.mark.parametrize('row', TABLE.split('\n')[1:-1])
def test_table(row):
  batch, steps, examples, *ratios = map(float, row.split())
  assert steps_to_target(batch, **LEAST) == steps
  found = float(steps_examples_tradeoff(steps, **LEAST))
  assert found == examples == batch * steps
  assert [steps / 1000, found / 64000, found / 64000 - 1] == ratios
  assert (ratios[0] - 1) * (ratios[1] - 1) == pytest.approx(1)


def test_no_number_of_steps_below_the_least():
  found = steps_examples_tradeoff(np.array([500.0, 1000.0, 1001.0]), **LEAST)
  np.testing.assert_array_equal(np.isinf(found), [True, True, False])
  gradient = jax.grad(lambda s: steps_examples_tradeoff(s, **LEAST))
  assert gradient(2000.0) == -64.0  # -B_crit where both are twice their least.
  assert gradient(1000.0) == 0


@settings(max_examples=10, deadline=None)
@given(least=st.floats(10, 1e5), critical=st.floats(4, 16384))
def test_a_planted_hyperbola_is_found(least, critical):
  with jax.enable_x64(True):
    fit = fit_tradeoff(BATCHES, least * (1 + critical / BATCHES))
  for found, value in (
    (fit.min_steps, least),
    (fit.critical_batch_size, critical),
    (fit.min_examples, least * critical),
  ):
    np.testing.assert_allclose(float(found), value, rtol=1e-5)
  assert float(fit.rms) < 1e-8


def test_noise_against_scipy():
  rng = np.random.default_rng(0)
  steps = (
    1000 * (1 + 64 / BATCHES) * np.exp(0.1 * rng.normal(size=BATCHES.size))
  )
  steps[3] = np.inf  # The target was not reached.
  with jax.enable_x64(True):
    fit = fit_tradeoff(BATCHES, steps)
  keep = np.isfinite(steps)
  # In other parameters: least steps and least examples.
  oracle = optimize.least_squares(
    lambda p: (
      np.log(np.exp(p[0]) + np.exp(p[1]) / BATCHES[keep]) - np.log(steps[keep])
    ),
    np.log([1000, 64000]),
    xtol=1e-14,
  )
  found = np.log([float(fit.min_steps), float(fit.min_examples)])
  np.testing.assert_allclose(found, oracle.x, rtol=1e-6)
  spread = np.linalg.inv(oracle.jac.T @ oracle.jac)
  spread = spread * 2 * oracle.cost / (keep.sum() - 2)
  variances = [
    spread[0, 0],
    spread[1, 1],
    spread[0, 0] + spread[1, 1] - 2 * spread[0, 1],
  ]
  names = ('min_steps', 'min_examples', 'critical_batch_size')
  found = [float(fit.standard_errors[name]) for name in names]
  np.testing.assert_allclose(found, np.sqrt(variances), rtol=1e-4)


def quadratic_steps(batches):
  """Least steps to a target, over constant learning rates, exactly."""
  h = np.geomspace(1, 0.01, 40)
  rates = np.geomspace(1e-4, 1.6, 160)[:, None]
  decay = (1 - rates * h) ** 2
  best = []
  for batch in batches:
    square = np.ones((rates.size, h.size))
    target, reached = 0.04 * h.sum() / 2, np.inf
    for step in range(1, 6000):
      square = decay * square + rates**2 * 4.0 * h / batch
      if np.any(square @ h / 2 < target):
        reached = step
        break
    best.append(reached)
  return np.array(best, float)


def test_an_exact_quadratic_and_no_product_as_goodness_of_fit():
  batches = 2.0 ** np.arange(0, 13, 2)
  steps = quadratic_steps(batches)
  fit = fit_tradeoff(batches, steps)
  assert fit.rms < 0.02
  assert batches[0] < fit.critical_batch_size < batches[-1]
  # The product of the excesses, 1 in theory, is off by a factor at an end,
  product = (steps / fit.min_steps - 1) * (
    batches * steps / fit.min_examples - 1
  )
  assert np.max(np.abs(np.log(np.maximum(product, 1e-9)))) > np.log(2)
  # where the residuals are per cent.
  predicted = steps_to_target(
    batches, min_steps=fit.min_steps, min_examples=fit.min_examples
  )
  assert np.max(np.abs(np.log(predicted / steps))) < 0.1


NODES, WEIGHTS = np.polynomial.legendre.leggauss(1000)
S = (NODES + 1) / 2
PROFILES = {
  'constant': (np.ones_like(S), '1'),
  'linear 0 to 1': (S, '0.88888889'),
  'linear 1 to 10': (1 + 9 * S, '0.93553256'),
  'exponential 1 to 100': (100**S, '0.7106637'),
}


@pytest.mark.parametrize('name', PROFILES)
def test_table_of_gains(name):
  profile, expected = PROFILES[name]
  with jax.enable_x64(True):
    assert f'{adaptive_batch_gain(profile, weights=WEIGHTS):.8g}' == expected
  # The definition: both budgets of the adaptive run, whatever the ratio.
  weights = WEIGHTS / 2
  for ratio in (3.0, 50.0):
    batch = adaptive_batch_size(profile, ratio)
    steps = weights @ (1 + profile / batch)
    examples = weights @ (batch + profile)
    product = (steps - 1) * (examples / (weights @ profile) - 1)
    assert product == pytest.approx(float(expected), rel=1e-6)


def test_the_adaptive_batch_size_is_the_cheapest():
  noise, ratio = 37.0, 5.0
  cost = lambda b: (b + noise) + ratio * (1 + noise / b)
  oracle = optimize.minimize_scalar(cost, bounds=(1, 100), method='bounded')
  assert adaptive_batch_size(noise, ratio) == pytest.approx(oracle.x, rel=1e-4)


def test_jit_and_batches():
  profiles = jnp.array([[1.0, 100.0], [4.0, 4.0]])
  np.testing.assert_allclose(
    jax.jit(adaptive_batch_gain)(profiles), [5.5**2 / 50.5, 1.0], rtol=1e-6
  )
  run = jax.jit(
    jax.vmap(lambda s: fit_tradeoff(BATCHES, s).critical_batch_size)
  )
  found = run(np.float32([1000 * (1 + c / BATCHES) for c in (20.0, 300.0)]))
  np.testing.assert_allclose(found, [20.0, 300.0], rtol=1e-3)


@pytest.mark.parametrize(
  'call, name',
  [
    (
      lambda: steps_examples_tradeoff(9, min_steps=0, min_examples=1),
      'min_steps',
    ),
    (
      lambda: steps_examples_tradeoff(9, min_steps=1, min_examples=-1),
      'min_examples',
    ),
    (lambda: steps_to_target(0, **LEAST), 'batch_size'),
    (lambda: fit_tradeoff(BATCHES, BATCHES[1:]), 'steps'),
    (lambda: fit_tradeoff(BATCHES[:1], BATCHES[:1]), 'batch_sizes'),
    (lambda: adaptive_batch_size(1.0, 0), 'ratio'),
    (lambda: adaptive_batch_size(-1.0, 1), 'noise_scale'),
    (lambda: adaptive_batch_gain(BATCHES, weights=BATCHES[1:]), 'weights'),
  ],
)
def test_wrong_arguments_are_named(call, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    call()
