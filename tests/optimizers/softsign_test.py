"""SoftSign and its Adam against optax, limits, Monte Carlo and finite steps."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.optimizers import (
  scale_by_softsign,
  scale_by_softsign_adam,
  scale_by_softsign_momentum,
  softsign,
  softsign_adam,
  softsign_sgd,
)


def gaussian(*shape, seed=0, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def trajectory(transform, grads):
  state = transform.init(grads[0])
  out = []
  for g in grads:
    updates, state = transform.update(g, state)
    out.append(updates)
  return jnp.stack(out)


def test_limits_and_edges():
  x = jnp.array([-jnp.inf, -1e38, -3.0, -1e-37, 0.0, 1e-30, 2.0, jnp.inf])
  sign = softsign(x, 0.0)
  np.testing.assert_allclose(sign, [-1, -1, -1, -1, 0, 1, 1, 1], rtol=1e-6)
  assert not np.any(np.isnan(softsign(x, 1e-8)))
  np.testing.assert_allclose(softsign(jnp.array([3.0]), 4.0), 0.6, rtol=1e-6)
  small = jnp.array([1e-20, -3e-3, 0.5])
  np.testing.assert_allclose(1e6 * softsign(small, 1e6), small, rtol=1e-5)


@hypothesis.given(
  x=st.floats(-1e30, 1e30).map(np.float32),
  eps=st.floats(0, 1e30).map(np.float32),
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_is_bounded_odd_and_of_the_formula(x, eps):
  value = float(softsign(x, eps))
  assert abs(value) <= 1 + 1e-6
  assert float(softsign(-x, eps)) == -value
  tiny = float(jnp.finfo(jnp.float32).tiny)
  if max(abs(x), eps) > 1e3 * tiny and (x == 0 or abs(x) > 1e3 * tiny):
    expected = x / np.hypot(np.float64(x), eps)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-30)


def test_derivatives_are_finite_and_right():
  with jax.enable_x64(True):
    x, eps, h = jnp.array([-2.0, -1e-3, 0.0, 0.7]), 0.3, 1e-6
    by_x, by_eps = jax.vmap(jax.grad(softsign, (0, 1)), (0, None))(x, eps)
    central = lambda f: (f(h) - f(-h)) / (2 * h)
    np.testing.assert_allclose(
      by_x, central(lambda d: softsign(x + d, eps)), rtol=1e-7, atol=1e-9
    )
    np.testing.assert_allclose(
      by_eps, central(lambda d: softsign(x, eps + d)), rtol=1e-7, atol=1e-9
    )
    edges = jnp.array([0.0, 1e300, -1e-300, jnp.inf])
    slope = jax.vmap(jax.grad(softsign), (0, None))(edges, 0.0)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize('eps', [1e-8, 1e-3, 1.0])
def test_adam_is_optax_with_the_square_of_eps_under_the_root(eps):
  grads = gaussian(20, 50) * 10.0 ** gaussian(50, seed=1)
  ours = trajectory(scale_by_softsign_adam(0.9, 0.99, eps), grads)
  theirs = trajectory(
    optax.scale_by_adam(0.9, 0.99, eps=0, eps_root=eps**2), grads
  )
  np.testing.assert_array_max_ulp(np.asarray(ours), np.asarray(theirs), 4)
  # And not with eps itself: the unit is that of a squared gradient.
  wrong = trajectory(optax.scale_by_adam(0.9, 0.99, eps=0, eps_root=eps), grads)
  if eps < 1:
    assert np.abs(ours - wrong).max() > 1e-4


def test_adams_own_epsilon_is_within_a_factor_of_root_two():
  grads = gaussian(10, 200) * 10.0 ** (2 * gaussian(200, seed=1) - 3)
  ours = trajectory(scale_by_softsign_adam(eps=1e-3), grads)
  adam = trajectory(optax.scale_by_adam(eps=1e-3), grads)
  ratio = np.asarray(ours / adam)
  assert 1 - 1e-5 <= ratio.min() and ratio.max() <= 2**0.5 + 1e-5
  assert ratio.max() > 1.3


def test_without_memory_and_at_the_first_step_adam_is_softsign():
  grads = gaussian(5, 30)
  plain = trajectory(scale_by_softsign(0.3), grads)
  np.testing.assert_allclose(
    trajectory(scale_by_softsign_adam(0.0, 0.0, 0.3), grads), plain, rtol=1e-5
  )
  first = trajectory(scale_by_softsign_adam(0.9, 0.999, 0.3), grads[:1])
  np.testing.assert_allclose(first, plain[:1], rtol=2e-4)


def test_momentum_is_softsign_of_the_corrected_mean():
  grads = np.asarray(gaussian(6, 10))
  mean, out = 0.0, []
  for t, g in enumerate(grads, start=1):
    mean = 0.8 * mean + 0.2 * g
    corrected = mean / (1 - 0.8**t)
    out.append(corrected / np.hypot(corrected, 0.2))
  ours = trajectory(scale_by_softsign_momentum(0.8, 0.2), jnp.asarray(grads))
  np.testing.assert_allclose(ours, out, rtol=1e-4)
  large = trajectory(
    scale_by_softsign_momentum(0.8, 1e6, normalize=True), jnp.asarray(grads)
  )
  ema = trajectory(optax.ema(0.8), jnp.asarray(grads))
  np.testing.assert_allclose(large, ema, rtol=1e-4, atol=1e-6)


def test_article_approximations_hold_to_their_known_errors():
  # E[u] = softsign(g) / sqrt(1 + pi s^2 / (2 B (g^2 + e^2))), median error
  # .003 and at worst .108, at g = sigma, eps = .01, B = 4.
  noise = np.asarray(gaussian(200_000, seed=3), np.float64)
  for g, eps, batch in [(1.0, 0.01, 4), (0.3, 0.1, 16), (1.0, 1.0, 64)]:
    exact = np.mean(softsign(g + noise / np.sqrt(batch), eps))
    size = g**2 + eps**2
    article = g / np.sqrt(size) / np.sqrt(1 + np.pi / (2 * batch * size))
    assert abs(exact - article) < 0.12


def test_ready_optimizers_are_chains():
  params = {'w': gaussian(4, 3)}
  rate = optax.linear_schedule(0.1, 0.0, 4)
  ours = softsign_adam(rate, b2=0.99, eps=1e-3, weight_decay=0.2)
  theirs = optax.chain(
    optax.scale_by_adam(0.9, 0.99, eps=0, eps_root=1e-6),
    optax.add_decayed_weights(0.2),
    optax.scale_by_learning_rate(rate),
  )
  a, b = ours.init(params), theirs.init(params)
  for _ in range(3):
    u, a = ours.update(params, a, params)
    v, b = theirs.update(params, b, params)
    chex.assert_trees_all_close(u, v, rtol=1e-5)
  u, _ = softsign_sgd(0.1, eps=0.5).update(
    params, softsign_sgd(0.1, eps=0.5).init(params)
  )
  np.testing.assert_allclose(u['w'], -0.1 * softsign(params['w'], 0.5))


@pytest.mark.parametrize(
  'make',
  [
    lambda: scale_by_softsign(1e-3),
    lambda: scale_by_softsign_adam(),
    lambda: scale_by_softsign_momentum(),
    lambda: scale_by_softsign_adam(eps=0.0),
  ],
)
def test_dtypes_zeros_and_huge_gradients(make):
  for dtype in (jnp.float32, jnp.bfloat16):
    params = {'w': jnp.array([0.0, 1e-30, -1e15], dtype)}
    transform = make()
    state = transform.init(params)
    updates, after = jax.jit(transform.update)(params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert np.all(np.isfinite(updates['w'].astype(jnp.float32)))
    assert updates['w'][0] == 0


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: softsign(1.0, -1.0), 'eps: got -1.0, expected 0 or more'),
    (lambda: scale_by_softsign(-1.0), 'eps: got -1.0'),
    (lambda: scale_by_softsign_adam(b1=1.0), 'b1: got 1.0'),
    (lambda: scale_by_softsign_adam(b2=-0.1), 'b2: got -0.1'),
    (lambda: scale_by_softsign_momentum(b1=1.0), 'b1: got 1.0'),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
