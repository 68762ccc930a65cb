"""The truncated SVD against NumPy's, and its derivative where values repeat."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.lowrank import SVD, svd


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


def gaussian(*shape, seed=0, imaginary=False):
  rng = np.random.default_rng(seed)
  real, other = rng.normal(size=shape), rng.normal(size=shape)
  return real + 1j * other if imaginary else real


def with_values(m, n, s, *, seed=0, imaginary=False):
  """A matrix of random singular vectors."""
  u, v = (
    np.linalg.qr(gaussian(k, len(s), seed=seed + k, imaginary=imaginary))[0]
    for k in (m, n)
  )
  return (u * s) @ v.conj().T


def central(function, x, dx, *, step=1e-6):
  return jax.tree.map(
    lambda up, down: (up - down) / (2 * step),
    function(x + step * dx),
    function(x - step * dx),
  )


@functools.partial(jax.jit, static_argnums=0)
def _slopes(function, a, da):
  """Value, derivative, a cotangent and what it is pulled back to."""
  value, push = jax.linearize(function, a)
  ct = jax.tree.map(lambda x: jnp.cos(1 + x), value)
  return value, push(da), ct, *jax.linear_transpose(push, a)(ct)


def check(function, oracle, a, da, *, atol=1e-7):
  """Derivatives of ours against differences of NumPy's; the pullback."""
  value, slope, ct, pulled = _slopes(function, a, da)
  chex.assert_trees_all_close(value, oracle(a), atol=1e-10)
  chex.assert_trees_all_close(slope, central(oracle, a, da), atol=atol)
  dot = lambda x, y: sum(
    np.sum(np.asarray(x) * np.asarray(y)).real
    for x, y in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
  )
  np.testing.assert_allclose(dot(pulled, da), dot(ct, slope), atol=1e-9)


def truncated(a, rank):
  """The same by NumPy, of vectors of any phase."""
  u, s, vh = np.linalg.svd(a, full_matrices=False)
  return SVD(u[..., :rank], s[..., :rank], vh[..., :rank, :])


def product(triples):
  return triples.u * triples.s[..., None, :] @ triples.vh


def adjoint(x):
  return x.swapaxes(-1, -2).conj()


@hypothesis.settings(deadline=None, max_examples=15, derandomize=True)
@hypothesis.given(
  kind=st.sampled_from(
    [((6, 4), np.float32), ((4, 6), np.complex64), ((1, 4), np.float32)]
  ),
  seed=st.integers(0, 2**31 - 9),
  decay=st.floats(0, 8),
  scale=st.sampled_from([1e-30, 1.0, 1e30]),
  last=st.booleans(),
)
def test_is_the_best_of_its_rank(kind, seed, decay, scale, last):
  shape, dtype = kind
  k = min(shape)
  rank = k if last else (k + 1) // 2
  s = 10 ** -np.linspace(0, decay, k)
  imaginary = dtype == np.complex64
  exact = with_values(*shape, s, seed=seed, imaginary=imaginary)
  result = svd((scale * exact).astype(dtype), rank)
  assert isinstance(result, SVD)
  assert result.u.dtype == result.vh.dtype == dtype
  assert result.s.dtype == np.float32
  u, values, vh = (np.asarray(x) for x in result)
  np.testing.assert_allclose(values / scale, s[:rank], atol=1e-5)
  assert (np.diff(values) <= 0).all()
  for x in (u, vh.conj().T):
    np.testing.assert_allclose(x.conj().T @ x, np.eye(rank), atol=1e-5)
  error = np.linalg.norm(exact - (u * (values / scale)) @ vh)
  np.testing.assert_allclose(error, np.linalg.norm(s[rank:]), atol=1e-5)
  # The largest entries are real and positive.
  largest = u[np.argmax(np.abs(u), axis=0), np.arange(rank)]
  np.testing.assert_allclose(largest, np.abs(largest), atol=1e-6)


def oriented(a, rank):
  """NumPy's vectors with the phase of ours."""
  u, s, vh = truncated(a, rank)
  largest = u[np.argmax(np.abs(u), axis=0), np.arange(rank)]
  phase = largest / np.abs(largest)
  return SVD(u * phase.conj(), s, phase[:, None] * vh)


@pytest.mark.parametrize(
  ('shape', 'imaginary', 'rank'), [((5, 3), False, 3), ((3, 5), True, 2)]
)
def test_derivative_of_every_part(shape, imaginary, rank, double):
  a = with_values(*shape, [3.0, 2.0, 1.0], imaginary=imaginary)
  da = gaussian(*shape, seed=3, imaginary=imaginary)
  # The vectors too, as their phase is fixed.
  both = lambda decompose: (
    lambda a: (lambda triples: (triples, product(triples)))(decompose(a, rank))
  )
  check(both(svd), both(oriented), a, da)


def invariants(u, s, vh):
  """What does not depend on the choice of vectors for equal values."""
  powers = (s**3).sum(-1), (1 / (1 + s)).sum(-1)
  return u @ adjoint(u), adjoint(vh) @ vh, u @ vh, powers


