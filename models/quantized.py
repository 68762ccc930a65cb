r"""What quantisers have in common: what they take, and what they return.

Shapes: `...` positions, `d` dimensions, `K` codes, `S` stages. The quantisers
are flax modules, thin over the functions of this room. Each maps vectors
[..., d] to `Quantized`; `encode` gives the integers alone, and `decode_indices`
the vectors of integers, bit for bit those that the call returned.

State that changes without a gradient stands in the collection "codebook". Pass
`train=True` and `mutable=['codebook']`: the batch is quantised with the old
state, which is updated afterwards; every such call is an update, also that of
a part of a batch whose gradients are accumulated. Let `init` see a batch of the
data, not zeros: codebooks start from what it holds.

`axis_name` is held as `nn.BatchNorm` does, unused while initialising: the
mapped axis over which the batch is split. The state is then that of the whole
batch, and the same on all devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require, require_rank, require_shape
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName


class Quantized(NamedTuple):
  """What a quantiser returns.

  `quantized` [..., d]: codes, with the gradient of the estimator. `indices`
  [...], int32 in 0..K-1; of `ResidualQuantizer` [..., S]. `losses`: scalars to
  be added to the loss, weighted already. `metrics`: scalars to look at.

  Example:
    >>> from kexue.models import FiniteScalarQuantizer
    >>> layer = FiniteScalarQuantizer((8, 5))
    >>> quantized, indices, losses, metrics = layer.apply({}, jnp.ones((3, 2)))
    >>> indices.shape, losses
    ((3,), {})
  """

  quantized: jax.Array
  indices: jax.Array
  losses: dict[str, jax.Array]
  metrics: dict[str, jax.Array]


def checked_vectors(x: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Checks what every quantiser takes; the vectors in float32 or better.

  >>> checked_vectors(jnp.ones((3, 2), jnp.bfloat16), None).dtype
  dtype('float32')
  """
  require_rank('x', x, 2, at_least=True)
  good = jnp.issubdtype(x.dtype, jnp.floating)
  require(good, 'x', x.dtype.name, 'a floating dtype')
  if mask is not None:
    require_shape('mask', mask, x.shape[:-1])
  return wide(x)


def global_mean(
  local: jax.Array, mask: jax.Array | None, axis_name: AxisName | None
) -> jax.Array:
  """Weights a masked mean so that its mean over devices is that of all vectors.

  A device with few vectors counts for few.

  Args:
    local: the mean over this device's vectors.
    mask: which of them count; `None`: all.
    axis_name: mapped axis or axes; `None`: one device.

  Returns:
    `local` times the share of this device.

  Example:
    >>> float(global_mean(jnp.ones(()), None, None))
    1.0
  """
  if mask is None or axis_name is None:
    return local
  count = jnp.sum(mask, dtype=jnp.float32)
  return local * count / jnp.maximum(lax.pmean(count, axis_name), 1e-12)
