"""Mapped axes: what varies along them, and sums and means over them.

An `axis_name` is that of `pmap`, `vmap` or `shard_map`, or several; `None`: one
device has everything, and nothing is to be done.
"""

from typing import Any

import jax
from jax import lax

AxisName = str | tuple[str, ...]


def vary_together(*trees: Any) -> tuple[Any, ...]:
  """Declares trees as varying over every mapped axis that one varies over.

  Within `shard_map`, which tracks it, the gradient in what all devices share is
  the sum of all devices' gradients. After this it is each device's own; and a
  derivative of one's own (`custom_vjp`) returns gradients that vary like what
  they belong to, as it must.

  Args:
    *trees: pytrees of arrays.

  Returns:
    The same trees.

  Example:
    >>> vary_together({'w': 1.0}, 2)
    ({'w': 1.0}, 2)
  """
  varying = lambda x: jax.typeof(x).mat.varying
  axes = frozenset().union(*map(varying, jax.tree.leaves(trees)))

  def cast(x):
    missing = tuple(axes - varying(x))
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(cast, trees)


def mean_over(tree: Any, axis_name: AxisName | None) -> Any:
  """The mean over mapped axes; without one, the tree."""
  return tree if axis_name is None else lax.pmean(tree, axis_name)


def sum_over(tree: Any, axis_name: AxisName | None) -> Any:
  """The sum over mapped axes; without one, the tree."""
  return tree if axis_name is None else lax.psum(tree, axis_name)


def devices_along(axis_name: AxisName | None) -> int:
  """How many devices a mean over mapped axes is of."""
  return 1 if axis_name is None else lax.axis_size(axis_name)
