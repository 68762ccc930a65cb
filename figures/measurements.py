"""What is left of images after a measurement, and what linear maps make of it.

A task is an operator of `kexue.diffusion`. Noise is added to the entries that
measure something, not to those that a mask left out; errors are those of these
entries too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..diffusion import average_pooling, blur, grey, masked
from ..diffusion.linear_operators import Operator

FACTOR = 4
# Of random pixels, the share that is seen; of the blur, in pixels.
SEEN, DEVIATION, RADIUS = 0.25, 1.5, 3
# Of singular values over the largest one: what is below is taken for nothing.
_CUTOFF = 0.03
# Least variance of the noise for a filter, in units of -1..1: a byte's.
_LEAST = (2 / 255) ** 2 / 12


class Task(NamedTuple):
  """A measurement.

  Attributes:
    operator: of images [B, H, W, C] to measurements.
    shown: measurements as images.
  """

  operator: Operator
  shown: Callable[[jax.Array], jax.Array]


def tasks(shape: tuple[int, int, int]) -> dict[str, Task]:
  """Measurements by name; colour is taken from images that have some.

  Args:
    shape: (H, W, C), sides that `FACTOR` divides.

  Returns:
    `Task`s.

  Example:
    >>> [*tasks((8, 8, 1))]
    ['pooled', 'box', 'pixels', 'blurred']
    >>> tasks((8, 8, 3))['grey'].operator(jnp.zeros((1, 8, 8, 3))).shape
    (1, 8, 8, 1)
  """
  height, width, channels = shape
  box = np.ones((height, width, 1), np.float32)
  middle = slice(height // 4, -(height // 4)), slice(width // 4, -(width // 4))
  box[middle] = 0
  drawn = np.random.default_rng(0).random((height, width, 1))
  large = lambda y: jnp.repeat(jnp.repeat(y, FACTOR, 1), FACTOR, 2)
  same = lambda y: y
  found = {
    'pooled': Task(average_pooling(FACTOR), large),
    'box': Task(masked(box), same),
    'pixels': Task(masked(np.float32(drawn < SEEN)), same),
    'blurred': Task(blur(DEVIATION, RADIUS), same),
  }
  if channels == 3:
    found['grey'] = Task(grey, lambda y: jnp.repeat(y, 3, axis=-1))
  return found


def measured_entries(task: Task, shape: tuple[int, int, int]) -> np.ndarray:
  """Which entries of a measurement are of some pixel, bool.

  Args:
    task: a measurement with weights of 0 or more.
    shape: (H, W, C).
  """
  return np.asarray(task.operator(jnp.ones((1, *shape)))[0] != 0)


def measure(
  task: Task, x0: jax.Array, noise: float, key: jax.Array
) -> jax.Array:
  """The measurements of images [B, H, W, C], with normal noise.

  Args:
    task: what is measured.
    x0: images.
    noise: its standard deviation.
    key: of the noise.
  """
  y = task.operator(x0)
  there = measured_entries(task, x0.shape[1:])
  return y + noise * there * jax.random.normal(key, y.shape)


def inconsistency(task: Task, x: jax.Array, y: jax.Array) -> float:
  """Root of the mean square of A x - y, of an entry that measures something.

  Args:
    task: what was measured.
    x: images [B, H, W, C].
    y: measurements.

  Returns:
    A number in the units of pixels in -1..1.

  Example:
    >>> box = tasks((8, 8, 1))['box']
    >>> y = box.operator(jnp.zeros((2, 8, 8, 1)))
    >>> inconsistency(box, jnp.full((2, 8, 8, 1), 0.5), y)
    0.5
  """
  there = measured_entries(task, x.shape[1:])
  square = np.square(np.float64(task.operator(x)) - np.float64(y))
  return float(np.sqrt(square.sum() / there.sum() / len(x)))


class LinearMaps:
  """Images out of measurements, the best that is linear.

  Args:
    images: training images [N, H, W, C] in -1..1, whose mean and covariance are
      taken.
  """

  def __init__(self, images: np.ndarray):
    rows = np.float64(images.reshape(len(images), -1))
    self.shape, self.mean = images.shape[1:], rows.mean(axis=0)
    self.covariance = np.cov(rows, rowvar=False)

  def _matrix(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The operator [entries, pixels], and which of its entries there are."""
    there = measured_entries(task, self.shape)
    every = np.eye(len(self.mean), dtype=np.float32).reshape(-1, *self.shape)
    rows = np.float64(task.operator(jnp.asarray(every)))[:, there]
    return rows.T, there

  def pseudo_inverse(self, task: Task, y: jax.Array) -> np.ndarray:
    """The image of least norm that explains measurements best.

    Directions with singular values below `_CUTOFF` of the largest one, which
    would bring more noise than image, are left out.

    Args:
      task: what was measured.
      y: measurements [B, ...].

    Returns:
      [B, H, W, C].
    """
    matrix, there = self._matrix(task)
    inverse = np.linalg.pinv(matrix, rcond=_CUTOFF)
    return (np.float64(y)[:, there] @ inverse.T).reshape(-1, *self.shape)

  def filtered(self, task: Task, y: jax.Array, noise: float) -> np.ndarray:
    """The linear estimate of least square error, Wiener's filter.

    Args:
      task: what was measured.
      y: measurements [B, ...].
      noise: standard deviation that it has.

    Returns:
      [B, H, W, C].
    """
    matrix, there = self._matrix(task)
    across = self.covariance @ matrix.T
    own = matrix @ across + max(noise**2, _LEAST) * np.eye(len(matrix))
    missing = np.float64(y)[:, there] - matrix @ self.mean
    rows = self.mean + missing @ np.linalg.solve(own, across.T)
    return rows.reshape(-1, *self.shape)


def cubic(y: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Measurements [B, h, w, C] of fewer pixels, enlarged with cubic splines."""
  return jax.image.resize(y, (len(y), *shape), 'cubic')
