"""Whether one set of images is as far from a third as another one is.

By intervals: images are drawn again from each set. A distance of small sets is
too large, and that of sets drawn again from them is so twice over; in the
difference of two distances of sets of equal size this cancels where the sets
are alike. Such intervals are too wide there, by a half or so.

By swapping: if two sets are alike, image for image, swapping some of their
images changes nothing but chance. How many of such swaps increase the
difference is an exact test, and a sharper one.
"""

from typing import NamedTuple

import numpy as np

from .image_features import frechet


class Redrawn(NamedTuple):
  """A set of features and others drawn from it.

  Attributes:
    features: [N, F].
    rows: [R, N], the places of R more sets.
  """

  features: np.ndarray
  rows: np.ndarray


def redrawn(features: np.ndarray, resamples: int, seed: int) -> Redrawn:
  """Draws R sets of N with replacement.

  Args:
    features: [N, F].
    resamples: R.
    seed: one for each set; those of equal seeds are drawn together.

  Returns:
    `Redrawn`.
  """
  count = len(features)
  rows = np.random.default_rng(seed).integers(count, size=(resamples, count))
  return Redrawn(features, rows)


def distances(a: Redrawn, b: Redrawn) -> np.ndarray:
  """Fréchet distances of two sets, and of those drawn from them [1 + R]."""
  pairs = zip(a.rows, b.rows, strict=True)
  again = [frechet(a.features[i], b.features[j]) for i, j in pairs]
  return np.array([frechet(a.features, b.features), *again])


def interval(values: np.ndarray) -> dict[str, float]:
  """The value, and the middle 95 % of those of sets drawn again.

  Args:
    values: [1 + R], of `distances`, or a difference of such.

  Returns:
    `value`, `low` and `high`.

  Example:
    >>> interval(np.append(3.0, np.arange(41.0)))
    {'value': 3.0, 'low': 1.0, 'high': 39.0}
  """
  low, high = np.quantile(values[1:], [0.025, 0.975])
  return {'value': float(values[0]), 'low': float(low), 'high': float(high)}


def swapping(
  a: np.ndarray, b: np.ndarray, third: np.ndarray, swaps: int, seed: int
) -> float:
  """The chance of a set to be so much further from a third one than another.

  Args:
    a: features [N, F].
    b: [N, F], of the same classes image for image.
    third: [M, F].
    swaps: how many times images are swapped, each with chance 1/2.
    seed: of these.

  Returns:
    The share of swaps, with the one that swaps nothing, in which the distance
    of `a` less that of `b` is at least what it is.

  Example:
    >>> a, b = np.random.default_rng(0).normal(size=(2, 99, 2))
    >>> swapping(a + 1, b, b, 99, 0)
    0.01
  """
  rng = np.random.default_rng(seed)
  more = lambda a, b: frechet(a, third) - frechet(b, third)
  found, count = more(a, b), 1
  for _ in range(swaps):
    swap = rng.integers(2, size=(len(a), 1)) == 1
    count += more(np.where(swap, b, a), np.where(swap, a, b)) >= found
  return count / (swaps + 1)
