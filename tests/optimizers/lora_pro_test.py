"""LoRA-Pro with Adam against NumPy, its pairs, its decay, where it runs."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.sharding import PartitionSpec as P

from kexue.optimizers import LoraProState, lora_pro

SCALE = 2.0
VARIANTS = ('efficient', 'full')


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


def gaussian(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def pair(*batch, dtype=np.float32):
  return {
    'a': gaussian(*batch, 6, 2).astype(dtype),
    'b': gaussian(*batch, 2, 5, seed=1).astype(dtype),
  }


def tree():
  """A batch of two pairs, and leaves that are in none."""
  return {
    'layers': pair(2),
    'norm': {'scale': np.ones(5, np.float32), 'a': np.ones((2, 3), np.float32)},
  }


def gradient(factors):
  """Of the factors, from some gradient of the weight."""
  a, b = factors['a'], factors['b']
  g = gaussian(*a.shape[:-1], b.shape[-1], seed=2).astype(a.dtype)
  return {'a': SCALE * g @ b.mT, 'b': SCALE * a.mT @ g}


def product(factors):
  return SCALE * factors['a'] @ factors['b']


def run(tx, params, grads, steps=1):
  state = tx.init(params)
  for _ in range(steps):
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  return jax.device_get(params)


def align(a, b, grad_a, grad_b, scale=SCALE):
  """The paper's formulas, by SVDs and Bartels-Stewart."""
  over_a, over_b = np.linalg.pinv(a.T @ a), np.linalg.pinv(b @ b.T)
  step_a = grad_a @ over_b / scale**2
  step_b = over_a @ grad_b @ (np.eye(b.shape[1]) - b.T @ over_b @ b) / scale**2
  x = scipy.linalg.solve_sylvester(a.T @ a, b @ b.T, -a.T @ step_a)
  return step_a + a @ x, step_b - x @ b


def aligned(params, grads, *, scale=SCALE, weight_decay=0.0):
  """The update that `lora_pro` makes around the identity."""
  a, b, *grads = (np.float64(x) for x in (*params.values(), *grads.values()))
  step_a, step_b = align(a, b, *grads, scale=scale)
  half = weight_decay / 2
  return {'a': step_a + half * a, 'b': step_b + half * b}


class NumpyAdam:
  def __init__(self):
    self.m = self.v = self.t = 0

  def __call__(self, g):
    self.t += 1
    self.m = 0.9 * self.m + 0.1 * g
    self.v = 0.999 * self.v + 0.001 * g**2
    v = self.v / (1 - 0.999**self.t)
    return self.m / (1 - 0.9**self.t) / (np.sqrt(v) + 1e-8)


def numpy_trajectory(gradient, a, b, variant, weight_decay, rate, steps):
  adams = NumpyAdam(), NumpyAdam()
  for _ in range(steps):
    g = gradient(SCALE * a @ b)
    step_a, step_b = align(a, b, SCALE * g @ b.T, SCALE * a.T @ g)
    if variant == 'efficient':
      step_a, step_b = adams[0](step_a), adams[1](step_b)
    else:
      u = adams[0](SCALE * (step_a @ b + a @ step_b))
      step_a, step_b = align(a, b, SCALE * u @ b.T, SCALE * a.T @ u)
    half = weight_decay / 2
    a, b = a - rate * (step_a + half * a), b - rate * (step_b + half * b)
  return a, b


@pytest.mark.parametrize('variant, start', [('efficient', 1.0), ('full', 0.0)])
def test_steps_of_adam_against_numpy(variant, start, double):
  params = pair(dtype=np.float64)
  params['b'] *= start
  target, weights = gaussian(6, 5, seed=2), gaussian(6, 5, seed=3) ** 2
  tx = optax.chain(
    lora_pro(
      optax.scale_by_adam(),
      scale=SCALE,
      variant=variant,
      weight_decay=0.3,
      damping=0.0,
    ),
    optax.scale_by_learning_rate(0.05),
  )
  loss = lambda p: jnp.sum(weights * (product(p) - target) ** 2) / 2

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  body = lambda carry: jax.lax.scan(step, carry, length=5)[0]
  after, state = jax.jit(body)((params, tx.init(params)))
  a, b = numpy_trajectory(
    lambda w: weights * (w - target), *params.values(), variant, 0.3, 0.05, 5
  )
  chex.assert_trees_all_close(after, {'a': a, 'b': b}, rtol=1e-6, atol=1e-9)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


