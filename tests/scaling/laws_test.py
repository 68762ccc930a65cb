"""The laws of few numbers: the example, limits, inversion and transforms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.optimizers import softsign
from kexue.scaling import (
  SgdLaw,
  SignLaw,
  SoftsignLaw,
  sign_one_step,
  surge_peak,
)

B = np.geomspace(0.1, 1e6, 15)

# A fitted critical batch size for kappa^2 = 10: turning point, peak.
INVERSION = np.array(
  [
    [0.1, 0.08004365, 0.10128966],
    [0.5, 0.18132157, 0.53399519],
    [1, 0.26074965, 1.1459006],
    [2, 0.38196936, 2.6832956],
    [3, 0.48587287, 4.8541479],
    [5, 0.6833317, 13.759692],
    [5.5190303, 0.73598174, 18.56414],
    [7.5, 0.95590103, 166.40655],
    [10, 1.3236081, np.inf],
  ]
)


def close(ours, printed):
  np.testing.assert_allclose(ours, printed, rtol=6e-8)


def test_numbers_of_the_example(problem, double):
  law = SignLaw.from_moments(**problem)
  close(law.gradient_l1, 2.55)
  close(law.rate, 2.55 / 13)
  close(law.curvature_ratio, 37 / 13)
  close(law.noise_scale, np.pi / 2 * 15.3649167)
  close(law.turning_point, 0.73598007)
  close(law.critical_batch_size, 8.4799193)
  close(law.surge, 28.523365)
  close(law.optimal_lr(law.surge), 0.072182661)
  close(law.optimal_lr(jnp.inf), 0.068918919)
  close(law.loss_decrease(jnp.inf), 0.087871622)
  wide = SignLaw.from_moments(**problem, noise_factor=1.0)
  close(wide.critical_batch_size, 5.3984843)
  close(wide.surge, 18.158538)


def test_table_of_inversion(double):
  for critical, turning, peak in INVERSION:
    law = SignLaw.from_critical_batch_size(
      critical, noise_scale=5 * np.pi, rate=0.1
    )
    close(law.critical_batch_size, critical)
    close(law.turning_point, turning)
    assert (law.surge is None) == (peak == np.inf)
    if law.surge is not None:
      close(law.surge, peak)
      close(1 / critical - 1 / law.surge, 2 / law.noise_scale)


def test_closed_form_is_that_of_the_article(problem, double):
  law = SignLaw.from_moments(**problem)
  g, _, hessian = problem.values()
  s = np.sign(g)
  beta = (1 + law.noise_scale / B) ** -0.5
  other = s @ hessian @ s - np.trace(hessian)
  expected = np.abs(g).sum() * beta / (np.trace(hessian) + beta**2 * other)
  np.testing.assert_allclose(law.optimal_lr(B), expected, rtol=1e-10)
  # With the turning point, over the mean of beta_n / beta and its inverse.
  ratio = law.turning_point / beta
  largest = 2.55 / (2 * np.sqrt(13 * other))
  np.testing.assert_allclose(
    law.optimal_lr(B), 2 * largest / (ratio + 1 / ratio), rtol=1e-10
  )
  # The decrease is a hyperbola and never falls, surge or not.
  decrease = law.loss_decrease(B)
  np.testing.assert_allclose(
    decrease,
    law.loss_decrease(jnp.inf) / (1 + law.critical_batch_size / B),
    rtol=1e-10,
  )
  assert np.all(np.diff(decrease) > 0)
  np.testing.assert_allclose(
    decrease, law.optimal_lr(B) * beta * law.gradient_l1 / 2, rtol=1e-10
  )


def test_peak_is_where_the_curve_has_it(problem, double):
  law = SignLaw.from_moments(**problem)
  peak = surge_peak(law.optimal_lr)
  np.testing.assert_allclose(peak.batch_size, law.surge, rtol=1e-6)
  assert SignLaw(1.0, 2.0, 10.0).surge is None
  flat = surge_peak(SignLaw(1.0, 2.0, 10.0).optimal_lr)
  assert float(flat.batch_size) == np.inf and float(flat.overshoot) == 0
  assert np.isinf(SignLaw(1.0, 0.5, 10.0).turning_point)


def test_correlated_noise_changes_the_trace_only(problem, correlation, double):
  law = SignLaw.from_moments(**problem, noise_correlation=correlation)
  close(law.rate, 2.55 / 21)
  close(law.surge_index, 0.88095238)
  close(law.noise_scale, SignLaw.from_moments(**problem).noise_scale)
  assert law.surge is None
  assert SignLaw.from_moments(**problem).surge_index > 1


def test_small_batches_are_exact_with_their_average(
  problem, correlation, double
):
  batch = 1e-7
  for rho in (None, correlation):
    keywords = problem | {'noise_correlation': rho}
    exact = sign_one_step(batch, **keywords)
    law = SignLaw.from_moments(**keywords, average='small_batch')
    np.testing.assert_allclose(
      law.optimal_lr(batch), exact.learning_rate, rtol=1e-4
    )
    np.testing.assert_allclose(
      law.loss_decrease(batch), exact.decrease, rtol=1e-4
    )
    simple = SignLaw.from_moments(**keywords).optimal_lr(batch)
    assert abs(simple / exact.learning_rate - 1) > 0.1
  soft = sign_one_step(batch, **problem, eps=0.4)
  law = SoftsignLaw.from_moments(**problem, eps=0.4, average='small_batch')
  np.testing.assert_allclose(
    law.optimal_lr(batch), soft.learning_rate, rtol=1e-3
  )


def test_softsign_numbers_of_the_table(problem, double):
  # eps, kappa^2, P.
  for eps, kappa_sq, curvature in (
    (0.01, 15.36177, 36.980036),
    (0.1, 15.056462, 35.18457),
    (0.4, 11.571842, 23.06308),
    (1.0, 5.0398992, 9.6881149),
    (10.0, 0.074635685, 0.15395345),
    (100.0, 0.00074996339, 0.0015495233),
  ):
    law = SoftsignLaw.from_moments(**problem, eps=eps)
    close(law.noise_scale, np.pi / 2 * kappa_sq)
    close(law.curvature_ratio, curvature / 13)
    nu = softsign(problem['gradient'], eps)
    close(law.gradient_l1, nu @ problem['gradient'])
    assert law.eps == eps
    assert (law.surge is None) == (curvature <= 26)


def test_softsign_between_the_sign_and_sgd(problem, double):
  small = SoftsignLaw.from_moments(**problem, eps=0.0)
  sign = SignLaw.from_moments(**problem)
  for field in dataclasses.fields(sign):
    assert float(getattr(small, field.name)) == float(getattr(sign, field.name))
  # With c = 1 and the same noise everywhere it becomes SGD, with pi / 2 not.
  even = problem | {'noise_std': np.full(4, 3.0)}
  limit = lambda c: (
    SoftsignLaw.from_moments(**even, eps=1e6, noise_factor=c).optimal_lr(B)
    / 1e6
  )
  sgd = SgdLaw.from_moments(**even).optimal_lr(B)
  np.testing.assert_allclose(limit(1.0), sgd, rtol=1e-9)
  assert float(limit(np.pi / 2)[0] / sgd[0]) == pytest.approx(0.64, abs=0.01)


def test_laws_are_pytrees_of_arrays(problem, double):
  laws = [
    SgdLaw.from_moments(**problem),
    SignLaw.from_moments(**problem),
    SoftsignLaw.from_moments(**problem, eps=0.1),
    SignLaw(0.1, 3.0, 20.0),
  ]

  @jax.jit
  def everything(law):
    peak = law.surge
    return (
      law.optimal_lr(B),
      law.critical_batch_size,
      jnp.nan_to_num(jnp.asarray(-1.0 if peak is None else peak)),
    )

  for law in laws:
    lr, critical, peak = everything(law)
    np.testing.assert_allclose(lr, law.optimal_lr(B), rtol=1e-12)
    np.testing.assert_allclose(critical, law.critical_batch_size, rtol=1e-12)
    np.testing.assert_allclose(
      peak, -1.0 if law.surge is None else law.surge, rtol=1e-12
    )
  # Traced or of several numbers there is no None, but infinity.
  many = SignLaw(0.1, np.array([1.0, 3.0]), 20.0)
  np.testing.assert_array_equal(many.surge, [np.inf, 20.0])
  stacked = jax.tree.map(lambda *x: jnp.stack(x), laws[1], laws[1])
  both = jax.vmap(lambda law: law.loss_decrease(B))(stacked)
  np.testing.assert_allclose(both[1], laws[1].loss_decrease(B))
  slope = jax.grad(lambda law: law.optimal_lr(16.0))(laws[3])
  assert slope.gradient_l1 is None and np.isfinite(slope.noise_scale)


def test_no_minimum_and_no_law(problem):
  # P < 0 < T: from some batch on the curvature along the mean sign is negative.
  law = SignLaw(rate=0.1, curvature_ratio=-0.5, noise_scale=10.0, gradient_l1=1)
  assert np.isfinite(law.optimal_lr(10.0))
  assert float(law.optimal_lr(100.0)) == np.inf
  assert float(law.loss_decrease(100.0)) == np.inf
  nothing = SignLaw.from_moments(**(problem | {'hessian': -np.eye(4)}))
  assert np.isnan(nothing.rate) and np.isnan(nothing.optimal_lr(8.0))
  still = SignLaw.from_moments(**(problem | {'gradient': np.zeros(4)}))
  assert np.isinf(still.noise_scale)


def test_wrong_arguments_are_named(problem):
  with pytest.raises(ValueError, match='decrease_max: got None'):
    SgdLaw(1.0, 2.0).loss_decrease(4)
  with pytest.raises(ValueError, match='gradient_l1: got None'):
    SignLaw(1.0, 2.0, 3.0).loss_decrease(4)
  for law in (SgdLaw(1.0, 2.0), SignLaw(1.0, 2.0, 3.0)):
    with pytest.raises(ValueError, match='batch_size: got -4'):
      law.optimal_lr(-4)
  with pytest.raises(ValueError, match="average: got 'mean'"):
    SignLaw.from_moments(**problem, average='mean')
  with pytest.raises(ValueError, match='eps: got -1'):
    SoftsignLaw.from_moments(**problem, eps=-1)
