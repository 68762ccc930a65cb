r"""A U-Net that tells noise from image, of sizes that a CPU can train.

Resolutions change by space to depth alone: a pixel of a level is a patch of the
level above in its channels, mixed by a matrix. The first of them is the stem:
with `patch` 2 images of 28 x 28 are worked on at 14 x 14 and 7 x 7, a quarter
of the operations of a network that keeps all pixels.

Shapes: `B` images, `H W` pixels, `C` channels, `h w` pixels of a level, `D`
their width, `E` of the embedding of timestep and class.

References:
  Ho, Jain and Abbeel, `Denoising diffusion probabilistic models
  <https://arxiv.org/abs/2006.11239>`_, 2020.

  Dhariwal and Nichol, `Diffusion models beat GANs on image synthesis
  <https://arxiv.org/abs/2105.05233>`_, 2021, for norms that are told the
  timestep.

  Hoogeboom, Heek and Salimans, `Simple diffusion
  <https://arxiv.org/abs/2301.11093>`_, 2023, for patches at the ends.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from optax.contrib import MuonDimensionNumbers

from ..checks import require, require_rank, require_shape

# Frequencies of timesteps: periods from 2 pi up to as many times this.
_LONGEST = 10_000.0
_ZERO = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Sizes of `UNet`.

  Args:
    channels: C of the images.
    outputs: channels that come out; `None`: C.
    width: channels of the first level.
    multipliers: widths of the levels over the first; each has half the height
      and width of the one before, and the last attends to itself.
    blocks: residual blocks in a level, on the way down and on that up each.
    patch: side of the squares of pixels that become one of the first level.
    heads: of the attention.
    num_classes: of labels; 0: a network that takes none.

  Raises:
    ValueError: for sizes that are none.

  Example:
    >>> UNetConfig(channels=3, outputs=6, patch=1).side
    2
  """

  channels: int = 1
  outputs: int | None = None
  width: int = 32
  multipliers: tuple[int, ...] = (1, 2)
  blocks: int = 1
  patch: int = 2
  heads: int = 4
  num_classes: int = 10

  def __post_init__(self):
    for name in ('channels', 'width', 'blocks', 'patch', 'heads'):
      value = getattr(self, name)
      good = isinstance(value, int) and value >= 1
      require(good, name, value, 'an integer of 1 or more')
    levels = self.multipliers
    good = isinstance(levels, tuple) and len(levels) and min(levels) >= 1
    require(bool(good), 'multipliers', levels, 'a tuple of 1 or more')
    good = isinstance(self.num_classes, int) and self.num_classes >= 0
    require(good, 'num_classes', self.num_classes, 'an integer of 0 or more')
    good = self.outputs is None or self.outputs >= 1
    require(good, 'outputs', self.outputs, 'None, or 1 or more')
    lowest = self.width * levels[-1]
    expected = f'a divisor of {lowest}, the width of the last level'
    require(lowest % self.heads == 0, 'heads', self.heads, expected)

  @property
  def side(self) -> int:
    """Height and width of images are multiples of it."""
    return self.patch * 2 ** (len(self.multipliers) - 1)


