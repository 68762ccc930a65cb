r"""Codecs of images without a network, for comparison.

Transform codes round the coordinates of an image in an orthonormal basis to
multiples of a step. Their bits are those of an ideal entropy coder that knows
how often each multiple of each coordinate occurs in training images: with
:math:`n_s` of `N`, and `S` multiples between the least and the largest of them,

.. math:: -\log_2 \frac{n_s + 1/2}{N + S/2},

and what lies outside of that range is rounded to its ends. Such a coder exists,
to within two bits an image; its tables, one for each coordinate, are as much a
model of the images as the network is.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

BLOCK = 8


class Coded(NamedTuple):
  """Images after a codec, bytes [N, H, W, C], and the bits of each [N]."""

  images: np.ndarray
  bits: np.ndarray


class Transform(NamedTuple):
  """A basis of images.

  Attributes:
    to: images [N, H, W, C] to coordinates [N, P], float64.
    back: the inverse.
  """

  to: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]


def principal_components(images: np.ndarray) -> Transform:
  """The eigenvectors of the covariance of images, from their mean on."""
  rows = np.float64(images.reshape(len(images), -1))
  mean = rows.mean(axis=0)
  _, basis = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
  shape = images.shape[1:]
  return Transform(
    lambda x: (x.reshape(len(x), -1) - mean) @ basis,
    lambda y: (y @ basis.T + mean).reshape(-1, *shape),
  )


def cosine_matrix(n: int) -> np.ndarray:
  """The orthonormal discrete cosine transform, a frequency a row.

  >>> print(cosine_matrix(2).round(3))
  [[ 0.707  0.707]
   [ 0.707 -0.707]]
  """
  angles = np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)
  matrix = np.sqrt(2 / n) * np.cos(angles)
  matrix[0] /= np.sqrt(2)
  return matrix


def block_cosines(images: np.ndarray) -> Transform:
  """Cosines of blocks of 8 x 8 pixels, as in JPEG, from the images' mean on.

  Sides that 8 does not divide are filled up with their last pixels.
  """
  mean = np.float64(images).mean(axis=0)
  height, width, channels = mean.shape
  sides = [-(-n // BLOCK) * BLOCK for n in (height, width)]
  padding = [(0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0)]
  matrix = cosine_matrix(BLOCK)
  grid = (sides[0] // BLOCK, BLOCK, sides[1] // BLOCK, BLOCK, channels)

  def along_both(x, rows):
    return np.einsum('fi,gj,nhiwjc->nhfwgc', rows, rows, x, optimize=True)

  def to(x):
    padded = np.pad(x - mean, padding, 'edge').reshape(-1, *grid)
    return along_both(padded, matrix).reshape(len(x), -1)

  def back(y):
    whole = along_both(y.reshape(-1, *grid), matrix.T)
    return whole.reshape(-1, *sides, channels)[:, :height, :width] + mean

  return Transform(to, back)


class TransformCodec:
  """Uniform steps in the coordinates of a transform.

  Args:
    transform: a basis.
    training: images whose frequencies the coder knows.
  """

  def __init__(self, transform: Transform, training: np.ndarray):
    self.transform = transform
    self._training = transform.to(training)

  def coded(self, images: np.ndarray, step: float) -> Coded:
    """Images after rounding.

    Args:
      images: bytes [N, H, W, C].
      step: in bytes.

    Returns:
      `Coded`, of fractions of bits.
    """
    known = np.rint(self._training / step).astype(int)
    low, high = known.min(axis=0), known.max(axis=0)
    rounded = np.rint(self.transform.to(images) / step).astype(int)
    rounded = np.clip(rounded, low, high)
    columns = zip(known.T, rounded.T, low, high, strict=True)
    bits = sum(_surprises(*column) for column in columns)
    return Coded(_as_pixels(self.transform.back(rounded * step)), bits)


def _surprises(known, new, low, high):
  """Bits of each new symbol of a coordinate, by how often it was seen."""
  counts = np.bincount(known - low, minlength=high - low + 1) + 0.5
  return np.log2(counts.sum() / counts)[new - low]


def _as_pixels(x: np.ndarray) -> np.ndarray:
  return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


class Jpeg(NamedTuple):
  """Images after JPEG, bytes, and the bits of each: all, and of pixels."""

  images: np.ndarray
  bits: np.ndarray
  scan_bits: np.ndarray


def jpeg(images: np.ndarray, quality: int) -> Jpeg:
  """Images after JPEG as Pillow writes it, with the Huffman tables of all.

  Args:
    images: bytes [N, H, W, C], of 1 channel or 3.
    quality: 1 to 95.

  Returns:
    `Jpeg`; its `scan_bits` leave out what comes before the coded blocks, a
    header and tables that a special codec would not send, and the end marker.
  """
  files = [jpeg_file(image, quality) for image in images]
  decoded = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
  bits = np.array([8 * len(file) for file in files])
  before = np.array([8 * (scan_start(file) + 2) for file in files])
  return Jpeg(np.stack(decoded).reshape(images.shape), bits, bits - before)


def jpeg_file(image: np.ndarray, quality: int) -> bytes:
  """A whole file of bytes [H, W, C], of 1 channel or 3."""
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  buffer = io.BytesIO()
  options = {'quality': quality, 'subsampling': 0}
  Image.fromarray(pixels).save(buffer, 'JPEG', **options)
  return buffer.getvalue()


def scan_start(file: bytes) -> int:
  """Where the coded blocks begin, after all segments with a length."""
  place = 2
  while True:
    marker = file[place + 1]
    place += 2 + int.from_bytes(file[place + 2 : place + 4], 'big')
    if marker == 0xDA:
      return place
