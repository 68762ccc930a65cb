"""Noise through the Hessian: the worked example, and its moments on P1."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.scaling import CurvatureNoiseScale, curvature_noise_scale
from kexue.scaling.curvature import FORMS, _moments, _signs

KEY = jax.random.key(0)
DRAWS = 20_000

GRADIENTS = np.array([[1.0, 2, 0], [0, 1, -1], [2, 0, 1], [1, 1, 0]])
HESSIAN = np.array([[2, 0.5, 0], [0.5, 1, -0.2], [0, -0.2, 0.5]])


def quadratic(hessian):
  """At zero, an example's gradient is the example."""
  return lambda w, x: jnp.mean(x @ w) + 0.5 * w @ hessian @ w


@functools.partial(jax.jit, static_argnums=1)
def worked(signs, form='deviations'):
  batches = jnp.asarray(np.repeat(GRADIENTS, 2, axis=0).reshape(4, 2, 3))
  moments = _moments(
    quadratic(HESSIAN), jnp.zeros(3), batches, batches[0], signs.T, form, None
  )
  return CurvatureNoiseScale.from_moments(*moments)


@pytest.mark.usefixtures('double')
def test_worked_example():
  every = np.array(np.meshgrid(*[[1.0, -1]] * 4)).reshape(4, -1).T
  expected = CurvatureNoiseScale(
    scale=1.2307692,
    lr_max=0.43269231,
    gradient_sq_norm=1.5,
    curvature=3.4666667,
    trace=4.2666667,
  )
  chex.assert_trees_all_close(worked(every), expected, rtol=5e-8)
  found = worked(np.array([[1.0, -1, 1, 1]]))
  np.testing.assert_allclose(found.trace, 6.6666667, rtol=5e-8)
  # u = (2, 0, 2), and what is left of the plug-in value of 4.
  np.testing.assert_allclose(found.curvature, 4 - found.trace / 8)
  # The pairs (1, 2) and (3, 4), by b / 2 (G1 - G2)^T H (G1 - G2) each.
  d = GRADIENTS[0::2] - GRADIENTS[1::2]
  pairs = np.array([[a, -a, b, -b] for a in (1.0, -1) for b in (1.0, -1)])
  np.testing.assert_allclose(
    worked(pairs, 'pairs').trace, np.mean(np.sum((d @ HESSIAN) * d, axis=1))
  )


@functools.cache
def p1_batches(rows):
  """Gaussian gradients [draws, rows, 4] of problem P1."""
  rng = np.random.default_rng(0)
  mean, deviation = [1.0, 0.5, -0.25, 0.8], [2.0, 4, 1, 3]
  return rng.normal(mean, deviation, (DRAWS, rows, 4)).astype(np.float32)


def z_score(x, expected):
  x = np.float64(x)
  return abs(np.mean(x) - expected) / (np.std(x) / np.sqrt(len(x)))


@pytest.mark.parametrize('form', FORMS)
def test_unbiased_on_p1(problem, form):
  g, deviation, hessian = problem.values()
  x = p1_batches(8)

  def estimate(key, x):
    return curvature_noise_scale(
      quadratic(jnp.float32(hessian)),
      jnp.zeros(4),
      x,
      key=key,
      probes=2,
      microbatches=4,
      hessian_batch=x[:1],
      form=form,
    )

  found = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, DRAWS), x)
  trace = np.sum(np.diag(hessian) * deviation**2)
  assert z_score(found.gradient_sq_norm, g @ g) < 4
  assert z_score(found.curvature, g @ hessian @ g) < 4
  assert z_score(found.trace, trace) < 4
  mean = CurvatureNoiseScale.from_moments(*(jnp.mean(v) for v in found[2:]))
  np.testing.assert_allclose(mean.scale, 7.0984916, rtol=0.05)
  np.testing.assert_allclose(mean.lr_max, 0.12599823, rtol=0.05)
  if form == 'pairs':
    # Two probes see the same two pairs: half of the noise they share.
    noisy = hessian * deviation**2
    variance = 2 * np.trace(noisy @ noisy)
    assert variance / 2 < np.var(found.trace) < variance


