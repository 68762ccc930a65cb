"""Fits recover planted laws and say what they do not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy import optimize

from kexue.scaling import (
  SgdLaw,
  SgdPowerLaw,
  SignLaw,
  fit_law,
  optimal_learning_rate,
)

BATCHES = 4.0 ** np.arange(9)  # 1 to 65536.
RATES = np.geomspace(1e-3, 1, 13)


def fields(law):
  names = [
    x
    for x in ('lr_max', 'rate', 'noise_scale', 'curvature_ratio', 'exponent')
    if hasattr(law, x)
  ]
  return {name: float(getattr(law, name)) for name in names}


def recovered(planted, name, rtol=1e-4):
  """The law fitted to a planted one, in python numbers."""
  with jax.enable_x64(True):
    fit = fit_law(BATCHES, planted.optimal_lr(BATCHES), law=name)
    assert fit.rms < 1e-6
    law = jax.tree.map(float, fit.law)
  for key, value in fields(planted).items():
    np.testing.assert_allclose(getattr(law, key), value, rtol=rtol)
  assert type(law) is type(planted)
  return law


SCALE = st.floats(4, 8192)


@settings(max_examples=8, deadline=None)
@given(lr=st.floats(1e-5, 10), noise=SCALE)
def test_planted_sgd(lr, noise):
  law = recovered(SgdLaw(lr, noise), 'sgd')
  assert law.surge is None


@settings(max_examples=8, deadline=None)
@given(lr=st.floats(1e-5, 10), noise=SCALE, exponent=st.floats(0.4, 1.2))
def test_planted_sgd_power(lr, noise, exponent):
  recovered(SgdPowerLaw(lr, noise, exponent), 'sgd_power', 1e-3)


@settings(max_examples=12, deadline=None)
@given(
  rate=st.floats(1e-5, 10),
  critical=st.floats(4, 8192),
  ratio=st.sampled_from([0.1, 0.3, 3.0, 5.0, 30.0]),
)
def test_planted_sign(rate, critical, ratio):
  """With a surge, where the peak is the law's, and without."""
  # The bend at the noise scale has to lie inside the grid too.
  noise = np.clip(critical * ratio, 8, 16384)
  planted = SignLaw(rate=rate, curvature_ratio=ratio, noise_scale=noise)
  law = recovered(planted, 'sign', 1e-2)
  if ratio > 2:
    dense = np.geomspace(1, 1e6, 100_001)
    peak = dense[np.argmax(planted.optimal_lr(dense))]
    np.testing.assert_allclose(law.surge, peak, rtol=2e-2)
  else:
    assert law.surge is None


def test_single_precision():
  batches = np.float32(BATCHES)
  planted = SignLaw(rate=0.1, curvature_ratio=6.0, noise_scale=800.0)
  fit = fit_law(batches, planted.optimal_lr(batches), law='sign')
  np.testing.assert_allclose(fit.law.surge, 200, rtol=0.02)
  np.testing.assert_allclose(fit.law.rate, 0.1, rtol=0.02)
  assert fit.rms.dtype == jnp.float32


def test_against_scipy():
  """Parameters and standard errors of a noisy surge."""
  rng = np.random.default_rng(1)
  planted = SignLaw(rate=0.1, curvature_ratio=6.0, noise_scale=800.0)
  with jax.enable_x64(True):
    rates = np.asarray(planted.optimal_lr(BATCHES))
    rates = rates * np.exp(0.05 * rng.normal(size=BATCHES.size))
    fit = fit_law(BATCHES, rates, law='sign')

  def residuals(p):
    rate, noise, ratio = np.exp(p)
    x = noise / BATCHES
    return np.log(rate * np.sqrt(1 + x) / (x + ratio)) - np.log(rates)

  oracle = optimize.least_squares(residuals, np.log([0.1, 800, 6]), xtol=1e-14)
  found = np.log([fit.law.rate, fit.law.noise_scale, fit.law.curvature_ratio])
  np.testing.assert_allclose(found, oracle.x, rtol=1e-4)
  spread = np.linalg.inv(oracle.jac.T @ oracle.jac)
  errors = np.sqrt(np.diag(spread) * 2 * oracle.cost / (BATCHES.size - 3))
  found = [
    fit.standard_errors[k] for k in ('rate', 'noise_scale', 'curvature_ratio')
  ]
  np.testing.assert_allclose(found, errors, rtol=1e-3)