def space_to_depth(x: jax.Array, side: int) -> jax.Array:
  """Squares of pixels [B, H, W, C] as pixels [B, H / s, W / s, s s C].

  Args:
    x: images.
    side: s, of a square; divides H and W.

  Returns:
    The same numbers.

  Example:
    >>> print(space_to_depth(jnp.arange(4).reshape(1, 2, 2, 1), 2))
    [[[[0 1 2 3]]]]
  """
  count, height, width, channels = x.shape
  x = x.reshape(count, height // side, side, width // side, side, channels)
  return x.swapaxes(2, 3).reshape(*x.shape[:2], width // side, -1)


def depth_to_space(x: jax.Array, side: int) -> jax.Array:
  """Undoes `space_to_depth`.

  Args:
    x: [B, h, w, s s C].
    side: s.

  Returns:
    [B, s h, s w, C].

  Example:
    >>> x = jnp.arange(32).reshape(1, 2, 4, 4)
    >>> y = depth_to_space(x, 2)
    >>> y.shape, bool((space_to_depth(y, 2) == x).all())
    ((1, 4, 8, 1), True)
  """
  count, height, width, depth = x.shape
  x = x.reshape(count, height, width, side, side, depth // side**2)
  return x.swapaxes(2, 3).reshape(count, side * height, side * width, -1)


def timestep_features(t: jax.Array, count: int) -> jax.Array:
  """Sines and cosines of timesteps, of `count / 2` frequencies.

  Args:
    t: [B].
    count: how many, even.

  Returns:
    float32 [B, count].

  Example:
    >>> sine, cosine = timestep_features(jnp.array([1]), 2)[0]
    >>> print(f'{sine:.2f} {cosine:.2f}')
    0.84 0.54
  """
  power = -math.log(_LONGEST) * jnp.arange(count // 2) / max(count // 2, 1)
  angles = t.astype(jnp.float32)[:, None] * jnp.exp(power)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class Norm(nn.Module):
  """Group normalisation, gain and bias of which an embedding may change.

  One affine map for each image and channel: statistics and embedding are put
  together before any pixel is touched.
  """

  @nn.compact
  def __call__(self, x, embedding=None):
    """Normalises [B, h, w, D], changed by [B, E] or as it is."""
    width = x.shape[-1]
    groups = math.gcd(width, 8)
    mean, square = (
      jnp.mean(y.reshape(len(x), -1, groups, width // groups), axis=(1, 3))
      for y in (x, jnp.square(x))
    )
    scale = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + 1e-5)
    each = lambda y: jnp.repeat(y, width // groups, axis=1)
    mean, scale = each(mean), each(scale)
    scale *= self.param('scale', nn.initializers.ones, (width,))
    shift = self.param('bias', _ZERO, (width,))
    if embedding is not None:
      gain, more = jnp.split(nn.Dense(2 * width)(embedding), 2, axis=1)
      scale, shift = scale * (1 + gain), shift * (1 + gain) + more
    shift -= mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


class Block(nn.Module):
  """[B, h, w, D] -> the same: adds what two convolutions make of it."""

  @nn.compact
  def __call__(self, x, embedding):
    """`embedding` [B, E] tells the second norm when it is."""
    width = x.shape[-1]
    y = nn.Conv(width, (3, 3))(nn.silu(Norm()(x)))
    y = nn.silu(Norm()(y, embedding))
    return x + nn.Conv(width, (3, 3), kernel_init=_ZERO)(y)


class Attention(nn.Module):
  """[B, h, w, D] -> the same: pixels look at each other."""

  heads: int

  @nn.compact
  def __call__(self, x):
    """Adds what they see."""
    count, height, width, depth = x.shape
    y = Norm()(x).reshape(count, height * width, depth)
    parts = nn.Dense(3 * depth)(y)
    shape = (count, height * width, self.heads, depth // self.heads)
    q, k, v = (y.reshape(shape) for y in jnp.split(parts, 3, axis=-1))
    logits = jnp.einsum('bqhk,bshk->bhqs', q, k) * shape[-1] ** -0.5
    mixed = jnp.einsum('bhqs,bshk->bqhk', jax.nn.softmax(logits), v)
    out = nn.Dense(depth, kernel_init=_ZERO)(mixed.reshape(y.shape))
    return x + out.reshape(x.shape)


class UNet(nn.Module):
  """Noisy images, timesteps and classes to what a denoiser needs to know.

  The output starts at zero: a network of "v" or "eps" that says nothing.

  Args:
    config: sizes.

  Example:
    >>> network = UNet(UNetConfig(width=8, heads=1))
    >>> x, t = jnp.ones((2, 28, 28, 1)), jnp.array([1, 1000])
    >>> variables = jax.jit(network.init)(jax.random.key(0), x, t)
    >>> label = jnp.array([3, 10])  # The second has none.
    >>> jax.jit(network.apply)(variables, x, t, label).shape
    (2, 28, 28, 1)
  """

  config: UNetConfig = UNetConfig()

  @nn.compact
  def __call__(
    self, x: jax.Array, t: jax.Array, label: jax.Array | None = None
  ) -> jax.Array:
    """What the network predicts.

    Args:
      x: noisy images [B, H, W, C].
      t: original timesteps, int32 [B].
      label: classes, int32 [B] of 0 to num_classes, the last for none; `None`:
        none for all.

    Returns:
      [B, H, W, outputs].

    Raises:
      ValueError: for images of a size that halving does not meet, or labels
        that a network without classes does not take.
    """
    c = self.config
    require_rank('x', x, 4)
    require(x.shape[3] == c.channels, 'channels', x.shape[3], f'{c.channels}')
    sides = all(n % c.side == 0 for n in x.shape[1:3])
    require(sides, 'x.shape', x.shape, f'sides that {c.side} divides')
    require_shape('t', t, x.shape[:1])
    e = self._embedding(t, label)
    h = space_to_depth(x, c.patch)
    skips = []
    for level, multiplier in enumerate(c.multipliers):
      width = c.width * multiplier
      h = nn.Conv(width, (3, 3))(h) if level == 0 else _halved(h, width)
      for _ in range(c.blocks):
        h = Block()(h, e)
        skips.append(h)
    h = Block()(Attention(c.heads)(h), e)
    for level, multiplier in [*enumerate(c.multipliers)][::-1]:
      width = c.width * multiplier
      for _ in range(c.blocks):
        both = jnp.concatenate([h, skips.pop()], axis=-1)
        h = Block()(nn.Dense(width)(both), e)
      if level > 0:
        h = _doubled(h, c.width * c.multipliers[level - 1])
    outputs = c.patch**2 * (c.outputs or c.channels)
    h = nn.Conv(outputs, (3, 3), kernel_init=_ZERO)(nn.silu(Norm()(h)))
    return depth_to_space(h, c.patch)

  def dimension_numbers(self, params: Any) -> Any:
    """How Muon reads each kernel; `None` for what AdamW trains.

    A convolution [k, k, in, out] is one matrix [k k in, out]. Pass it to
    `kexue.optimizers.muon(..., dimension_numbers=network.dimension_numbers)`.

    Args:
      params: the parameters, or any tree of their structure.

    Returns:
      Pytree of `optax.contrib.MuonDimensionNumbers` or `None`.
    """

    def numbers(path, x):
      if path[-1].key != 'kernel':
        return None
      return MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)

  def _embedding(self, t, label):
    """Timesteps and classes together, [B, E]."""
    c = self.config
    width = 4 * c.width
    e = nn.Dense(width)(timestep_features(t, 2 * c.width))
    if c.num_classes:
      label = jnp.full_like(t, c.num_classes) if label is None else label
      require_shape('label', label, t.shape)
      e += nn.Embed(c.num_classes + 1, width)(label)
    else:
      require(label is None, 'label', label, 'None, as num_classes is 0')
    return nn.silu(nn.Dense(width)(nn.silu(e)))


def _halved(x, width):
  return nn.Dense(width)(space_to_depth(x, 2))


def _doubled(x, width):
  return depth_to_space(nn.Dense(4 * width)(x), 2)
