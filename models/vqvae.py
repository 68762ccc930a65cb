"""An autoencoder of images whose latents are quantised.

Shapes: `B` images, `H W` pixels, `C` channels, `h w` latents with
`h = H / 2^downsamplings`, `d` their width. Strided convolutions, residual
blocks, and the same in reverse: the model of van den Oord et al., with any
quantiser of this room between its halves.

References:
  van den Oord, Vinyals and Kavukcuoglu, `Neural Discrete Representation
  Learning <https://arxiv.org/abs/1711.00937>`_, 2017.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..checks import require, require_rank, require_shape
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName
from .quantized import global_mean


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
  """Sizes of `VQVAE`.

  Args:
    channels: C of the images.
    width: channels inside.
    latent: d; for finite scalar quantisation the number of levels.
    downsamplings: how often height and width are halved.
    blocks: residual blocks in encoder and decoder each.
    dtype: of the convolutions; parameters, latents and what comes out stay
      float32.
  """

  channels: int = 3
  width: int = 64
  latent: int = 32
  downsamplings: int = 2
  blocks: int = 2
  dtype: Any = jnp.float32

  def __post_init__(self):
    for name in ('channels', 'width', 'latent', 'downsamplings', 'blocks'):
      value = getattr(self, name)
      least = 0 if name in ('downsamplings', 'blocks') else 1
      good = isinstance(value, int) and value >= least
      require(good, name, value, f'an integer of {least} or more')

  @property
  def factor(self) -> int:
    """Pixels along one side of a latent."""
    return 2**self.downsamplings


class VQVAEOutput(NamedTuple):
  """What `VQVAE` returns.

  `reconstruction` [B, H, W, C]. `indices` [B, h, w], or [B, h, w, S]. `losses`:
  scalars whose sum is the loss of training, "reconstruction" the mean square of
  the difference and the quantiser's own. `metrics`: scalars.

  Example:
    >>> losses = {'reconstruction': 1.0, 'codebook': 2.0}
    >>> output = VQVAEOutput(jnp.zeros(1), jnp.zeros(1, int), losses, {})
    >>> sum(output.losses.values())
    3.0
  """

  reconstruction: jax.Array
  indices: jax.Array
  losses: dict[str, jax.Array]
  metrics: dict[str, jax.Array]


def _mean_square(difference: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Over pixels that count and channels; 0 if there are none."""
  square = jnp.square(difference)
  if mask is None:
    return jnp.mean(square)
  count = jnp.maximum(jnp.sum(mask), 1) * square.shape[-1]
  return jnp.sum(jnp.where(mask[..., None], square, 0)) / count


class ResidualBlock(nn.Module):
  """[B, h, w, width] -> the same."""

  config: VQVAEConfig

  @nn.compact
  def __call__(self, x):
    """Adds what two convolutions make of it."""
    c = self.config
    y = nn.Conv(c.width, (3, 3), dtype=c.dtype)(nn.relu(x))
    return x + nn.Conv(c.width, (1, 1), dtype=c.dtype)(nn.relu(y))


class Encoder(nn.Module):
  """[B, H, W, C] -> [B, h, w, d] in float32."""

  config: VQVAEConfig

  @nn.compact
  def __call__(self, x):
    """Halves the sides, then looks around."""
    c = self.config
    for _ in range(c.downsamplings):
      x = nn.relu(nn.Conv(c.width, (4, 4), strides=2, dtype=c.dtype)(x))
    x = nn.Conv(c.width, (3, 3), dtype=c.dtype)(x)
    for _ in range(c.blocks):
      x = ResidualBlock(c)(x)
    return wide(nn.Conv(c.latent, (1, 1), dtype=c.dtype)(nn.relu(x)))


