"""Rows of `ddcm_rate_distortion`: what images are worth after a codec.

The distance to the originals is that of a set to itself for a codec without
loss; pairs of image and original are drawn again for its error.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..training.records import Row
from .codec_contest import psnr
from .frechet_bootstrap import distances, redrawn
from .image_codecs import (
  TransformCodec,
  block_cosines,
  jpeg,
  principal_components,
)
from .image_features import Judge
from .rate_distortion_table import pictured
from .token_measures import as_strip

# Images in a strip, and resamples of a distance.
SHOWN, RESAMPLES = 20, 50
TRANSFORMS = {'pca': principal_components, 'dct': block_cosines}


def standard_error(x: np.ndarray) -> float:
  """Of the mean of numbers.

  >>> standard_error(np.array([1.0, 3.0]))
  1.0
  """
  return float(np.std(x, ddof=1) / math.sqrt(len(x)))


class Scorer:
  """Measures sets of images that were coded.

  Args:
    judge: whose features are compared, and reference is what real images are.
    originals: bytes [N, H, W, C].
  """

  def __init__(self, judge: Judge, originals: np.ndarray):
    self.originals, self._judge = originals, judge
    self._real = redrawn(judge.features(originals), RESAMPLES, seed=0)

  def row(self, images: np.ndarray, rate: float) -> Row:
    """Distortion and realism, the PSNR of each image as text, and pictures.

    Args:
      images: bytes, as the originals.
      rate: in bits a pixel; pictures are kept of some.
    """
    each = psnr(images, self.originals)
    distance, error = self._frechet(self._judge.features(images))
    return {
      'psnr': float(np.mean(each)),
      'psnr_error': standard_error(each),
      'psnrs': ' '.join(f'{x:.3f}' for x in each),
      'frechet': distance,
      'frechet_error': error,
    } | (as_strip(images[:SHOWN]) if pictured(rate) else {})

  def real(self) -> Row:
    """Other real images, as many, and some of the originals."""
    distance, _ = self._frechet(self._judge.reference)
    return {'real_frechet': distance} | as_strip(self.originals[:SHOWN])

  def _frechet(self, features: np.ndarray) -> tuple[float, float]:
    own = redrawn(features, RESAMPLES, seed=0)
    values = distances(own, self._real) / self._judge.variance
    return float(values[0]), float(np.std(values[1:]))


def classical_rows(
  scorer: Scorer,
  known: np.ndarray,
  steps: Sequence[float],
  qualities: Sequence[int],
) -> Iterator[tuple[str, Callable[[], Row]]]:
  """Codecs without a network, by labels of their rows.

  Args:
    scorer: of the originals.
    known: training images, bytes.
    steps: of transforms, in bytes.
    qualities: of JPEG.

  Yields:
    The label, and what makes the row.
  """
  for name, make in TRANSFORMS.items():
    codec = functools.cache(
      lambda make=make: TransformCodec(make(known), known)
    )
    for step in steps:
      row = functools.partial(_transform_row, scorer, name, codec, step)
      yield f'{name}-{step:g}', row
  for quality in qualities:
    row = functools.partial(_jpeg_row, scorer, quality)
    yield f'jpeg-{quality}', row


def _rate(scorer: Scorer, bits: np.ndarray) -> float:
  return float(np.mean(bits)) / math.prod(scorer.originals.shape[1:3])


def _transform_row(scorer, name, codec, step) -> Row:
  coded = codec().coded(scorer.originals, step)
  rate = _rate(scorer, coded.bits)
  about = {'mode': name, 'setting': step, 'bits_per_pixel': rate}
  return about | scorer.row(coded.images, rate)


def _jpeg_row(scorer, quality) -> Row:
  coded = jpeg(scorer.originals, quality)
  rate, whole = (_rate(scorer, x) for x in (coded.scan_bits, coded.bits))
  about = {'mode': 'jpeg', 'setting': quality, 'bits_per_pixel': rate}
  return about | {'file_rate': whole} | scorer.row(coded.images, rate)
