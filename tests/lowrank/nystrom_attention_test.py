"""Attention by landmarks against the formula and against softmax attention."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from jax.sharding import PartitionSpec as P

from kexue.lowrank import nystrom_attention
from kexue.lowrank.nystrom_attention import iterative_pinv, segment_weights

TOKENS, WIDTH, LANDMARKS = 24, 4, 5


def tokens(*batch, size=1.0, seed=0, dtype=np.float32, count=TOKENS):
  rng = np.random.default_rng(seed)
  shapes = (WIDTH, WIDTH, 3)
  return [
    (s * rng.normal(size=(*batch, count, width))).astype(dtype)
    for s, width in zip((size, size, 1), shapes, strict=True)
  ]


def softmax_attention(q, k, v):
  """In double precision."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
  return scipy.special.softmax(logits, axis=-1) @ v


def reference(q, k, v, landmarks):
  """The paper's formula for one head, means over `numpy.array_split`."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  means = lambda x: np.stack([s.mean(0) for s in np.array_split(x, landmarks)])
  weights = lambda a, b: scipy.special.softmax(a @ b.T / WIDTH**0.5, axis=-1)
  middle = scipy.linalg.pinv(weights(means(q), means(k)))
  return weights(q, means(k)) @ middle @ weights(means(q), k) @ v


def test_it_is_the_formula():
  q, k, v = tokens(size=2.0)
  near = functools.partial(nystrom_attention, q, k, v, landmarks=LANDMARKS)
  found, exact = near(iterations=20), near(inverse='exact')
  expected = reference(q, k, v, LANDMARKS)
  np.testing.assert_allclose(exact, expected, atol=1e-4)
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_as_many_landmarks_as_tokens_give_softmax_attention():
  q, k, v = tokens(2, size=2.0)
  expected = softmax_attention(q, k, v)
  near = functools.partial(nystrom_attention, q, k, v, landmarks=TOKENS)
  np.testing.assert_allclose(near(inverse='exact'), expected, atol=2e-4)
  off = lambda found: np.abs(found - expected).max()
  # Six steps have not inverted the small singular values yet.
  assert off(near(iterations=12)) < off(near()) / 3
  # For peaked attention they do.
  q, k = 30 * np.eye(TOKENS)[None], 3 * np.eye(TOKENS)[None]
  found = nystrom_attention(q, k, v[:1], landmarks=TOKENS)
  np.testing.assert_allclose(found, v[:1], atol=1e-4)


def test_keys_that_agree_within_segments_need_no_more_landmarks():
  q, k, v = (np.repeat(x, 3, axis=0) for x in tokens(count=8))
  found = nystrom_attention(q, k, v, landmarks=8, inverse='exact')
  np.testing.assert_allclose(found, softmax_attention(q, k, v), atol=2e-4)


@pytest.mark.parametrize('count, landmarks', [(24, 5), (7, 7), (10, 4), (9, 1)])
def test_segments_are_even_and_lose_nothing(count, landmarks):
  weights = segment_weights(jnp.ones(count, bool), landmarks)
  member = np.asarray(weights) > 0
  np.testing.assert_array_equal(member.sum(0), 1)
  assert np.ptp(member.sum(1)) <= 1
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
  assert (np.diff(member.argmax(0)) >= 0).all()


@pytest.mark.parametrize(
  'live, inverse', [(1, 'iterative'), (3, 'exact'), (17, 'iterative')]
)
def test_padding_changes_nothing(live, inverse):
  """Wherever it is and whatever it holds; fewer tokens than landmarks too."""
  q, k, v = tokens()
  rng = np.random.default_rng(live)
  mask = np.zeros(TOKENS, bool)
  mask[rng.choice(TOKENS, live, replace=False)] = True
  garbage = lambda x: np.where(mask[:, None], x, np.float32(1e6))
  found = nystrom_attention(
    *map(garbage, (q, k, v)), landmarks=LANDMARKS, mask=mask, inverse=inverse
  )
  short = [x[mask] for x in (q, k, v)]
  expected = nystrom_attention(
    *short, landmarks=min(live, LANDMARKS), inverse=inverse
  )
  np.testing.assert_allclose(found[mask], expected, atol=2e-4)
  assert np.isfinite(found).all()


def test_without_live_tokens_all_is_zero_and_so_is_the_gradient():
  none = dict(landmarks=LANDMARKS, mask=np.zeros(TOKENS, bool))
  total = jax.jit(lambda x: nystrom_attention(*x, **none).sum())
  value, slopes = jax.value_and_grad(total)(tokens())
  for x in (value, *slopes, nystrom_attention(*tokens(), **none)):
    np.testing.assert_array_equal(x, 0)
  exact = nystrom_attention(*tokens(), inverse='exact', **none)
  np.testing.assert_array_equal(exact, 0)


@pytest.mark.parametrize('rank', [4, 2])
def test_iterative_pinv_converges_to_the_pseudo_inverse(rank):
  rng = np.random.default_rng(0)
  a = rng.normal(size=(2, 4, rank)) @ rng.normal(size=(2, rank, 4))
  a *= np.array([1e-3, 1e3])[:, None, None]  # Each by its own norm.
  with jax.enable_x64(True):
    found = np.asarray(iterative_pinv(jnp.asarray(a), 15))
    start = np.asarray(iterative_pinv(jnp.asarray(a), 1))
  for x, y, z in zip(a, found, start, strict=True):
    np.testing.assert_allclose(y, np.linalg.pinv(x, rcond=1e-10), rtol=1e-5)
    # The paper's start and step, as they are written.
    v = x.T / np.linalg.norm(x, 1) / np.linalg.norm(x, np.inf)
    eye, xv = np.eye(4), x @ v
    inner = 15 * eye - xv @ (7 * eye - xv)
    expected = v @ (13 * eye - xv @ inner) / 4
    np.testing.assert_allclose(z, expected, rtol=1e-9)


def test_scale_and_types():
  q, k, v = tokens()
  near = functools.partial(nystrom_attention, landmarks=LANDMARKS)
  by_hand = near(3 * q, k, v, scale=0.5 / 3)
  np.testing.assert_allclose(by_hand, near(q, k, v), atol=1e-5)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
  found = near(*narrow)
  assert found.dtype == jnp.float32
  expected = near(*(x.astype(jnp.float32) for x in narrow))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  with jax.enable_x64(True):
    assert near(*(np.float64(x) for x in (q, k, v))).dtype == np.float64
  huge = near(1e15 * q, 1e15 * k, v)
  assert np.isfinite(huge).all()


@pytest.mark.parametrize('inverse', ['iterative', 'exact'])
def test_gradient_is_that_of_differences(inverse):
  with jax.enable_x64(True):
    point, ahead = tokens(dtype=np.float64), tokens(dtype=np.float64, seed=1)

    @jax.jit
    def value(t):
      moved = [x + t * dx for x, dx in zip(point, ahead, strict=True)]
      return jnp.sum(
        nystrom_attention(*moved, landmarks=LANDMARKS, inverse=inverse) ** 2
      )

    step = 1e-6
    expected = (value(step) - value(-step)) / (2 * step)
    slope = jax.jit(jax.grad(value))(0.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_jit_vmap_and_shard_map_agree():
  q, k, v = tokens(8)
  mask = np.random.default_rng(0).random((8, TOKENS)) < 0.7
  attend = lambda q, k, v, mask: nystrom_attention(
    q, k, v, landmarks=LANDMARKS, mask=mask
  )
  one = jax.jit(attend)
  expected = [one(*x) for x in zip(q, k, v, mask, strict=True)]
  mesh = jax.make_mesh((8,), ('x',), (jax.sharding.AxisType.Auto,))
  spread = jax.shard_map(
    attend, mesh=mesh, in_specs=P('x'), out_specs=P('x'), check_vma=True
  )
  for form in (attend, jax.jit(jax.vmap(attend)), jax.jit(spread)):
    np.testing.assert_allclose(form(q, k, v, mask), expected, atol=1e-5)


def test_no_array_has_two_axes_of_tokens():
  q, k, v = tokens(count=200)
  attend = functools.partial(nystrom_attention, landmarks=8)
  jaxpr = jax.make_jaxpr(jax.grad(lambda *x: attend(*x).sum()))(q, k, v)

  def sizes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (x.aval.size for x in equation.outvars)
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from sizes(inner)

  found = [*sizes(jaxpr.jaxpr)]
  assert 200 * 8 in found and max(found) < 200 * 200 / 4


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(q=np.ones(3)), 'q: got shape'),
    (dict(q=np.ones((0, 4)), k=np.ones((0, 4))), 'q: got'),
    (dict(k=np.ones((5, 4))), 'k: got shape'),
    (dict(v=np.ones((5, 4))), 'v: got shape'),
    (dict(landmarks=0), 'landmarks: got 0, expected an integer in 1..6'),
    (dict(landmarks=7), 'landmarks: got 7'),
    (dict(landmarks=2.0), 'landmarks: got 2.0'),
    (dict(inverse='none'), 'inverse: got'),
    (dict(iterations=0), 'iterations: got 0'),
    (dict(mask=np.ones(6)), 'mask: got dtype'),
    (dict(mask=np.ones(5, bool)), 'mask: got shape'),
  ],
)
def test_what_cannot_be_is_refused(change, message):
  good = {n: np.ones((6, 4), np.float32) for n in 'qkv'} | {'landmarks': 2}
  with pytest.raises(ValueError, match=message):
    nystrom_attention(**(good | change))
