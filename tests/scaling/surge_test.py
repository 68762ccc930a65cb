"""Peaks of the example, and the sharp condition on random problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from kexue.scaling import (
  SignLaw,
  large_batch_surge,
  sign_optimal_lr,
  sign_second_moment,
  surge_index,
  surge_peak,
)


def curve(problem, **keywords):
  return lambda batch: sign_optimal_lr(batch, **problem, **keywords)


def test_peaks_of_the_example(problem, double):
  peak = surge_peak(curve(problem))
  np.testing.assert_allclose(peak.batch_size, 12.66488, rtol=5e-7)
  np.testing.assert_allclose(peak.learning_rate, 0.079313828, rtol=1e-8)
  entries = jax.jit(
    lambda c: surge_peak(curve(problem, method='softsign', noise_factor=c))
  )
  for factor, batch in ((np.pi / 2, 17.7746), (1.0, 11.3157)):
    np.testing.assert_allclose(entries(factor).batch_size, batch, atol=6e-5)


def test_epsilon_takes_the_surge_away_late(problem, double):
  # The mean field says from eps = 0.4 on that there is none.
  overshoot = jax.jit(
    lambda eps: surge_peak(curve(problem, eps=eps), points=65).overshoot
  )
  for eps, percent in ((1e-3, 15), (0.1, 20), (0.4, 13)):
    assert round(100 * float(overshoot(eps))) == percent
  assert float(overshoot(0.8)) == pytest.approx(0.033, abs=5e-4)
  assert float(overshoot(1.6)) == 0
  assert surge_index(problem['gradient'], problem['hessian'], eps=0.1) > 1
  assert surge_index(problem['gradient'], problem['hessian'], eps=0.4) < 1


def test_index_below_one_does_not_rule_a_surge_out(
  problem, correlation, double
):
  g, std, hessian = problem.values()
  index = surge_index(g, hessian, correlation)
  np.testing.assert_allclose(index, 0.88095238, rtol=6e-8)
  np.testing.assert_allclose(surge_index(g, hessian), 37 / 26)
  peak = surge_peak(curve(problem, noise_correlation=correlation), points=65)
  assert round(100 * float(peak.overshoot)) == 6
  result = large_batch_surge(g, std, hessian)
  assert bool(result.surge) and int(result.coordinate) == 1  # k = 2 of 1..4.
  np.testing.assert_allclose(result.curvature_share, 0.32432432, rtol=6e-8)
  np.testing.assert_allclose(result.gradient_share, 0.19607843, rtol=6e-8)


def random_problem(seed, n=6):
  rng = np.random.default_rng(seed)
  g = rng.normal(size=n) * np.exp(rng.normal(size=n))
  std = np.exp(rng.normal(size=n))
  root = rng.normal(size=(n, n + 2))
  hessian = root @ root.T + rng.uniform(0, 4) * np.outer(np.sign(g), np.sign(g))
  factor = rng.normal(size=(n, 2 * n))
  rho = factor @ factor.T
  rho /= np.sqrt(np.outer(np.diag(rho), np.diag(rho)))
  return g, std, hessian, rho


def separated_problems(count):
  """Those whose least certain sign is alone at large batches."""
  kept = []
  for seed in range(10 * count):
    problem = random_problem(seed)
    certainty = np.sort(np.abs(problem[0]) / problem[1])
    if certainty[1] > 1.4 * certainty[0] and len(kept) < count:
      kept.append(problem)
  return kept


def overshoot(lr, g, hessian):
  s = np.sign(g)
  return lr / (np.abs(g).sum() / (s @ hessian @ s)) - 1


def test_sharp_condition_on_random_problems(double):
  problems = separated_problems(200)
  assert len(problems) == 200
  g, std, hessian, _ = map(np.array, zip(*problems, strict=True))
  decided = jax.vmap(large_batch_surge)(g, std, hessian)
  surges, mean_field = [], []
  for i in range(200):
    # At 4.5 deviations of the least certain sign.
    s = g[i] / std[i] * 4.5 / np.min(np.abs(g[i]) / std[i])
    mu = special.erf(s / np.sqrt(2))
    second = np.where(np.eye(6, dtype=bool), 1, np.outer(mu, mu))
    lr = mu @ g[i] / np.sum(second * hessian[i])
    surges.append(overshoot(lr, g[i], hessian[i]) > 0)
    mean_field.append(surge_index(g[i], hessian[i]) > 1)
  surges, mean_field = np.array(surges), np.array(mean_field)
  np.testing.assert_array_equal(decided.surge, surges)
  assert 40 < surges.sum() < 180
  # The mean field misses many, and sees some that are not there.
  assert np.sum(surges & ~mean_field) > 50
  assert np.sum(~surges & mean_field) > 0


def test_sharp_condition_with_correlated_noise(double):
  problems = separated_problems(60)
  g, std, hessian, rho = map(np.array, zip(*problems, strict=True))

  @jax.jit
  @jax.vmap
  def exact(g, std, hessian, rho):
    batch = (4.5 / jnp.min(jnp.abs(g) / std)) ** 2
    second = sign_second_moment(g, std, rho, batch)
    mu = jax.lax.erf(g * jnp.sqrt(batch / 2) / std)
    return mu @ g / jnp.sum(second * hessian)

  surges = [
    overshoot(lr, *x) > 0
    for lr, *x in zip(exact(g, std, hessian, rho), g, hessian, strict=True)
  ]
  decided = jax.vmap(large_batch_surge)(g, std, hessian)
  np.testing.assert_array_equal(decided.surge, surges)


def test_index_above_one_does_not_make_a_surge_at_large_batches(double):
  # The least certain sign is coupled to no other, so that it only adds descent.
  hessian = np.eye(5)
  hessian[:4, :4] = 1
  g, std = np.ones(5), np.r_[np.ones(4), 2.0]
  assert float(surge_index(g, hessian)) == 1.7
  assert not large_batch_surge(g, std, hessian).surge
  lr = sign_optimal_lr(
    np.array([100.0, 1e4]), gradient=g, noise_std=std, hessian=hessian
  )
  assert lr[0] < lr[1]


def test_ties_count_together_and_certain_or_missing_entries_do_not():
  n = 5
  g, std = np.ones(n), np.full(n, 2.0)
  # Of equal entries all settle at once: P > 2 T decides, as for one entry.
  for coupling, surges in ((0.24, False), (0.26, True), (1.0, True)):
    hessian = (1 - coupling) * np.eye(n) + coupling
    tied = large_batch_surge(g, std, hessian)
    assert bool(tied.surge) == surges
    assert bool(surge_index(g, hessian) > 1) == surges
  hessian = np.eye(n) + 0.3
  tied = large_batch_surge(g, std, hessian)
  np.testing.assert_allclose(tied.gradient_share, 1, rtol=1e-6)
  # Without noise nothing settles.
  assert not large_batch_surge(g, 0 * std, hessian).surge
  # A certain entry is never the least certain.
  std[3], g[3] = 0, 1e-3
  assert int(large_batch_surge(g, std, hessian).coordinate) != 3
  # An entry of zero gradient adds to the curvature: a difficult limit.
  g[3], std[3] = 0, 1
  result = large_batch_surge(g, std, hessian)
  s = np.sign(g)
  curvature = s @ hessian @ s + hessian[3, 3]
  expected = 2 * (s @ hessian @ s - 4 * 1.3) / curvature
  np.testing.assert_allclose(result.curvature_share, expected, rtol=1e-5)
  # No learning rate is best where the curvature is negative.
  assert not large_batch_surge(g, std, -hessian).surge


def test_monotone_curves_have_no_peak(problem):
  still = problem | {'hessian': np.diag(np.diag(problem['hessian']))}
  peak = surge_peak(curve(still), points=33, rounds=4)
  assert float(peak.batch_size) == np.inf and float(peak.overshoot) == 0
  np.testing.assert_allclose(peak.learning_rate, 2.55 / 13, rtol=1e-5)


def test_transforms_agree(problem):
  def peak(scale):
    law = SignLaw(0.1, 2 + scale, 50.0)
    return surge_peak(law.optimal_lr, points=33, rounds=8).learning_rate

  scale = np.linspace(0.5, 4, 8, dtype=np.float32)
  expected = 0.05 / np.sqrt(1 + scale)  # rate / (2 (r - 1)^(1/2)).
  np.testing.assert_allclose(peak(scale[3]), expected[3], rtol=1e-5)
  np.testing.assert_allclose(jax.vmap(peak)(scale), expected, rtol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  split = jax.shard_map(
    lambda s: peak(s[0])[None], mesh=mesh, in_specs=spec, out_specs=spec
  )
  np.testing.assert_allclose(jax.jit(split)(scale), expected, rtol=1e-5)
  g, std, hessian = problem.values()
  assert bool(jax.jit(large_batch_surge)(g, std, hessian).surge)


def test_wrong_arguments_are_named(problem):
  g, std, hessian = problem.values()
  for keywords, message in (
    ({'lowest': 0.0}, 'lowest: got 0.0'),
    ({'lowest': 2.0, 'highest': 1.0}, 'highest: got 1.0'),
    ({'points': 2}, 'points: got 2'),
    ({'rounds': -1}, 'rounds: got -1'),
  ):
    with pytest.raises(ValueError, match=message):
      surge_peak(jnp.sqrt, **keywords)
  with pytest.raises(ValueError, match='eps: got -1'):
    surge_index(g, hessian, eps=-1)
  with pytest.raises(ValueError, match='noise_std: got shape'):
    large_batch_surge(g, std[:2], hessian)
