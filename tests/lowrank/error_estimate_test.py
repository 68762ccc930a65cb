"""Estimated norms against exact ones, over many draws of the probes."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.lowrank import SVD, ErrorEstimate, error_estimate

KEY = jax.random.key(0)


def gaussian(*shape, seed=0, imaginary=False):
  rng = np.random.default_rng(seed)
  real, other = rng.normal(size=shape), rng.normal(size=shape)
  return real + 1j * other if imaginary else real


def factors(m, n, s, *, imaginary=False):
  u, v = (
    np.linalg.qr(gaussian(k, len(s), seed=k, imaginary=imaginary))[0]
    for k in (m, n)
  )
  return SVD(u, np.asarray(s), v.conj().T)


def functions(a):
  return lambda x: a @ x, lambda y: a.conj().T @ y, a.shape, a.dtype


def single(tree):
  return jax.tree.map(
    lambda x: (
      x.astype(np.result_type(x.dtype, np.complex64))
      if np.iscomplexobj(x)
      else x.astype(np.float32)
    ),
    tree,
  )


@functools.partial(jax.jit, static_argnums=(2, 3))
def draws(a, approximation, probes, power_iterations):
  """Estimates of 20000 keys."""
  return jax.vmap(
    lambda key: error_estimate(
      a,
      approximation,
      key=key,
      probes=probes,
      power_iterations=power_iterations,
    )
  )(jax.random.split(KEY, 20000))


@pytest.mark.parametrize('imaginary', [False, True])
@pytest.mark.parametrize('s', [[2.0, 0, 0, 0], [1.0] * 4, [3.0, 1.0, 0.1, 0]])
def test_frobenius_is_unbiased_with_the_variance_it_says(s, imaginary):
  u, s, vh = single(factors(7, 6, s, imaginary=imaginary))
  squares = np.float64(draws((u, s, vh), 0 * u @ vh, 3, 0).frobenius) ** 2
  variance = (1 if imaginary else 2) / 3 * np.sum(s**4)
  deviation = np.sqrt(variance / squares.size)
  assert abs(squares.mean() - np.sum(s**2)) < 4 * deviation
  # Its own error is one of fourth moments, of heavy tails.
  np.testing.assert_allclose(squares.var(), variance, rtol=0.15)


@pytest.mark.parametrize('power_iterations', [0, 2])
def test_the_bound_fails_as_seldom_as_it_says(power_iterations):
  # With one probe and an error of rank one it fails in 1 draw of 10, at most.
  u, s, vh = single(factors(7, 6, [2.0, 0, 0, 0]))
  bound = draws((u, s, vh), 0 * u @ vh, 1, power_iterations).spectral
  failures = np.sum(np.asarray(bound) < 2.0)
  expected = 20000 * math.erf(math.sqrt(math.pi) / 20)  # P(|w| < 1/8), 0.0997.
  assert abs(failures - expected) < 3 * np.sqrt(0.9 * expected)
  bound = draws((u, s / 2, vh), 0 * u @ vh, 3, power_iterations).spectral
  assert np.sum(np.asarray(bound) < 1.0) <= 40  # 20 are expected.


def test_power_iterations_tighten_the_bound():
  a = single(factors(40, 30, 1 / np.arange(1, 31)))
  zero = np.zeros((40, 30), np.float32)
  bound = lambda q: error_estimate(a, zero, key=KEY, power_iterations=q)[1]
  bounds = [float(x) for x in jax.jit(lambda: [*map(bound, (0, 1, 2, 6))])()]
  assert bounds == sorted(bounds, reverse=True)
  assert bounds[0] > 10 and 1 <= bounds[2] < 2.5 and 1 <= bounds[3] < 1.5


@pytest.mark.parametrize('imaginary', [False, True])
def test_all_kinds_of_operands_agree(imaginary):
  with jax.enable_x64(True):
    u, s, vh = factors(7, 6, 1 / np.arange(1, 7), imaginary=imaginary)
    a, part = (u * s) @ vh, SVD(u[:, :3], s[:3], vh[:3])
    b = (part.u * part.s) @ part.vh
    pairs = [
      (a, b),
      (a, part),
      ((u, s, vh), (part.u * part.s, part.vh)),
      (functions(jnp.asarray(a)), functions(jnp.asarray(b))),
    ]
    run = lambda: [error_estimate(*pair, key=KEY) for pair in pairs]
    expected, *others = jax.jit(run)()
    for found in others:
      chex.assert_trees_all_close(found, expected, rtol=1e-9)


def test_small_errors_in_single_precision():
  """Where the difference of squared norms knows nothing."""
  u, s, vh = factors(60, 50, np.ones(50))
  for size in (1e-2, 1e-4, 1e-5):
    s[10:] = size
    a = np.float32((u * s) @ vh)
    part = single(SVD(u[:, :10], s[:10], vh[:10]))
    found = error_estimate(a, part, key=KEY, probes=30)
    exact = size * np.sqrt(40)
    np.testing.assert_allclose(found.frobenius, exact, rtol=0.15)
    assert size <= found.spectral < 3 * size
  # Arrays are subtracted first: a unit in the last place is seen exactly.
  b = np.nextafter(a, np.float32(9))
  exact = np.linalg.norm(np.float64(a) - b)
  found = error_estimate(a, b, key=KEY, probes=1000).frobenius
  np.testing.assert_allclose(found, exact, rtol=0.15)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_no_scale_matters(scale):
  u, s, vh = single(factors(7, 6, [3.0, 2.0, 1.0]))
  large = SVD(u, s * np.float32(scale), vh)
  estimate = lambda a: error_estimate(a, np.zeros((7, 6)), key=KEY)
  ratio = jax.tree.map(lambda x: x / np.float32(scale), estimate(large))
  chex.assert_trees_all_close(ratio, estimate((u, s, vh)), rtol=1e-4)


def test_no_error_is_zero():
  a = np.float32(gaussian(4, 3))
  for zero in (error_estimate(a, a, key=KEY), error_estimate((a,), a, key=KEY)):
    assert isinstance(zero, ErrorEstimate)
    assert float(zero.frobenius) == float(zero.spectral) == 0


def test_types():
  a = jnp.asarray(gaussian(4, 3), jnp.bfloat16)
  found = error_estimate(a, jnp.zeros((4, 3), jnp.int32), key=KEY)
  wide = error_estimate(a.astype(jnp.float32), np.zeros((4, 3)), key=KEY)
  chex.assert_trees_all_equal(found, wide)
  # Entries that only differ where bfloat16 does not tell them.
  close = a.astype(jnp.float32) * (1 + 2**-12)
  assert float(error_estimate(close, a, key=KEY).frobenius) > 0
  found = error_estimate(a, np.zeros((4, 3), np.complex64), key=KEY)
  assert {x.dtype for x in found} == {jnp.dtype('float32')}


def test_batches_are_vmapped_and_sharded():
  a = np.float32(gaussian(8, 2, 5, 4))
  part = single(SVD(*(gaussian(8, 2, *s) for s in [(5, 3), (3,), (3, 4)])))
  run = functools.partial(error_estimate, key=KEY)
  result = jax.jit(run)(a, part)
  assert result.frobenius.shape == result.spectral.shape == (8, 2)
  each = jax.vmap(jax.vmap(run))
  chex.assert_trees_all_close(jax.jit(each)(a, part), result, rtol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(run, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  chex.assert_trees_all_close(jax.jit(sharded)(a, part), result, rtol=1e-5)


def test_wrong_arguments_are_named():
  a = np.ones((4, 3))
  run = functools.partial(error_estimate, key=KEY)
  for name, call in {
    'a: got shape': lambda: run(a[0], a),
    'a: got': lambda: run((a, a), a),
    'approximation: got shape': lambda: run(a, a[0]),
    'approximation: got': lambda: run(a, (a, a)),
    'approximation.shape: got': lambda: run(a, a.T),
    'probes: got 0': lambda: run(a, a, probes=0),
    'power_iterations: got -1': lambda: run(a, a, power_iterations=-1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