def test_one_probe_of_pairs_has_the_variance_it_says(problem):
  _, deviation, hessian = problem.values()
  noisy = hessian * deviation**2
  for parts in (2, 8):

    def estimate(key, x, parts=parts):
      return curvature_noise_scale(
        quadratic(jnp.float32(hessian)),
        jnp.zeros(4),
        x,
        key=key,
        microbatches=parts,
        hessian_batch=x,
      ).trace

    found = jax.jit(jax.vmap(estimate))(
      jax.random.split(KEY, DRAWS), p1_batches(8)
    )
    expected = 2 * np.trace(noisy @ noisy)
    np.testing.assert_allclose(np.var(found), expected, rtol=0.1)


def regression(w, batch):
  """Examples whose gradient and Hessian are large together."""
  x, y = batch
  return 0.5 * jnp.mean((x @ w - y) ** 2)


def test_a_hessian_of_the_same_examples_is_biased():
  """Pitfall 7."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(DRAWS, 8, 2)).astype(np.float32)
  y = rng.normal(size=(DRAWS, 8)).astype(np.float32)
  w = jnp.array([1.0, -0.5])
  # H = I and g = w, so that g^T H g = |w|^2.
  run = functools.partial(curvature_noise_scale, regression, w, microbatches=4)
  apart = jax.jit(jax.vmap(lambda b: run(b, key=KEY)))((x, y))
  same = lambda x, y: run((x, y), key=KEY, hessian_batch=(x, y))
  together = jax.jit(jax.vmap(same))(x[:, :4], y[:, :4])
  exact = float(w @ w)
  assert z_score(apart.curvature, exact) < 4
  assert z_score(together.curvature, exact) > 10
  assert np.mean(together.curvature) > 1.5 * exact


def test_indefinite_hessians_are_not_hidden():
  """Pitfall 7: negative curvature comes out as such, quotients as infinity."""
  x = np.float32(GRADIENTS)
  run = functools.partial(
    curvature_noise_scale, quadratic(-jnp.eye(3)), jnp.zeros(3), key=KEY
  )
  found = jax.jit(lambda x: run(x, microbatches=4, hessian_batch=x))(x)
  assert float(found.curvature) < 0 and float(found.trace) < 0
  assert found.scale == found.lr_max == np.inf


def test_one_device_is_eight():
  """With the signs that the devices draw, each its own."""
  rng = np.random.default_rng(2)
  x = rng.normal(size=(32, 2)).astype(np.float32)
  batch, other = (x, x[:, 0] + 1), (x[::-1], x[:, 1])
  w = jnp.array([1.0, -0.5])

  def run(batch, other):
    return [
      curvature_noise_scale(
        regression,
        w,
        batch,
        key=KEY,
        probes=2,
        microbatches=2,
        hessian_batch=other,
        form=form,
        axis_name='data',
      )
      for form in FORMS
    ]

  @jax.jit
  def single(batch, other):
    keys = [jax.random.fold_in(KEY, i) for i in range(8)]
    split = lambda x: x.reshape(16, 2, *x.shape[1:])
    found = []
    for form in FORMS:
      signs = jnp.concatenate([_signs(key, 2, 2, form, None) for key in keys])
      moments = _moments(
        regression, w, jax.tree.map(split, batch), other, signs, form, None
      )
      found.append((CurvatureNoiseScale.from_moments(*moments), signs))
    return found

  expected, signs = zip(*single(batch, other), strict=True)
  assert all(len(np.unique(s, axis=0)) > 2 for s in signs)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(run, mesh=mesh, in_specs=P('data'), out_specs=P())
  found = jax.jit(mapped)(batch, other)
  chex.assert_trees_all_close(found, list(expected), rtol=1e-4)
  shards = jax.tree.map(lambda x: x.reshape(8, 4, *x.shape[1:]), (batch, other))
  found = jax.tree.map(lambda v: v[0], jax.pmap(run, 'data')(*shards))
  chex.assert_trees_all_close(found, list(expected), rtol=1e-4)


def test_wrong_arguments_are_named():
  x = jnp.ones((8, 3))
  run = functools.partial(
    curvature_noise_scale, quadratic(jnp.eye(3)), jnp.zeros(3), key=KEY
  )
  for name, call in {
    'form: got': lambda: run(x, form='all'),
    'probes: got 0': lambda: run(x, probes=0),
    'microbatches: got 1': lambda: run(x, microbatches=1),
    'microbatches: got 3, expected an even': lambda: run(
      x, microbatches=3, form='pairs'
    ),
    'microbatches: got 8, expected a divisor of the 4': lambda: run(x),
    'batch: got 7': lambda: run(x[:7]),
    'batch: got': lambda: run(x, hessian_batch=(x, x[:2])),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
