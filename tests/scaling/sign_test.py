"""The exact curves of the sign and of SoftSign, and the limits of epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kexue.scaling import (
  SgdLaw,
  sgd_optimal_lr,
  sign_mean,
  sign_one_step,
  sign_optimal_lr,
  softsign_moments,
)

# s, erf(s / sqrt 2), and the approximations of 10542 and 11280.
MEANS = np.array(
  [
    [0.05, 0.039877612, 0.039862519, 0.049937617],
    [0.1, 0.079655675, 0.079535688, 0.099503719],
    [0.3, 0.23582284, 0.23278933, 0.28734789],
    [0.5, 0.38292492, 0.3705436, 0.4472136],
    [1, 0.68268949, 0.62368624, 0.70710678],
    [1.5, 0.8663856, 0.76738678, 0.83205029],
    [2, 0.95449974, 0.84736663, 0.89442719],
    [3, 0.9973002, 0.92271462, 0.9486833],
    [5, 0.99999943, 0.96999103, 0.98058068],
  ]
)
# B, exact lr and loss decrease, mean field lr and decrease, lr with c = 1.
P1 = np.array(
  [
    [0.1, 0.016082378, 0.0016960047, 0.01250484, 0.0010241544, 0.015587241],
    [1, 0.046099376, 0.014987729, 0.036448075, 0.0092692373, 0.043573079],
    [4, 0.070964293, 0.042652548, 0.058584312, 0.028164163, 0.064538438],
    [12.66488, 0.079313828, 0.070553901, 0.070365462, 0.052631549, 0.071886995],
    [16, 0.079042187, 0.074605417, 0.071342929, 0.057432622, 0.072150194],
    [64, 0.072739648, 0.085599597, 0.071414324, 0.077590922, 0.070777096],
    [256, 0.069328099, 0.087603616, 0.069782985, 0.085054227, 0.069491586],
    [1024, 0.068919479, 0.087871244, 0.069153707, 0.087149918, 0.069069917],
    [1e6, 0.068918919, 0.087871622, 0.068919166, 0.087870876, 0.068919076],
  ]
)
CORRELATED = np.array(
  [
    [0.1, 0.010022173],
    [1, 0.030327139],
    [4, 0.05302714],
    [16, 0.071432081],
    [32, 0.073195901],
    [64, 0.072028244],
    [128, 0.070395488],
    [256, 0.069327407],
    [1024, 0.068919479],
  ]
)
# eps, B, exact lr and loss decrease, mean field lr.
EPSILON = np.array(
  [
    [0.01, 16, 0.079602614, 0.075103044, 0.071357231],
    [0.1, 1, 0.048368403, 0.015665769, 0.036388626],
    [0.1, 16, 0.085262362, 0.078885416, 0.072669763],
    [0.1, 256, 0.072879116, 0.090150478, 0.072135969],
    [0.4, 16, 0.10578588, 0.086289225, 0.08371404],
    [0.4, 1000000, 0.093958466, 0.10180118, 0.093957532],
    [1, 1, 0.06460477, 0.018451114, 0.039541444],
    [1, 256, 0.15489689, 0.11344451, 0.15004597],
    [10, 16, 0.88578879, 0.085597329, 0.7833914],
    [100, 16, 8.7290581, 0.085208555, 7.7891778],
  ]
)


def close(ours, printed):
  np.testing.assert_allclose(ours, printed, rtol=6e-8)


def test_table_of_means(double):
  for method, column in zip(
    ('exact', 'softsign', 'mean_field'), MEANS.T[1:], strict=True
  ):
    # Whatever makes up the signal over noise.
    close(sign_mean(MEANS[:, 0] * 1.5, 3.0, 4, method=method), column)


def test_table_of_the_example(problem, double):
  batch = P1[:, 0]
  exact = sign_one_step(batch, **problem)
  close(np.stack(exact, axis=1), P1[:, 1:3])
  law = sign_one_step(batch, **problem, method='mean_field')
  close(np.stack(law, axis=1), P1[:, 3:5])
  close(
    sign_optimal_lr(batch, **problem, method='mean_field', noise_factor=1.0),
    P1[:, 5],
  )


def test_table_of_correlated_noise(problem, correlation, double):
  lr = sign_optimal_lr(
    CORRELATED[:, 0], **problem, noise_correlation=correlation
  )
  close(lr, CORRELATED[:, 1])
  # Uncorrelated it is the diagonal form.
  close(
    sign_optimal_lr(P1[:, 0], **problem, noise_correlation=np.eye(4)), P1[:, 1]
  )


def test_table_of_epsilon(problem, double):
  step = lambda eps, batch, method: sign_one_step(
    batch, **problem, eps=eps, method=method
  )
  eps, batch = EPSILON[:, :2].T
  exact = jax.vmap(lambda e, b: step(e, b, 'exact'))(eps, batch)
  close(np.stack(exact, axis=1), EPSILON[:, 2:4])
  law = jax.vmap(lambda e, b: step(e, b, 'mean_field'))(eps, batch)
  close(law.learning_rate, EPSILON[:, 4])


def test_small_epsilon_is_the_sign(problem, double):
  batch = P1[:, 0]
  sign = sign_one_step(batch, **problem)
  for method in ('exact', 'clip', 'softsign', 'mean_field'):
    limit, almost, traced = (
      sign_optimal_lr(batch, **problem, eps=eps, method=method)
      for eps in (0.0, 1e-7, jnp.asarray(0.0))
    )
    np.testing.assert_allclose(almost, limit, rtol=1e-6)
    np.testing.assert_allclose(traced, limit, rtol=1e-9)
    if method in ('exact', 'clip'):
      np.testing.assert_allclose(limit, sign.learning_rate, rtol=1e-9)


def test_large_epsilon_is_sgd(problem, double):
  batch, eps = np.array([1, 16, 256]), 1e5
  sgd = SgdLaw.from_moments(**problem)
  printed = [0.015558, 0.087277, 0.122599]
  np.testing.assert_allclose(sgd.optimal_lr(batch), printed, atol=6e-7)
  lr = lambda method: (
    sign_optimal_lr(batch, **problem, eps=eps, method=method) / eps
  )
  np.testing.assert_allclose(lr('exact'), sgd.optimal_lr(batch), rtol=1e-8)
  np.testing.assert_allclose(lr('clip'), sgd.optimal_lr(batch), rtol=1e-8)
  decrease = sign_one_step(batch, **problem, eps=eps).decrease
  np.testing.assert_allclose(decrease, sgd.loss_decrease(batch), rtol=1e-8)
  # Article 10563 keeps pi / 2 and spreads the noise evenly over H.
  articles = [0.011577, 0.077887, 0.121315]
  np.testing.assert_allclose(lr('mean_field'), articles, atol=6e-7)
  # Per entry it keeps the pi / 2 only; article 11280 does not.
  too_noisy = sgd_optimal_lr(
    batch, lr_max=sgd.lr_max, noise_scale=np.pi / 2 * sgd.noise_scale
  )
  np.testing.assert_allclose(lr('softsign'), too_noisy, rtol=1e-8)
  np.testing.assert_allclose(
    sign_optimal_lr(
      batch, **problem, eps=eps, method='softsign', noise_factor=1.0
    )
    / eps,
    sgd.optimal_lr(batch),
    rtol=1e-8,
  )


def test_small_batches_have_the_square_root(problem, double):
  lr = sign_optimal_lr(np.array([1e-6, 4e-6]), **problem)
  np.testing.assert_allclose(lr[1] / lr[0], 2, rtol=1e-5)
  g, std, hessian = problem.values()
  slope = np.sqrt(2 / np.pi) * np.sum(g**2 / std) / np.trace(hessian)
  np.testing.assert_allclose(lr[0], slope * 1e-3, rtol=1e-5)


@pytest.mark.parametrize('eps', [0.0, 0.4])
@pytest.mark.parametrize('batch', [1, 16])
def test_moments_of_samples(problem, correlation, eps, batch):
  # z-tests of the slope E[u] g and the curvature E[u H u], independent noise
  # and, for the sign, correlated.
  rng = np.random.default_rng(batch)
  g, std, hessian = problem.values()
  for rho in (None, correlation) if eps == 0 else (None,):
    covariance = np.eye(4) if rho is None else rho
    noise = rng.multivariate_normal(np.zeros(4), covariance, size=200_000)
    x = g + noise * std / np.sqrt(batch)
    u = np.sign(x) if eps == 0 else x / np.hypot(x, eps)
    lr, decrease = sign_one_step(
      batch, **problem, eps=eps, noise_correlation=rho
    )
    slope = 2 * float(decrease / lr)
    curvature = slope / float(lr)
    for values, expected in (
      (u @ g, slope),
      (np.sum(u @ hessian * u, axis=1), curvature),
    ):
      error = values.std() / np.sqrt(len(values))
      assert abs(values.mean() - expected) < 4 * error


def test_independence_is_wrong_by_far_where_noise_is_correlated():
  # Many entries of one sign, noise of correlation 0.9, and a rank-one Hessian.
  n, batch = 100, 4
  g = np.full(n, 0.1)
  rho = np.full((n, n), 0.9) + 0.1 * np.eye(n)
  keywords = {
    'gradient': g,
    'noise_std': np.ones(n),
    'hessian': np.eye(n) + 0.1,
  }
  articles = sign_optimal_lr(batch, **keywords)
  aware = sign_optimal_lr(batch, **keywords, noise_correlation=rho)
  assert articles > 3 * aware


def test_certain_and_missing_entries(problem):
  g, std, hessian = problem.values()
  certain = sign_one_step(1, gradient=g, noise_std=0 * std, hessian=hessian)
  full = sign_one_step(jnp.inf, **problem)
  np.testing.assert_allclose(certain, full, rtol=1e-6)
  np.testing.assert_allclose(certain.learning_rate, 0.068918919, rtol=1e-6)
  # An entry without gradient and noise is not there, for every epsilon.
  wide = np.zeros((5, 5))
  wide[:4, :4], wide[4, 4] = hessian, 7.0
  padded = {'gradient': np.r_[g, 0], 'noise_std': np.r_[std, 0]}
  for eps in (0.0, 1e-3):
    np.testing.assert_allclose(
      sign_one_step(8, **padded, hessian=wide, eps=eps),
      sign_one_step(8, **problem, eps=eps),
      rtol=1e-5,
    )
  nothing = sign_one_step(
    8, gradient=np.zeros(4), noise_std=std, hessian=hessian
  )
  assert float(nothing.learning_rate) == 0
  assert float(sign_optimal_lr(8, **(problem | {'hessian': -hessian}))) == (
    np.inf
  )


def test_transforms_agree(problem):
  batch = 2.0 ** np.arange(8, dtype=np.float32)
  mesh = jax.make_mesh((8,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  call = lambda b: sign_optimal_lr(b, **problem, eps=0.1)
  expected = call(batch)
  np.testing.assert_allclose(jax.vmap(call)(batch), expected, rtol=1e-5)
  split = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(jax.jit(split)(batch), expected, rtol=1e-5)
  slope = jax.grad(lambda eps: sign_optimal_lr(8, **problem, eps=eps))(0.1)
  up, down = (sign_optimal_lr(8, **problem, eps=e) for e in (0.11, 0.09))
  np.testing.assert_allclose(slope, (up - down) / 0.02, rtol=0.02)


def test_means_agree_with_those_of_softsign(double):
  g = np.linspace(-1, 1, 9)
  np.testing.assert_allclose(
    sign_mean(g, 2.0, 8), softsign_moments(g, 2.0, 0.0, 8).mean, rtol=1e-10
  )
  np.testing.assert_allclose(
    sign_mean(g, 2.0, 8), special.erf(g), rtol=1e-12, atol=1e-15
  )


@pytest.mark.parametrize(
  'change, message',
  [
    ({'method': 'erf'}, "method: got 'erf', expected one of 'exact'"),
    ({'eps': -1.0}, 'eps: got -1.0'),
    ({'eps': -1.0, 'method': 'mean_field'}, 'eps: got -1.0'),
    ({'noise_std': np.ones(3)}, 'noise_std: got shape'),
    ({'hessian': np.ones(4)}, 'hessian: got shape'),
    ({'noise_correlation': np.eye(3)}, 'noise_correlation: got shape'),
    ({'noise_correlation': np.eye(4), 'eps': 0.1}, 'noise_correlation: got'),
    (
      {'noise_correlation': np.eye(4), 'method': 'softsign'},
      "expected None, method='exact' with eps=0.0",
    ),
  ],
)
def test_wrong_arguments_are_named(problem, change, message):
  with pytest.raises(ValueError, match=message):
    sign_optimal_lr(8, **(problem | change))
  with pytest.raises(ValueError, match='batch_size: got 0'):
    sign_optimal_lr(0, **problem)
  with pytest.raises(ValueError, match="method: got 'clip'"):
    sign_mean(1.0, 1.0, 1, method='clip')