@pytest.mark.parametrize(
  ('shape', 'imaginary'), [((6, 4), False), ((4, 6), True), ((4, 4), True)]
)
def test_repeated_values(shape, imaginary, double):
  cut = [[2.0, 2.0, 1.0, 1.0], [3.0, 3.0, 2.0, 1.0]]
  spectra = [*cut, [2.0, 1.0, 1.0, 1.0], [1.0] * 4]
  a = np.stack([with_values(*shape, s, imaginary=imaginary) for s in spectra])
  da = gaussian(*a.shape, seed=3, imaginary=imaginary)

  def functions(decompose, low_rank):
    def function(a):
      u, s, vh = decompose(a, 4)
      some = u[:2, :, :2], s[:2, :2], vh[:2, :2]
      whole, part = invariants(u, s, vh), invariants(*some)
      return whole, part, low_rank(a[:2], *some)

    return function

  # The projection has what the product of the three would lose.
  projection = lambda a, u, s, vh: u @ (adjoint(u) @ a)
  combined = lambda a, u, s, vh: u * s[..., None, :] @ vh
  ours, theirs = functions(svd, projection), functions(truncated, combined)
  check(ours, theirs, a, da, atol=1e-6)


def test_what_the_product_loses_at_equal_values(double):
  # At distinct ones nothing, however close.
  a = np.stack([2 * np.eye(3), np.diag([2, 2 + 1e-5, 2 + 2e-5])])
  da = gaussian(2, 3, 3)
  _, (equal, distinct), *_ = _slopes(lambda a: product(svd(a, 3)), a, da)
  symmetric = (da[0] + da[0].T) / 2
  lost = symmetric - np.diag(np.diag(symmetric))
  np.testing.assert_allclose(equal, da[0] - lost, atol=1e-12)
  np.testing.assert_allclose(distinct, da[1], atol=1e-8)


def test_zero_values_of_a_deficient_rank(double):
  a, da = with_values(5, 3, [2.0, 1.0]), gaussian(5, 3, seed=3)
  low_rank = lambda decompose: lambda a: product(decompose(a, 2))
  check(low_rank(svd), low_rank(truncated), a, da)
  # The slope of the nuclear norm is a subgradient: U V^T and a contraction.
  slope = jax.jit(jax.grad(lambda a: svd(a, 3).s.sum()))(a)
  u, _, vh = truncated(a, 2)
  rest = slope - u @ vh
  np.testing.assert_allclose(u.T @ rest, 0, atol=1e-12)
  np.testing.assert_allclose(rest @ vh.T, 0, atol=1e-12)
  assert np.linalg.norm(rest, 2) <= 1 + 1e-12


@pytest.mark.parametrize('shape', [(4, 3), (3, 4)])
def test_derivatives_are_finite(shape):
  ones, eye = np.ones(shape, np.float32), np.eye(*shape, dtype=np.float32)
  doubled = np.repeat(gaussian(4, 2), 2, axis=1).astype(np.float32)
  doubled = doubled[: shape[0], : shape[1]]
  a = np.stack([0 * ones, ones, eye, doubled, 1e-30 * eye, 1e30 * eye])
  first = lambda a: (svd(a, 3), jax.jacrev(lambda a: svd(a, 3))(a))
  chex.assert_tree_all_finite(jax.jit(jax.vmap(first))(a))


def test_second_derivatives(double):
  a = with_values(3, 2, [3.0, 1.0])
  a = np.stack([a, 0 * a, np.eye(3, 2), np.ones((3, 2))])
  da = gaussian(4, 3, 2, seed=3)
  loss = lambda a: jnp.sum(jnp.sin(product(svd(a, 1))))
  slope = jax.jit(jax.grad(loss))
  _, curvature = jax.jit(lambda a: jax.jvp(slope, (a,), (da,)))(a)
  difference = central(slope, a, da)
  np.testing.assert_allclose(curvature[0], difference[0], atol=1e-6)
  chex.assert_tree_all_finite(curvature)  # At repeated values and zeros.


def test_rounded_equal_values_count_as_equal():
  """Of a random orthogonal matrix, whose singular values differ by rounding."""
  a = np.linalg.qr(gaussian(30, 30))[0].astype(np.float32)
  da = gaussian(30, 30, seed=3).astype(np.float32)
  polar = lambda a: (lambda u, s, vh: u @ vh)(*svd(a, 30))
  _, slope, *_ = _slopes(polar, a, da)
  np.testing.assert_allclose(slope, (da - a @ da.T @ a) / 2, atol=2e-5)


def test_types():
  a = jnp.asarray(gaussian(4, 3), jnp.bfloat16)
  for x in (a, a.astype(jnp.float16), a.astype(jnp.int32)):
    result = svd(x, 2)
    chex.assert_trees_all_equal(result, svd(x.astype(jnp.float32), 2))
    assert {y.dtype for y in result} == {jnp.dtype('float32')}
  assert jax.grad(lambda a: svd(a, 2).s.sum())(a).dtype == jnp.bfloat16


def test_batches_are_vmapped_and_sharded():
  a = gaussian(8, 2, 4, 3).astype(np.float32)
  a[0, 1] = 0
  run = lambda a: (svd(a, 2), jax.grad(lambda a: svd(a, 2).s.sum())(a))
  each = jax.vmap(jax.vmap(run))
  result = jax.jit(each)(a)
  chex.assert_trees_all_close(jax.jit(run)(a), result, atol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(each, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  chex.assert_trees_all_close(jax.jit(sharded)(a), result, atol=1e-5)


def test_wrong_arguments_are_named():
  a = np.ones((4, 3))
  for name, call in {
    'a: got shape': lambda: svd(a[0], 1),
    'rank: got 0': lambda: svd(a, 0),
    'rank: got 4': lambda: svd(a, 4),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
