"""Contests are decided by the library's codecs, whatever the batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  Codebook,
  Codes,
  Header,
  Schedule,
  add_noise,
  gaussian_denoiser,
  rate_distortion,
  turbo_decode,
  turbo_encode,
)
from kexue.figures.codec_bed import (
  BED_SHAPE,
  bed_contest,
  bed_images,
  bed_information,
  bed_variances,
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


def test_the_bed_is_what_it_is_said_to_be():
  variances = bed_variances()
  assert variances.mean() == pytest.approx(0.25)
  assert variances.ravel()[31] == pytest.approx(variances.ravel()[0] * 32**-1.2)
  x0 = np.asarray(bed_images(KEY, 500))
  assert x0.shape == (500, *BED_SHAPE)
  chi = np.sum(x0**2 / variances)
  assert abs(chi - x0.size) < 5 * math.sqrt(2 * x0.size)
  # Steps tell at least what the finest noise leaves to be told.
  schedule = Schedule.linear(1000)
  nats = bed_information(variances, schedule)
  a = schedule.alpha_bar[1:]
  first, last = (
    0.5 * np.sum(np.log1p(variances * a[i] / (1 - a[i]))) for i in (0, -1)
  )
  assert nats[0] == 0 and first - last < nats.sum() < 1.2 * (first - last)
  denoise = bed_contest(2).denoise(None)
  x = jnp.ones((1, *BED_SHAPE))
  ratio = denoise(x, 500) / x
  signal, noise = a[499], 1 - a[499]
  np.testing.assert_allclose(
    ratio[0],
    np.sqrt(signal) * variances / (signal * variances + noise),
    rtol=1e-5,
  )
  noisy = add_noise(
    schedule, x0, jax.random.normal(jax.random.key(1), x0.shape), 300
  )
  wrong = np.sum(np.square(denoise(noisy, 300) - x0), axis=(1, 2, 3))
  gain = (schedule.snr[299] - schedule.snr[300]) / 2
  assert nats[299] == pytest.approx(gain * wrong.mean(), rel=0.02)


def test_no_codec_of_the_bed_is_below_its_rate():
  """Bits against distortion of a short codec, and R(D) of what it reaches."""
  header = Header(
    size=1024, kind='hadamard', atoms=16, steps=6, tail=3, shape=BED_SHAPE
  )
  runs, x0 = bed_contest(8), bed_images(KEY, 8)
  found = {}
  for rule in (even(header), spending(header, 0.33)):
    wrong = runs.decode(rule, runs.encode(rule, x0)) - x0
    found[rule.rule] = float(jnp.mean(jnp.square(wrong)))
  bits = 6 * math.log2(math.comb(1024, 16) * 2**16) / 1024
  assert found['equal_kl'] < found['even'] < 0.25
  least = float(rate_distortion(bed_variances(), found['equal_kl']))
  assert 0.1 * bits < least < bits


def even(header):
  return Header(
    size=header.size,
    kind=header.kind,
    atoms=header.atoms,
    steps=header.steps,
    shape=header.shape,
    rule='even',
  )
