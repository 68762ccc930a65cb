"""Routing: the bias chooses and does nothing else, groups, padding, ties."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.models import route
from kexue.models.routing import SCORES

ORACLES = {
  'softmax': lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
  'sigmoid': lambda z: 1 / (1 + np.exp(-z)),
  'relu': lambda z: np.maximum(z, 0),
  'softplus': lambda z: np.log1p(np.exp(z)),
}
STATIC = (
  *('k', 'score', 'gate', 'renormalize', 'scale', 'groups', 'kept_groups'),
)
jitted = jax.jit(route, static_argnames=STATIC)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(
  st.sampled_from([(7, 6, 2), (7, 6, 6), (1, 1, 1)]),
  st.sampled_from(sorted(SCORES)),
  st.sampled_from([None, *sorted(SCORES)]),
  st.booleans(),
  st.integers(0, 9),
)
def test_equals_a_loop(shape, score, gate, renormalize, seed):
  tokens, experts, k = shape
  logits, bias = normal(tokens, experts, seed=seed), normal(experts, seed=99)
  found = jitted(
    logits, bias, k, score=score, gate=gate, renormalize=renormalize, scale=2.5
  )
  assert found.indices.dtype == found.load.dtype == jnp.int32
  load = np.zeros(experts, int)
  for t in range(tokens):
    chosen = np.argsort(-(ORACLES[score](logits[t]) + bias), kind='stable')[:k]
    gates = ORACLES[gate or score](logits[t])[chosen]
    if renormalize and gates.sum() > 0:
      gates /= gates.sum()
    np.testing.assert_array_equal(found.indices[t], chosen)
    np.testing.assert_allclose(found.gates[t], 2.5 * gates, rtol=1e-5)
    load[chosen] += 1
  np.testing.assert_array_equal(found.load, load)


@pytest.mark.parametrize('renormalize', [False, True])
def test_the_bias_chooses_and_does_nothing_else(renormalize):
  logits = normal(9, 5)
  run = functools.partial(jitted, k=2, renormalize=renormalize)
  none, zero = run(logits, None), run(logits, jnp.zeros(5))
  same, other = run(logits, jnp.full(5, 3.0)), run(logits, normal(5) * 3)
  for found in (zero, same):
    for a, b in zip(found, none, strict=True):
      np.testing.assert_array_equal(a, b)
  assert np.any(other.indices != none.indices)
  score = jax.nn.sigmoid(logits)
  gates = np.take_along_axis(np.asarray(score), np.asarray(other.indices), -1)
  if renormalize:
    gates /= gates.sum(-1, keepdims=True)
  np.testing.assert_allclose(other.gates, gates, rtol=1e-6)

  def loss(logits, bias):
    gates = route(logits, bias, 2, renormalize=renormalize).gates
    return jnp.sum(gates * jnp.array([1.0, 2.0]))

  by_logits, by_bias = jax.jit(jax.grad(loss, (0, 1)))(logits, normal(5))
  np.testing.assert_array_equal(by_bias, 0)
  chosen = np.asarray(run(logits, normal(5)).indices)
  used = (chosen[..., None] == np.arange(5)).any(1)
  assert np.all((by_logits != 0) == used)


def test_gates_have_the_gradient_of_the_gate():
  logits = normal(4, 5)
  loss = lambda z: route(z, None, 2, gate='softplus').gates.sum()
  chosen = np.argsort(-logits, -1)[:, :2]
  expected = np.zeros_like(logits)
  np.put_along_axis(
    expected,
    chosen,
    np.take_along_axis(ORACLES['sigmoid'](logits), chosen, -1),
    -1,
  )
  np.testing.assert_allclose(jax.grad(loss)(logits), expected, rtol=1e-5)


def test_ties_and_nothing_but_zeros():
  """A router of relu may shut every expert: no gate, no NaN, the first ones."""
  logits = -jnp.ones((3, 40)).at[1, 35].set(-2.0)
  for renormalize in (False, True):
    gates = lambda z, r=renormalize: route(
      z, None, 3, score='relu', renormalize=r
    )
    found = gates(logits)
    np.testing.assert_array_equal(found.indices[0], [0, 1, 2])
    np.testing.assert_array_equal(found.indices[1], [35, 0, 1])
    np.testing.assert_array_equal(found.gates[0], 0)
    gradient = jax.grad(lambda z, g=gates: g(z).gates.sum())(logits)
    assert np.all(np.isfinite(gradient))


def test_padding_goes_nowhere():
  logits = normal(2, 6, 4)
  mask = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
  expected = jitted(logits, None, 2, renormalize=True)
  logits[~mask] = np.nan
  found = jitted(logits, None, 2, renormalize=True, mask=mask)
  np.testing.assert_array_equal(found.indices[mask], expected.indices[mask])
  np.testing.assert_array_equal(found.gates[mask], expected.gates[mask])
  np.testing.assert_array_equal(found.indices[~mask], 4)
  np.testing.assert_array_equal(found.gates[~mask], 0)
  assert found.load.sum() == 10
  loss = lambda z: route(z, None, 2, renormalize=True, mask=mask).gates[..., 0]
  gradient = np.asarray(jax.grad(lambda z: loss(z).sum())(logits))
  assert np.all(gradient[~mask] == 0) and np.all(np.isfinite(gradient))


def test_half_precision_is_routed_in_float32():
  """bfloat16 does not tell a score of 0.5 from one with a small bias."""
  logits = jnp.zeros((1, 4), jnp.bfloat16)
  bias = jnp.array([0.0, 1e-3, 2e-3, 0.0])
  found = route(logits, bias, 2)
  assert found.gates.dtype == jnp.float32
  assert found.indices.tolist() == [[2, 1]]
  rounded = (jax.nn.sigmoid(logits) + bias.astype('bfloat16')).astype(
    'bfloat16'
  )
  assert jax.lax.top_k(rounded, 2)[1].tolist() != [[2, 1]]
  logits = jnp.array(normal(50, 8), jnp.bfloat16)
  for a, b in zip(
    route(logits, bias[:1].repeat(8), 3),
    route(logits.astype('float32'), bias[:1].repeat(8), 3),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_groups_are_those_of_the_two_best():
  logits, bias = normal(50, 12), normal(12, seed=1) * 0.3
  found = jitted(logits, bias, 3, groups=4, kept_groups=2)
  for t in range(50):
    score = ORACLES['sigmoid'](logits[t]) + bias
    ranks = np.sort(score.reshape(4, 3))[:, -2:].sum(1)
    open_groups = np.argsort(-ranks, kind='stable')[:2]
    shut = ~np.isin(np.arange(12) // 3, open_groups)
    chosen = np.argsort(-np.where(shut, -np.inf, score), kind='stable')[:3]
    np.testing.assert_array_equal(found.indices[t], chosen)
  free = jitted(logits, bias, 3)
  assert np.any(found.indices != free.indices)
  every = jitted(logits, bias, 3, groups=4, kept_groups=4)
  np.testing.assert_array_equal(every.indices, free.indices)
  # All experts of one group, and groups of one expert.
  one = jitted(logits, bias, 3, groups=4, kept_groups=1)
  assert np.all(np.ptp(one.indices // 3, axis=-1) == 0)
  single = jitted(logits, bias, 3, groups=12, kept_groups=3)
  np.testing.assert_array_equal(single.indices, free.indices)


def test_devices_add_their_loads_and_nothing_else():
  logits, bias = normal(8, 6, 5), normal(5)
  mask = normal(8, 6, seed=1) > -0.5
  expected = jitted(logits, bias, 2, mask=mask)
  run = lambda z, m: route(z, bias, 2, mask=m, axis_name='data')
  found = jax.pmap(run, 'data')(logits, mask)
  np.testing.assert_array_equal(found.load, [expected.load] * 8)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  specs = type(expected)(P('data'), P('data'), P())
  mapped = jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=specs)
  for a, b, c in zip(
    expected, found, jax.jit(mapped)(logits, mask), strict=True
  ):
    np.testing.assert_array_equal(c, a)
    assert a.ndim == 1 or np.array_equal(b, a)
  every = jax.vmap(lambda z, m: route(z, bias, 2, mask=m))(logits, mask)
  np.testing.assert_array_equal(every.load.sum(0), expected.load)


def test_wrong_arguments_are_named():
  z = jnp.ones((4, 6))
  for name, call in {
    'score: got': lambda: route(z, None, 1, score='tanh'),
    'gate: got': lambda: route(z, None, 1, gate='tanh'),
    'k: got 0': lambda: route(z, None, 0),
    'k: got 7': lambda: route(z, None, 7),
    'k: got 1.0': lambda: route(z, None, 1.0),
    'k: got 3': lambda: route(z, None, 3, groups=3, kept_groups=1),
    'groups: got 4': lambda: route(z, None, 1, groups=4),
    'groups: got 0': lambda: route(z, None, 1, groups=0),
    'kept_groups: got 3': lambda: route(z, None, 1, groups=2, kept_groups=3),
    'bias: got': lambda: route(z, jnp.ones(5), 1),
    'mask: got': lambda: route(z, None, 1, mask=jnp.ones(3)),
    'logits: got': lambda: route(1.0, None, 1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
