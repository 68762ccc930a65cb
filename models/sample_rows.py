"""Random vectors out of the batches of all devices, the same on each."""

import jax
import jax.numpy as jnp
from jax import lax

from ..mapped_axes import AxisName, sum_over


def sample_rows(
  z: jax.Array,
  number: int,
  *,
  key: jax.Array,
  mask: jax.Array | None = None,
  axis_name: AxisName | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws vectors from all devices' batches, without replacement.

  One `psum` of what is drawn; the batches themselves stay where they are. One
  device with the batches in a row draws the same vectors.

  Args:
    z: this device's vectors [N, d].
    number: how many.
    key: the same on every device.
    mask: [N], true where a vector may be drawn; `None`: all.
    axis_name: mapped axis or axes over which the vectors are split.

  Returns:
    Vectors [number, d] in random order, the same on every device, and how many
    there were to draw from. If these are fewer, they come again in turn.

  Example:
    >>> rows, available = sample_rows(
    ...   jnp.array([[1.0], [2.0]]), 4, key=jax.random.key(0))
    >>> print(rows[:2].ravel().sort(), bool((rows[2:] == rows[:2]).all()))
    [1. 2.] True
  """
  shards, shard = 1, 0
  if axis_name is not None:
    shards, shard = lax.axis_size(axis_name), lax.axis_index(axis_name)
  local = len(z)
  priority = jax.random.uniform(key, (shards, local))
  available = jnp.int32(shards * local)
  if mask is not None:
    masks = jnp.zeros_like(mask, jnp.int32, shape=(shards, local))
    masks = sum_over(masks.at[shard].set(mask.astype(jnp.int32)), axis_name)
    priority = jnp.where(masks > 0, priority, -1)
    available = jnp.sum(masks)
  order = lax.top_k(priority.ravel(), min(number, shards * local))[1]
  turns = jnp.clip(available, 1, len(order))
  owner, row = jnp.divmod(order[jnp.arange(number) % turns], local)
  mine = jnp.where((owner == shard)[:, None], z[row], 0)
  return sum_over(mine, axis_name), available
