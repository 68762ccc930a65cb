r"""Convolutions whose gradients the XLA of CPUs computes fast inside a scan.

Its pass that brings convolutions into the form of its fast kernels looks at the
entry of a program alone. In the loop of a training program the gradients of
`VQVAE` and `UNet` stay in forms that run at a few GFLOP/s, and the gradient in
the kernel of a transposed convolution of a large image is slow anywhere. Here
they are written in the fast form from the start: two to eight times less for a
step of the former, ten times for the latter, and the same numbers but for
rounding.
"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_FAST = ('NHWC', 'HWIO', 'NHWC')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolved(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """What `nn.Conv` computes on a padded image, without bias.

  Args:
    x: [B, H, W, in], padded already.
    kernel: [k, k, in, out].
    stride: of both axes; divides H - k and W - k.

  Returns:
    [B, (H - k) / stride + 1, (W - k) / stride + 1, out].

  Example:
    >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((2, 2, 1, 1))
    >>> print(convolved(x, kernel, 2)[0, :, :, 0])
    [[4. 4.]
     [4. 4.]]
  """
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), 'VALID', dimension_numbers=_FAST
  )


def _forward(x, kernel, stride):
  return convolved(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
  x, kernel = residuals
  edge, every = len(kernel) - 1, (stride, stride)
  to_x = lax.conv_general_dilated(
    g,
    kernel[::-1, ::-1].swapaxes(2, 3),
    (1, 1),
    [(edge, edge)] * 2,
    lhs_dilation=every,
    dimension_numbers=_FAST,
  )
  # Channels in the place of images, the gradient in that of the kernel.
  to_kernel = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    (1, 1),
    'VALID',
    rhs_dilation=every,
    dimension_numbers=_FAST,
  )
  return to_x, to_kernel.transpose(1, 2, 0, 3)


convolved.defvjp(_forward, _backward)


def upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
  r"""What `nn.ConvTranspose` of stride 2 and kernel 4 computes, without bias.

  Output `2 m + p` along an axis is :math:`\sum_t K_{2t + p} \, x_{m+p+t-1}`, so
  both phases `p` read the same pairs of neighbours: one product of matrices.

  Args:
    x: [B, h, w, in].
    kernel: [4, 4, in, out].

  Returns:
    [B, 2 h, 2 w, out].

  Example:
    >>> x, kernel = jnp.ones((1, 1, 2, 1)), jnp.ones((4, 4, 1, 1))
    >>> print(upsampled(x, kernel)[0, :, :, 0])
    [[1. 2. 2. 1.]
     [1. 2. 2. 1.]]
  """
  (count, height, width, _), (*_, inner, outer) = x.shape, kernel.shape
  # [4, 4, ...] to taps and phases of both axes: 4 = 2 taps x 2 phases.
  kernel = kernel.reshape(2, 2, 2, 2, inner, outer).transpose(0, 2, 4, 1, 3, 5)
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  near = jnp.concatenate(
    [
      padded[:, i : i + height + 1, j : j + width + 1]
      for i in (0, 1)
      for j in (0, 1)
    ],
    axis=-1,
  )
  flat = near.reshape(-1, 4 * inner) @ kernel.reshape(4 * inner, -1)
  y = flat.reshape(count, height + 1, width + 1, 2, 2, outer)
  y = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], axis=2)
  y = jnp.stack([y[..., :-1, 0, :], y[..., 1:, 1, :]], axis=4)
  return y.reshape(count, 2 * height, 2 * width, outer)


def _with_kernel(layer: nn.Module, x: jax.Array, kernel: jax.Array):
  """The two layers of `VQVAE`, with the padding that flax calls SAME."""
  if isinstance(layer, nn.ConvTranspose):
    return upsampled(x, kernel)
  side = len(kernel)
  if side == 1:
    return jnp.tensordot(x, kernel[0, 0], 1)
  stride = layer.strides or 1
  pads = lax.padtype_to_pads(x.shape[1:3], (side,) * 2, (stride,) * 2, 'SAME')
  return convolved(jnp.pad(x, [(0, 0), *pads, (0, 0)]), kernel, stride)


def fast_convolutions() -> contextlib.AbstractContextManager:
  """Lets the convolutions of a model go this way, where it is traced.

  Example:
    >>> layer, x = nn.Conv(1, (4, 4), 2), jnp.ones((1, 6, 6, 1))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> with fast_convolutions():
    ...   layer.apply(variables, x).shape
    (1, 3, 3, 1)
  """

  def intercept(call, args, kwargs, context):
    layer = context.module
    convolution = isinstance(layer, nn.Conv | nn.ConvTranspose)
    if not convolution or layer.is_initializing():
      return call(*args, **kwargs)
    kernel, bias = (layer.get_variable('params', k) for k in ('kernel', 'bias'))
    return _with_kernel(layer, args[0], kernel) + bias

  return nn.intercept_methods(intercept)
