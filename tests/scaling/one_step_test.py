"""The one-step identity against the quadratic that it is about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.scaling import one_step

RNG = np.random.default_rng(0)
N = 5
ROOT = RNG.normal(size=(N, N))
HESSIAN = ROOT @ ROOT.T
GRADIENT = RNG.normal(size=N)


@pytest.mark.parametrize('noise', ['normal', 'laplace'])
@pytest.mark.parametrize('direction', [np.sign, lambda x: x, np.tanh])
def test_is_where_the_expected_quadratic_is_lowest(noise, direction, double):
  draws = getattr(RNG, noise)(size=(200_000, N)) @ np.diag([1, 2, 0.5, 3, 1])
  updates = direction(GRADIENT + draws)
  second = updates.T @ updates / len(updates)
  result = one_step(updates.mean(0), second, GRADIENT, HESSIAN)
  # Its derivative there, over the draws, is zero to rounding; beside, it grows.
  slopes = updates @ GRADIENT
  curvatures = np.sum(updates @ HESSIAN * updates, axis=1)
  loss = lambda lr: np.mean(-lr * slopes + lr**2 / 2 * curvatures)
  best = float(result.learning_rate)
  assert loss(best) < min(loss(0.999 * best), loss(1.001 * best))
  np.testing.assert_allclose(-loss(best), result.decrease, rtol=1e-10)


def test_independent_entries_need_the_diagonal_only(double):
  mean, spread = RNG.normal(size=(2, 7, N))
  second = mean**2 + spread**2
  full = mean[:, :, None] * mean[:, None] + spread[:, None] ** 2 * np.eye(N)
  for one, other in zip(
    one_step(mean, second, GRADIENT, HESSIAN),
    one_step(mean, full, GRADIENT, HESSIAN),
    strict=True,
  ):
    assert one.shape == (7,)
    np.testing.assert_allclose(one, other, rtol=1e-12)
  # Only the symmetric part of the Hessian matters.
  skew = HESSIAN + np.triu(ROOT, 1) - np.triu(ROOT, 1).T
  np.testing.assert_allclose(
    one_step(mean, second, GRADIENT, skew).decrease, one.squeeze(), rtol=1e-10
  )


def test_no_minimum_is_infinite_and_never_clipped():
  g = jnp.array([1.0, 2.0])
  for hessian in (-jnp.eye(2), jnp.zeros((2, 2))):
    ahead, behind = (one_step(x, x**2, g, hessian) for x in (g, -g))
    assert float(ahead.learning_rate) == float(ahead.decrease) == np.inf
    assert float(behind.learning_rate) == -np.inf
    assert float(behind.decrease) == np.inf
    aside = one_step(jnp.array([2.0, -1.0]), g**2, g, hessian)
    assert np.isnan(aside.learning_rate) and np.isnan(aside.decrease)
  # Without a gradient there is nothing to gain, and the best step is none.
  still = one_step(jnp.zeros(2), jnp.ones(2), 0 * g, jnp.eye(2))
  assert float(still.learning_rate) == float(still.decrease) == 0


def test_derivatives_do_not_see_the_other_branch(double):
  lr = lambda scale: (
    one_step(GRADIENT, GRADIENT**2, GRADIENT, scale * HESSIAN).learning_rate
  )
  np.testing.assert_allclose(jax.grad(lr)(2.0), -lr(2.0) / 2, rtol=1e-12)
  assert jax.grad(lr)(-1.0) == jax.grad(lr)(0.0) == 0


def test_transforms_agree():
  mean = RNG.normal(size=(8, N)).astype(np.float32)
  call = lambda m: one_step(m, m**2 + 1, GRADIENT, HESSIAN).learning_rate
  expected = call(mean)
  np.testing.assert_allclose(jax.jit(call)(mean), expected, rtol=1e-5)
  np.testing.assert_allclose(jax.vmap(call)(mean), expected, rtol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  split = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(jax.jit(split)(mean), expected, rtol=1e-5)


def test_the_best_single_steps_are_not_the_best_training_run():
  # A noisy quadratic: E[x_i^2] <- (1 - lr h_i)^2 E[x_i^2] + lr^2 noise.
  h, noise = np.geomspace(1e-3, 1, 30), 1.0

  def steps(rate, target=0.1):
    square = np.ones(30)
    for step in range(1, 4000):
      lr = rate(square)
      square = (1 - lr * h) ** 2 * square + lr**2 * noise
      if h @ square < target * np.sum(h):
        return step
    return 4000

  def greedy(square):
    return np.sum(h**2 * square) / np.sum(h * (h**2 * square + noise))

  constant = min(
    steps(lambda _, lr=lr: lr) for lr in np.geomspace(0.01, 0.2, 12)
  )
  assert steps(greedy) > 1.2 * constant


def test_types_are_float32_or_better(double):
  g = jnp.ones(2, jnp.bfloat16)
  assert one_step(g, g, g, jnp.eye(2, dtype=int))[0].dtype == jnp.float32
  assert one_step(g, g, g, jnp.eye(2))[0].dtype == jnp.float64


@pytest.mark.parametrize(
  'mean, second, gradient, hessian, message',
  [
    ((2,), (2,), (3,), (3, 3), 'mean.shape'),
    ((4, 3), (3,), (3,), (3, 3), 'second_moment.shape'),
    ((3,), (3,), (1, 3), (3, 3), 'gradient: got shape'),
    ((3,), (3,), (3,), (3,), 'hessian: got shape'),
  ],
)
def test_wrong_shapes_are_named(mean, second, gradient, hessian, message):
  with pytest.raises(ValueError, match=message):
    one_step(*map(np.ones, (mean, second, gradient, hessian)))
