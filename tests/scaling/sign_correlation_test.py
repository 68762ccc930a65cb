"""Products of signs against scipy's bivariate normal and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from kexue.scaling import (
  correlated_trace,
  sign_product_mean,
  sign_second_moment,
)

# s1, s2, rho, exact, of independent noise, interpolation.
TABLE = np.array(
  [
    [0, 0, 0.5, 0.33333333, 0, 0.33333333],
    [0, 0, -0.8, -0.59033447, 0, -0.59033447],
    [0.1, 0.1, 0.5, 0.33699867, 0.0063450265, 0.33756335],
    [0.5, 0.5, 0.5, 0.41912793, 0.1466315, 0.43108766],
    [1, 0.5, 0.3, 0.3716203, 0.26141882, 0.39235348],
    [1, -1, 0.5, -0.38050819, -0.46606494, -0.28808659],
    [2, 1, 0.9, 0.72719552, 0.65162694, 0.80696495],
    [3, 3, 0.5, 0.99492797, 0.9946077, 0.99640513],
    [0.2, -0.4, -0.6, -0.4253872, -0.049274728, -0.43372262],
  ]
)


def mu(s):
  return special.erf(s / np.sqrt(2))


def by_angles(s1, s2, rho):
  """The integral of the definition by 30 nodes on each of 200 panels."""
  flip = np.where(rho < 0, -1, 1)
  s2, rho = s2 * flip, abs(rho)
  t, weight = np.polynomial.legendre.leggauss(30)
  smallest = np.arccos(rho)
  edges = np.clip(np.geomspace(1e-12, np.pi / 2, 200), smallest, None)
  low, high = np.r_[smallest, edges[:-1]][:, None], edges[:, None]
  angle = (low + high) / 2 + (high - low) / 2 * t
  exponent = s1**2 + s2**2 - 2 * s1 * s2 * np.cos(angle)
  with np.errstate(over='ignore'):
    kernel = np.exp(-exponent / (2 * np.sin(angle) ** 2))
  integral = np.sum((high - low) / 2 * weight * kernel)
  return mu(s1) * mu(s2 * flip) + flip * 2 / np.pi * integral


def test_table(double):
  s1, s2, rho, exact, independent, interpolation = TABLE.T
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=6e-8)
  close(sign_product_mean(s1, s2, rho), exact)
  close(sign_product_mean(s1, s2, 0.0), independent)
  close(sign_product_mean(s1, s2, rho, method='interpolation'), interpolation)


def test_against_scipys_distribution_function(double):
  rng = np.random.default_rng(0)
  s1, s2 = rng.normal(size=(2, 40)) * 2
  rho = rng.uniform(-0.999, 0.999, size=40)
  joint = [
    stats.multivariate_normal.cdf(
      [a, b], cov=[[1, r], [r, 1]], abseps=1e-12, releps=1e-12
    )
    for a, b, r in zip(s1, s2, rho, strict=True)
  ]
  expected = (
    4 * np.array(joint) - 2 * special.ndtr(s1) - 2 * special.ndtr(s2) + 1
  )
  np.testing.assert_allclose(
    sign_product_mean(s1, s2, rho), expected, atol=1e-9
  )


def test_error_is_below_3e_8_up_to_perfect_correlation(double):
  cases = np.array(
    [
      (s, flip * (s + gap), rho)
      for s in (0, 1, 20, -0.5)
      for gap in np.r_[0, np.geomspace(1e-6, 3, 9)]
      for rho in (1 - 1e-12, 1 - 1e-7, 0.999, 0.9, 0.5, 1e-6, -0.3, -0.99)
      for flip in (1, -1)
    ]
  )
  expected = [by_angles(*case) for case in cases]
  np.testing.assert_allclose(
    sign_product_mean(*cases.T), expected, rtol=0, atol=3e-8
  )
  # At one both are of the same noise: P(no zero between the two means).
  s = np.array([0.0, 0.3, 1e-4, 2.0])
  between = 1 - np.abs(mu(s + 0.7) - mu(s))
  for rho in (1.0, -1.0):
    np.testing.assert_allclose(
      sign_product_mean(s, rho * (s + 0.7), rho), rho * between, atol=3e-8
    )


def test_invariants_and_limits():
  s1, s2, rho = TABLE.T[:3]
  ours = sign_product_mean(s1, s2, rho)
  np.testing.assert_allclose(ours, sign_product_mean(s2, s1, rho), atol=1e-6)
  np.testing.assert_allclose(ours, -sign_product_mean(s1, -s2, -rho), atol=1e-6)
  assert np.all(np.abs(ours) <= 1 + 1e-6)
  certain = sign_product_mean(np.array([np.inf, 1e30]), -0.5, 0.9)
  np.testing.assert_allclose(certain, mu(-0.5), atol=1e-6)
  assert float(sign_product_mean(np.inf, -np.inf, 0.5)) == -1
  # A rounding above one is one.
  assert np.isfinite(sign_product_mean(0.1, 0.1, 1.0 + 1e-6))


def test_derivatives(double):
  point = (0.7, -0.3, 0.4)
  slopes = jax.grad(sign_product_mean, (0, 1, 2))(*point)
  h = 1e-5
  for i, slope in enumerate(slopes):
    up, down = (
      sign_product_mean(*(x + d * (i == j) for j, x in enumerate(point)))
      for d in (h, -h)
    )
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6)
  # Plackett: in rho it is four times the density, at zero too.
  for rho in (0.0, 0.4):
    slope = jax.grad(sign_product_mean, 2)(0.7, -0.3, rho)
    density = stats.multivariate_normal.pdf(
      [0.7, -0.3], cov=[[1, rho], [rho, 1]]
    )
    np.testing.assert_allclose(slope, 4 * density, rtol=1e-6)


def gaussian_problem(n=5):
  rng = np.random.default_rng(2)
  root = rng.normal(size=(n, 2 * n))
  covariance = root @ root.T
  std = np.sqrt(np.diag(covariance))
  return rng.normal(size=n), std, covariance / np.outer(std, std), rng


def test_second_moment_is_that_of_samples():
  g, std, rho, rng = gaussian_problem()
  n, batch = 200_000, 4
  noise = rng.multivariate_normal(np.zeros(5), rho, size=n) * std
  signs = np.sign(g + noise / np.sqrt(batch))
  expected = np.asarray(sign_second_moment(g, std, rho, batch), np.float64)
  error = np.sqrt((1 - np.clip(expected, -1, 1) ** 2) / n)
  off = ~np.eye(5, dtype=bool)
  z = ((signs.T @ signs / n - expected) / np.where(off, error, 1))[off]
  assert np.abs(z).max() < 4
  np.testing.assert_array_equal(np.diag(expected), 1)
  # Independence, which the articles take for granted, does not pass.
  mean = mu(g * 2 / std)
  wrong = ((signs.T @ signs / n - np.outer(mean, mean)) / error.clip(1e-9))[off]
  assert np.abs(wrong).max() > 50


def test_second_moment_of_batches_and_of_zeros():
  g, std, rho, _ = gaussian_problem()
  g[0] = std[0] = 0  # Neither gradient nor noise: its sign is zero.
  std[1] = 0  # Certain.
  rho[2, 3] = rho[3, 2] = 1
  batch = np.array([1, 64])
  moments = sign_second_moment(g, std, rho, batch)
  assert moments.shape == (2, 5, 5)
  np.testing.assert_array_equal(moments[:, 0], 0)
  np.testing.assert_array_equal(np.diagonal(moments[0]), [0, 1, 1, 1, 1])
  np.testing.assert_allclose(
    moments[1], sign_second_moment(g, std, rho, 64), atol=1e-6
  )
  s = g[2:] * 8 / std[2:]
  np.testing.assert_allclose(
    moments[1, 1, 2:], np.sign(g[1]) * mu(s), atol=1e-6
  )
  cheap = sign_second_moment(g, std, rho, 64, method='interpolation')
  assert np.all(np.isfinite(cheap))
  slope = jax.grad(lambda x: jnp.sum(sign_second_moment(x, std, rho, 4) ** 2))
  rho[2, 3] = rho[3, 2] = 0.5
  assert np.all(np.isfinite(slope(jnp.asarray(g))))


def test_correlated_trace(problem, correlation, double):
  hessian = problem['hessian']
  assert float(correlated_trace(hessian)) == 13
  np.testing.assert_allclose(correlated_trace(hessian, correlation), 21)
  assert float(correlated_trace(hessian, np.eye(4))) == 13
  # The curvature along the sign of pure noise: E[v^T H v].
  rng = np.random.default_rng(0)
  v = np.sign(rng.multivariate_normal(np.zeros(4), correlation, size=100_000))
  values = np.sum(v @ hessian * v, axis=1)
  assert abs(values.mean() - 21) < 4 * values.std() / np.sqrt(len(values))
  # And the limit of small batches of the second moment.
  moment = sign_second_moment(
    problem['gradient'], problem['noise_std'], correlation, 1e-12
  )
  np.testing.assert_allclose(np.sum(moment * hessian), 21, rtol=1e-6)


def test_transforms_agree():
  g, std, rho, _ = gaussian_problem()
  call = lambda batch: sign_second_moment(g, std, rho, batch)
  batch = 2.0 ** np.arange(8, dtype=np.float32)
  expected = call(batch)
  np.testing.assert_allclose(jax.vmap(call)(batch), expected, atol=1e-6)
  mesh = jax.make_mesh((8,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  split = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(jax.jit(split)(batch), expected, atol=1e-6)


def test_wrong_arguments_are_named():
  with pytest.raises(ValueError, match="method: got 'cheap'"):
    sign_product_mean(0.0, 0.0, 0.0, method='cheap')
  with pytest.raises(ValueError, match='noise_correlation: got shape'):
    sign_second_moment(np.ones(2), np.ones(2), np.ones((3, 3)), 1)
  with pytest.raises(ValueError, match='batch_size: got -1'):
    sign_second_moment(np.ones(2), np.ones(2), np.ones((2, 2)), -1)
  with pytest.raises(ValueError, match='hessian: got shape'):
    correlated_trace(np.ones((2, 3)))
  with pytest.raises(ValueError, match='noise_correlation: got shape'):
    correlated_trace(np.ones((2, 2)), np.ones(2))
