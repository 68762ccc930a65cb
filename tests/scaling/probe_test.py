"""The probe against exact optima of P1, for updates of every kind."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from kexue.optimizers import softsign_sgd
from kexue.scaling import probe_learning_rate

DRAWS = 20_000


def quadratic(hessian):
  """At zero, an example's gradient is the example."""
  hessian = jnp.asarray(hessian, jnp.float32)
  return lambda w, x: jnp.mean(x @ w) + 0.5 * w @ hessian @ w


@functools.cache
def noise(rows):
  return np.float32(np.random.default_rng(rows).normal(size=(DRAWS, rows, 4)))


SGD, SIGN = optax.sgd(1.0), softsign_sgd(1.0, eps=0.0)


@functools.partial(jax.jit, static_argnums=0)
def measure(optimizer, hessian, x, opt_state=None):
  """The first row of each draw is the batch."""
  return probe_learning_rate(
    quadratic(hessian),
    jnp.zeros(4),
    x,
    optimizer,
    batch_size=1,
    opt_state=opt_state,
  )


def probe(problem, optimizer, batch_size, *, factor=None, opt_state=None):
  """Draws of Gaussian gradients, means of `batch_size` and of 64 examples."""
  g, deviation, hessian = problem.values()
  factor = np.eye(4) if factor is None else factor
  x = noise(2) @ np.float32(factor).T * np.float32(deviation)
  x = np.float32(g) + x / np.float32(np.sqrt([[[batch_size], [64]]]))
  return measure(optimizer, np.float32(hessian), x, opt_state)


@pytest.mark.parametrize(
  'batch_size, learning_rate, decrease',
  [(1, 0.015558234, 0.015188726), (16, 0.087277197, 0.085204364)],
)
def test_sgd(problem, batch_size, learning_rate, decrease):
  found = probe(problem, SGD, batch_size)
  assert found.low < learning_rate < found.high
  np.testing.assert_allclose(found.learning_rate, learning_rate, rtol=0.05)
  np.testing.assert_allclose(found.loss_decrease, decrease, rtol=0.1)


@pytest.mark.parametrize(
  'batch_size, learning_rate, correlated',
  [
    (1, 0.046099376, False),
    (16, 0.079042187, False),
    (256, 0.069328099, False),
    (4, 0.05302714, True),
    (32, 0.073195901, True),
  ],
)
def test_sign(problem, correlation, batch_size, learning_rate, correlated):
  """Correlated noise too, of which the probe knows nothing."""
  factor = np.linalg.cholesky(correlation) if correlated else None
  found = probe(problem, SIGN, batch_size, factor=factor)
  assert found.low < learning_rate < found.high
  np.testing.assert_allclose(found.learning_rate, learning_rate, rtol=0.03)


def test_softsign(problem):
  found = probe(problem, softsign_sgd(1.0, eps=0.4), 16)
  np.testing.assert_allclose(found.learning_rate, 0.10578588, rtol=0.02)
  assert found.low < 0.10578588 < found.high
  assert found.high - found.low < 0.05 * found.learning_rate


def test_adam_with_the_state_of_a_run(problem):
  """Long averages: descent along G / sqrt(v), a quadratic form of its own."""
  g, deviation, hessian = problem.values()
  v = jnp.array([4.0, 9.0, 1.0, 25.0])
  optimizer = optax.adam(1.0, b1=0.0, b2=0.999999, eps=0.0)
  adam, *rest = optimizer.init(jnp.zeros(4))
  adam = adam._replace(count=jnp.int32(10**8), nu=v)
  found = probe(problem, optimizer, 4, opt_state=(adam, *rest))
  scale = 1 / np.sqrt(np.float64(v))
  u, h = scale * g, scale[:, None] * hessian * scale
  exact = (u @ g) / (g @ h @ g + np.sum(np.diag(h) * deviation**2) / 4)
  assert found.low < exact < found.high
  np.testing.assert_allclose(found.learning_rate, exact, rtol=0.05)
  fresh = probe(problem, optimizer, 4)
  assert abs(fresh.learning_rate / exact - 1) > 0.2


def test_a_network_against_a_line_search():
  """One step's best learning rate, by trying them on the whole population."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'w': normal(6, 8) / 3, 'v': normal(8) / 3}
  x = normal(512, 6)
  population = x, jnp.sin(x[:, 0]) + x[:, 1] * x[:, 2]

  def loss(params, batch):
    hidden = jnp.tanh(batch[0] @ params['w'])
    return jnp.mean((hidden @ params['v'] - batch[1]) ** 2)

  rows = rng.integers(0, 512, (1000, 64))
  rates = jnp.linspace(0.0, 0.3, 151)

  @jax.jit
  def run(rows):
    draw = lambda rows: jax.tree.map(lambda x: x[rows], population)
    probed = probe_learning_rate(loss, params, draw(rows), SIGN, batch_size=32)

    def step(rows):
      gradient = jax.grad(loss)(params, draw(rows[:32]))
      updates, _ = SIGN.update(gradient, SIGN.init(params))
      moved = lambda rate: jax.tree.map(
        lambda p, u: p + rate * u, params, updates
      )
      return jax.vmap(lambda rate: loss(moved(rate), population))(rates)

    return probed, jnp.mean(jax.lax.map(step, rows[:200]), axis=0)

  probed, losses = run(rows)
  best = float(rates[np.argmin(losses)])
  assert 0.01 < best < 0.29
  np.testing.assert_allclose(probed.learning_rate, best, rtol=0.15)
  assert (probed.high - probed.low) < 0.3 * best


def test_the_same_examples_twice_are_no_measurement(problem):
  """Half of the batch's own noise is descent, if it tests itself."""
  g, deviation, hessian = problem.values()
  x = np.float32(g) + noise(2)[:, :1] * np.float32(deviation)
  found = measure(SGD, np.float32(hessian), np.repeat(x, 2, axis=1))
  assert found.low > 5 * 0.015558234