class Decoder(nn.Module):
  """[B, h, w, d] -> [B, H, W, C] in float32."""

  config: VQVAEConfig

  @nn.compact
  def __call__(self, x):
    """The encoder in reverse."""
    c = self.config
    x = nn.Conv(c.width, (3, 3), dtype=c.dtype)(x)
    for _ in range(c.blocks):
      x = ResidualBlock(c)(x)
    for _ in range(c.downsamplings):
      up = nn.ConvTranspose(c.width, (4, 4), strides=(2, 2), dtype=c.dtype)
      x = up(nn.relu(x))
    return wide(nn.Conv(c.channels, (3, 3), dtype=c.dtype)(nn.relu(x)))


class VQVAE(nn.Module):
  """Encoder, quantiser, decoder.

  Args:
    quantizer: `VectorQuantizer`, `FiniteScalarQuantizer`, `ResidualQuantizer`,
      or whatever has their methods.
    config: sizes.
    axis_name: mapped axis or axes over which the batch is split; handed to the
      quantiser.

  Example:
    >>> from kexue.models import FiniteScalarQuantizer
    >>> config = VQVAEConfig(channels=1, width=4, latent=2, blocks=0)
    >>> model = VQVAE(FiniteScalarQuantizer((8, 5)), config)
    >>> images = jnp.ones((1, 8, 8, 1))
    >>> variables = jax.jit(model.init)(jax.random.key(0), images)
    >>> tokens = model.apply(variables, images, method='encode')
    >>> again = model.apply(variables, tokens, method='decode_indices')
    >>> tokens.shape, again.shape
    ((1, 2, 2), (1, 8, 8, 1))
  """

  quantizer: nn.Module
  config: VQVAEConfig = VQVAEConfig()
  axis_name: AxisName | None = None

  def setup(self):
    """Three parts; the quantiser gets the axis."""
    self.encoder = Encoder(self.config)
    self.tokens = self.quantizer.clone(axis_name=self.axis_name)
    self.decoder = Decoder(self.config)

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> VQVAEOutput:
    """Images to their reconstructions.

    Args:
      x: images [B, H, W, C], of a floating dtype.
      train: whether the quantiser updates its state.
      mask: [B, H, W], true where a pixel counts. The others are seen as zeros,
        and a latent without a pixel that counts does not count either.

    Returns:
      `VQVAEOutput`.

    Raises:
      ValueError: if a shape does not fit, or what the quantiser refuses.
    """
    latents, x = self._latents(x, mask)
    coarse = mask
    if mask is not None:
      f, (b, h, w, _) = self.config.factor, latents.shape
      coarse = mask.reshape(b, h, f, w, f).any(axis=(2, 4))
    quantized, indices, losses, metrics = self.tokens(
      latents, train=train, mask=coarse
    )
    reconstruction = self.decoder(quantized)
    axis_name = None if self.is_initializing() else self.axis_name
    error = global_mean(_mean_square(reconstruction - x, mask), mask, axis_name)
    losses = {'reconstruction': error, **losses}
    return VQVAEOutput(reconstruction, indices, losses, metrics)

  def encode(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """The indices [B, h, w] of images [B, H, W, C]."""
    return self.tokens.encode(self._latents(x, mask)[0])

  def decode_indices(self, indices: jax.Array) -> jax.Array:
    """The images [B, H, W, C] of indices [B, h, w]."""
    return self.decoder(self.tokens.decode_indices(indices))

  def _latents(self, x, mask):
    """Latents, and the images with zeros where they do not count."""
    require_rank('x', x, 4)
    factor, channels = self.config.factor, self.config.channels
    good = (
      x.shape[1] % factor == x.shape[2] % factor == 0
      and x.shape[3] == channels
      and jnp.issubdtype(x.dtype, jnp.floating)
    )
    expected = f'{channels} channels of floats and sides that {factor} divides'
    require(good, 'x', (x.shape, x.dtype.name), expected)
    if mask is not None:
      require_shape('mask', mask, x.shape[:3])
      x = jnp.where(mask[..., None], x, 0)
    return self.encoder(x), wide(x)
