"""The scorer by hand, and images that are moved or turned."""

import jax.numpy as jnp
import numpy as np

from kexue.figures.best_match import _turn, _variants, best_match


def images(count, seed=0):
  return jnp.asarray(np.random.default_rng(seed).random((count, 6, 6)))


def test_best_match_is_the_largest_cosine():
  queries, keys = images(2), images(3, seed=1)
  found = np.asarray(best_match(queries, keys, 1))
  flat = keys.reshape(3, -1) / jnp.linalg.norm(keys, axis=(1, 2))[:, None]
  for i, query in enumerate(queries):
    variants = _variants(query, 1)
    assert variants.shape == (5 * 9, 36)
    norms = np.linalg.norm(variants, axis=1)
    cosines = np.asarray(variants @ flat.T) / norms[:, None]
    np.testing.assert_allclose(found[i], cosines.max(0), rtol=1e-5)


def test_what_was_moved_or_turned_matches():
  image = jnp.zeros((9, 9)).at[3:6, 3:6].set(images(1)[0, :3, :3])
  moved = [jnp.roll(image, by, (0, 1)) for by in ((1, 0), (-2, 2))]
  turned = _turn(image, jnp.float32(10))
  keys = jnp.stack([*moved, turned, jnp.roll(image, 3, 0), image[::-1]])
  found = best_match(image[None], keys, 2)[0]
  np.testing.assert_allclose(found[:3], 1, atol=1e-5)
  assert float(found[3:].max()) < 0.99  # Too far, or mirrored.
