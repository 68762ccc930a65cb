"""Transforms are orthonormal, their bits a code, and JPEG is JPEG."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from kexue.figures.image_codecs import (
  TransformCodec,
  block_cosines,
  cosine_matrix,
  jpeg,
  principal_components,
)

TRANSFORMS = principal_components, block_cosines


def smooth(count, shape=(12, 9, 1), seed=0):
  """Images with something to be gained by a transform."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(count, *shape)).cumsum(axis=1).cumsum(axis=2)
  return np.uint8(np.clip(128 + 6 * rows, 0, 255))


@pytest.mark.parametrize('make', TRANSFORMS)
def test_there_and_back(make):
  known = smooth(50)
  transform = make(known)
  new = smooth(7, seed=1)
  coordinates = transform.to(new)
  np.testing.assert_allclose(transform.back(coordinates), new, atol=1e-9)
  # From the mean on: coordinates of the training images have none.
  assert np.abs(transform.to(known).mean(axis=0)).max() < 1e-9


def test_principal_components_are_uncorrelated_and_keep_lengths():
  known = smooth(300)
  y = principal_components(known).to(known)
  covariance = np.cov(y, rowvar=False)
  spread = np.sqrt(np.outer(*[np.diag(covariance)] * 2)) + 1e-9
  off = covariance - np.diag(np.diag(covariance))
  assert np.abs(off / spread.max()).max() < 1e-9
  centred = known.reshape(300, -1) - known.reshape(300, -1).mean(axis=0)
  np.testing.assert_allclose(np.sum(y**2), np.sum(centred**2))


def test_cosines_are_orthonormal_and_those_of_blocks():
  matrix = cosine_matrix(8)
  np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-12)
  images = smooth(3, (16, 8, 1))
  y = block_cosines(images).to(images).reshape(3, 2, 1, 8, 8)
  rest = images - images.mean(axis=0)
  block = matrix @ rest[1, 8:, :, 0] @ matrix.T
  np.testing.assert_allclose(y[1, 1, 0], block, atol=1e-9)


@pytest.mark.parametrize('make', TRANSFORMS)
def test_smaller_steps_cost_more_and_lose_less(make):
  known, new = smooth(400), smooth(20, seed=1)
  codec = TransformCodec(make(known), known)
  coarse, fine = (codec.coded(new, step) for step in (64.0, 16.0))
  error = lambda coded: np.mean((np.float64(coded.images) - new) ** 2)
  assert error(coarse) > 2 * error(fine)
  assert np.all(coarse.bits > 0) and coarse.bits.sum() < fine.bits.sum()
  # Rounding in an orthonormal basis: at most a twelfth of the step's square,
  # where nothing is beyond what the coder knows.
  inside = codec.coded(known, 16.0)
  wrong = np.mean((np.float64(inside.images) - known) ** 2)
  assert wrong < 1.2 * 16**2 / 12


def test_bits_are_those_of_frequencies():
  """One pixel, in three states: what an arithmetic coder would take."""
  known = np.repeat(np.uint8([0, 0, 0, 100, 100, 200]), 20)
  known = known.reshape(-1, 1, 1, 1)
  codec = TransformCodec(principal_components(known), known)
  new = np.uint8([0, 100, 200, 255]).reshape(-1, 1, 1, 1)
  coded = codec.coded(new, 100.0)
  mean = known.mean()
  levels = np.rint((np.array([0, 100, 200]) - mean) / 100)
  counts = np.array([60, 40, 20]) + 0.5
  expected = np.log2((120 + 1.5) / counts)
  assert len(set(levels)) == 3
  # 255 is beyond all that was seen: the highest, at its price.
  np.testing.assert_allclose(coded.bits, [*expected, expected[2]])
  assert coded.images[3] == coded.images[2]
  # A code: probabilities of all that it can say sum to one.
  assert np.sum(2.0**-expected) == pytest.approx(1)


@pytest.mark.parametrize('channels', [1, 3])
def test_jpeg_is_counted_with_and_without_its_header(channels):
  images = smooth(4, (16, 16, channels))
  rough, good = jpeg(images, 10), jpeg(images, 95)
  assert good.images.shape == images.shape and good.images.dtype == np.uint8
  error = lambda x: np.mean((np.float64(x.images) - images) ** 2)
  assert error(good) < error(rough)
  assert np.all(rough.scan_bits < good.scan_bits)
  header = good.bits - good.scan_bits
  assert np.all(header == header[0]) and header[0] > 8 * 300
  assert np.all(good.scan_bits > 0)
  # The same blocks without a header: what is left of the file after its scan.
  buffer = io.BytesIO()
  pixels = images[0, ..., 0] if channels == 1 else images[0]
  Image.fromarray(pixels).save(buffer, 'JPEG', quality=95, subsampling=0)
  file = buffer.getvalue()
  scan = file.rindex(b'\xff\xda')
  length = int.from_bytes(file[scan + 2 : scan + 4], 'big')
  assert good.scan_bits[0] == 8 * (len(file) - scan - 2 - length - 2)
  assert math.isclose(good.bits[0], 8 * len(file))
