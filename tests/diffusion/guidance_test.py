import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  Codebook,
  Schedule,
  classifier_direction,
  compressed_guidance,
  ddcm_decode,
  ddcm_sample,
  guided,
  label_direction,
)

SCHEDULE = Schedule.linear(100).respace(20)
DIM = 16
CENTRE = np.float32(np.where(np.arange(DIM) % 2, 0.5, -0.5))


def towards(centre, variance=0.04):
  """The exact denoiser of N(centre, variance)."""
  table = jnp.asarray(Schedule.linear(100).alpha_bar, jnp.float32)

  def denoise(x, t):
    ab = table[t]
    gain = jnp.sqrt(ab) * variance / (ab * variance + 1 - ab)
    return centre + gain * (x - jnp.sqrt(ab) * centre)

  return denoise


WITHOUT, WITH = towards(0.0, 0.3), towards(CENTRE)


BY_LABEL = label_direction(WITH, WITHOUT)
CODEBOOK = Codebook(64, DIM)


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn(candidates, direction, key):
  return compressed_guidance(
    WITHOUT,
    direction,
    SCHEDULE,
    CODEBOOK,
    key,
    count=50,
    shape=(DIM,),
    candidates=candidates,
  )


def sampled(candidates, key=0, direction=BY_LABEL):
  return drawn(candidates, direction, jax.random.key(key))


def test_guided_extrapolates_and_clips():
  x = jnp.array([[0.2, -3.0]])
  mixed = lambda w, **options: guided(
    lambda x, t: x, lambda x, t: 0.5 * x, w, **options
  )(x, 1)
  np.testing.assert_allclose(mixed(0), [[0.1, -1.0]])
  np.testing.assert_allclose(mixed(1), [[0.2, -1.0]])
  np.testing.assert_allclose(mixed(3, clip=False), [[0.4, -6.0]], rtol=1e-6)


def test_more_candidates_guide_more():
  along = [float(jnp.mean(sampled(n).x0 @ CENTRE)) for n in (1, 4, None)]
  assert abs(along[0]) < 0.3
  assert along[1] > along[0] + 0.5 and along[2] > along[1] + 0.5


def test_one_candidate_is_plain_sampling():
  indices = sampled(1).codes.indices
  counts = np.bincount(np.asarray(indices).ravel(), minlength=64)
  expected = indices.size / 64
  chi = np.sum((counts - expected) ** 2) / expected
  assert chi < 63 + 5 * np.sqrt(2 * 63)
  plain = ddcm_sample(
    WITHOUT, SCHEDULE, CODEBOOK, jax.random.key(3), count=50, shape=(DIM,)
  )
  ours = sampled(1).x0
  assert float(ours.std()) == pytest.approx(float(plain.x0.std()), rel=0.15)


def test_decodes_without_the_label():
  guided_sample = sampled(8)
  decoded = ddcm_decode(
    WITHOUT,
    guided_sample.codes,
    SCHEDULE,
    CODEBOOK,
    shape=(DIM,),
    start=guided_sample.start,
  )
  np.testing.assert_allclose(decoded, guided_sample.x0, atol=1e-5)


def test_the_same_key_gives_the_same_code():
  chex.assert_trees_all_equal(sampled(4), sampled(4))
  assert np.any(sampled(4).codes.indices != sampled(4, key=1).codes[0])


def test_a_classifier_points_where_its_gradient_does():
  log_p = lambda x: -jnp.sum((x - CENTRE) ** 2, axis=1)
  direction = classifier_direction(log_p)
  x0_hat = jax.random.normal(jax.random.key(0), (3, DIM))
  np.testing.assert_allclose(
    direction(None, x0_hat, 5), -2 * (x0_hat - CENTRE), rtol=1e-5
  )
  x0 = sampled(None, direction=direction).x0
  assert float(jnp.mean(x0 @ CENTRE)) > 1


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    (dict(count=0), 'count'),
    (dict(candidates=0), 'candidates'),
    (dict(candidates=9), 'candidates'),
  ],
)
def test_refuses(options, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    compressed_guidance(
      WITHOUT,
      label_direction(WITH, WITHOUT),
      SCHEDULE,
      Codebook(8, DIM),
      jax.random.key(0),
      **dict(count=2, shape=(DIM,)) | options,
    )
