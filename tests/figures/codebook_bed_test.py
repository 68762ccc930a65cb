"""Laws of images against all images there are, and what they tend to."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  Codebook,
  Codes,
  Schedule,
  ddcm_decode,
  gaussian_denoiser,
)
from kexue.figures.codebook_bed import (
  excess,
  image_moments,
  law,
  noise_weights,
)

VARIANCES = np.array([1.5, 0.5, 0.1])
ORIGINAL = Schedule.cosine(30)
STEPS = ORIGINAL.respace(4)


@pytest.mark.parametrize('shared', [False, True])
def test_moments_are_those_of_all_images(shared):
  size, (timesteps, weights) = 3, noise_weights(VARIANCES, STEPS)
  assert timesteps.tolist() == [31, *STEPS.timesteps[:0:-1]]
  every = jnp.array([*itertools.product(range(size), repeat=STEPS.steps)])
  indices = every[:, 1:, None]
  codebook = Codebook(8, 3, shared=shared)
  images = ddcm_decode(
    gaussian_denoiser(VARIANCES, ORIGINAL),
    Codes(indices, jnp.zeros_like(indices)),
    STEPS,
    codebook,
    shape=(3,),
    start=every[:, 0],
  )
  sizes = (1, size, 8)
  mean, covariance = image_moments(codebook, sizes, timesteps, weights)
  np.testing.assert_allclose(mean[1], np.mean(images, axis=0), atol=1e-5)
  expected = np.cov(images, rowvar=False, bias=True)
  np.testing.assert_allclose(covariance[1], expected, atol=1e-5)
  np.testing.assert_allclose(mean[0], images[0], atol=1e-5)
  np.testing.assert_allclose(covariance[0], 0, atol=1e-5)


def test_weights_are_those_of_ddpm():
  weights = noise_weights(VARIANCES, STEPS).weights
  # The variance of a coordinate, step by step, by the formulas of the DDPM.
  a, x = STEPS.alpha_bar, np.ones(3)
  for i in range(STEPS.steps, 0, -1):
    beta, rest = 1 - a[i] / a[i - 1], 1 - a[i]
    shrink = np.sqrt(a[i]) * VARIANCES / (a[i] * VARIANCES + rest)
    gain = np.sqrt(a[i - 1]) * beta / rest * shrink
    gain = gain + np.sqrt(a[i] / a[i - 1]) * (1 - a[i - 1]) / rest
    x = gain**2 * x + beta * (1 - a[i - 1]) / rest
  np.testing.assert_allclose(np.sum(weights**2, axis=0), x, rtol=1e-5)


@pytest.mark.parametrize('shared', [False, True])
def test_one_over_the_size(shared):
  """The mean over many codebooks is what it should be, at any large size."""
  sizes = (32, 256)
  found = np.array(
    [
      excess(VARIANCES, STEPS, sizes, seed=seed, shared=shared)
      for seed in range(150)
    ]
  )
  expected = law(VARIANCES, STEPS, shared=shared) / np.array(sizes)
  off = (found.mean(0) - expected) / (found.std(0) / np.sqrt(len(found)))
  assert np.all(np.abs(off) < 4), off
  assert np.all(found.std(0) > 0.1 * expected)


def test_sharing_costs_more():
  schedule = Schedule.cosine(1000).respace(50)
  variances = np.arange(1.0, 65) ** -1.2
  alone, shared = (law(variances, schedule, shared=x) for x in (False, True))
  assert 1 < alone < 2 and shared > 20 * alone


def test_all_codebooks_share_a_program():
  before = image_moments._cache_size()
  sizes = (2, 5)
  for seed, shared in itertools.product((0, 1), (False, True)):
    excess(VARIANCES, STEPS, sizes, seed=seed, shared=shared)
  assert image_moments._cache_size() == before + 1
