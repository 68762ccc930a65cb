"""An expensive score of two images that is no inner product, for a figure.

Shapes: `a` queries, `b` keys, [H, W] pixels, `V` positions.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

ANGLES = (-20.0, -10.0, 0.0, 10.0, 20.0)  # Degrees.


def best_match(queries: jax.Array, keys: jax.Array, shift: int) -> jax.Array:
  """Largest cosine of two images over turns and shifts of the first.

  Args:
    queries: [a, H, W], which are turned by each of `ANGLES` and moved.
    keys: [b, H, W].
    shift: largest shift along each axis, in pixels.

  Returns:
    [a, b], the cosine at the best of 5 (2 shift + 1)^2 positions.

  Example:
    >>> image = jnp.zeros((1, 6, 6)).at[0, 2, 2].set(1.0)
    >>> moved = jnp.roll(image, 1, axis=2)
    >>> [round(float(best_match(image, moved, s)[0, 0]), 2) for s in (0, 1)]
    [0.24, 1.0]
  """
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1), 1e-6)[..., None]
  targets = unit(keys.reshape(len(keys), -1))

  def score(query):
    variants = unit(_variants(query, shift))
    return jnp.max(variants @ targets.T, axis=0)

  return jax.lax.map(score, queries)


def _variants(image: jax.Array, shift: int) -> jax.Array:
  """The image turned and moved in every way [V, H W], zeros moving in."""
  height, width = image.shape
  turned = jax.vmap(functools.partial(_turn, image))(jnp.array(ANGLES))
  padded = jnp.pad(turned, ((0, 0), (shift, shift), (shift, shift)))
  moves = itertools.product(range(2 * shift + 1), repeat=2)
  moved = [padded[:, y : y + height, x : x + width] for y, x in moves]
  return jnp.concatenate(moved).reshape(-1, height * width)


def _turn(image: jax.Array, degrees: jax.Array) -> jax.Array:
  """Rotates about the centre, linear between pixels."""
  middle = (np.array(image.shape)[:, None, None] - 1) / 2
  y, x = np.indices(image.shape) - middle
  cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
  at = [cos * y - sin * x + middle[0], sin * y + cos * x + middle[1]]
  return jax.scipy.ndimage.map_coordinates(image, at, order=1)
