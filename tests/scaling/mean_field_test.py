"""What the mean field is worth, and its averages of the noise."""

import numpy as np
import pytest

from kexue.scaling import SignLaw, SoftsignLaw, sign_one_step
from kexue.scaling.mean_field import mean_field_numbers


def test_mean_of_ratios_is_ruled_by_the_smallest_gradient(problem, double):
  # Why it is no option: a gradient entry that happens to vanish moves the peak
  # anywhere, and the other averages hardly.
  g = problem['gradient'] * [1, 1, 1e-3, 1]
  changed = problem | {'gradient': g}
  ratio = lambda p: np.mean((p['noise_std'] / p['gradient']) ** 2)
  assert ratio(changed) > 1e4 * ratio(problem)
  for average in ('simple', 'small_batch'):
    before, after = (
      SignLaw.from_moments(**p, average=average).surge
      for p in (problem, changed)
    )
    assert 0.3 < float(after / before) < 3


def test_the_mean_field_is_qualitative(double):
  rng = np.random.default_rng(0)
  batch = np.geomspace(1e-2, 1e7, 91)
  errors, peaks = [], []
  for _ in range(10):
    n = 200
    g = rng.normal(size=n) * np.exp(rng.normal(size=n))
    std, h = np.exp(rng.normal(size=(2, n)))
    u = np.sign(g) * np.sqrt(h)
    hessian = np.diag(h) + rng.uniform(0, 0.2) * np.outer(u, u)
    problem = {'gradient': g, 'noise_std': std, 'hessian': hessian}
    exact = sign_one_step(batch, **problem).learning_rate
    laws = [
      SignLaw.from_moments(**problem, average=average)
      for average in ('simple', 'small_batch')
    ]
    errors.append(
      [np.max(np.abs(x.optimal_lr(batch) / exact - 1)) for x in laws]
    )
    peaks.append(laws[0].noise_scale / laws[1].noise_scale)
  assert np.all(np.median(errors, axis=0) > 0.4)
  assert np.median(peaks) > 10


@pytest.mark.parametrize('scale', [1e-25, 1e25])
def test_scale_of_the_gradient(problem, scale):
  keywords = problem | {
    'gradient': scale * problem['gradient'],
    'noise_std': scale * problem['noise_std'],
  }
  for average in ('simple', 'small_batch'):
    ours = SoftsignLaw.from_moments(
      **keywords, eps=0.1 * scale, average=average
    )
    expected = SoftsignLaw.from_moments(**problem, eps=0.1, average=average)
    np.testing.assert_allclose(
      [ours.rate / scale, ours.curvature_ratio, ours.noise_scale],
      [expected.rate, expected.curvature_ratio, expected.noise_scale],
      rtol=1e-5,
    )


def test_numbers_by_hand(problem, double):
  g, std, hessian = problem.values()
  nu = g / np.hypot(g, 0.4)
  ours = mean_field_numbers(g, std, hessian, None, 0.4, 2.0, 'small_batch')
  expected = {
    'rate': nu @ g / 13,
    'curvature_ratio': nu @ hessian @ nu / 13,
    'noise_scale': 2 * (nu @ g / np.sum(g**2 / std)) ** 2,
    'gradient_l1': nu @ g,
  }
  assert ours.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(ours[name], value, rtol=1e-12)
  # An entry without noise counts in A, not in the slope of small batches.
  certain = mean_field_numbers(
    g, std * [0, 1, 1, 1], hessian, None, 0.0, 1.0, 'small_batch'
  )
  slope = np.sum(g[1:] ** 2 / std[1:])
  np.testing.assert_allclose(certain['noise_scale'], (2.55 / slope) ** 2)
