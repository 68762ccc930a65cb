"""Codes of images of which some bits arrive wrong.

Headers arrive whole: what is damaged are the bits of payloads or, of JPEG, of
the coded blocks.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from ..diffusion import (
  Codes,
  Header,
  pack_bitstream,
  payload_bits,
  unpack_bitstream,
)
from ..training.codec import settings_of
from .codec_contest import Contest
from .diffusion_model import as_bytes, signed
from .image_codecs import jpeg_file, scan_start

# What is seen of an image that cannot be read at all.
GREY = 128
_END = b'\xff\xd9'

Flips = Sequence[np.ndarray]


class Received(NamedTuple):
  """What arrived.

  Attributes:
    images: bytes [N, H, W, C].
    lost: bool [N], whether nothing could be read of an image.
  """

  images: np.ndarray
  lost: np.ndarray


def flipped(data: bytes, flips: np.ndarray) -> bytes:
  r"""Bytes with some bits wrong.

  Args:
    data: bytes.
    flips: bool, for the first bits of them.

  Example:
    >>> flipped(bytes([0, 255]), np.array([1, 0, 0, 1]))
    b'\x90\xff'
  """
  bits = np.unpackbits(np.frombuffer(data, np.uint8))
  bits[: len(flips)] ^= np.asarray(flips, np.uint8)
  return np.packbits(bits).tobytes()


class DiffusionCodes:
  """Streams of a diffusion codec.

  Args:
    contest: encodes and decodes.
    header: of the stream of all images, packing and all.
    images: bytes [N, H, W, C], as many as the header counts.
  """

  def __init__(self, contest: Contest, header: Header, images: np.ndarray):
    self.contest, self.header = contest, header
    self._settings = settings_of(header)  # Packings share their programs.
    self.codes = contest.encode(self._settings, signed(images))
    self.images = self._decoded(self.codes)
    self.stream = pack_bitstream(self.codes, header)
    bits = payload_bits(header)
    self.bits = [bits // header.count] * header.count
    self._start = len(self.stream) - -(-bits // 8)

  def _decoded(self, codes: Codes) -> np.ndarray:
    return as_bytes(self.contest.decode(self._settings, codes))

  def received(self, every: Sequence[Flips]) -> Received:
    """Images out of damaged streams; only what differs is decoded again.

    Args:
      every: of every stream, which of each image's bits are flipped.

    Returns:
      Those of all streams, one after the other.
    """
    codes = [self._unpacked(flips) for flips in every]
    codes = jax.tree.map(lambda *x: np.concatenate(x), *codes)
    repeat = lambda x: np.concatenate([x] * len(every))
    sent, images = jax.tree.map(repeat, self.codes), repeat(self.images)
    wrong = np.zeros(len(images), bool)
    for a, b in zip(codes, sent, strict=True):
      wrong |= np.any(a != b, axis=(1, 2))
    if wrong.any():
      images[wrong] = self._decoded(jax.tree.map(lambda x: x[wrong], codes))
    return Received(images, np.zeros(len(images), bool))

  def _unpacked(self, flips: Flips) -> Codes:
    """Bit j of image b is bit j B + b of the payload."""
    head, payload = self.stream[: self._start], self.stream[self._start :]
    damaged = head + flipped(payload, np.stack(flips, axis=1).ravel())
    return unpack_bitstream(damaged, allow_damage=True)[0]


class JpegCodes:
  """JPEG files, each of the best quality whose coded blocks fit.

  Args:
    images: bytes [N, H, W, C].
    most: bits of coded blocks of an image.
  """

  def __init__(self, images: np.ndarray, most: float):
    self.files = [_fitting(image, most) for image in images]
    self._shape = images.shape[1:]
    self._starts = [scan_start(file) for file in self.files]
    ends = [len(file) - len(_END) for file in self.files]
    pairs = zip(ends, self._starts, strict=True)
    self.bits = [8 * (end - start) for end, start in pairs]
    self.images = self.received([[np.zeros(0, bool)] * len(images)]).images

  def received(self, every: Sequence[Flips]) -> Received:
    """Images out of damaged files, those that cannot be read are grey.

    Args:
      every: of every set of files, which of each one's bits are flipped.

    Returns:
      Those of all sets, one after the other.
    """
    read = [
      self._read(file[:start] + flipped(file[start:], flips))
      for one in every
      for file, start, flips in zip(self.files, self._starts, one, strict=True)
    ]
    lost = np.array([image is None for image in read])
    grey = np.full(self._shape, GREY, np.uint8)
    return Received(np.stack([grey if x is None else x for x in read]), lost)

  def _read(self, file: bytes) -> np.ndarray | None:
    try:
      # A reader that has lost its way finds an end.
      image = Image.open(io.BytesIO(file + 8 * _END))
      return np.asarray(image).reshape(self._shape)
    except (OSError, ValueError):
      return None


def _fitting(image: np.ndarray, most: float) -> bytes:
  """The largest quality within so many bits, or the least there is."""
  for quality in range(95, 0, -1):
    file = jpeg_file(image, quality)
    if 8 * (len(file) - len(_END) - scan_start(file)) <= most:
      break
  return file


def random_flips(
  bits: Sequence[int], rate: float, rng: np.random.Generator
) -> list[np.ndarray]:
  """Every bit is wrong with the same probability.

  Args:
    bits: of each image.
    rate: the probability.
    rng: draws them.

  Returns:
    Bool arrays, one for each image.
  """
  return [rng.random(count) < rate for count in bits]


def one_flip(
  bits: Sequence[int], part: int, parts: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """One bit of each image is wrong, somewhere in a part of its code.

  Args:
    bits: of each image.
    part: which one, from 0.
    parts: how many there are of equal length.
    rng: draws the place.

  Returns:
    Bool arrays, one for each image.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> [int(np.flatnonzero(x)[0]) for x in one_flip([4, 8], 3, 4, rng)]
    [3, 7]
  """
  flips = []
  for count in bits:
    low, high = part * count // parts, (part + 1) * count // parts
    flips.append(np.arange(count) == rng.integers(low, max(high, low + 1)))
  return flips
