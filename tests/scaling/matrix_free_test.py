"""Products in place of a Hessian: the dense theories, from the same moments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from kexue.scaling import (
  matrix_free_step,
  one_step,
  sign_second_moment,
  softsign_moments,
)

N = 4


def problem(seed=0):
  rng = np.random.default_rng(seed)
  g, std = rng.normal(size=N), rng.uniform(1, 4, size=N)
  h = rng.normal(size=(N, 2 * N))
  return g, std, h @ h.T


def tree(x):
  """Vectors [..., N] as two leaves, one of them a matrix."""
  return {'a': x[..., :2].reshape(*x.shape[:-1], 2, 1), 'b': x[..., 2:]}


def flat(tree):
  return jnp.concatenate([tree['a'].reshape(-1), tree['b'].reshape(-1)])


def step(mean, second, g, h, signs):
  product = lambda v: tree(h @ flat(v))
  trees = map(tree, (mean, second, g, signs))
  mean, second, gradient, signs = trees
  return jax.jit(
    lambda signs: matrix_free_step(
      mean, second, gradient=gradient, product=product, signs=signs
    )
  )(signs)


def test_independent_signs_are_the_theory_of_independent_noise():
  g, std, h = problem()
  signs = np.array([*itertools.product((-1.0, 1.0), repeat=N)])
  with jax.enable_x64(True):
    for eps in (0.0, 0.5):
      mean, second = softsign_moments(g, std, eps, 8)
      found = step(mean, second, g, h, signs)
      for got, expected in zip(
        found, one_step(mean, second, g, h), strict=True
      ):
        np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_signs_of_differences_are_the_theory_of_correlated_noise():
  g, std, h = problem(1)
  rho = np.full((N, N), 0.6) + 0.4 * np.eye(N)
  noise = np.random.default_rng(0).multivariate_normal(
    np.zeros(N), rho, size=(2, 200_000)
  )
  with jax.enable_x64(True):
    mean, square = softsign_moments(g, std, 0.0, 8)
    found = step(mean, square, g, h, np.sign(noise[0] - noise[1]))
    second = sign_second_moment(g, std, rho, 8, method='interpolation')
    expected = float(one_step(mean, second, g, h).learning_rate)
    independent = float(one_step(mean, square, g, h).learning_rate)
  np.testing.assert_allclose(found.learning_rate, expected, rtol=0.01)
  assert abs(independent / expected - 1) > 0.05


def test_a_saddle_has_no_best_step():
  g, std, h = problem()
  mean = jnp.sign(g)
  found = step(mean, mean**2, g, -h, np.ones((3, N)))
  assert np.isinf(found.learning_rate) and found.learning_rate > 0


def test_moments_that_rounding_made_negative_are_zero():
  g, _, h = problem()
  mean = jnp.sign(g)
  found = step(mean, 0.9999999 * mean**2, g, h, np.ones((3, N)))
  assert np.isfinite(found.learning_rate)
