"""What varies over devices, said to `shard_map` before a rule of one's own."""

import jax
from jax import lax


def vary_together(*arrays: jax.Array) -> list[jax.Array]:
  """Declares arrays as varying over every mapped axis that one varies over.

  Within `shard_map`, which tracks it, a derivative of one's own (`custom_vjp`)
  must return gradients that vary like what they belong to. After this they all
  do, and the sum over devices for what did not is left to `shard_map`.

  Args:
    arrays: any.

  Returns:
    The same arrays.

  Example:
    >>> vary_together(1.0, 2)
    [1.0, 2]
  """
  own = [jax.typeof(x).mat.varying for x in arrays]
  axes = frozenset().union(*own)

  def cast(x, varying):
    missing = tuple(axes - varying)
    return lax.pcast(x, missing, to='varying') if missing else x

  return [cast(*pair) for pair in zip(arrays, own, strict=True)]
