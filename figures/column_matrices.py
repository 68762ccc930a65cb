"""Matrices among whose columns there is to choose, random and real."""

import functools
from collections.abc import Callable

import numpy as np

from ..checks import require, require_one_of
from ..training.data import DataUnavailable, best_images, load, load_weights

SHAPE = (256, 240)
WEIGHT = 'encoder.layer.0.intermediate.dense.weight'


def haar(rng: np.random.Generator, shape, s: np.ndarray) -> np.ndarray:
  """A matrix of given singular values, and any vectors."""
  u, v = (np.linalg.qr(rng.normal(size=(x, len(s))))[0] for x in shape)
  return (u * s) @ v.T


def _kernel(rng) -> np.ndarray:
  x, y = (np.sort(rng.uniform(size=size)) for size in SHAPE)
  return np.exp(-0.5 * ((x[:, None] - y) / 0.04) ** 2)


def _sparse(rng) -> np.ndarray:
  """Sums of sparse rank-one terms: few columns hold what others lack."""
  u, v = (
    rng.normal(size=(x, 120)) * (rng.random((x, 120)) < 0.04) for x in SHAPE
  )
  return (u / np.arange(1, 121)) @ v.T


def _columns(a: np.ndarray, rng) -> np.ndarray:
  """Columns by chance, the first rows, and no more than there are."""
  m, n = SHAPE
  return a[:m, rng.choice(a.shape[1], n, replace=False)].astype(float)


def _images(name: str, data_dir) -> tuple[str, np.ndarray]:
  """Name, and an image a column, every few pixels of it."""
  name = best_images(data_dir) if name == 'auto' else name
  images = load(name, data_dir=data_dir).train
  require(isinstance(images, dict), 'config.images', name, 'a set of images')
  flat = images['image'].reshape(len(images['image']), -1)
  step = max(1, flat.shape[1] // SHAPE[0])
  return name, flat[:, ::step].T / 255.0


def _weights(name: str) -> np.ndarray | None:
  """A weight, `None` where `auto` finds none."""
  require_one_of('config.weights', name, ('auto', 'minilm', 'none'))
  if name == 'none':
    return None
  try:
    return load_weights('minilm')[WEIGHT]
  except DataUnavailable:
    if name == 'auto':
      return None
    raise


def spectra(count: int) -> dict[str, np.ndarray]:
  """Singular values that fall fast and slowly.

  >>> {name: s.round(2).tolist() for name, s in spectra(2).items()}
  {'fast': [1.0, 0.86], 'slow': [1.0, 0.5]}
  """
  j = np.arange(count)
  return {'fast': 10.0 ** -(j / 15), 'slow': 1 / (j + 1)}


def matrices(
  images: str, weights: str, data_dir: str | None = None
) -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
  """A function of a random generator for each kind of matrix, by its name.

  Args:
    images: a set of images, or 'auto' for the best one there is.
    weights: 'minilm', 'none', or 'auto' for the former where it is installed.
    data_dir: of the images.

  Raises:
    ValueError: a set is unknown, not of images, or not there.
  """
  found = {
    name: lambda rng, s=s: haar(rng, SHAPE, s)
    for name, s in spectra(min(SHAPE)).items()
  }
  found |= {'kernel': _kernel, 'sparse': _sparse}
  name, pictures = _images(images, data_dir)
  found[name] = functools.partial(_columns, pictures)
  layer = _weights(weights)
  if layer is not None:
    found['weights'] = functools.partial(_columns, layer)
  return found


def kahan(n: int, angle: float = 1.2) -> np.ndarray:
  """Upper triangular, of columns that pivoting leaves where they are.

  >>> round(float(kahan(90)[-1, -1]), 4)
  0.0019
  """
  s, c = np.sin(angle), np.cos(angle)
  upper = np.eye(n) - c * np.triu(np.ones((n, n)), 1)
  ties = 25 * np.finfo(float).eps * np.arange(n, 0.0, -1.0)
  return s ** np.arange(n)[:, None] * upper + np.diag(ties)