def test_standard_errors_cover_mapped_and_sharded():
  """Nine optima with noise of ten per cent; Student's t of seven is 2.36."""
  clean = np.asarray(SgdLaw(0.3, 500.0).optimal_lr(BATCHES))
  rng = np.random.default_rng(0)
  rates = np.float32(clean * np.exp(0.1 * rng.normal(size=(400, BATCHES.size))))
  run = jax.vmap(lambda r: fit_law(BATCHES, r, law='sgd'))
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(run, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  fit = jax.tree.map(np.asarray, jax.jit(sharded)(rates))
  error = np.log(fit.law.noise_scale / 500)
  covered = np.mean(np.abs(error) < 2.365 * fit.standard_errors['noise_scale'])
  assert abs(covered - 0.95) < 4 * np.sqrt(0.05 * 0.95 / 400)
  assert abs(error.mean()) < 4 * error.std() / 20
  single = fit_law(BATCHES, rates[3], law='sgd')
  np.testing.assert_allclose(
    fit.law.noise_scale[3], single.law.noise_scale, rtol=1e-3
  )


def test_edge_optima_bend_the_law():
  """An optimum at the grid's edge is a bound: with it the fit is wrong."""
  planted, top = SgdLaw(0.3, 500.0), RATES[-4]
  rates = RATES[RATES <= top]
  true = np.asarray(planted.optimal_lr(BATCHES))
  losses = np.exp(np.log(rates / true[:, None]) ** 2)[:, None]
  best = optimal_learning_rate(rates, losses, resamples=1)
  assert best.at_edge.sum() >= 3 and (~best.at_edge).sum() >= 3
  good = fit_law(BATCHES, best.learning_rate, law='sgd', weights=~best.at_edge)
  np.testing.assert_allclose(good.law.noise_scale, 500, rtol=0.1)
  np.testing.assert_allclose(good.law.lr_max, 0.3, rtol=0.1)
  wrong = fit_law(BATCHES, best.learning_rate, law='sgd')
  assert wrong.law.lr_max < 0.8 * 0.3 and wrong.law.noise_scale < 0.8 * 500
  # One that diverged everywhere is left out by itself.
  gone = jnp.where(best.at_edge, jnp.nan, best.learning_rate)
  again = fit_law(BATCHES, gone, law='sgd')
  np.testing.assert_allclose(
    again.law.noise_scale, good.law.noise_scale, rtol=1e-4
  )


def test_a_grid_that_does_not_reach_the_bend():
  rng = np.random.default_rng(0)
  batches = BATCHES / 2048
  rates = SgdLaw(0.3, 1e5).optimal_lr(batches)
  rates = rates * np.exp(0.02 * rng.normal(size=rates.size))
  fit = fit_law(batches, rates, law='sgd')
  assert fit.standard_errors['noise_scale'] > 0.5
  np.testing.assert_allclose(fit.law.optimal_lr(batches), rates, rtol=0.1)
  # As many parameters as optima leave nothing for an error.
  two = np.arange(9) % 8 == 0
  exact = fit_law(BATCHES, rates, law='sgd', weights=two)
  assert np.isinf(exact.standard_errors['lr_max'])


@pytest.mark.parametrize(
  'batches, rates, law, weights, name',
  [
    (BATCHES, BATCHES, 'adam', None, 'law: got'),
    (BATCHES[None], BATCHES, 'sgd', None, 'batch_sizes: got'),
    (BATCHES[:2], BATCHES[:2], 'sign', None, "batch_sizes: got '2"),
    (BATCHES, BATCHES[:3], 'sgd', None, 'optimal_lrs: got'),
    (BATCHES, BATCHES, 'sgd', BATCHES[:3], 'weights: got'),
  ],
)
def test_wrong_arguments_are_named(batches, rates, law, weights, name):
  with pytest.raises(ValueError, match=f'^{name}'):
    fit_law(batches, rates, law=law, weights=weights)
