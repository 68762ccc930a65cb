"""The nearest code: brute force, ties, scales, blocks, biases."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.models import nearest_code
from kexue.models.nearest_code import unit_vectors

search = jax.jit(nearest_code, static_argnames='distance')


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def squared_distances(z, codebook):
  z, codebook = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
  return np.square(z[:, None] - codebook).sum(-1)


def assert_nearest(found, z, codebook, rtol=1e-5):
  """No code is nearer by more than rounding."""
  gaps = squared_distances(z, codebook)
  chosen = np.take_along_axis(gaps, np.asarray(found)[:, None], 1)[:, 0]
  assert found.dtype == jnp.int32
  assert np.all(chosen <= gaps.min(1) * (1 + rtol))
  assert np.mean(found != gaps.argmin(1)) < 1e-3


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
  st.integers(1, 40),
  st.sampled_from([1, 2, 31, 32, 33, 65, 100]),
  st.integers(1, 9),
  st.sampled_from(['float32', 'bfloat16', 'float16']),
  st.integers(0, 3),
)
@hypothesis.example(1, 1, 1, 'float32', 0)
@hypothesis.example(40, 100, 1, 'float32', 0)
def test_ties_go_to_the_first_as_with_argmin(n, k, d, dtype, largest):
  """Small integers: all arithmetic is exact, and many distances are equal."""
  rng = np.random.default_rng(n)
  z, codebook = (rng.integers(-3, 4, (size, d)) for size in (n, k))
  bias = rng.integers(-largest, largest + 1, k)
  found = search(
    jnp.array(z, dtype), jnp.array(codebook, dtype), bias=jnp.array(bias)
  )
  gaps = squared_distances(z, codebook) - bias
  np.testing.assert_array_equal(found, gaps.argmin(1))


def test_the_first_of_equal_codes_is_taken():
  """Rounding must not tell the copies apart either."""
  codes = normal(37, 19)
  found = search(normal(1500, 19, seed=1), np.tile(codes, (27, 1)))
  assert np.asarray(found).max() < 37
  assert_nearest(found, normal(1500, 19, seed=1), codes)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_equals_brute_force(dtype):
  """Several blocks, the last one not full, and codes that fill no last run."""
  z, codebook = jnp.array(normal(1100, 16), dtype), normal(1000, 16, seed=1)
  codebook = jnp.array(codebook, dtype)
  found = search(z, codebook)
  assert_nearest(found, z, codebook)
  if dtype == 'bfloat16':  # Eight bits would not have done.
    scores = z @ codebook.T - jnp.square(codebook).sum(-1) / 2
    assert np.mean(jnp.argmax(scores, -1) != found) > 5e-3


def test_float64_is_searched_in_float64():
  z, step = np.ones((3, 2)), 1e-12
  codebook = np.array([[1 + 3 * step, 1], [1 + step, 1], [1 + 2 * step, 1]])
  with jax.enable_x64(True):
    assert search(z, codebook).tolist() == [1, 1, 1]


def test_far_from_the_origin():
  """The distances survive; |c|^2 - 2 z.c has lost them there."""
  z, codebook = normal(200, 8) + 1e4, normal(100, 8, seed=1) + 1e4
  assert_nearest(search(z, codebook), z, codebook, rtol=1e-3)
  scores = z @ codebook.T - np.square(codebook).sum(-1) / 2
  wrong = scores.argmax(1) != squared_distances(z, codebook).argmin(1)
  assert wrong.mean() > 0.5


@pytest.mark.parametrize('distance', ['euclidean', 'cosine'])
@pytest.mark.parametrize('power', [-110, 110])
def test_squares_neither_overflow_nor_vanish(distance, power):
  z, codebook = normal(50, 8), normal(40, 8, seed=1)
  expected = search(z, codebook, distance=distance)
  scale = np.float32(2.0) ** power
  found = search(z * scale, codebook * scale, distance=distance)
  np.testing.assert_array_equal(found, expected)


def test_cosine():
  z, codebook = normal(300, 8), normal(45, 8, seed=1)
  codebook *= 10.0 ** np.arange(-22, 23)[:, None]
  found = search(z, codebook, distance='cosine')
  unit = lambda x: x / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)
  cosines = unit(z) @ unit(codebook).T
  np.testing.assert_array_equal(found, cosines.argmax(1))
  bias = 0.5 * normal(45, seed=2)
  found = search(z, codebook, distance='cosine', bias=bias)
  np.testing.assert_array_equal(found, (cosines + bias).argmax(1))
  assert np.mean(found != cosines.argmax(1)) > 0.1


def test_zero_has_the_cosine_zero():
  codebook = np.array([[-1.0, 0], [0, 0], [0, -1]])
  z = np.array([[0.0, 0], [1, 1], [-1, 1]])
  assert search(z, codebook, distance='cosine').tolist() == [0, 1, 0]
  np.testing.assert_array_equal(unit_vectors(jnp.zeros(3)), 0)


def test_a_larger_bias_is_chosen_more_often():
  z, codebook = normal(500, 4), normal(6, 4, seed=1)
  share = [
    np.mean(search(z, codebook, bias=np.where(np.arange(6) == 3, size, 0)) == 3)
    for size in (-np.inf, -2.0, 0.0, 2.0, 1e9)
  ]
  assert share[0] == 0 and share[-1] == 1
  assert np.all(np.diff(share) > 0)


def test_a_row_out_of_scale_spoils_no_other():
  z, codebook = normal(6, 3), normal(33, 3, seed=1)
  expected = np.asarray(search(z, codebook))
  z[4] /= np.abs(z[4]).max() / 3e38
  found = np.asarray(search(z, codebook))
  assert found[4] == np.argmax(codebook @ np.float64(z[4]))
  np.testing.assert_array_equal(np.delete(found, 4), np.delete(expected, 4))
  z[1], z[2, 0], z[3] = np.nan, np.inf, -np.inf
  found = np.asarray(search(z, codebook))
  np.testing.assert_array_equal(found[[0, 5]], expected[[0, 5]])
  assert np.all((found >= 0) & (found < 33))


def test_memory_is_that_of_a_block():
  shapes = [jax.ShapeDtypeStruct(s, 'float32') for s in ((8192, 8), (2048, 8))]
  analysis = search.lower(*shapes).compile().memory_analysis()
  assert analysis.temp_size_in_bytes < 8192 * 2048 * 4 / 4


def test_any_leading_shape_and_every_transform():
  z, codebook = normal(8, 5, 3), normal(7, 3, seed=1)
  expected = squared_distances(z.reshape(-1, 3), codebook).argmin(1)
  expected = expected.reshape(8, 5)
  np.testing.assert_array_equal(nearest_code(z, codebook), expected)
  assert search(z[0, 0], codebook) == expected[0, 0]
  both = jax.vmap(nearest_code)(z, np.stack([codebook] * 4 + [-codebook] * 4))
  np.testing.assert_array_equal(both[:4], expected[:4])
  np.testing.assert_array_equal(both[4:], search(-z[4:], codebook))
  one = functools.partial(nearest_code, codebook=codebook)
  np.testing.assert_array_equal(jax.pmap(one)(z), expected)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  mapped = jax.shard_map(
    nearest_code, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data')
  )
  np.testing.assert_array_equal(jax.jit(mapped)(z, codebook), expected)


def test_no_gradient_passes():
  z, codebook = normal(5, 3), jnp.array(normal(7, 3, seed=1))
  loss = lambda z, c: jnp.sum(jnp.square(c[nearest_code(z, c)]))
  by_z, by_code = jax.grad(loss, (0, 1))(z, codebook)
  np.testing.assert_array_equal(by_z, 0)
  used = np.isin(np.arange(7), nearest_code(z, codebook))
  np.testing.assert_array_equal(
    by_code,
    2
    * codebook
    * used[:, None]
    * (np.bincount(nearest_code(z, codebook), minlength=7)[:, None]),
  )


def test_wrong_arguments_are_named():
  z, codebook = jnp.ones((4, 3)), jnp.ones((5, 3))
  for name, call in {
    'distance: got': lambda: nearest_code(z, codebook, distance='l1'),
    r'codebook: got shape \(3,\)': lambda: nearest_code(z, codebook[0]),
    r'codebook: got \(0, 3\)': lambda: nearest_code(z, codebook[:0]),
    r'z: got \(4, 2\)': lambda: nearest_code(z[:, :2], codebook),
    r'z: got \(0, 3\)': lambda: nearest_code(z[:0], codebook),
    r'z: got shape \(\)': lambda: nearest_code(1.0, codebook),
    'bias: got': lambda: nearest_code(z, codebook, bias=jnp.ones(4)),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
