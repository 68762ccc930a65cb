"""Auxiliary losses: gradients, what balanced means, padding, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from kexue.models import (
  balance_loss,
  route,
  router_z_loss,
  straight_through_load,
)

SCORES = {
  'softmax': jax.nn.softmax,
  'sigmoid': jax.nn.sigmoid,
  'relu': jax.nn.relu,
  'softplus': jax.nn.softplus,
}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(
  jax.jit, static_argnames=('k', 'score', 'form', 'scope', 'counted')
)
def loss_of(logits, k=2, bias=None, score='sigmoid', mask=None, **options):
  axis_name = options.get('axis_name')
  routing = route(logits, bias, k, score=score, mask=mask, axis_name=axis_name)
  return balance_loss(logits, routing, score=score, **options)


def share_and_mean(logits, k, bias, score, first=False):
  """F and P, by loops over the tokens."""
  experts = logits.shape[-1]
  f, p = np.zeros(experts), np.zeros(experts)
  for z in logits.reshape(-1, experts):
    rho = np.asarray(SCORES[score](z), np.float64)
    chosen = np.argsort(-(rho + bias), kind='stable')[: 1 if first else k]
    f[chosen] += 1
    p += rho / rho.sum()
  tokens = logits.size // experts
  return f / f.sum(), p / tokens


@pytest.mark.parametrize('score', ['softmax', 'sigmoid', 'softplus'])
def test_equals_the_formulas(score):
  logits, bias = normal(6, 5, 7), normal(7, seed=1) * 0.03
  value = functools.partial(loss_of, k=3, bias=bias, score=score)
  for counted in ('all', 'first'):
    f, p = share_and_mean(logits, 3, bias, score, counted == 'first')
    found = value(logits, counted=counted)
    np.testing.assert_allclose(found, 7 * f @ p, rtol=1e-5)
  f, p = share_and_mean(logits, 3, bias, score)
  square = value(logits, form='square')
  np.testing.assert_allclose(square, 3.5 * np.sum((f - 1 / 7) ** 2), rtol=1e-4)
  entropy = value(logits, form='entropy')
  np.testing.assert_allclose(entropy, np.log(7) + f @ np.log(f), rtol=1e-4)
  each = [np.dot(*share_and_mean(z, 3, bias, score)) * 7 for z in logits]
  found = value(logits, scope='sequence')
  np.testing.assert_allclose(found, np.mean(each), rtol=1e-5)
  assert abs(found - value(logits)) > 1e-3


def test_the_gradient_is_that_of_the_square_and_the_mean_score():
  """Article 10735: F P has the gradient of |P + sg[F - P] - Q|^2 / 2."""
  logits = normal(40, 6)
  grad = jax.jit(jax.grad(loss_of), static_argnames='form')
  product, square = grad(logits), grad(logits, form='square')
  np.testing.assert_allclose(product, square, atol=1e-7)
  assert np.abs(product).max() > 1e-4
  f, _ = share_and_mean(logits, 2, 0.0, 'sigmoid')

  def mean_of(weights):
    def mean(z):
      rho = jax.nn.sigmoid(z)
      return jnp.mean(rho / rho.sum(-1, keepdims=True), axis=0) @ weights

    return jax.jit(jax.grad(mean))(logits)

  weights = jnp.array(f, jnp.float32)
  np.testing.assert_allclose(product, 6 * mean_of(weights), atol=1e-7)
  entropy = grad(logits, form='entropy')
  np.testing.assert_allclose(entropy, mean_of(jnp.log(weights)), atol=1e-6)


def test_the_load_has_no_gradient_and_the_bias_none():
  by_bias = jax.grad(lambda b: loss_of(normal(30, 4), bias=b))(normal(4))
  np.testing.assert_array_equal(by_bias, 0)
  p, f = normal(5), normal(5, seed=1)
  both = jax.grad(
    lambda p, f: straight_through_load(p, f) @ jnp.arange(5.0), (0, 1)
  )
  by_p, by_f = both(p, f)
  np.testing.assert_array_equal(straight_through_load(p * 1e8, f), f)
  np.testing.assert_array_equal(by_p, np.arange(5))
  np.testing.assert_array_equal(by_f, 0)


@pytest.mark.parametrize('k', [1, 2, 4])
@pytest.mark.parametrize('counted', ['all', 'first'])
def test_balanced_is_one_for_every_k(k, counted):
  shift = jnp.stack([jnp.roll(jnp.array([4.0, 3, 2, 1]), i) for i in range(4)])
  for scope in ('batch', 'sequence'):
    value = loss_of(shift, k=k, counted=counted, scope=scope)
    np.testing.assert_allclose(value, 1, rtol=1e-6)
  for form in ('square', 'entropy'):
    value = loss_of(shift, k=k, counted=counted, form=form)
    np.testing.assert_allclose(value, 0, atol=1e-6)


def test_limits():
  """Collapse: n for a sure router of k = 1; and values below 1 exist."""
  sure = jnp.zeros((10, 8)).at[:, 3].set(50.0)
  np.testing.assert_allclose(loss_of(sure, k=1, score='softmax'), 8, rtol=1e-5)
  collapsed = loss_of(sure, k=1, score='softmax', form='entropy')
  np.testing.assert_allclose(collapsed, np.log(8), rtol=1e-3)
  # The load is with experts of low mean score: the bias sees to that.
  low = loss_of(sure, k=1, score='softmax', bias=jnp.zeros(8).at[0].set(2.0))
  assert low < 1e-5


def test_a_step_down_evens_the_load_out():
  for form in ('product', 'square', 'entropy'):
    logits = jnp.array(normal(200, 4) + np.array([0, 0, 0, 1.5], np.float32))
    grad = jax.grad(functools.partial(loss_of, k=1, form=form))
    moved = jnp.mean(grad(logits), axis=0)
    assert moved[3] > 0 and np.all(moved[:3] < 0)


def test_experts_without_load_and_routers_without_score_are_finite():
  logits = jnp.zeros((5, 6)).at[:, 0].set(1.0).at[2, 0].set(-1.0)
  for form in ('product', 'square', 'entropy'):
    run = functools.partial(loss_of, k=1, score='relu', form=form)
    value, gradient = jax.value_and_grad(run)(logits)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
  ('scope', 'form'), [('batch', 'square'), ('sequence', 'product')]
)
def test_padding_does_not_count(scope, form):
  logits = normal(3, 6, 4)
  mask = np.zeros((3, 6), bool)
  mask[0], mask[1, :4] = True, True  # Nothing of the last sequence.
  found = functools.partial(
    loss_of, mask=jnp.array(mask), scope=scope, form=form
  )
  if scope == 'batch':
    expected = loss_of(logits[mask], form=form)
  else:
    parts = logits[:1], logits[1:2, :4]
    expected = np.mean([loss_of(z, form=form, scope=scope) for z in parts])
  logits[~mask] = np.nan
  value, gradient = jax.value_and_grad(found)(logits)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert np.all(gradient[~mask] == 0) and np.all(np.isfinite(gradient))
  nothing = loss_of(logits, mask=mask & False, scope=scope)
  assert nothing == 0


@pytest.mark.parametrize(
  'options',
  [
    {'scope': 'batch', 'form': 'square'},
    {'scope': 'batch', 'counted': 'first'},
    {'scope': 'sequence'},
  ],
)
def test_devices_average_to_the_whole_batch(options):
  """Also where one device has more padding than another."""
  logits, mask = normal(16, 5, 4), normal(16, 5, seed=1) > 0
  mask[6] = False

  def loss(z, m, axis_name=None):
    routing = route(z, None, 2, mask=m, axis_name=axis_name)
    balance = balance_loss(z, routing, axis_name=axis_name, **options)
    return balance + router_z_loss(z, mask=m, axis_name=axis_name)

  value, gradient = jax.jit(jax.value_and_grad(loss))(logits, mask)
  local = jax.value_and_grad(functools.partial(loss, axis_name='data'))

  def step(z, m):
    """What a device adds to the mean over devices, of its own tokens."""
    value, gradient = local(z, m)
    return lax.pmean(value, 'data'), gradient / 8

  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  specs = {'in_specs': P('data'), 'out_specs': (P(), P('data'))}
  mapped = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(logits, mask)
  split = lambda x: x.reshape(8, 2, *x.shape[1:])
  pmapped = jax.pmap(step, 'data')(split(logits), split(mask))
  for found in (mapped, pmapped):
    np.testing.assert_allclose(
      found[0], np.broadcast_to(value, found[0].shape), rtol=1e-5
    )
    flat = np.asarray(found[1]).reshape(gradient.shape)
    np.testing.assert_allclose(flat, gradient, atol=1e-7)


def test_microbatches_share_their_load():
  logits = normal(4, 10, 6)
  routings = jax.jit(jax.vmap(lambda z: route(z, None, 2)))(logits)
  load = routings.load.sum(0)
  each = jax.jit(jax.vmap(lambda z, r: balance_loss(z, r._replace(load=load))))
  losses = each(logits, routings)
  whole = loss_of(logits)
  np.testing.assert_allclose(np.mean(losses), whole, rtol=1e-5)
  apart = np.mean([loss_of(z) for z in logits])
  assert abs(apart - whole) > 1e-3


def test_z_loss():
  logits = normal(3, 5, 6) * 4
  squares = np.log(np.exp(np.float64(logits)).sum(-1)) ** 2
  np.testing.assert_allclose(router_z_loss(logits), squares.mean(), rtol=1e-5)
  mask = normal(3, 5, seed=1) > 0
  logits[~mask] = np.nan
  value, gradient = jax.jit(jax.value_and_grad(router_z_loss))(
    logits, mask=mask
  )
  np.testing.assert_allclose(value, squares[mask].mean(), rtol=1e-5)
  assert np.all(gradient[~mask] == 0) and np.all(np.isfinite(gradient))
  assert router_z_loss(logits.astype('bfloat16'), mask=mask).dtype == 'float32'
  large = jnp.full((2, 3), 1e4)
  assert np.isfinite(router_z_loss(large))


def test_wrong_arguments_are_named():
  logits = jnp.ones((4, 6))
  routing = route(logits, None, 2)
  for name, call in {
    'score: got': lambda: balance_loss(logits, routing, score='tanh'),
    'form: got': lambda: balance_loss(logits, routing, form='cube'),
    'scope: got': lambda: balance_loss(logits, routing, scope='device'),
    'counted: got': lambda: balance_loss(logits, routing, counted='last'),
    'logits: got': lambda: balance_loss(logits[0], routing),
    'routing.indices: got': lambda: balance_loss(logits[:3], routing),
    'logits: got shape': lambda: router_z_loss(1.0),
    'mask: got': lambda: router_z_loss(logits, mask=jnp.ones(3)),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
