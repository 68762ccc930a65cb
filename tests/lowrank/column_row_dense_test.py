"""The layer: exact forward, unbiased backward, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank import column_row_dense, column_row_expected_error
from kexue.lowrank.column_row_dense import PASSES

KEY = jax.random.key(0)
DRAWS = 8000
EVERY = [
  ('norm_systematic', 'forward'),
  ('norm_systematic', 'backward'),
  ('norm_iid', 'forward'),
  ('norm_iid', 'backward'),
  ('uniform', 'forward'),
]


def arrays(dtype=np.float32):
  """Tokens x [4, 3, 5] of different norms, w [5, 2], cotangents [4, 3, 2]."""
  random = np.random.default_rng(0)
  x, w, g = (
    random.normal(size=shape) for shape in ((4, 3, 5), (5, 2), (4, 3, 2))
  )
  if np.issubdtype(dtype, np.complexfloating):
    x, w, g = x + 1j * x[::-1], w - 1j * w[::-1], g * (1 - 1j)
  x = x * np.geomspace(0.2, 4, 12).reshape(4, 3, 1)
  return [jnp.asarray(a).astype(dtype) for a in (x, w, g)]


@functools.partial(jax.jit, static_argnames=('rank', 'method', 'choose'))
def outcome(x, w, g, key, rank, method='norm_systematic', choose='forward'):
  layer = lambda x, w: column_row_dense(
    x, w, rank, key=key, method=method, choose=choose
  )
  y, pull = jax.vjp(layer, x, w)
  return y, *pull(g)


@functools.partial(jax.jit, static_argnames=('rank', 'method', 'choose'))
def weight_gradients(x, w, g, rank, method, choose):
  one = lambda key: outcome(x, w, g, key, rank, method, choose)[2]
  return jax.vmap(one)(jax.random.split(KEY, DRAWS))


@pytest.mark.parametrize(
  'dtype, choose',
  [
    (jnp.float32, 'forward'),
    (jnp.bfloat16, 'forward'),
    (jnp.complex64, 'backward'),
  ],
)
def test_all_tokens_make_the_layer(dtype, choose):
  x, w, g = arrays(dtype)
  y, pull = jax.vjp(jnp.matmul, x, w)
  found = outcome(x, w, g, KEY, 12, choose=choose)
  rtol = 5e-2 if dtype == jnp.bfloat16 else 1e-4
  for a, b in zip(found, (y, *pull(g)), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    a, b = np.complex64(a), np.complex64(b)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize('choose', PASSES)
def test_output_and_gradient_of_the_input_are_exact(choose):
  x, w, g = arrays()
  y, grad_x, grad_w = outcome(x, w, g, KEY, 4, choose=choose)
  np.testing.assert_allclose(y, x @ w, rtol=1e-5)
  np.testing.assert_allclose(grad_x, g @ w.T, rtol=1e-5)
  exact = np.einsum('abi,abo->io', x, g)
  assert np.linalg.norm(grad_w - exact) > 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize('method, choose', EVERY)
def test_the_gradient_of_the_weight_is_unbiased(method, choose):
  x, w, g = arrays()
  found = np.float64(weight_gradients(x, w, g, 4, method, choose))
  exact = np.einsum('abi,abo->io', x, g)
  z = (found.mean(0) - exact) / (found.std(0) / DRAWS**0.5)
  assert np.abs(z).max() < 4.5


def test_errors_are_those_of_the_theory():
  """Of the backward choice; the forward one has more, where norms of g vary."""
  x, w, g = arrays()
  g = g * np.geomspace(0.01, 10, 12).reshape(4, 3, 1)[::-1, ::-1]
  tokens, gradients = x.reshape(12, 5), g.reshape(12, 2)
  exact = tokens.T @ gradients
  error = {}
  for choose in PASSES:
    found = weight_gradients(x, w, g, 4, 'norm_iid', choose)
    squares = np.linalg.norm(found - exact, axis=(1, 2)) ** 2
    error[choose] = squares.mean(), squares.std() / DRAWS**0.5
  theory = column_row_expected_error(tokens.T, gradients, 4, method='norm_iid')
  mean, deviation = error['backward']
  assert abs(mean - float(theory)) < 4.5 * deviation
  # Drineas et al., lemma 4: p of another size.
  p = np.linalg.norm(tokens, axis=1) / np.linalg.norm(tokens, axis=1).sum()
  sizes = np.linalg.norm(tokens, axis=1) * np.linalg.norm(gradients, axis=1)
  theory = (np.sum(sizes**2 / p) - np.linalg.norm(exact) ** 2) / 4
  mean, deviation = error['forward']
  assert abs(mean - theory) < 4.5 * deviation
  assert error['backward'][0] < 0.8 * error['forward'][0]


def test_rows_that_are_kept():
  """Of x only `rank` rows cross over from the forward to the backward pass."""
  x, w, _ = arrays()
  for choose, rows in (('forward', 4), ('backward', 12)):
    layer = lambda x, w, c=choose: column_row_dense(x, w, 4, key=KEY, choose=c)
    _, pull = jax.vjp(layer, x, w)
    shapes = [a.shape for a in jax.tree.leaves(pull)]
    kept = sum(
      s[0] for s in shapes if len(s) == 2 and s != w.shape and s[1] == 5
    )
    assert kept == rows, shapes


@pytest.mark.parametrize('choose', PASSES)
def test_transformations_agree(choose):
  x, w, g = arrays()
  x, g = jnp.concatenate([x, 2 * x]), jnp.concatenate([g, g])
  gradient = lambda x, w, g, key: jax.grad(
    lambda w: jnp.sum(g * column_row_dense(x, w, 2, key=key, choose=choose))
  )(w)
  one = jax.jit(gradient)
  one_by_one = [one(a, w, b, KEY) for a, b in zip(x, g, strict=True)]
  if choose == 'forward':
    mapped = jax.jit(jax.vmap(gradient, (0, None, 0, None)))(x, w, g, KEY)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-5)
  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  shard = jax.shard_map(
    gradient,
    mesh=mesh,
    in_specs=(jax.P('d'), jax.P(), jax.P('d'), jax.P()),
    out_specs=jax.P(),
  )
  # The gradient of what is the same on all devices is a sum over them.
  found = jax.jit(shard)(x, w, g, KEY)
  np.testing.assert_allclose(found, sum(one_by_one), rtol=1e-4)


def test_zeros_are_finite():
  x, w, g = arrays()
  for choose in PASSES:
    for a, b in ((0 * x, g), (x, 0 * g)):
      _, grad_x, grad_w = outcome(a, w, b, KEY, 4, choose=choose)
      assert not grad_w.any() and np.isfinite(grad_x).all()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(rank=0), r'rank: got 0, expected an integer in 1..12, the rows of x'),
    (dict(rank=13), 'rank: got 13'),
    (dict(method='top_norm'), "method: got 'top_norm'"),
    (dict(method='bernoulli'), "method: got 'bernoulli'"),
    (dict(choose='never'), "choose: got 'never', expected one of 'forward'"),
    (dict(x=np.ones(5)), 'x: got shape'),
    (dict(w=np.ones((4, 2))), r'w: got shape \(4, 2\), expected \(5, None\)'),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  x, w, _ = arrays()
  with pytest.raises(ValueError, match=message):
    column_row_dense(**dict(x=x, w=w, rank=3, key=KEY) | change)
