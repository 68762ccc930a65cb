"""Starts of adapters against NumPy's SVD, and the weight that stays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kexue.lowrank import (
  LoRA,
  lora_apply,
  lora_delta,
  lora_init,
  lora_merge,
  lora_scale,
)
from kexue.lowrank.lora import METHODS
from kexue.optimizers import lora_pro

KEY = jax.random.key(0)
IN, OUT, RANK = 12, 10, 3


def gaussian(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


W, G = gaussian(IN, OUT), gaussian(IN, OUT, seed=1)


def start(method, w=W, rank=RANK, gradient=G, key=KEY, **options):
  gradient = gradient if method == 'lora_ga' else None
  return lora_init(key, w, rank, method=method, gradient=gradient, **options)


def missed(lora, g):
  """What the first step misses of the full gradient, for `s c = 1`."""
  a, b = (np.float64(x) * np.float64(lora.scale) for x in (lora.a, lora.b))
  return np.linalg.norm(a @ a.T @ g + g @ b.T @ b - g)


def tail(g, count):
  return np.sqrt((np.linalg.svd(g, compute_uv=False)[count:] ** 2).sum())


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_weight_stays(method, dtype):
  w = jnp.asarray(W, dtype)
  lora = start(method, w, alpha=16.0)
  assert lora.a.dtype == lora.b.dtype == lora.base.dtype == dtype
  chex.assert_shape(lora, [(IN, RANK), (RANK, OUT), (IN, OUT), ()])
  a, b, base = (np.float64(x) for x in lora[:3])
  weight = base + float(lora.scale) * a @ b
  # Nothing but the rounding of `base`, whatever was lost in the factors.
  ulp = float(jnp.finfo(dtype).eps) * np.abs(base)
  slack = 1e-5 * np.abs(weight).max()
  assert (np.abs(weight - np.float64(w)) <= 0.51 * ulp + slack).all()
  merged = lora_merge(lora)
  assert merged.dtype == dtype
  np.testing.assert_allclose(
    np.float64(merged), np.float64(w), atol=2 * ulp.max() + slack
  )


def test_factors_may_be_wider_than_the_weight():
  w = jnp.asarray(W, jnp.bfloat16)
  lora = start('pissa', w, dtype=jnp.float32)
  assert lora.a.dtype == lora.b.dtype == jnp.float32
  assert lora.base.dtype == lora_merge(lora).dtype == jnp.bfloat16
  assert lora_apply(w.T, lora).dtype == jnp.bfloat16


def test_kaiming_is_uniform_and_zero():
  lora = start('kaiming', gaussian(400, 50), 20)
  np.testing.assert_array_equal(lora.b, 0)
  np.testing.assert_array_equal(lora.base, gaussian(400, 50))
  assert 0.999 / 20 < np.abs(lora.a).max() <= 1 / 20
  np.testing.assert_allclose(np.std(lora.a), 1 / 20 / np.sqrt(3), rtol=0.03)
  np.testing.assert_allclose(np.mean(lora.a), 0, atol=2e-3)


def test_pissa_is_the_principal_part():
  lora = start('pissa', alpha=8.0)
  u, s, vh = np.linalg.svd(W)
  principal = u[:, :RANK] * s[:RANK] @ vh[:RANK]
  scale = 8 / np.sqrt(RANK)
  np.testing.assert_allclose(scale * lora.a @ lora.b, principal, atol=1e-5)
  np.testing.assert_allclose(lora.base, W - principal, atol=1e-5)
  for gram in (lora.a.T @ lora.a, lora.b @ lora.b.T):  # Evenly shared.
    np.testing.assert_allclose(gram, np.diag(s[:RANK] / scale), atol=1e-5)


@pytest.mark.parametrize('alpha', [None, 16.0])
def test_lora_ga_misses_the_least(alpha):
  lora = start('lora_ga', ga_scale='gd', alpha=alpha)
  np.testing.assert_allclose(missed(lora, G), tail(G, 2 * RANK), rtol=1e-5)
  # Larger singular values to `a`, and no pair to both.
  u, s, vh = np.linalg.svd(G)
  seen = [np.abs(u.T @ lora.a), np.abs(lora.b @ vh.T).T]
  for columns, first in zip(seen, (0, RANK), strict=True):
    size = 1 / float(lora.scale)
    expected = np.zeros_like(columns)
    expected[first + np.arange(RANK), np.arange(RANK)] = size
    np.testing.assert_allclose(columns, expected, atol=1e-4)


def test_no_other_start_misses_less():
  best = tail(G, 2 * RANK)
  for method in ('kaiming', 'pissa'):
    assert missed(start(method), G) > 1.01 * best
  for seed in range(5):
    a, b = gaussian(IN, RANK, seed=seed), gaussian(RANK, OUT, seed=seed)
    assert missed(LoRA(np.linalg.qr(a)[0], 0 * b, W, 1.0), G) > 1.01 * best


def test_the_first_step_of_descent_is_that_of_full_fine_tuning():
  """Formulas aside: one small step of SGD on a quadratic loss."""
  lora = start('lora_ga', gradient=W - G, ga_scale='gd', alpha=4.0)
  loss = lambda w: 0.5 * ((w - G) ** 2).sum()
  pair = {'a': lora.a, 'b': lora.b}
  merged = lambda pair: lora_merge(lora._replace(**pair))
  grads = jax.grad(lambda pair: loss(merged(pair)))(pair)
  rate = 1e-3
  stepped = jax.tree.map(lambda x, g: x - rate * g, pair, grads)
  moved = (merged(stepped) - merged(pair)) / -rate
  error = np.linalg.norm(moved - (W - G))
  np.testing.assert_allclose(error, tail(W - G, 2 * RANK), rtol=2e-2)


def test_scales_of_lora_ga():
  size = lambda **kw: np.linalg.norm(start('lora_ga', **kw).a, axis=0)
  np.testing.assert_allclose(size(), OUT**0.25 / 4, rtol=1e-5)
  np.testing.assert_allclose(size(gamma=64.0), OUT**0.25 / 8, rtol=1e-5)
  np.testing.assert_allclose(size(ga_scale='unit', alpha=9.0), 1, rtol=1e-5)
  gd = size(ga_scale='gd', alpha=9.0, scaling='lora')
  np.testing.assert_allclose(gd, RANK / 9, rtol=1e-5)


def test_scale_of_the_adapter():
  assert lora_scale(4) == lora_scale(9, scaling='lora') == 1
  assert (
    lora_scale(4, alpha=8) == 4 and lora_scale(4, alpha=8, scaling='lora') == 2
  )
  np.testing.assert_allclose(start('kaiming', alpha=6.0).scale, 6 / 3**0.5)
  traced = jax.jit(lambda alpha: start('pissa', alpha=alpha))(6.0)
  chex.assert_trees_all_close(traced, start('pissa', alpha=6.0), atol=1e-5)


@pytest.mark.parametrize('shape', [(4, 6), (6, 4), (1, 5), (5, 1)])
def test_ranks_up_to_the_largest(shape):
  rank = min(shape)
  w, g = gaussian(*shape), gaussian(*shape, seed=1)
  for method in METHODS:
    lora = start(method, w, rank, g)
    chex.assert_trees_all_close(lora_merge(lora), w, atol=1e-5)
  lora = start('lora_ga', w, rank, g, ga_scale='gd')
  np.testing.assert_allclose(missed(lora, g), 0, atol=1e-5)
  np.testing.assert_array_equal(lora.b, 0)  # No pair is left for it.
  if rank == 4:
    lora = start('lora_ga', w, 3, g, ga_scale='gd')
    np.testing.assert_allclose(missed(lora, g), 0, atol=1e-5)
    assert np.linalg.matrix_rank(lora.b) == 1


@pytest.mark.parametrize('exact', [True, False])
@pytest.mark.parametrize('size', [0.0, 1e-30, 1e30])
def test_any_gradient_and_weight_give_a_trainable_start(size, exact):
  size = np.float32(size)
  low = np.outer(np.ones(IN), np.ones(OUT)).astype(np.float32)  # Rank one.
  for g in (size * G, size * low):
    lora = start('lora_ga', gradient=g, exact=exact)
    chex.assert_tree_all_finite(lora)
    np.testing.assert_allclose(
      lora.a.T @ lora.a, np.eye(RANK) * OUT**0.5 / 16, atol=1e-4
    )
    chex.assert_trees_all_close(lora_merge(lora), W, atol=1e-5)
  lora = start('pissa', size * W, exact=exact)
  chex.assert_tree_all_finite(lora)
  chex.assert_trees_all_close(lora_merge(lora), size * W, atol=1e-5 * size)


def test_randomized_is_near_the_exact():
  u, _, vh = np.linalg.svd(gaussian(80, 60))
  decaying = np.float32(u[:, :60] * 0.8 ** np.arange(60) @ vh)
  near = start('lora_ga', decaying, 4, decaying, exact=False, ga_scale='gd')
  least = tail(decaying, 8)
  assert least <= missed(near, decaying) <= 1.001 * least
  exact, near = (
    start('pissa', decaying, 4, exact=exact) for exact in (True, False)
  )
  np.testing.assert_allclose(near.base, exact.base, atol=1e-3)
  assert np.abs(near.base - exact.base).max() > 0  # Another way indeed.


def test_large_matrices_go_the_randomized_way():
  chosen = lambda side: str(
    jax.make_jaxpr(lambda w: start('pissa', w, 2))(jnp.zeros((side, 600)))
  )
  assert 'f32[600,4]' in chosen(513) and 'f32[600,4]' not in chosen(512)


def test_layers_in_a_stack():
  w, g = gaussian(2, IN, OUT), gaussian(2, IN, OUT, seed=1)
  for method in METHODS:
    stack = start(method, w, gradient=g, alpha=4.0)
    chex.assert_shape(
      stack, [(2, IN, RANK), (2, RANK, OUT), (2, IN, OUT), (2,)]
    )
    chex.assert_trees_all_close(lora_merge(stack), w, atol=1e-5)
    if method != 'kaiming':
      alone = start(method, w[1], gradient=g[1], alpha=4.0)
      chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], stack), alone, atol=1e-5
      )
  assert np.abs(stack.a[0] - stack.a[1]).max() > 0.1
  x = gaussian(2, 5, IN, seed=2)
  y = jax.vmap(lora_apply)(x, stack)
  np.testing.assert_allclose(y, x @ w, atol=1e-4)
  body = lambda _, inputs: (None, lora_apply(*inputs))
  chex.assert_trees_all_close(jax.lax.scan(body, None, (x, stack))[1], y)


def test_apply_is_the_merged_product():
  lora = start('pissa', alpha=2.0)._replace(b=gaussian(RANK, OUT, seed=3))
  x = gaussian(2, 5, IN, seed=2)
  expected = np.float64(x) @ np.float64(lora_merge(lora))
  for y in (lora_apply(x, lora), jax.jit(lora_apply)(x, lora)):
    np.testing.assert_allclose(y, expected, atol=1e-4)
  np.testing.assert_allclose(
    lora_apply(x[0, 0], lora), expected[0, 0], atol=1e-4
  )


def test_gradients_go_to_the_adapter_alone():
  lora = start('pissa', alpha=2.0)
  x = jnp.asarray(gaussian(5, IN, seed=2))
  weigh = jnp.asarray(gaussian(5, OUT, seed=4))
  by_apply = lambda lora: (lora_apply(x, lora) * weigh).sum()
  by_merge = lambda lora: ((x @ lora_merge(lora)) * weigh).sum()
  full = x.T @ weigh
  for loss in (by_apply, by_merge):
    grads = jax.grad(loss)(lora)
    np.testing.assert_array_equal(grads.base, 0)
    np.testing.assert_array_equal(grads.scale, 0)
    np.testing.assert_allclose(grads.a, lora.scale * full @ lora.b.T, atol=1e-4)
    np.testing.assert_allclose(grads.b, lora.scale * lora.a.T @ full, atol=1e-4)


def test_half_precision_stays_so():
  lora = start('lora_ga', jnp.asarray(W, jnp.bfloat16))
  x = jnp.asarray(gaussian(5, IN, seed=2), jnp.bfloat16)
  y = lora_apply(x, lora)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(y), np.float32(x) @ W, atol=0.3)


def test_double_precision_is_kept():
  with jax.enable_x64(True):
    w, g = np.float64(W), np.float64(G)
    lora = start('lora_ga', w, gradient=g, ga_scale='gd')
    chex.assert_type([*lora], jnp.float64)
    np.testing.assert_allclose(missed(lora, g), tail(g, 6), rtol=1e-12)
    np.testing.assert_allclose(lora_merge(lora), w, atol=1e-14)


def test_training_then_the_delta_on_the_original_weight():
  begin = start('lora_ga', alpha=4.0)
  x, y = gaussian(20, IN, seed=2), gaussian(20, OUT, seed=3)
  pair = {'a': begin.a, 'b': begin.b}
  scale = float(begin.scale)
  tx = optax.chain(
    lora_pro(optax.scale_by_adam(), scale=scale), optax.scale(-0.01)
  )
  loss = lambda pair: ((lora_apply(x, begin._replace(**pair)) - y) ** 2).mean()

  @jax.jit
  def step(pair, state):
    updates, state = tx.update(jax.grad(loss)(pair), state, pair)
    return optax.apply_updates(pair, updates), state

  first, state = loss(pair), tx.init(pair)
  for _ in range(10):
    pair, state = step(pair, state)
  assert loss(pair) < 0.95 * first
  end = begin._replace(**pair)
  delta = lora_delta(end, begin)
  chex.assert_shape([delta.a, delta.b], [(IN, 2 * RANK), (2 * RANK, OUT)])
  restored = delta._replace(base=W)
  for weight in (lora_merge(delta), lora_merge(restored)):
    np.testing.assert_allclose(weight, lora_merge(end), atol=1e-5)
  np.testing.assert_allclose(
    lora_apply(x, restored), lora_apply(x, end), atol=1e-4
  )


def test_the_key_decides():
  twice = [start('kaiming'), start('kaiming')]
  chex.assert_trees_all_equal(*twice)
  other = start('kaiming', key=jax.random.key(1))
  assert np.abs(other.a - twice[0].a).max() > 0.01


def test_under_vmap_and_shard_map():
  w, g = gaussian(8, IN, OUT), gaussian(8, IN, OUT, seed=1)
  run = lambda w, g: start('lora_ga', w, gradient=g)
  together = run(w, g)
  mapped = jax.jit(jax.vmap(run))(w, g)
  mesh = Mesh(np.array(jax.devices()), 'data')
  sharded = jax.jit(
    jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=P('data'))
  )(w, g)
  chex.assert_trees_all_close(together, mapped, sharded, atol=1e-5)


@pytest.mark.parametrize(
  'message, call',
  {
    'rank: got 11': lambda: start('pissa', rank=11),
    'rank: got 0': lambda: start('pissa', rank=0),
    "rank: got 'a'": lambda: lora_scale('a'),
    "method: got 'x'": lambda: start('x'),
    'w: got shape': lambda: start('pissa', W[0]),
    'w: got dtype': lambda: start('pissa', np.ones((4, 4), int), 2),
    "gradient: got 'none', expected one": lambda: start(
      'lora_ga', gradient=None
    ),
    "gradient: got 'one', expected none": lambda: lora_init(
      KEY, W, RANK, method='pissa', gradient=G
    ),
    'gradient: got shape': lambda: start('lora_ga', gradient=G.T),
    "scaling: got 'x'": lambda: start('pissa', scaling='x'),
    "ga_scale: got 'x'": lambda: start('lora_ga', ga_scale='x'),
    'gamma: got 0': lambda: start('lora_ga', gamma=0),
    'alpha: got -1': lambda: start('pissa', alpha=-1),
    'lora.base: got shape': lambda: lora_apply(
      W, start('pissa', gaussian(2, IN, OUT))
    ),
    'x: got shape': lambda: lora_apply(W, start('pissa')),
    'start.a: got shape': lambda: lora_delta(
      start('pissa', rank=2), start('pissa')
    ),
  }.items(),
)
def test_wrong_arguments_are_named(message, call):
  with pytest.raises(ValueError, match=f'^{message}'):
    call()
