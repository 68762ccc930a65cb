"""State and step: metrics, accumulation, bare functions without flax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kexue.training import TrainState, init_state, make_step

KEY = jax.random.key(0)


def loss(params, variables, batch, key):
  """Counts its calls in `variables`, as a codebook or a tracker would."""
  error = batch @ params - 1.0
  return jnp.mean(error**2), (
    {'calls': variables['calls'] + 1},
    {'e': error[0]},
  )


def fresh(optimizer):
  return init_state(jnp.arange(3.0), optimizer, {'calls': jnp.zeros((), int)})


def test_one_step_of_sgd():
  optimizer = optax.sgd(0.1)
  x = np.random.default_rng(0).normal(size=(8, 3))
  step = jax.jit(make_step(loss, optimizer))
  state, metrics = step(fresh(optimizer), x, KEY)
  w = np.arange(3.0)
  gradient = 2 * x.T @ (x @ w - 1) / 8
  np.testing.assert_allclose(state.params, w - 0.1 * gradient, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], np.mean((x @ w - 1) ** 2), 1e-5)
  np.testing.assert_allclose(
    metrics['grad_norm'], np.linalg.norm(gradient), rtol=1e-5
  )
  assert int(state.step) == 1 and int(state.variables['calls']) == 1


def test_accumulation_changes_the_calls_and_not_the_step():
  optimizer = optax.sgd(0.1, momentum=0.9)
  x = np.random.default_rng(0).normal(size=(8, 3))
  whole, metrics = make_step(loss, optimizer)(fresh(optimizer), x, KEY)
  parts, mean = make_step(loss, optimizer, accumulate=4)(
    fresh(optimizer), x, KEY
  )
  np.testing.assert_allclose(parts.params, whole.params, rtol=1e-5)
  np.testing.assert_allclose(mean['loss'], metrics['loss'], rtol=1e-5)
  assert int(parts.variables['calls']) == 4
  assert jax.tree.structure(parts) == jax.tree.structure(whole)


def test_what_comes_after_happens_once_a_step():
  optimizer = optax.sgd(0.1)
  x = np.random.default_rng(0).normal(size=(8, 3))
  after = lambda variables: {'calls': 10 * variables['calls']}
  step = make_step(loss, optimizer, accumulate=4, after=after)
  state, _ = step(fresh(optimizer), x, KEY)
  assert int(state.variables['calls']) == 40
  state, _ = step(state, x, KEY)
  assert int(state.variables['calls']) == 440


def test_micro_batches_see_their_own_noise():
  def noisy(params, variables, batch, key):
    return jnp.sum(params * jax.random.normal(key)), (variables, {})

  optimizer = optax.sgd(1.0)
  step = make_step(noisy, optimizer, accumulate=2)
  state, _ = step(init_state(jnp.zeros(()), optimizer), np.zeros((2, 1)), KEY)
  draws = [jax.random.normal(jax.random.fold_in(KEY, i)) for i in range(2)]
  np.testing.assert_allclose(state.params, -np.mean(draws), rtol=1e-5)
  assert draws[0] != draws[1]


def test_state_is_built_by_keyword():
  state = TrainState(step=jnp.zeros((), int), params={'w': jnp.ones(2)})
  assert len(jax.tree.leaves(state)) == 2
