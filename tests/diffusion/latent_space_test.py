"""Codes of latents: a rotation, whose errors are known, and a network's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.diffusion import (
  Codebook,
  LatentSpace,
  Schedule,
  ddcm_decode,
  ddcm_encode,
  gaussian_denoiser,
  turbo_decode,
  turbo_encode,
)
from kexue.models.vqvae import Decoder, Encoder, VQVAEConfig
from kexue.training import data_mesh

SCHEDULE = Schedule.linear(100)


@pytest.fixture(scope='module')
def principal():
  """The 8 leading of 32 coordinates, and draws of a source that has them."""
  rng = np.random.default_rng(0)
  basis = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
  variances = 4 / np.arange(1, 33) ** 2
  x = rng.normal(size=(200, 32)) * np.sqrt(variances) @ basis.T + 0.7
  leading = basis[:, :8]
  space = LatentSpace(lambda x: x @ leading, lambda z: z @ leading.T)
  return space, jnp.asarray(x, jnp.float32), leading


def test_latents_are_standardized_and_come_back(principal):
  space, x, leading = principal
  fitted = space.standardized(x)
  latents = np.float64(fitted.encode(x))
  np.testing.assert_allclose(latents.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(latents.std(0), 1, atol=1e-5)
  raw = np.float64(x @ leading)
  np.testing.assert_allclose(latents, (raw - raw.mean(0)) / raw.std(0), 0, 1e-4)
  np.testing.assert_allclose(
    fitted.decode(fitted.encode(x)), x @ leading @ leading.T, atol=1e-5
  )


def test_the_error_of_a_rotation_is_that_of_its_parts(principal):
  """Pythagoras: what the codes lose, and what the latents never had."""
  space, x, leading = principal
  space = space.standardized(x)
  denoise = gaussian_denoiser(jnp.ones(8), SCHEDULE)
  codebook = Codebook(256, 8)
  latents = space.encode(x[:32])
  codes = ddcm_encode(denoise, latents, SCHEDULE, codebook)
  decoded = ddcm_decode(denoise, codes, SCHEDULE, codebook, shape=(8,))
  lost = np.square((decoded - latents) * space.deviation).sum(1)
  kept = x[:32] @ leading @ leading.T
  never = np.square(x[:32] - kept).sum(1)
  error = np.square(space.decode(decoded) - x[:32]).sum(1)
  np.testing.assert_allclose(error, lost + never, rtol=1e-3)
  assert np.mean(lost) < 0.1 * np.mean(np.square(kept - 0.7).sum(1))


def test_an_autoencoder_of_flax_can_be_plugged_in():
  config = VQVAEConfig(channels=1, width=8, latent=2, blocks=1)
  images = jax.random.uniform(jax.random.key(0), (16, 16, 16, 1))
  parts, params = (Encoder(config), Decoder(config)), []
  x = images
  for i, part in enumerate(parts):
    params.append(part.init(jax.random.key(i), x))
    x = part.apply(params[-1], x)
  encode, decode = (
    lambda x, i=i: parts[i].apply(params[i], x) for i in range(2)
  )
  space = LatentSpace(encode, decode).standardized(images)
  shape = (4, 4, 2)
  codebook = Codebook(64, 32, kind='hadamard')
  denoise = gaussian_denoiser(jnp.ones(shape), SCHEDULE)

  @jax.jit
  def coded(images):
    codes = turbo_encode(
      denoise, space.encode(images), SCHEDULE, codebook, atoms=4
    )
    return codes, turbo_decode(denoise, codes, SCHEDULE, codebook, shape=shape)

  codes, latents = coded(images)
  assert codes.indices.shape == (16, 99, 4)
  assert space.encode(images).shape == latents.shape == (16, *shape)
  assert np.mean(np.square(latents - space.encode(images))) < 0.1
  lost = np.square(space.decode(latents) - decode(encode(images))).mean()
  assert lost < 0.3 * np.var(decode(encode(images)))


def test_programs_and_dtypes_agree(principal):
  space, x, _ = principal
  space, x = space.standardized(x), x[:8]
  expected = space.encode(x)
  there_and_back = lambda x: space.decode(space.encode(x))
  spec = P('data')
  sharded = jax.shard_map(
    space.encode, mesh=data_mesh(), in_specs=spec, out_specs=spec
  )
  for found in (
    jax.jit(space.encode)(x),
    jax.vmap(space.encode)(x[:, None])[:, 0],
    jax.pmap(space.encode)(x[:, None])[:, 0],
    jax.jit(sharded)(x),
  ):
    np.testing.assert_allclose(found, expected, atol=1e-5)
  half = space.encode(x.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, expected, atol=0.2)
  for scale in (0.0, 1e-30, 1e30):
    assert np.isfinite(there_and_back(scale * x)).all()


def test_refuses(principal):
  space, x, _ = principal
  with pytest.raises(ValueError, match='^images: got .* vary in every channel'):
    space.standardized(x[:1])
  for scale in (0.0, 1e-30, 1e30):  # Squares that vanish, or overflow.
    with pytest.raises(ValueError, match='^images: got'):
      space.standardized(scale * x)
  for wrong in (0.0, -1.0, jnp.nan, jnp.inf, jnp.array([1.0, 0.0])):
    with pytest.raises(ValueError, match='^deviation: got .* positive, finite'):
      LatentSpace(space.encoder, space.decoder, deviation=wrong)
  whole = LatentSpace(lambda x: x[:1], lambda z: z)
  with pytest.raises(ValueError, match='^latents: got .* each of 200 images'):
    whole.encode(x)
  with pytest.raises(ValueError, match='^latents: got'):
    LatentSpace(lambda x: x[:, 0], lambda z: z).encode(x)