def test_one_step_of_sgd_is_the_best_of_rank_2r(double):
  """From LoRA-GA's factors, the weight moves by the truncated gradient."""
  w, x, y = gaussian(6, 5), gaussian(9, 6, seed=1), gaussian(9, 5, seed=2)
  loss = lambda w: jnp.mean((x @ w - y) ** 2)
  full = np.asarray(jax.grad(loss)(w))
  u, s, vh = np.linalg.svd(full)
  adapter = {'a': 3 * u[:, :2], 'b': 0.5 * vh[2:4]}
  base = w - product(adapter)
  gradient = jax.grad(lambda p: loss(base + product(p)))(adapter)
  rate, best = 1e-6, (u[:, :4] * s[:4]) @ vh[:4]

  def moved(tx):
    tx = optax.chain(tx, optax.scale_by_learning_rate(rate))
    return (base + product(run(tx, adapter, gradient)) - w) / -rate

  tx = lora_pro(optax.identity(), scale=SCALE, damping=0.0)
  np.testing.assert_allclose(moved(tx), best, atol=1e-4)
  assert s[4] > 1e-2  # The rest of the full step, which no adapter can take.
  assert np.linalg.norm(moved(optax.identity()) - best) > 1


def test_aligning_twice_is_aligning_once():
  params = pair(2)
  once, twice = (
    run(
      lora_pro(optax.identity(), scale=SCALE, variant=variant),
      params,
      gradient(params),
    )
    for variant in VARIANTS
  )
  chex.assert_trees_all_close(once, twice, rtol=1e-4, atol=1e-4)


def test_full_shows_the_inner_one_the_matrix():
  keep = lambda updates, state, params: (updates, (updates, params))
  inner = optax.GradientTransformation(lambda params: (params, params), keep)
  tx = lora_pro(inner, scale=SCALE, variant='full')
  params = tree()
  state = tx.init(params)
  merged = state.inner_state[0]
  np.testing.assert_allclose(
    merged['layers']['a'], product(params['layers']), rtol=1e-5, atol=1e-6
  )
  assert merged['layers']['b'] == optax.MaskedNode()
  chex.assert_trees_all_equal(merged['norm'], params['norm'])
  _, after = jax.eval_shape(tx.update, params, state, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_only_pairs_decay():
  params, inner = tree(), optax.scale_by_adam()
  grads = jax.tree.map(np.sin, params)
  grads['layers'] = jax.tree.map(np.zeros_like, params['layers'])
  tx = lora_pro(inner, scale=SCALE, weight_decay=0.5)
  down = lambda tx: optax.chain(tx, optax.scale_by_learning_rate(0.01))
  after, plain = (run(down(x), params, grads) for x in (tx, inner))
  chex.assert_trees_all_equal(after['norm'], plain['norm'])
  np.testing.assert_allclose(
    product(after['layers']),
    (1 - 0.01 * 0.5 / 2) ** 2 * product(params['layers']),
    rtol=1e-4,
    atol=1e-6,
  )


class Adapter(NamedTuple):
  lora_b: jax.Array  # Before the other one among the leaves.
  lora_a: jax.Array


@pytest.mark.parametrize('variant', VARIANTS)
def test_types_are_kept(variant):
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), pair())
  tx = lora_pro(
    optax.scale_by_adam(),
    scale=jnp.float32(SCALE),
    variant=variant,
    weight_decay=jnp.float32(0.1),
  )
  state = jax.eval_shape(tx.init, params)
  updates, after = jax.eval_shape(tx.update, params, state, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
  # A mean of squares does not move in bfloat16.
  full = jnp.float32 if variant == 'full' else jnp.bfloat16
  assert after.inner_state.nu['a'].dtype == full


def test_names_containers_and_half_precision():
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), pair())
  grads = gradient(params)
  rename = lambda a, b: [Adapter(lora_a=a, lora_b=b)]
  renamed = rename(**params)
  tx = lora_pro(optax.identity(), scale=SCALE, pairs=('lora_a', 'lora_b'))
  updates, _ = jax.jit(tx.update)(rename(**grads), tx.init(renamed), renamed)
  updates = jax.tree.map(np.float64, updates)
  expected = rename(**aligned(params, grads))
  chex.assert_trees_all_close(updates, expected, atol=0.01)


