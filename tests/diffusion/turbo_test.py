import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  Codebook,
  Schedule,
  gaussian_denoiser,
  signed_sum,
  top_atoms,
  turbo_decode,
  turbo_encode,
)


def test_is_the_best_signed_set_of_orthogonal_atoms():
  codebook = Codebook(8, 8, kind='hadamard')
  atoms = np.float64(codebook.atoms(jnp.arange(8), 3))
  residual = np.float64(jax.random.normal(jax.random.key(0), (5, 8)))
  indices, signs = top_atoms(codebook, residual, 3, atoms=3)
  z = signed_sum(codebook, indices, signs, 3)
  sums = np.array(
    [
      np.array(s) @ atoms[list(k)]
      for k in itertools.combinations(range(8), 3)
      for s in itertools.product((-1, 1), repeat=3)
    ]
  )
  best = (sums / np.sqrt(np.mean(np.square(sums), 1))[:, None]) @ residual.T
  np.testing.assert_allclose(
    np.sum(z * residual, axis=1), best.max(0), atol=1e-5
  )
  assert (np.diff(indices) > 0).all()


@pytest.mark.parametrize('kind', ['gaussian', 'circulant'])
def test_takes_the_largest_products(kind):
  codebook = Codebook(50, 24, kind=kind)
  residual = jax.random.normal(jax.random.key(0), (4, 24))
  products = np.float64(codebook.products(residual, 3))
  indices, signs = top_atoms(codebook, residual, 3, atoms=7)
  for row in range(4):
    expected = np.sort(np.argsort(-np.abs(products[row]))[:7])
    np.testing.assert_array_equal(indices[row], expected)
    np.testing.assert_array_equal(signs[row], products[row, expected] >= 0)


def test_signed_sum():
  codebook = Codebook(50, 24)
  indices = jnp.array([[2, 9, 30]])
  z = signed_sum(codebook, indices, jnp.array([[1, 0, 1]]), 4)
  atoms = np.float64(codebook.atoms(indices[0], 4))
  expected = atoms[0] - atoms[1] + atoms[2]
  expected /= np.sqrt(np.mean(np.square(expected)))
  np.testing.assert_allclose(z[0], expected, atol=1e-5)


def test_atoms_that_cancel_leave_no_noise():
  codebook = Codebook(50, 24)
  z = signed_sum(codebook, jnp.array([[2, 2]]), jnp.array([[1, 0]]), 4)
  np.testing.assert_array_equal(z, np.zeros((1, 24)))


def test_all_atoms_of_a_codebook():
  codebook = Codebook(6, 24)
  indices, signs = top_atoms(codebook, jnp.ones((2, 24)), 1, atoms=6)
  np.testing.assert_array_equal(indices, [range(6)] * 2)
  chex.assert_shape(signs, (2, 6))


VARIANCES = np.arange(1, 65) ** -1.0
X0 = jax.random.normal(jax.random.key(1), (16, 64)) * np.sqrt(VARIANCES)


def squares(atoms, **options):
  """Of what codes of twelve steps get wrong in each entry."""
  schedule = Schedule.linear(100)
  denoise = gaussian_denoiser(VARIANCES, schedule)
  respaced = schedule.respace(13)
  codebook = Codebook(64, 64, kind='hadamard')

  def codec(x0):
    codes = turbo_encode(
      denoise, x0, respaced, codebook, atoms=atoms, tail=2, **options
    )
    chex.assert_shape(codes.indices, (16, 10, atoms))
    return turbo_decode(denoise, codes, respaced, codebook, shape=(64,), tail=2)

  return np.square(jax.jit(codec)(X0) - X0)


def test_more_atoms_come_nearer():
  errors = [squares(atoms).mean() for atoms in (1, 4, 12)]
  assert errors[1] < 0.7 * errors[0] and errors[2] < 0.95 * errors[1]


def test_what_matters_more_comes_nearer():
  region = np.arange(64) % 2 == 0
  weights = jnp.where(region, 1.0, 0.2)
  plain, weighted = squares(1), squares(1, weights=weights)
  assert weighted[:, region].mean() < 0.85 * plain[:, region].mean()
  assert weighted[:, ~region].mean() > plain[:, ~region].mean()
  each = jnp.broadcast_to(weights, X0.shape)
  np.testing.assert_array_equal(squares(1, weights=each), weighted)
  with pytest.raises(ValueError, match=r'^weights: got \(3,\)'):
    squares(1, weights=jnp.ones(3))


@pytest.mark.parametrize('atoms', [0, 5])
def test_refuses(atoms):
  with pytest.raises(ValueError, match='^atoms: got'):
    top_atoms(Codebook(4, 4), jnp.ones((1, 4)), 1, atoms=atoms)
