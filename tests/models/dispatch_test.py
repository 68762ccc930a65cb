"""Dispatch: every method is the dense one, in value and gradient."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from kexue.models import Routing, dispatch, dropped_choices, route

OPTIONS = {
  'dense': {'method': 'dense'},
  'blocks': {'backend': 'blocks', 'block_size': 4},
  'ragged': {'backend': 'ragged'},
  'capacity': {'method': 'capacity', 'capacity_factor': 100.0},
}


def expert(matmul, params, x):
  return matmul(jnp.tanh(matmul(x, params['w_in'])), params['w_out'])


def normal(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.array(values, jnp.float32)


def parameters(experts, dtype=jnp.float32):
  return {
    'w_in': normal(experts, 3, 6).astype(dtype),
    'w_out': normal(experts, 6, 5, seed=1).astype(dtype),
  }


def routed(indices, experts, seed=2):
  """Any experts, with random gates."""
  indices = jnp.array(indices, jnp.int32)
  load = jnp.bincount(indices.ravel(), length=experts).astype(jnp.int32)
  return Routing(indices, normal(*indices.shape, seed=seed), load)


@jax.jit
def every(x, routing, params):
  """Values and gradients of all methods, in one program."""

  def of(options):
    def loss(x, gates, params):
      y = dispatch(x, routing._replace(gates=gates), expert, params, **options)
      return jnp.sum(jnp.sin(3 * y)), y

    gradient = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    return gradient(x, routing.gates, params)

  return {name: of(options) for name, options in OPTIONS.items()}


def assert_close(found, expected):
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(
  st.sampled_from([(13, 5, 1), (7, 4, 4), (10, 6, 2)]),
  st.sampled_from(['random', 'one', 'few']),
  st.integers(0, 9),
)
@hypothesis.example((13, 5, 1), 'one', 0)
@hypothesis.example((10, 6, 2), 'few', 0)
def test_all_methods_are_the_dense_one(shape, kind, seed):
  """Experts without a token and with all, k = 1 and k = E, padding."""
  tokens, experts, k = shape
  rng = np.random.default_rng(seed)
  ranks = rng.random((tokens, experts)) - (kind == 'few') * np.arange(experts)
  if kind == 'one':
    ranks[:, 1] += 1
  indices = np.argsort(-ranks, axis=1)[:, :k]
  indices[rng.random(tokens) < 0.2 * (kind == 'random')] = experts
  x, params = normal(tokens, 3, seed=seed), parameters(experts)
  routing = routed(indices, experts)
  found = every(x, routing, params)
  expected = found.pop('dense')
  a, b = (np.asarray(params[n], np.float64) for n in ('w_in', 'w_out'))
  y = np.zeros((tokens, 5))
  for t, j in np.ndindex(tokens, k):
    if (e := indices[t, j]) < experts:
      y[t] += routing.gates[t, j] * (np.tanh(x[t] @ a[e]) @ b[e])
  np.testing.assert_allclose(expected[0][1], y, rtol=1e-4, atol=1e-5)
  for of_method in found.values():
    assert_close(of_method, expected)


def test_capacity_drops_the_overflow_and_says_how_much():
  x, params = normal(12, 3), parameters(4)
  routing = routed(
    [[0], [0], [0], [0], [0], [1], [1], [2], [2], [2], [2], [0]], 4
  )
  run = functools.partial(dispatch, x, expert_fn=expert, params=params)
  whole = run(routing, method='dense')
  for factor, kept, dropped in (
    (1.0, 3, 4),
    (0.1, 1, 9),
    (1.4, 5, 1),
    (4, 12, 0),
  ):
    y = run(routing, method='capacity', capacity_factor=factor)
    rank = [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 5]
    keeps = np.array(rank)[:, None] < kept
    np.testing.assert_allclose(y, np.where(keeps, whole, 0), atol=1e-5)
    assert dropped_choices(routing, capacity_factor=factor) == dropped
    assert np.sum(~keeps) == dropped


def test_with_route():
  """The bias has no gradient through a layer, the router has one."""
  x, params, router = normal(2, 9, 3), parameters(6), normal(3, 6, seed=3)
  mask = jnp.ones((2, 9), bool).at[1, 4:].set(False)

  def layer(x, router, bias, method):
    routing = route(x @ router, bias, 2, renormalize=True, mask=mask)
    return dispatch(x, routing, expert, params, method=method)

  def loss(method):
    total = lambda *args: jnp.sum(layer(*args, method) ** 2)
    return jax.jit(jax.grad(total, (0, 1, 2)))(x, router, normal(6, seed=4))

  found, expected = loss('sorted'), loss('dense')
  assert_close(found, expected)
  assert np.all(found[2] == 0) and np.any(found[1] != 0)
  y = layer(x, router, None, 'sorted')
  assert y.shape == (2, 9, 5) and np.all(y[1, 4:] == 0)
  assert np.all(jnp.any(y[mask] != 0, axis=-1))


def test_half_precision_is_added_up_in_float32():
  x, params = normal(10, 3).astype('bfloat16'), parameters(4, jnp.bfloat16)
  routing = route(normal(10, 4), None, 4)
  wide = jax.tree.map(lambda a: a.astype('float32'), (x, params))
  expected = dispatch(wide[0], routing, expert, wide[1], method='dense')
  every = jax.jit(
    lambda x, params: [
      dispatch(x, routing, expert, params, **o) for o in OPTIONS.values()
    ]
  )
  for y in every(x, params):
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      y.astype('float32'), expected, atol=0.06, rtol=0.03
    )


def test_any_function_of_rows_is_an_expert():
  """Gated, normalised, biased; parameters of any shape."""

  def glu(matmul, params, x):
    ones = jnp.ones_like(x[..., :1])
    up = matmul(x, params['up']) + matmul(ones, params['bias'])
    out = matmul(jax.nn.silu(matmul(x, params['gate'])) * up, params['down'])
    return out * lax.rsqrt(jnp.mean(out**2, -1, keepdims=True) + 1e-6)

  shapes = {'up': (3, 4), 'gate': (3, 4), 'bias': (1, 4), 'down': (4, 3)}
  params = {n: normal(5, *s, seed=i) for i, (n, s) in enumerate(shapes.items())}
  x, routing = normal(11, 3), route(normal(11, 5), None, 2)

  def gradients(**options):
    loss = lambda p, x: jnp.sum(
      jnp.sin(dispatch(x, routing, glu, p, **options))
    )
    return jax.jit(jax.grad(loss, (0, 1)))(params, x)

  expected = gradients(method='dense')
  assert_close(gradients(), expected)
  assert_close(gradients(backend='ragged'), expected)


def test_auto_is_the_loop_on_cpu():
  x, params, routing = normal(6, 3), parameters(4), routed([[0]] * 6, 4)
  text = lambda **o: str(
    jax.make_jaxpr(lambda x: dispatch(x, routing, expert, params, **o))(x)
  )
  assert 'ragged' not in text() and 'ragged' in text(backend='ragged')
  assert text() == text(backend='blocks')


def test_data_parallel():
  """The same on one device, by vmap, by pmap, and under shard_map."""
  x, params = normal(8, 6, 3), parameters(4)
  logits = normal(8, 6, 4, seed=5)

  def gradients(x, logits, params):
    def loss(x, params):
      routing = route(logits, None, 2)
      return jnp.sum(jnp.sin(dispatch(x, routing, expert, params)))

    return jax.grad(loss, (0, 1))(x, params)

  of_x, of_params = jax.jit(gradients)(x, logits, params)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    gradients,
    mesh=mesh,
    in_specs=(P('data'), P('data'), P()),
    out_specs=(P('data'), P()),
  )
  assert_close(jax.jit(mapped)(x, logits, params), (of_x, of_params))
  for over in (jax.vmap, jax.pmap):
    found = jax.jit(over(gradients, in_axes=(0, 0, None)))(x, logits, params)
    assert_close(found[0], of_x)
    assert_close(jax.tree.map(lambda g: g.sum(0), found[1]), of_params)


@pytest.mark.parametrize('method', ['sorted', 'capacity'])
def test_experts_over_devices(method):
  """Experts along one axis, data along another; drops are those of a device."""
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), ('data', 'expert'), auto)
  x, logits, params = normal(16, 3, 3), normal(16, 3, 8, seed=5), parameters(8)
  bias = normal(8, seed=6)
  both = ('data', 'expert')

  def layer(x, logits, params, axis_name=None):
    axes = both if axis_name else None
    routing = route(logits, bias, 3, axis_name=axes)
    y = dispatch(x, routing, expert, params, method=method, axis_name=axis_name)
    return y, routing.load, dropped_choices(routing, axis_name=axes)

  mapped = jax.shard_map(
    functools.partial(layer, axis_name='expert'),
    mesh=mesh,
    in_specs=(P(both), P(both), P('expert')),
    out_specs=(P(both), P(), P()),
  )

  def apart(x, logits, params):
    split = lambda a: a.reshape(8, 2, *a.shape[1:])
    each = jax.vmap(layer, (0, 0, None))
    y, load, drops = each(split(x), split(logits), params)
    return y.reshape(16, 3, -1), load.sum(0), drops.sum()

  def gradients(run):
    loss = lambda x, p: jnp.sum(jnp.sin(run(x, logits, p)[0]))
    return jax.jit(
      lambda x, p: (run(x, logits, p), jax.grad(loss, (0, 1))(x, p))
    )

  found, expected = gradients(mapped)(x, params), gradients(apart)(x, params)
  assert_close(found, expected)
  (_, load, drops), _ = found
  assert load.sum() == 16 * 3 * 3 and drops > 0


def test_wrong_arguments_are_named():
  x, params = normal(6, 3), parameters(4)
  routing = routed([[0, 1]] * 6, 4)
  run = functools.partial(dispatch, x, routing, expert, params)
  one = jax.make_mesh((3,), ('e',), (jax.sharding.AxisType.Auto,))
  over = lambda **options: jax.shard_map(
    functools.partial(run, axis_name='e', **options),
    mesh=one,
    in_specs=(),
    out_specs=P(),
  )()
  fewer = {**params, 'w_out': params['w_out'][:3]}
  for name, call in {
    'method: got': lambda: run(method='loop'),
    'backend: got': lambda: run(backend='triton'),
    'block_size: got 0': lambda: run(block_size=0),
    'capacity_factor: got 0': lambda: run(capacity_factor=0),
    'capacity_factor: got -1': lambda: dropped_choices(
      routing, capacity_factor=-1
    ),
    r'x: got shape \(3,\)': lambda: dispatch(x[0], routing, expert, params),
    'routing.indices: got': lambda: dispatch(x[:5], routing, expert, params),
    'routing.gates: got': lambda: dispatch(
      x, routing._replace(gates=routing.gates[:, :1]), expert, params
    ),
    r'params: got \(3, 6, 5\)': lambda: dispatch(x, routing, expert, fewer),
    r'params: got shape \(\)': lambda: dispatch(x, routing, expert, 1.0),
    "axis_name: got 'e'": lambda: over(method='dense'),
    'axis_name: got 3': over,
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
