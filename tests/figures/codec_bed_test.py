"""The bed has the law, the denoiser and the information it claims."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  Header,
  Schedule,
  add_noise,
  rate_distortion,
)
from kexue.figures.codec_bed import (
  BED_SHAPE,
  bed_contest,
  bed_images,
  bed_information,
  bed_variances,
)
from kexue.figures.codec_contest import spending

KEY = jax.random.key(0)


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
