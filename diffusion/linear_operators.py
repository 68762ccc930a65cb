"""What a camera may have done to an image: linear maps of [B, H, W, C]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require

Operator = Callable[[jax.Array], jax.Array]


def average_pooling(factor: int) -> Operator:
  """Means of squares of `factor` by `factor` pixels, of images [B, H, W, C].

  Example:
    >>> print(average_pooling(2)(jnp.arange(4.0).reshape(1, 2, 2, 1)))
    [[[[1.5]]]]
  """
  require(factor >= 1, 'factor', factor, '1 or more')

  def pool(x):
    b, h, w, c = x.shape
    require(
      h % factor == w % factor == 0,
      'x',
      x.shape,
      f'sides that {factor} divides',
    )
    parts = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return parts.mean((2, 4))

  return pool


def grey(x: jax.Array) -> jax.Array:
  """The mean of the channels of images [B, H, W, C], as [B, H, W, 1].

  Example:
    >>> print(grey(jnp.array([[[[1.0, 2.0, 6.0]]]])))
    [[[[3.]]]]
  """
  return x.mean(-1, keepdims=True)


def blur(deviation: float, radius: int | None = None) -> Operator:
  """A Gaussian blur of images [B, H, W, C], edges repeated.

  Args:
    deviation: of the kernel, in pixels.
    radius: where it is cut off; `None`: three deviations.

  Returns:
    The operator.

  Raises:
    ValueError: if the deviation is not positive.

  Example:
    >>> blurred = blur(1.0)(jnp.ones((1, 4, 4, 1)))
    >>> f'{float(blurred[0, 0, 0, 0]):.4f}'
    '1.0000'
  """
  require(deviation > 0, 'deviation', deviation, 'a positive number')
  radius = int(np.ceil(3 * deviation)) if radius is None else radius
  taps = np.arange(-radius, radius + 1)
  kernel = np.exp(-np.square(taps / deviation) / 2)
  kernel = (kernel / kernel.sum()).astype(np.float32)

  def along(x, axis):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (radius, radius)
    padded = jnp.pad(x, pads, mode='edge')
    size = x.shape[axis]
    parts = (
      w * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i, w in enumerate(kernel)
    )
    return sum(parts)

  return lambda x: along(along(x, 1), 2)


def masked(mask: jax.Array) -> Operator:
  """Images [B, H, W, C] where `mask` [H, W, 1] or [H, W, C] is 1, 0 elsewhere.

  Example:
    >>> print(masked(jnp.array([[[1.0], [0.0]]]))(jnp.ones((1, 1, 2, 1))))
    [[[[1.]
       [0.]]]]
  """
  mask = jnp.asarray(mask)
  return lambda x: x * mask
