"""Cautious decay against its formula, coordinate by coordinate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.optimizers import add_cautious_decay, muon


def test_each_combination_of_signs():
  u = jnp.array([2.0, 2.0, -2.0, -2.0, 0.0, 3.0])
  w = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, 0.0])
  tx = add_cautious_decay(0.5)
  ours, _ = tx.update(u, tx.init(w), w)
  np.testing.assert_allclose(ours, [2.5, 2.0, -2.0, -2.5, 0.5, 3.0])


def test_products_that_underflow_still_have_a_sign():
  u, w = jnp.array([1e-30, 1e-30]), jnp.array([1e-30, -1e-30])
  tx = add_cautious_decay(1.0)
  np.testing.assert_allclose(tx.update(u, tx.init(w), w)[0], [2e-30, 1e-30])


def test_mask_dtype_and_traced_decay():
  params = {'a': jnp.ones(3, jnp.bfloat16), 'b': jnp.ones(3)}
  tx = optax.inject_hyperparams(
    lambda decay: add_cautious_decay(decay, {'a': True, 'b': False})
  )(0.5)
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert updates['a'].dtype == jnp.bfloat16
  np.testing.assert_allclose(updates['a'].astype(float), 1.5)
  np.testing.assert_allclose(updates['b'], 1.0)


def test_muon_decays_cautiously_in_both_branches():
  params = {'w': jnp.diag(jnp.array([1.0, -1.0])), 'b': jnp.array([1.0, -1.0])}
  grads = {'w': jnp.eye(2), 'b': jnp.ones(2)}
  cautious, plain = (
    muon(0.1, weight_decay=decay, cautious=True) for decay in (0.3, 0.0)
  )
  with_decay, _ = cautious.update(grads, cautious.init(params), params)
  without, _ = plain.update(grads, plain.init(params), params)
  for leaf, u, decayed in zip(
    *map(jax.tree.leaves, (params, without, with_decay)), strict=True
  ):
    # `u` points down: it agrees where it takes from the parameter's size.
    expected = u - 0.1 * 0.3 * np.where(-u * leaf >= 0, leaf, 0)
    np.testing.assert_allclose(decayed, expected, atol=1e-6)
    assert np.any(decayed != u)


def test_wrong_arguments_are_named():
  with pytest.raises(ValueError, match='weight_decay: got -1.0'):
    add_cautious_decay(-1.0)
  tx = add_cautious_decay(0.1)
  with pytest.raises(ValueError, match='params: got None'):
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
