"""The descent limiter: what it bounds, and where it does nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.optimizers import clip_by_descent, scale_by_muon


def gaussian(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('factor', [1e-3, 1.0, 1e3])
def test_descent_is_at_most_the_threshold(factor):
  g = {'a': factor * gaussian(5, 6), 'b': factor * gaussian(3, seed=1)}
  inner = optax.scale_by_adam()
  limited = clip_by_descent(inner, 2.0)
  plain, _ = inner.update(g, inner.init(g))
  updates, state = limited.update(g, limited.init(g))
  # At Adam's first step the descent is the l1 norm of the gradient.
  norm = sum(np.abs(x).sum() for x in jax.tree.leaves(g))
  np.testing.assert_allclose(state.descent, norm, rtol=1e-4)
  np.testing.assert_allclose(
    optax.tree.vdot(updates, g), min(2.0, norm), rtol=1e-4
  )
  if norm < 2.0:
    chex.assert_trees_all_equal(updates, plain)
    assert float(state.factor) == 1


def test_the_sign_of_the_direction_does_not_matter():
  g = gaussian(8)
  down = clip_by_descent(optax.scale(-3.0), 1.0)
  updates, _ = down.update(g, down.init(g))
  np.testing.assert_allclose(jnp.vdot(updates, g), -1.0, rtol=1e-5)


def test_a_zero_gradient_stays_zero():
  tx = clip_by_descent(optax.scale_by_adam(), 1.0)
  updates, state = tx.update(jnp.zeros(3), tx.init(jnp.zeros(3)))
  assert not np.any(updates) and float(state.factor) == 1


def test_muon_inside_extra_arguments_and_a_chain():
  g = {'w': 100 * gaussian(4, 6)}
  tx = optax.chain(
    clip_by_descent(scale_by_muon(), 1.0), optax.scale_by_learning_rate(0.1)
  )
  state = tx.init(g)
  updates, after = jax.jit(tx.update)(g, state, g, value=1.0)
  np.testing.assert_allclose(optax.tree.vdot(updates, g), -0.1, rtol=1e-4)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_half_precision_is_summed_in_single():
  g = jnp.full(10_000, 0.01, jnp.bfloat16)
  tx = clip_by_descent(optax.identity(), 100.0)
  updates, state = tx.update(g, tx.init(g))
  np.testing.assert_allclose(state.descent, 1.0, rtol=1e-2)
  assert updates.dtype == jnp.bfloat16


def test_wrong_threshold_is_named():
  with pytest.raises(ValueError, match='threshold: got 0.0'):
    clip_by_descent(optax.identity(), 0.0)
