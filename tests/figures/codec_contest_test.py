"""Contests are decided by the library's codecs, whatever the batch."""

import math

import jax
import numpy as np
import pytest

from kexue.diffusion import (
  Codebook,
  Codes,
  Header,
  Schedule,
  gaussian_denoiser,
  turbo_decode,
  turbo_encode,
)
from kexue.figures.codec_contest import Contest, psnr, spending
from kexue.figures.diffusion_model import signed
from kexue.training.codec_settings import header_schedule

KEY = jax.random.key(0)
SCHEDULE = Schedule.cosine(50)
SHAPE = (4, 4, 1)


def contest(batch):
  denoise = lambda scale: gaussian_denoiser(scale, SCHEDULE)
  return Contest(denoise, 0.25, SCHEDULE, np.ones(50), batch=batch)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


def test_turbo_is_that_of_the_library(images):
  header = spending(
    Header(size=16, kind='hadamard', atoms=3, steps=6, tail=2, shape=SHAPE), 0.1
  )
  three = contest(3)
  codes = three.encode(header, signed(images))
  schedule = header_schedule(header, three)
  assert schedule.steps == 9
  codebook = Codebook(16, 16, kind='hadamard')
  denoise = gaussian_denoiser(0.25, SCHEDULE)
  x0 = signed(images)
  expected = turbo_encode(denoise, x0, schedule, codebook, atoms=3, tail=2)
  for found, wanted in zip(codes, expected, strict=True):
    np.testing.assert_array_equal(found, wanted)
  decoded = turbo_decode(
    denoise, expected, schedule, codebook, shape=SHAPE, tail=2
  )
  np.testing.assert_allclose(three.decode(header, codes), decoded, atol=1e-5)
  # Five images at once, and by three and two.
  again = contest(5).rebuilt(header, images)
  assert again.dtype == np.uint8
  np.testing.assert_array_equal(three.rebuilt(header, images), again)


def test_pursuit_has_its_coefficients(images):
  header = Header(
    mode='ddcm',
    size=16,
    atoms=3,
    coefficient_bits=3,
    steps=8,
    rule='even',
    shape=SHAPE,
  )
  codes = contest(5).encode(header, signed(images))
  assert codes.indices.shape == (5, 8, 3) and codes.coefficients.max() > 1
  better = contest(5).decode(header, codes)
  fewer = Codes(codes.indices[..., :1], codes.coefficients[..., :1])
  worse = contest(5).decode(header, fewer)
  error = lambda x: float(np.mean(np.square(x - signed(images))))
  assert error(better) < error(worse)


def test_nats_are_a_part_of_what_bits_could_tell():
  header = Header(size=64, atoms=2, steps=5, count=3, shape=SHAPE)
  step = math.log(math.comb(64, 2) * 4)
  assert spending(header, 0.25).millinats == int(250 * step)
  assert spending(header, 0.25).rule == 'equal_kl'


def test_psnr_of_every_image():
  rng = np.random.default_rng(1)
  a, b = rng.integers(0, 256, (2, 3, 5, 4, 1), np.uint8)
  for i, found in enumerate(psnr(a, b)):
    error = np.mean((a[i].astype(float) - b[i]) ** 2)
    assert found == pytest.approx(10 * math.log10(255**2 / error))
  assert psnr(a, a).tolist() == [100, 100, 100]
