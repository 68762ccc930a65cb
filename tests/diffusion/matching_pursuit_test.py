import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue import diffusion
from kexue.diffusion import Codebook

OPTIONS = ('atoms', 'coefficient_bits')
pursue = jax.jit(diffusion.pursue, static_argnums=0, static_argnames=OPTIONS)
pursued = jax.jit(
  diffusion.pursued, static_argnums=0, static_argnames=OPTIONS[1]
)


def unit(x):
  return x / np.sqrt(np.mean(np.square(x)))


def slow_pursuit(atoms, residual, count, grid):
  """Every candidate built, in float64: indices, codes and the sum."""
  first = int(np.argmax(atoms @ residual))
  z, chosen = atoms[first], [(first, 0)]
  for _ in range(count - 1):
    candidates = {
      (k, code): unit(np.sqrt(gamma) * z + np.sqrt(1 - gamma) * atoms[k])
      for k in range(len(atoms))
      for code, gamma in enumerate(grid, start=1)
    }
    best = max(candidates, key=lambda c: candidates[c] @ residual)
    if candidates[best] @ residual <= z @ residual:
      break
    chosen.append(best)
    z = candidates[best]
  chosen += [(0, 0)] * (count - len(chosen))
  return *np.array(chosen).T, z


def grid_of(bits):
  return np.arange(1, 2**bits) / 2**bits


@pytest.mark.parametrize(
  ('kind', 'bits'), [('gaussian', 1), ('gaussian', 3), ('hadamard', 3)]
)
def test_equals_every_candidate_built(kind, bits):
  codebook = Codebook(37, 24, kind=kind, seed=5)
  atoms = np.float64(codebook.atoms(jnp.arange(37), 8))
  residual = jax.random.normal(jax.random.key(2), (6, 24))
  indices, codes = pursue(codebook, residual, 8, atoms=4, coefficient_bits=bits)
  z = pursued(codebook, indices, codes, 8, coefficient_bits=bits)
  for row, r in enumerate(np.float64(residual)):
    k, c, expected = slow_pursuit(atoms, r, 4, grid_of(bits))
    np.testing.assert_array_equal(indices[row], k)
    np.testing.assert_array_equal(codes[row], c)
    np.testing.assert_allclose(z[row], expected, atol=2e-5)


def test_a_pursuit_that_has_arrived_stops():
  """Two atoms that say everything: a third could only take away."""
  codebook = Codebook(64, 64, kind='hadamard', seed=5)
  pair = codebook.atoms(jnp.array([5, 40]), 3)
  indices, codes = pursue(codebook, pair.sum(0)[None], 3, atoms=5)
  assert sorted(indices[0, :2].tolist()) == [5, 40]
  assert indices[0, 2:].tolist() == codes[0, 2:].tolist() == [0, 0, 0]
  assert codes[0, 1] == 1
  z = pursued(codebook, indices, codes, 3)
  np.testing.assert_allclose(z[0], pair.sum(0) / np.sqrt(2), atol=1e-5)


def test_nothing_follows_a_stop():
  codebook = Codebook(8, 16)
  one = pursued(codebook, jnp.array([[3]]), jnp.array([[0]]), 1)
  stopped = pursued(codebook, jnp.array([[3, 0, 5]]), jnp.array([[0, 0, 1]]), 1)
  np.testing.assert_array_equal(one, codebook.atoms(jnp.array([3]), 1))
  np.testing.assert_array_equal(stopped, one)


def test_one_bit_is_worth_its_atoms():
  """The authors' grid for one bit, {1}, never adds any."""
  codebook = Codebook(64, 96)
  residual = jax.random.normal(jax.random.key(0), (40, 96))

  def gain(atoms):
    z = pursued(codebook, *pursue(codebook, residual, 2, atoms=atoms), 2)
    return np.sum(z * residual, axis=1)

  gains = [gain(m) for m in (1, 2, 4)]
  for few, many in itertools.pairwise(gains):
    assert (many > few + 0.5).mean() > 0.9
  atoms = np.float64(codebook.atoms(jnp.arange(64), 2))
  *_, theirs = slow_pursuit(atoms, np.float64(residual[0]), 6, [1.0])
  # All that it does is to bring the first atom to mean square 1.
  first = atoms[np.argmax(atoms @ np.float64(residual[0]))]
  np.testing.assert_allclose(unit(theirs), unit(first))


@settings(max_examples=2, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 2, 64]))
def test_codes_are_in_range_and_batches_independent(atoms, bits, size):
  codebook = Codebook(size, 16, kind='rademacher')
  residual = jax.random.normal(jax.random.key(atoms), (3, 16))
  options = dict(atoms=atoms, coefficient_bits=bits)
  both = pursue(codebook, residual, 1, **options)
  for x, most in zip(both, (size, 2**bits), strict=True):
    chex.assert_shape(x, (3, atoms))
    assert x.dtype == jnp.int32
    assert 0 <= x.min() and x.max() < most
  alone = pursue(codebook, residual[1:2], 1, **options)
  chex.assert_trees_all_equal(alone, jax.tree.map(lambda x: x[1:2], both))


def test_under_pmap():
  codebook = Codebook(32, 16)
  residual = jax.random.normal(jax.random.key(1), (8, 16))
  run = lambda r: diffusion.pursue(codebook, r, 1, atoms=3, coefficient_bits=2)
  expected = jax.jit(run)(residual)
  mapped = jax.pmap(run)(residual[:, None])
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[:, 0], mapped), expected)


def test_residuals_of_any_size_give_finite_noise():
  codebook = Codebook(32, 16)
  scale = jnp.array([0.0, 1e-25, 1e15])[:, None]
  residual = scale * jax.random.normal(jax.random.key(1), (3, 16))
  codes = pursue(codebook, residual, 1, atoms=3)
  assert np.isfinite(pursued(codebook, *codes, 1)).all()


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    (dict(atoms=0), 'atoms'),
    (dict(atoms=2, coefficient_bits=0), 'coefficient_bits'),
    (dict(atoms=2, coefficient_bits=9), 'coefficient_bits'),
  ],
)
def test_refuses(options, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    pursue(Codebook(4, 4), jnp.ones((1, 4)), 1, **options)