def test_coverage_of_the_95_percent_interval(problem):
  g, deviation, hessian = problem.values()
  x = np.float32(g) + noise(2)[:, :, None] * np.float32(deviation)
  x = x.reshape(400, 50, 2, 4)  # Runs of 50 draws.
  run = functools.partial(measure, SGD, np.float32(hessian))
  found = jax.jit(jax.vmap(run))(x)
  covered = np.mean((found.low < 0.015558234) & (0.015558234 < found.high))
  assert 0.91 < covered < 0.98, covered


def test_a_trial_finds_the_minimum_of_what_is_no_quadratic():
  """Along w = -rate the loss is cosh(1 - rate) - 1, and lowest at 1."""
  loss = lambda w, x: jnp.mean(jnp.cosh(1 + w + 0 * x))
  x = jnp.zeros((4, 3))
  run = lambda trial: probe_learning_rate(
    loss, jnp.float32(0.0), x, SIGN, batch_size=1, trial=trial
  )
  first = run(None).learning_rate
  np.testing.assert_allclose(first, np.tanh(1), rtol=1e-5)  # slope / curvature
  rates = [first]
  for _ in range(6):
    rates.append(jax.jit(run)(rates[-1]).learning_rate)
  off = np.abs(1 - np.array(rates))
  assert (off[1:] < 0.45 * off[:-1])[:4].all() and off[-1] < 2e-3
  np.testing.assert_allclose(run(1.0).learning_rate, 1, rtol=1e-5)


def test_a_trial_on_a_quadratic_changes_nothing(problem):
  g, deviation, hessian = problem.values()
  x = np.float32(g) + noise(2)[:9] * np.float32(deviation)
  run = functools.partial(
    probe_learning_rate,
    quadratic(np.float32(hessian)),
    jnp.zeros(4),
    x,
    SIGN,
    batch_size=1,
  )
  chex.assert_trees_all_close(run(), run(trial=0.1), rtol=1e-3)


def test_no_minimum_is_no_number():
  found = measure(SGD, -np.eye(4, dtype=np.float32), noise(2))
  assert float(found.curvature) < 0
  assert found[:3] == (np.inf, 0, np.inf)


def test_one_device_is_eight():
  rng = np.random.default_rng(4)
  x = np.float32(rng.normal(0.3, 1, (5, 8, 3, 3)))  # [draws, devices, rows]
  loss = lambda w, x: jnp.mean((x @ w + x[:, 0]) ** 2)
  w = jnp.array([1.0, -0.5, 0.3])
  run = functools.partial(
    probe_learning_rate, loss, optimizer=softsign_sgd(1.0, eps=0.1)
  )
  # One device takes the batch first, then everybody's other rows.
  single = np.concatenate(
    [x[:, :, :2].reshape(5, 16, 3), x[:, :, 2:].reshape(5, 8, 3)], axis=1
  )
  expected = jax.jit(functools.partial(run, batch_size=16))(w, single)
  over = lambda w, x: run(w, x, batch_size=2, axis_name='data')
  found = jax.pmap(over, 'data', in_axes=(None, 1))(w, x)
  found = jax.tree.map(lambda v: v[0], found)
  chex.assert_trees_all_close(found, expected, rtol=1e-4)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    over, mesh=mesh, in_specs=(P(), P(None, 'data')), out_specs=P()
  )
  found = jax.jit(mapped)(w, x.reshape(5, 24, 3))
  chex.assert_trees_all_close(found, expected, rtol=1e-4)


def test_wrong_arguments_are_named():
  x, w = jnp.ones((4, 3, 2)), jnp.zeros(2)
  run = functools.partial(
    probe_learning_rate, quadratic(np.eye(2)), w, optimizer=optax.sgd(1.0)
  )
  for name, call in {
    'batch_size: got 0': lambda: run(x, batch_size=0),
    'batch_size: got 3': lambda: run(x, batch_size=3),
    'confidence: got 1.0': lambda: run(x, batch_size=1, confidence=1.0),
    'trial: got 0.0': lambda: run(x, batch_size=1, trial=0.0),
    'batch: got': lambda: run((x, x[:2]), batch_size=1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
