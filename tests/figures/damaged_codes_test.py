"""Bits that are flipped are those that arrive wrong."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from kexue.diffusion import Header, Schedule, gaussian_denoiser, payload_bits
from kexue.figures.codec_contest import Contest, psnr
from kexue.figures.damaged_codes import (
  GREY,
  DiffusionCodes,
  JpegCodes,
  flipped,
  one_flip,
  random_flips,
)
from kexue.figures.diffusion_model import signed

SCHEDULE = Schedule.cosine(40)
RANK = Header(
  packing='step',
  kind='hadamard',
  size=16,
  atoms=3,
  steps=6,
  tail=2,
  shape=(4, 4, 1),
  count=3,
)
HEADERS = {
  'rank': RANK,
  'dense': dataclasses.replace(RANK, packing='dense'),
  'independent': dataclasses.replace(RANK, packing='independent'),
  'ddcm': dataclasses.replace(RANK, mode='ddcm', atoms=1),
}


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)


@pytest.fixture(scope='module')
def contest():
  denoise = lambda scale: gaussian_denoiser(scale, SCHEDULE)
  return Contest(denoise, 0.25, SCHEDULE, np.ones(40), batch=4)


@pytest.fixture(scope='module')
def codes(contest, images):
  return {
    name: DiffusionCodes(contest, header, images)
    for name, header in HEADERS.items()
  }


def none(codes):
  return [np.zeros(count, bool) for count in codes.bits]


@pytest.mark.parametrize('name', [*HEADERS])
def test_without_wrong_bits_all_is_as_sent(name, codes, contest, images):
  one, header = codes[name], HEADERS[name]
  assert sum(one.bits) == payload_bits(header)
  np.testing.assert_array_equal(one.images, contest.rebuilt(header, images))
  # What arrives whole is not decoded again.
  one._decoded = None
  found = one.received([none(one), none(one)])
  del one._decoded
  np.testing.assert_array_equal(found.images, np.tile(one.images, (2, 1, 1, 1)))
  assert not found.lost.any()


@pytest.mark.parametrize('name', [*HEADERS])
def test_a_wrong_bit_changes_its_image_alone(name, codes):
  one = codes[name]
  flips = none(one)
  flips[1][2] = True
  found = one.received([none(one), flips])
  expected = np.tile(one.images, (2, 1, 1, 1))
  differ = np.any(found.images != expected, axis=(1, 2, 3))
  assert differ.tolist() == [False] * 4 + [True, False]


def test_how_far_a_wrong_bit_reaches(codes):
  """One step of six, and one atom of three, but all steps of one number."""
  for name, steps in (('rank', 1), ('independent', 1), ('dense', 6)):
    one = codes[name]
    flips = none(one)
    for flip in flips:
      flip[1] = True
    indices, _ = one._unpacked(flips)
    wrong = np.any(indices != one.codes.indices, axis=2)
    assert wrong[:, 0].all()
    assert wrong.sum(axis=1).max() <= steps
    if name == 'dense':
      assert wrong.sum(axis=1).min() > 3
    if name == 'independent':
      own = [
        np.isin(a, b)
        for a, b in zip(indices[:, 0], one.codes.indices[:, 0], strict=True)
      ]
      assert np.sum(own, axis=1).min() >= 2


def test_flipped():
  data = bytes(range(7))
  flips = np.random.default_rng(0).random(56) < 0.5
  assert flipped(flipped(data, flips), flips) == data
  differ = int.from_bytes(data) ^ int.from_bytes(flipped(data, flips))
  assert differ == int(''.join(str(int(x)) for x in flips), 2)
  assert flipped(data, flips[:3])[1:] == data[1:]


def test_flips_are_as_many_as_they_should_be():
  rng = np.random.default_rng(0)
  flips = random_flips([4000, 6000], 0.1, rng)
  assert [len(x) for x in flips] == [4000, 6000]
  assert np.mean(np.concatenate(flips)) == pytest.approx(0.1, abs=0.01)
  places = [
    np.flatnonzero(one_flip([40], part, 4, rng)[0])
    for part in range(4)
    for _ in range(50)
  ]
  assert {len(x) for x in places} == {1}
  parts = np.ravel(places).reshape(4, 50) // 10
  np.testing.assert_array_equal(parts, np.repeat(range(4), 50).reshape(4, 50))
  assert np.unique(places).size > 30


@pytest.fixture(scope='module')
def pictures():
  x, y = np.meshgrid(np.arange(28), np.arange(28))
  waves = [128 + 100 * np.sin(x / (2 + i)) * np.cos(y / 5) for i in range(6)]
  return np.uint8(np.array(waves))[..., None]


def test_jpeg_fits_and_is_as_good_as_it_can_be(pictures):
  loose, tight = JpegCodes(pictures, 2000), JpegCodes(pictures, 700)
  assert max(tight.bits) <= 700 < max(loose.bits) <= 2000
  both = [psnr(one.images, pictures).mean() for one in (tight, loose)]
  assert both[0] < both[1]
  opened = Image.open(io.BytesIO(tight.files[0]))
  np.testing.assert_array_equal(np.asarray(opened), tight.images[0, ..., 0])
  # There is nothing smaller than the least quality.
  assert min(JpegCodes(pictures[:1], 1).bits) > 1


def test_jpeg_loses_its_way(pictures):
  codes = JpegCodes(pictures, 1000)
  rng = np.random.default_rng(0)
  for rate in (0.01, 0.3):
    every = [random_flips(codes.bits, rate, rng) for _ in range(20)]
    found = codes.received(every)
    assert found.images.shape == (120, 28, 28, 1)
    assert np.all(found.images[found.lost] == GREY)
    repeated = np.tile(codes.images, (20, 1, 1, 1))
    differ = np.any(found.images != repeated, axis=(1, 2, 3))
    wrong = np.array([x.any() for one in every for x in one])
    assert not differ[~wrong].any() and differ[wrong].mean() > 0.9
  assert 0 < found.lost.mean() < 1


def test_the_start_is_bytes(codes, images):
  header = codes['rank'].header
  found = codes['rank'].contest.encode(header, signed(images))
  np.testing.assert_array_equal(found.indices, codes['rank'].codes.indices)
