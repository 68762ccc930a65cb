"""What every transform of the package promises, one table row each.

After the common test of `optax.contrib`, with problems on which a wrong sign or
a raw gradient in the place of an average does not pass.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue import optimizers as ko
from kexue.training import (
  data_mesh,
  init_state,
  make_step,
  parallelize,
)

STEPS = 300


class Row(NamedTuple):
  """One transform: its factory, arguments, and what it must reach.

  `kind` of parameters: "mixed" matrices and vectors, "matrix" only, "pairs" of
  adapters. `bounds` of the final losses: factorisation, quadratic, Rosenbrock,
  about twice what a correct implementation reaches. `static`: arguments that
  `inject_hyperparams` must not trace. `scale_free`: the step of a matrix does
  not depend on the size of its gradient.
  """

  factory: Callable[..., optax.GradientTransformation]
  arguments: dict[str, Any]
  kind: str
  learning_rate: float
  bounds: tuple[float, float, float]
  static: tuple[str, ...] = ()
  scale_free: bool = False


ROWS = {
  'muon': Row(ko.muon, {}, 'mixed', 0.1, (0.4, 1.3, 0.03), scale_free=True),
  'muon decay': Row(
    ko.muon,
    {'weight_decay': 1e-3, 'nesterov': False, 'bias_correction': True},
    'mixed',
    0.1,
    (0.4, 1.3, 0.03),
    scale_free=True,
  ),
  'muon polar': Row(
    ko.muon,
    {'coefficients': 'polar_express', 'scale': 'keller', 'strategy': 'batched'},
    'mixed',
    0.05,
    (0.5, 1.2, 0.03),
    scale_free=True,
  ),
  'scale_by_muon': Row(
    ko.scale_by_muon, {}, 'matrix', 0.1, (0.4, 1.3, 0.03), scale_free=True
  ),
  'softsign_adam': Row(
    ko.softsign_adam, {'eps': 1e-3}, 'mixed', 0.07, (0.5, 1.2, 0.03)
  ),
  'softsign_sgd': Row(
    ko.softsign_sgd, {'eps': 1.0}, 'mixed', 0.07, (0.5, 1.6, 0.2)
  ),
  'scale_by_softsign': Row(
    ko.scale_by_softsign, {'eps': 1.0}, 'mixed', 0.07, (0.5, 1.6, 0.2)
  ),
  'scale_by_softsign_adam': Row(
    ko.scale_by_softsign_adam, {}, 'mixed', 0.07, (0.5, 1.2, 0.03)
  ),
  'scale_by_softsign_momentum': Row(
    ko.scale_by_softsign_momentum, {'eps': 0.1}, 'mixed', 0.05, (0.5, 1.0, 0.03)
  ),
  'cautious decay': Row(
    ko.add_cautious_decay,
    {'weight_decay': 1e-4},
    'mixed',
    0.05,
    (0.6, 1.3, 0.2),
  ),
  'rank-one decay': Row(
    ko.add_spectral_decay,
    {'weight_decay': 1e-4},
    'matrix',
    0.05,
    (0.6, 1.3, 0.2),
  ),
  'Schatten decay': Row(
    ko.add_spectral_decay,
    {'weight_decay': 1e-4, 'order': 2},
    'matrix',
    0.05,
    (0.6, 1.3, 0.2),
    static=('order',),
  ),
  'clip_by_descent': Row(
    ko.clip_by_descent,
    {'inner': ko.scale_by_muon(), 'threshold': 20.0},
    'matrix',
    0.1,
    (0.4, 1.3, 0.03),
  ),
  'with_update_statistics': Row(
    ko.with_update_statistics,
    {'inner': ko.muon(1.0), 'max_norm': 1.0},
    'mixed',
    -0.1,  # `inner` descends already.
    (0.4, 1.3, 0.03),
    scale_free=True,
  ),
  'with_parameter_average': Row(
    ko.with_parameter_average,
    {'inner': ko.muon(1.0)},
    'mixed',
    -0.1,  # `inner` descends already.
    (0.4, 1.3, 0.03),
    scale_free=True,
  ),
  'lora_pro': Row(
    ko.lora_pro,
    {'inner': optax.scale_by_adam(b2=0.99), 'scale': 0.5},
    'pairs',
    0.05,
    (0.4, 1.6, 0.1),
    static=('pairs',),
  ),
  'lora_pro full': Row(
    ko.lora_pro,
    {'inner': optax.scale_by_adam(b2=0.99), 'scale': 0.5, 'variant': 'full'},
    'pairs',
    0.05,
    (0.4, 1.2, 0.03),
    static=('pairs',),
  ),
}
EVERY = pytest.mark.parametrize('name', ROWS)


def build(name, learning_rate=None, wrap=lambda factory: factory):
  """The optimizer of a row with its learning rate, or another or a schedule."""
  row = ROWS[name]
  rate = row.learning_rate if learning_rate is None else learning_rate
  if 'learning_rate' in inspect.signature(row.factory).parameters:
    return wrap(row.factory)(learning_rate=rate, **row.arguments)
  return optax.chain(
    wrap(row.factory)(**row.arguments), optax.scale_by_learning_rate(rate)
  )


def gaussian(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_every_transform_has_a_row():
  transforms = (
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
  )
  for function in filter(inspect.isfunction, map(ko.__dict__.get, ko.__all__)):
    if inspect.signature(function).return_annotation in transforms:
      assert function in {row.factory for row in ROWS.values()}, function


# Convergence: three problems of different difficulty at once, noisy gradients.


def ill_conditioned(n, smallest, seed):
  """A square matrix with singular values from 1 to `smallest`."""
  generator = np.random.default_rng(seed)
  u, v = (np.linalg.qr(generator.normal(size=(n, n)))[0] for _ in range(2))
  return jnp.asarray(u * np.geomspace(1.0, smallest, n) @ v, jnp.float32)


LEFT, RIGHT = ill_conditioned(4, 0.3, 1), ill_conditioned(6, 0.3, 2)
TARGET = 3.0 * gaussian(4, 6, seed=1)
LOW_RANK = 3.0 * ill_conditioned(5, 0.01, 3)[:, :3] @ gaussian(3, 6, seed=4)
# Linear terms that differ from step to step. The quadratic drowns in them: an
# average of gradients finds its way out, the sign of a single one does not.
NOISE = {
  'factorisation': gaussian(STEPS, 5, 6, seed=5),
  'quadratic': gaussian(STEPS, 4, 6, seed=6),
  'rosenbrock': 0.1 * gaussian(STEPS, 4, 4, seed=7),
}


def weight(params):
  """The matrix of a kind of parameters."""
  return params['w'] if 'w' in params else params['a'] @ params['b']


def losses(params):
  x, y = weight(params['rosenbrock']).reshape(-1, 2).T
  quadratic = LEFT @ (weight(params['quadratic']) - TARGET) @ RIGHT
  bias = params['quadratic'].get('bias', 1.0) - 1.0
  product = weight(params['factorisation']) - LOW_RANK
  return {
    'factorisation': jnp.sum(product**2) / 2,
    'quadratic': (jnp.sum(quadratic**2) + jnp.sum(bias**2)) / 2,
    'rosenbrock': jnp.sum((1 - x) ** 2 + 100 * (y - x**2) ** 2) / 10,
  }


def start(kind):
  pair = lambda m, r, n: {
    'a': 0.5 * gaussian(m, r, seed=m),
    'b': jnp.zeros((r, n)),
  }
  zeros = lambda *shape: {'w': jnp.zeros(shape)}
  params = {
    'quadratic': pair(4, 4, 6) if kind == 'pairs' else zeros(4, 6),
    'factorisation': {
      'a': 0.5 * gaussian(5, 3, seed=8),
      'b': 0.5 * gaussian(3, 6, seed=9),
    },
    'rosenbrock': pair(4, 4, 4) if kind == 'pairs' else zeros(4, 4),
  }
  if kind == 'mixed':
    params['quadratic']['bias'] = jnp.zeros(6)
  return params


def minimise(optimizer, kind):
  """Final losses by name, and how far the last step went."""

  def noisy_loss(params, noise):
    linear = [jnp.vdot(noise[name], weight(params[name])) for name in noise]
    return sum(losses(params).values()) + sum(linear)

  def step(carry, noise):
    params, state, _ = carry
    grads = jax.grad(noisy_loss)(params, noise)
    updates, state = optimizer.update(grads, state, params)
    size = optax.tree.norm(updates)
    return (optax.apply_updates(params, updates), state, size), None

  @jax.jit
  def run(params, noise):
    carry = (params, optimizer.init(params), jnp.zeros([]))
    (params, _, size), _ = jax.lax.scan(step, carry, noise)
    return losses(params), size

  return run(start(kind), NOISE)


@EVERY
def test_converges_with_a_schedule(name):
  row = ROWS[name]
  schedule = optax.cosine_decay_schedule(row.learning_rate, STEPS)
  final, last_step = minimise(build(name, schedule), row.kind)
  for (problem, loss), bound in zip(final.items(), row.bounds, strict=True):
    assert float(loss) < bound, problem
  assert float(last_step) < 1e-3


# Everything else: one small tree for each kind, one compiled step for each row.


def small(kind, seed=0):
  if kind == 'pairs':
    return {'a': gaussian(4, 2, seed=seed), 'b': gaussian(2, 6, seed=seed + 1)}
  tree = {'w': gaussian(4, 6, seed=seed)}
  return (
    tree | {'bias': gaussian(6, seed=seed + 1)} if kind == 'mixed' else tree
  )


class Subject(NamedTuple):
  """A row ready for use: state before, gradients, and the compiled update."""

  optimizer: optax.GradientTransformation
  params: Any
  grads: Any
  state: Any
  update: Callable


@functools.cache
def subject(name):
  params = small(ROWS[name].kind)
  optimizer = optax.with_extra_args_support(build(name))
  return Subject(
    optimizer,
    params,
    small(ROWS[name].kind, seed=5),
    jax.jit(optimizer.init)(params),
    jax.jit(functools.partial(optimizer.update, nobody_knows_this=1)),
  )


@EVERY
def test_takes_unknown_arguments_and_compiles_once(name):
  s = subject(name)
  _, state = s.update(s.grads, s.state, s.params)
  s.update(s.grads, state, s.params)
  assert s.update._cache_size() == 1


@EVERY
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
def test_keeps_types_and_structure(name, dtype):
  optimizer = subject(name).optimizer
  with jax.enable_x64(dtype != 'bfloat16'):  # Single among double, too.
    of = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree
    )
    params, grads = of(subject(name).params), of(subject(name).grads)
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, grads, state, params)
  chex.assert_trees_all_equal_structs(updates, params)
  chex.assert_trees_all_equal_structs(state, after)
  kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  assert kinds(updates) == kinds(params) and kinds(state) == kinds(after)
  # Nothing of another precision stands for the gradient or its averages.
  averages = [x for x in jax.tree.leaves(after) if x.shape in ((4, 6), (6,))]
  allowed = {dtype, 'float32' if dtype == 'bfloat16' else dtype}
  assert {str(x.dtype) for x in averages} <= allowed


@EVERY
def test_zero_huge_and_tiny_gradients(name):
  s = subject(name)
  usual, _ = s.update(s.grads, s.state, s.params)
  for scale in (0.0, 1e-30, 1e30):
    grads = jax.tree.map(lambda g, c=scale: c * g, s.grads)
    updates, state = s.update(grads, s.state, s.params)
    again, _ = s.update(grads, state, s.params)
    chex.assert_tree_all_finite((updates, again))
    if ROWS[name].scale_free and scale:
      np.testing.assert_allclose(updates['w'], usual['w'], atol=1e-5)
    if scale == 0:
      decay = ROWS[name].arguments.get('weight_decay', 0.0)
      bound = abs(ROWS[name].learning_rate) * decay * optax.tree.norm(s.params)
      assert float(optax.tree.norm(updates)) <= 1.01 * float(bound)


@EVERY
def test_injected_numbers_do_the_same(name):
  s = subject(name)
  wrap = functools.partial(
    optax.inject_hyperparams, static_args=ROWS[name].static
  )
  injected = build(name, wrap=wrap)
  state = jax.jit(injected.init)(s.params)
  assert optax.tree.get_all_with_path(state, 'hyperparams')
  updates, after = jax.jit(injected.update)(s.grads, state, s.params)
  expected, _ = s.update(s.grads, s.state, s.params)
  chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@EVERY
def test_two_half_gradients_make_a_step(name):
  s = subject(name)
  optimizer = optax.MultiSteps(s.optimizer, 2)
  update = jax.jit(optimizer.update)
  state = optimizer.init(s.params)
  for share in (0.5, 1.5):
    grads = jax.tree.map(lambda g, c=share: c * g, s.grads)
    updates, state = update(grads, state, s.params)
    if share == 0.5:
      assert not any(np.any(u) for u in jax.tree.leaves(updates))
  expected, _ = s.update(s.grads, s.state, s.params)
  chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)


@EVERY
def test_goes_on_from_a_checkpoint(name):
  s = subject(name)
  _, state = s.update(s.grads, s.state, s.params)
  packed = flax.serialization.to_bytes(state)
  restored = flax.serialization.from_bytes(s.state, packed)
  chex.assert_trees_all_equal(restored, state)
  chex.assert_trees_all_equal(
    s.update(s.grads, restored, s.params), s.update(s.grads, state, s.params)
  )


BATCHES = np.asarray(gaussian(2, 16, 4, seed=7))


def regression(params, batch):
  """A loss whose gradient differs from device to device."""
  error = batch @ weight(params) - params.get('bias', 1.0)
  return jnp.mean(jnp.sum(error**2, axis=1))


@functools.cache
def alone(name):
  """Parameters after two steps on one device, nothing else in the tree."""
  s = subject(name)
  params, state = s.params, s.state
  for batch in BATCHES:
    grads = jax.grad(regression)(params, batch)
    updates, state = s.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_eight_devices_and_a_partition_go_where_each_goes_alone(how):
  """All rows and a frozen leaf as parts of one tree, masked for each other."""

  def loss(params, variables, batch, key):
    parts = [regression(params[name], batch) for name in ROWS]
    return sum(parts) + jnp.sum(params['frozen'] ** 2), (variables, {})

  frozen = jnp.ones((3, 3))
  optimizers = {name: subject(name).optimizer for name in ROWS}
  optimizers['frozen'] = optax.set_to_zero()
  optimizer = optax.partition(optimizers, {name: name for name in optimizers})
  params = {name: subject(name).params for name in ROWS} | {'frozen': frozen}
  run = parallelize(make_step(loss, optimizer), how, data_mesh())
  state, _ = run(init_state(params, optimizer), BATCHES, jax.random.key(0))
  expected = {name: alone(name) for name in ROWS} | {'frozen': frozen}
  chex.assert_trees_all_close(state.params, expected, rtol=1e-4, atol=1e-5)
