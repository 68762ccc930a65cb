"""Greedy choices against a search that forms every residual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank.column_row_greedy import greedy_indices
from kexue.lowrank.outer_products import outer_products


@jax.jit
def subtracted(x, y):
  return greedy_indices(outer_products(x, y), 4, refit=False)


@jax.jit
def refitted(x, y):
  return greedy_indices(outer_products(x, y), 4, refit=True)


def matrices(dtype, seed=0):
  real, imaginary = np.random.default_rng(seed).normal(size=(2, 2, 8, 8))
  x, y = real
  if np.issubdtype(dtype, np.complexfloating):
    x, y = real + 1j * imaginary
  scale = np.geomspace(1, 4, 8)
  return (x[:5] * scale).astype(dtype), y[:, :4].astype(dtype)


def vectors(x, y):
  return np.einsum('ml,ln->mnl', x, y).reshape(-1, x.shape[1])


def least(v, chosen, size):
  """The index whose addition leaves the least, by all residuals."""
  rest = [i for i in range(v.shape[1]) if i not in chosen]
  return min(rest, key=lambda i: size([*chosen, i]))


def searched(v, rank, refit):
  """The term that leaves least, again and again; added or left out."""
  target = v.sum(1)

  def residual(kept):
    best = np.linalg.lstsq(v[:, kept], target)[0]
    return np.linalg.norm(target - v[:, kept] @ (best if refit else best**0))

  added, removed = [], []
  for _ in range(rank):
    added.append(least(v, added, residual))
  if refit:
    return added
  for _ in range(v.shape[1] - rank):
    total = lambda left: np.linalg.norm(v[:, left].sum(1))
    removed.append(least(v, removed, total))
  kept = [i for i in range(v.shape[1]) if i not in removed]
  return sorted(min(added, kept, key=residual))


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('dtype', [np.float32, np.complex64])
@pytest.mark.parametrize('refit', [False, True])
def test_choices_are_those_of_the_search(seed, dtype, refit):
  x, y = matrices(dtype, seed)
  found = (refitted if refit else subtracted)(x, y)
  assert found.dtype == jnp.int32
  assert found.tolist() == searched(vectors(x, y), 4, refit)


@pytest.mark.parametrize('greedy', [subtracted, refitted])
def test_orthogonal_terms_by_size(greedy):
  found = greedy(np.diag(np.float32([1, 5, 2, 4, 3, 0])), np.eye(6))
  assert sorted(found.tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize('greedy', [subtracted, refitted])
@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_scale_does_not_matter(greedy, scale):
  x, y = matrices(np.float32)
  found = greedy(x * np.float32(scale), y)
  np.testing.assert_array_equal(found, greedy(x, y))


@pytest.mark.parametrize('greedy', [subtracted, refitted])
def test_choices_are_distinct_whatever_comes(greedy):
  x, y = matrices(np.float32)
  same = np.tile(x[:, :1], 8), np.tile(y[:1], (8, 1))
  for a, b in (same, (0 * x, y), (x[:, [0, 0, 1, 1, 0, 0, 1, 1]], y)):
    assert len({*greedy(a, b).tolist()}) == 4


def test_leaving_out_may_be_better_than_adding():
  """Adding ends three off the sum of four, leaving out one off."""
  x = np.float32([[4, -3, -5, 9, -6, -3, 3, 5]])
  found = subtracted(x, np.ones((8, 1), np.float32))
  assert found.tolist() == [2, 3, 4, 7]
  assert abs(x[0, found].sum() - x.sum()) == 1


def test_refitting_skips_what_is_spanned():
  """A second copy is worth nothing once the first one has its weight."""
  x = np.float32(np.diag([4, 3, 2, 1, 0.5]))
  x, y = x[:, [0, 0, 1, 2, 3, 4]], np.eye(5, dtype=np.float32)
  y = y[[0, 0, 1, 2, 3, 4]]
  assert 1 not in refitted(x, y).tolist()
  assert {0, 1} < {*subtracted(x, y).tolist()}