def test_injected_hyperparameters():
  params = pair()
  tx = optax.inject_hyperparams(lora_pro)(
    optax.identity(), scale=1.0, weight_decay=0.1
  )
  state, update = tx.init(params), jax.jit(tx.update)
  assert {'scale', 'weight_decay', 'damping'} == set(state.hyperparams)
  update(gradient(params), state, params)
  new = {'scale': 3.0, 'weight_decay': 0.7}
  state.hyperparams.update({k: jnp.float32(v) for k, v in new.items()})
  updates, _ = update(gradient(params), state, params)
  assert update._cache_size() == 1
  expected = aligned(params, gradient(params), **new)
  chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('variant', VARIANTS)
def test_partition_and_accumulation(variant):
  params = {'dense': pair(), 'bias': np.ones(5, np.float32)}
  grads = {'dense': gradient(pair()), 'bias': np.ones(5, np.float32)}
  tx = lora_pro(optax.scale(1.0), scale=SCALE, variant=variant)
  # The leaves of the other label are gone for each.
  tx = optax.partition(
    {'lora': tx, 'rest': optax.scale(2.0)}, {'dense': 'lora', 'bias': 'rest'}
  )
  tx = optax.MultiSteps(tx, 2)
  state = tx.init(params)
  _, after = jax.eval_shape(tx.update, grads, state, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
  if variant == 'efficient':
    after = run(tx, params, grads, 2)
    steps = {'dense': aligned(pair(), grads['dense']), 'bias': 2.0}
    expected = jax.tree.map(np.add, params, steps)
    chex.assert_trees_all_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('variant', VARIANTS)
def test_extra_arguments_reach_the_inner_one(variant):
  params, seen = pair(), []

  def update(updates, state, params, *, value):
    seen.append(value)
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda _: (), update)
  tx = lora_pro(inner, scale=SCALE, variant=variant)
  state = tx.init(params)
  jax.eval_shape(
    lambda params: tx.update(params, state, params, value=7), params
  )
  assert seen == [7]


@pytest.mark.parametrize('variant, size', [('efficient', 12), ('full', 30)])
def test_the_state_can_be_mapped(variant, size):
  tx = lora_pro(optax.scale_by_adam(), scale=SCALE, variant=variant)
  state = tx.init(pair())
  assert isinstance(state, LoraProState)
  sizes = optax.tree.map_params(tx, lambda x: x.size, state)
  assert sizes.inner_state.mu['a'] == size


def test_devices():
  params = pair()
  tx = lora_pro(optax.identity(), scale=SCALE, weight_decay=0.1)

  def step(params, state, grads):
    grads = jax.lax.pmean(jax.tree.map(lambda g: g[0], grads), 'data')
    return tx.update(grads, state, params)

  state, grads = tx.init(params), gradient(params)
  expected = aligned(params, grads, weight_decay=0.1)
  mesh = jax.make_mesh(
    (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  specs = {'in_specs': (P(), P(), P('data')), 'out_specs': P()}
  sharded = jax.jit(jax.shard_map(step, mesh=mesh, **specs))
  mapped = jax.pmap(
    step,
    'data',
    in_axes=(None, None, 0),
    out_axes=None,
    devices=jax.devices()[:2],
  )
  spread = jax.tree.map(lambda g: np.stack([0 * g, 2 * g]), grads)
  split = jax.tree.map(lambda g: g[:, None], spread)
  for result in sharded(params, state, spread), mapped(params, state, split):
    chex.assert_trees_all_close(result[0], expected, rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_named():
  params, inner = pair(), optax.identity()
  make = lambda **kwargs: lora_pro(inner, **{'scale': 1.0} | kwargs)
  tx = make()
  for name, call in {
    "variant: got 'x'": lambda: make(variant='x'),
    "free: got 'x'": lambda: make(free='x'),
    'pairs: got ': lambda: make(pairs=('a', 'a')),
    'scale: got 0': lambda: make(scale=0),
    'weight_decay: got -0.1': lambda: make(weight_decay=-0.1),
    'damping: got -1': lambda: make(damping=-1),
    'params: got None': lambda: tx.update(params, tx.init(params)),
    "params: got 'no pair'": lambda: tx.init({'kernel': params['a']}),
    "params: got 'no .*'a' and 'b'": lambda: tx.init(params['a']),
    r"params\['x'\]: got \{'a': \(6, 2\), 'b': \(5, 2\)\}": lambda: tx.init(
      {'x': {'a': params['a'], 'b': params['b'].T}}
    ),
    r"params\[0\]: got \{'a': \(2,\)": lambda: tx.init(
      [{'a': np.ones(2), 'b': np.ones((2, 2))}]
    ),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
