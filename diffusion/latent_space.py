"""An autoencoder around a diffusion: codes are of latents, images come out.

Codecs and samplers here take latents as they take images; what is needed
besides is the scale, since a schedule expects entries of about unit variance,
and no `clip`. Restoration asks for what is linear in an image, which what is
seen through a decoder is not.

Reference:
  Rombach et al., `High-Resolution Image Synthesis with Latent Diffusion Models
  <https://arxiv.org/abs/2112.10752>`_, 2022, appendix G: latents over their
  standard deviation.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require, require_rank

Map = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSpace:
  r"""Standardised latents of any encoder and decoder.

  :math:`u = (E(x) - m) / s` and :math:`x = D(m + s u)`. Deviations: `m` and `s`
  are of every channel, where Rombach et al. divide by one number for all and
  subtract nothing.

  Args:
    encoder: images [B, ...] to latents [B, ..., C]; the mean, if it is that of
      a variational autoencoder.
    decoder: latents to images.
    mean: `m`, of latents.
    deviation: `s`, positive.

  Raises:
    ValueError: if a deviation is not positive and finite.

  Example:
    >>> from kexue.diffusion import Codebook, Schedule
    >>> from kexue.diffusion import ddcm_decode, ddcm_encode
    >>> pairs = LatentSpace(  # Means and differences of two pixels.
    ...   lambda x: x @ jnp.array([[0.5, 0.5], [0.5, -0.5]]),
    ...   lambda z: z @ jnp.array([[1.0, 1.0], [1.0, -1.0]]),
    ... )
    >>> images = jax.random.uniform(jax.random.key(0), (100, 2))
    >>> space = pairs.standardized(images)
    >>> latents = space.encode(images)
    >>> print(jnp.abs(jnp.std(latents, axis=0) - 1).max() < 1e-5)
    True
    >>> schedule, codebook = Schedule.cosine(40), Codebook(16, 2)
    >>> denoise = lambda u, t: 0.9 * u
    >>> codes = ddcm_encode(denoise, latents, schedule, codebook)
    >>> u = ddcm_decode(denoise, codes, schedule, codebook, shape=(2,))
    >>> space.decode(u).shape
    (100, 2)

  References:
    Rombach et al., `arXiv 2112.10752 <https://arxiv.org/abs/2112.10752>`_,
    2022; Ohayon et al., `arXiv 2502.01189 <https://arxiv.org/abs/2502.01189>`_,
    2025, whose large model is one of latents.
  """

  encoder: Map
  decoder: Map
  mean: jax.Array | float = 0.0
  deviation: jax.Array | float = 1.0

  def __post_init__(self):
    good = np.all(
      np.isfinite(self.deviation) & (np.asarray(self.deviation) > 0)
    )
    require(bool(good), 'deviation', self.deviation, 'positive, finite numbers')

  def standardized(self, images: jax.Array) -> 'LatentSpace':
    """The same with the mean and deviation of each channel of some images.

    These are looked at, so not under `jit`; what it returns is for there.

    Args:
      images: [B, ...], as many as say what latents are like.

    Returns:
      `LatentSpace`.

    Raises:
      ValueError: if a channel of their latents is constant or not finite.
    """
    latents = self._latents(images)
    axes = tuple(range(latents.ndim - 1))
    deviation = jnp.std(latents, axes)
    good = bool(jnp.all(jnp.isfinite(deviation) & (deviation > 0)))
    require(good, 'images', deviation, 'latents that vary in every channel')
    return dataclasses.replace(
      self, mean=jnp.mean(latents, axes), deviation=deviation
    )

  def encode(self, images: jax.Array) -> jax.Array:
    """Images [B, ...] to what codecs and samplers take, float32 [B, ...].

    Raises:
      ValueError: if the encoder does not give a latent for every image.
    """
    return (self._latents(images) - self.mean) / self.deviation

  def _latents(self, images):
    latents = jnp.asarray(self.encoder(images), jnp.float32)
    require_rank('latents', latents, 2, at_least=True)
    each = f'one for each of {len(images)} images'
    require(len(latents) == len(images), 'latents', latents.shape, each)
    return latents

  def decode(self, latents: jax.Array) -> jax.Array:
    """What codecs and samplers give, [B, ...], to images."""
    return self.decoder(self.mean + self.deviation * latents)
