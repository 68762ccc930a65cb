"""Clipping statistics: the worked example, identities, scales, types."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from kexue.optimizers import clip_by_descent
from kexue.scaling import clipping_statistics, sign_learning_rate

statistics = jax.jit(clipping_statistics)
G = np.array([3.0, -4.0, 0.0, 12.0])


def tree(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
    'a': jnp.asarray(rng.normal(size=(5, 6)), dtype),
    'b': [jnp.asarray(rng.normal(size=7), dtype), jnp.zeros((0, 3), dtype)],
  }


def flat(x):
  return np.concatenate([np.ravel(np.float64(y)) for y in jax.tree.leaves(x)])


def test_worked_example():
  with jax.enable_x64(True):
    found = statistics(jnp.asarray(G), jnp.sign(G))
    assert (found.norm, found.norm_l1, found.clipped) == (13, 19, 1)
    assert f'{found.sign_cosine:.8g}' == f'{found.cosine:.8g}' == '0.84381962'
    # The decrease of a sign step of 0.01, and of a plain one.
    assert 0.01 * found.descent == pytest.approx(0.19, rel=1e-12)
    assert statistics(G).descent == 169
    np.testing.assert_allclose(
      found.factor * G, [0.23076923, -0.30769231, 0, 0.92307692], atol=5e-9
    )
    # The limiter is the optimizers'; it sees the same product.
    tx = clip_by_descent(optax.identity(), 5.0)
    _, state = tx.update(jnp.asarray(G), tx.init(jnp.asarray(G)))
    assert f'{state.factor:.8g}' == '0.029585799'
    assert state.descent == statistics(G).descent


def test_against_numpy_and_optax():
  gradients, updates = tree(0), tree(1)
  found = statistics(gradients, updates, max_norm=2.0)
  g, u = flat(gradients), flat(updates)
  norm = np.linalg.norm(g)
  expected = dict(
    norm=norm,
    clipped=1.0,
    cosine=g @ u / norm / np.linalg.norm(u),
    descent=g @ u,
    factor=2 / norm,
    norm_l1=np.abs(g).sum(),
    sign_cosine=np.abs(g).sum() / norm / math.sqrt(g.size),
  )
  chex.assert_trees_all_close(found._asdict(), expected, rtol=1e-5)
  clip = optax.clip_by_global_norm(2.0)
  clipped, _ = clip.update(gradients, clip.init(gradients))
  scaled = jax.tree.map(lambda x: found.factor * x, gradients)
  chex.assert_trees_all_close(clipped, scaled, rtol=1e-6)
  below = statistics(gradients, max_norm=1e3)
  assert (below.clipped, below.factor) == (0, 1)


def test_identities():
  gradients = tree(0)
  signs = jax.tree.map(jnp.sign, gradients)
  plain, sign = (
    statistics(gradients),
    statistics(gradients, signs),
  )
  np.testing.assert_allclose(plain.cosine, 1, rtol=1e-6)
  np.testing.assert_allclose(plain.descent, plain.norm**2, rtol=1e-6)
  np.testing.assert_allclose(sign.descent, sign.norm_l1, rtol=1e-6)
  np.testing.assert_allclose(sign.cosine, sign.sign_cosine, rtol=1e-6)


def test_the_root_of_the_size():
  """Gaussian gradients: cosine 0.798, and a decrease that grows as sqrt(N)."""
  found = [
    statistics(jax.random.normal(jax.random.key(n), (n,)))
    for n in (50_000, 200_000)
  ]
  for n, each in zip((50_000, 200_000), found, strict=True):
    # The cosine's deviation is about 0.43 / sqrt(n).
    error = abs(each.sign_cosine - math.sqrt(2 / math.pi))
    assert error < 4 * 0.43 / math.sqrt(n)
  # Of gradients of the same norm.
  small, large = (each.norm_l1 / each.norm for each in found)
  rate = sign_learning_rate(1e-3, 50_000, 200_000)
  assert rate == 0.5e-3
  np.testing.assert_allclose(rate * large, 1e-3 * small, rtol=2e-2)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_no_scale_matters(scale):
  """Where squares in float32 are zero or infinite."""
  g = np.float32(G) * np.float32(scale)
  found = statistics(g, np.sign(G))
  np.testing.assert_allclose(found.norm / np.float32(scale), 13, rtol=1e-6)
  np.testing.assert_allclose(found.sign_cosine, 0.84381962, rtol=1e-6)
  np.testing.assert_allclose(found.cosine, 0.84381962, rtol=1e-6)
  np.testing.assert_allclose(found.factor, min(1, 1 / 13 / scale), rtol=1e-6)
  plain = float(jnp.sum(jnp.square(g)))
  assert plain in (0, math.inf)


def test_zeros_and_what_is_not_finite():
  found = statistics({'a': np.zeros(3, np.float32)})
  assert [float(x) for x in found] == [0, 0, 0, 0, 1, 0, 0]
  assert [float(x) for x in statistics({})] == [0, 0, 0, 0, 1, 0, 0]
  found = statistics(np.array([1.0, np.inf]))
  assert found.norm == np.inf and found.clipped == 1 and found.factor == 0
  assert np.isnan(statistics(np.array([1.0, np.nan])).norm)


def test_half_precision_is_summed_in_single():
  g = jnp.full(10_000, 0.01, jnp.bfloat16)
  found = statistics(g)
  value = float(g[0])
  np.testing.assert_allclose(found.norm, 100 * value, rtol=1e-5)
  assert {x.dtype for x in found} == {jnp.dtype('float32')}


def test_clip_fraction_over_steps_and_all_ways_to_run():
  gradients = jax.random.normal(jax.random.key(0), (8, 3))
  each = jax.vmap(lambda g: statistics(g, max_norm=1.5))
  found = each(gradients)
  norms = np.linalg.norm(gradients, axis=1)
  assert np.mean(found.clipped) == np.mean(norms > 1.5)
  assert 0 < np.mean(found.clipped) < 1
  chex.assert_trees_all_close(jax.jit(each)(gradients), found, rtol=1e-6)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(each, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  chex.assert_trees_all_close(jax.jit(sharded)(gradients), found, rtol=1e-6)


def test_differentiable():
  of = lambda g: statistics(g).sign_cosine
  gradient = jax.grad(of)(jnp.asarray(G, jnp.float32))
  # It does not change along the gradient itself.
  assert abs(float(gradient @ jnp.asarray(G, jnp.float32))) < 1e-6
  assert np.any(gradient != 0) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
  'call, name',
  [
    (lambda: clipping_statistics(G, max_norm=0.0), 'max_norm'),
    (lambda: clipping_statistics(G, G[:2]), 'updates'),
    (lambda: clipping_statistics({'a': G}, {'b': G}), 'updates'),
    (lambda: sign_learning_rate(1e-3, 0, 1), 'old_size'),
    (lambda: sign_learning_rate(1e-3, 1, 0), 'new_size'),
  ],
)
def test_wrong_arguments_are_named(call, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    call()
