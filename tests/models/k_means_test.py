"""k-means against scikit-learn and a slow one; its start against chances."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from sklearn.exceptions import ConvergenceWarning

from kexue.models import k_means, k_means_start, nearest_code

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(400, 3)).astype(np.float32)


def slow_k_means(z, start, iterations, mask=None):
  z = np.float64(z if mask is None else z[mask])
  codes = np.float64(start)
  for _ in range(iterations):
    nearest = np.square(z[:, None] - codes).sum(-1).argmin(1)
    for k in range(len(codes)):
      if np.any(nearest == k):
        codes[k] = z[nearest == k].mean(0)
  return codes, np.bincount(nearest, minlength=len(codes))


def test_equals_scikit_learn():
  model = sklearn.cluster.KMeans(
    10, init=Z[:10], n_init=1, max_iter=10, tol=0, algorithm='lloyd'
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', ConvergenceWarning)
    model.fit(Z)
  codes, _ = jax.jit(k_means)(Z, Z[:10])
  np.testing.assert_allclose(codes, model.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize('masked', [False, True])
def test_empty_clusters_keep_their_codes(masked):
  mask = RNG.random(400) < 0.5 if masked else None
  start = np.concatenate([Z[:6], np.full((2, 3), 50.0, np.float32), Z[:1]])
  codes, counts = k_means(Z, start, iterations=3, mask=mask)
  expected, expected_counts = slow_k_means(Z, start, 3, mask)
  np.testing.assert_allclose(codes, expected, atol=1e-5)
  np.testing.assert_array_equal(counts, expected_counts)
  np.testing.assert_array_equal(codes[6:8], start[6:8])
  assert np.all(counts[6:8] == 0)


def test_codes_are_the_means_of_their_counts():
  codes, counts = k_means(Z, Z[:7], iterations=1)
  nearest = nearest_code(Z, Z[:7])
  sums = np.zeros((7, 3))
  np.add.at(sums, nearest, Z)
  np.testing.assert_allclose(codes * counts[:, None], sums, atol=1e-4)


def test_cosine_knows_directions_alone():
  lengths = 10.0 ** RNG.integers(-3, 4, (400, 1)).astype(np.float32)
  cosine = functools.partial(k_means, distance='cosine')
  codes, counts = cosine(Z, Z[:5])
  np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-6)
  scaled, scaled_counts = cosine(Z * lengths, Z[:5] * lengths[:5])
  np.testing.assert_allclose(scaled, codes, atol=1e-5)
  np.testing.assert_array_equal(scaled_counts, counts)


def test_start_draws_in_proportion_to_squared_distances():
  """Three points on a line: every ordered pair has a chance to compute."""
  points = np.array([0.0, 1, 3])
  z = jnp.array(points[:, None])
  draws = 4000
  keys = jax.random.split(jax.random.key(0), draws)
  pairs = jax.vmap(lambda key: k_means_start(z, 2, key=key))(keys)[..., 0]
  for first in points:
    gaps = (points - first) ** 2
    for second, gap in zip(points, gaps, strict=True):
      chance = gap / gaps.sum() / 3
      hits = np.sum((pairs[:, 0] == first) & (pairs[:, 1] == second))
      deviation = np.sqrt(draws * chance * (1 - chance))
      assert abs(hits - draws * chance) <= 4 * deviation


def test_start_finds_the_clusters():
  """More codes than rounds; random vectors would miss a third of the 100."""
  centres = 100 * RNG.normal(size=(100, 3))
  z = centres[np.arange(3000) % 100] + 0.1 * RNG.normal(size=(3000, 3))
  hit = lambda codes: len(np.unique(nearest_code(codes, centres)))
  assert hit(z[RNG.choice(3000, 100, replace=False)]) < 75
  start = k_means_start(z, 100, key=jax.random.key(0))
  assert start.shape == (100, 3) and hit(start) > 85


def test_start_takes_copies_last():
  z = jnp.array([[1.0, 0]] * 20 + [[0, 1]] * 20 + [[5, 5], [7, 7]])
  codes = k_means_start(z, 6, key=jax.random.key(3))
  assert len(np.unique(codes, axis=0)) == 4
  huge = k_means_start(z * 2.0**100, 6, key=jax.random.key(3))
  np.testing.assert_array_equal(huge, codes * 2.0**100)
  everything = k_means_start(Z[:100], 100, key=jax.random.key(0))
  np.testing.assert_array_equal(np.sort(everything, 0), np.sort(Z[:100], 0))


def test_wrong_arguments_are_named():
  key = jax.random.key(0)
  for name, call in {
    'num_codes: got 401': lambda: k_means_start(Z, 401, key=key),
    'num_codes: got 0': lambda: k_means_start(Z, 0, key=key),
    'z: got': lambda: k_means_start(Z[0], 2, key=key),
    r'z: got shape \(400, 2\)': lambda: k_means(Z[:, :2], Z[:3]),
    'start: got': lambda: k_means(Z, Z[0]),
    'iterations: got 0': lambda: k_means(Z, Z[:3], iterations=0),
    'distance: got': lambda: k_means(Z, Z[:3], distance='l1'),
    'mask: got': lambda: k_means(Z, Z[:3], mask=jnp.ones(3, bool)),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
