"""The law of SGD: its table, the formulas, and noisy quadratics."""

import jax.numpy as jnp
import numpy as np
import pytest

from kexue.scaling import SgdLaw, one_step, sgd_moments, sgd_optimal_lr

# Batch size, learning rate, loss decrease, AdaScale's gain over batch size 1.
P1 = np.array(
  [
    [1, 0.015558234, 0.015188726, 1],
    [2, 0.027696509, 0.027038717, 1.8848252],
    [4, 0.045410937, 0.044332427, 3.3803227],
    [7.0984916, 0.062999113, 0.061502884, 5.1713534],
    [16, 0.087277197, 0.085204364, 8.3481385],
    [64, 0.11341853, 0.11072484, 13.196696],
    [256, 0.12259875, 0.11968703, 15.438321],
    [1024, 0.1251308, 0.12215895, 16.122994],
    [65536, 0.12598458, 0.12299245, 16.361081],
  ]
)


def test_table_of_the_example(problem, double):
  moments = sgd_moments(**problem)
  np.testing.assert_allclose(
    moments, [0.12599823, 7.0984916, 15.364917, 0.12300577], rtol=6e-8
  )
  batch = P1[:, 0]
  law = SgdLaw.from_moments(**problem)
  np.testing.assert_allclose(law.optimal_lr(batch), P1[:, 1], rtol=6e-8)
  np.testing.assert_allclose(law.loss_decrease(batch), P1[:, 2], rtol=6e-8)
  gain = SgdLaw(1.0, moments.simple_noise_scale).optimal_lr
  np.testing.assert_allclose(gain(batch) / gain(1), P1[:, 3], rtol=6e-8)


@pytest.mark.parametrize('noise', ['normal', 'laplace'])
def test_measured_optimum_on_a_noisy_quadratic(problem, noise, double):
  # Two moments of the noise matter, and not its distribution. Loss decreases
  # are linear in eta and eta^2: z-tests of both coefficients.
  rng = np.random.default_rng(1)
  g, hessian = problem['gradient'], problem['hessian']
  unit = {'normal': 1, 'laplace': 2**-0.5}[noise]
  moments = sgd_moments(**problem)
  for batch in (1, 8):
    draws = getattr(rng, noise)(size=(60_000, batch, 4)).mean(1) * unit
    updates = g + draws * problem['noise_std']
    slopes = updates @ g
    curvatures = np.sum(updates @ hessian * updates, axis=1)
    slope = g @ g
    curvature = slope / sgd_optimal_lr(
      batch, lr_max=moments.lr_max, noise_scale=moments.noise_scale
    )
    for values, expected in ((slopes, slope), (curvatures, curvature)):
      error = values.std() / np.sqrt(len(values))
      assert abs(values.mean() - float(expected)) < 4 * error


def test_correlated_noise(problem, correlation, double):
  g, std, hessian = problem.values()
  covariance = std[:, None] * correlation * std
  moments = sgd_moments(**problem, noise_correlation=correlation)
  np.testing.assert_allclose(
    moments.noise_scale, np.sum(covariance * hessian) / (g @ hessian @ g)
  )
  assert moments.noise_scale > 1.5 * sgd_moments(**problem).noise_scale
  batch = 16
  lr, decrease = one_step(g, np.outer(g, g) + covariance / batch, g, hessian)
  law = SgdLaw.from_moments(**problem, noise_correlation=correlation)
  np.testing.assert_allclose(law.optimal_lr(batch), lr)
  np.testing.assert_allclose(law.loss_decrease(batch), decrease)


def test_linear_below_the_noise_scale_and_flat_above():
  lr = lambda batch: float(sgd_optimal_lr(batch, lr_max=2.0, noise_scale=100.0))
  assert lr(2e-3) / lr(1e-3) == pytest.approx(2, rel=1e-4)
  assert lr(100) == pytest.approx(1) and lr(jnp.inf) == 2
  # A noise scale below zero, as an estimate may have it, or curvature: where
  # the curvature along the update is negative there is no minimum.
  assert float(sgd_optimal_lr(10, lr_max=2.0, noise_scale=-100.0)) == np.inf
  assert float(sgd_optimal_lr(200, lr_max=-2.0, noise_scale=-100.0)) == np.inf
  assert float(sgd_optimal_lr(50, lr_max=-2.0, noise_scale=-100.0)) == 2


@pytest.mark.parametrize('scale', [1e-25, 1e25])
def test_scale_of_the_gradient(problem, scale):
  small = sgd_moments(**problem)
  large = sgd_moments(
    gradient=scale * problem['gradient'],
    noise_std=scale * problem['noise_std'],
    hessian=problem['hessian'],
  )
  np.testing.assert_allclose(large[:3], small[:3], rtol=1e-5)


def test_zeros_are_documented(problem):
  moments = sgd_moments(**(problem | {'gradient': np.zeros(4)}))
  assert np.isnan(moments.lr_max) and moments.simple_noise_scale == np.inf


def test_wrong_arguments_are_named(problem):
  with pytest.raises(ValueError, match='batch_size: got 0'):
    sgd_optimal_lr(0, lr_max=1.0, noise_scale=1.0)
  with pytest.raises(ValueError, match='noise_std: got shape'):
    sgd_moments(**(problem | {'noise_std': np.ones(3)}))
  with pytest.raises(ValueError, match='noise_correlation: got shape'):
    sgd_moments(**problem, noise_correlation=np.ones(4))
