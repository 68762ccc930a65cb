r"""Derivatives of one device's loss, and inner products of trees in float32.

Under `shard_map` the gradient with respect to parameters that all devices share
is the *sum* of all devices' gradients: jax adds the collective by itself. A
noise scale compares what single devices see with their mean, so everything here
first declares the parameters as varying where the batch does; no collective is
left, and under `jit` and `pmap` nothing happens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, mean_over, vary_together

Loss = Callable[[Any, Any], jax.Array]


def examples_of(batch: Any) -> int:
  """The length of the leading axis, which all leaves have to share."""
  leaves = jax.tree.leaves(batch)
  require(bool(leaves), 'batch', batch, 'one array or more')
  shapes = [jnp.shape(x) for x in leaves]
  require(
    all(shape and shape[0] == shapes[0][0] for shape in shapes),
    'batch',
    shapes,
    'a leading axis that all leaves share',
  )
  return shapes[0][0]


def local_value_and_grad(
  loss_fn: Loss, params: Any, batch: Any
) -> tuple[jax.Array, Any]:
  """The loss of this device's batch alone, and its gradient.

  >>> value, gradient = local_value_and_grad(lambda w, x: w * x[0], 2.0, [3.0])
  >>> float(value), float(gradient)
  (6.0, 3.0)
  """
  return jax.value_and_grad(loss_fn)(*vary_together(params, batch))


def squared_norms(tree: Any) -> Any:
  """Sums of squares, one for each leaf, in float32 or better.

  Half precision is widened before it is squared: bfloat16 has eight bits, the
  noise scale is a difference of such sums. They overflow, to infinity, for
  gradients beyond 1e19.

  Args:
    tree: pytree of real arrays, such as a gradient.

  Returns:
    The same tree of scalars.

  Example:
    >>> norms = squared_norms({'w': jnp.array([3.0, 4.0]), 'b': jnp.ones(2)})
    >>> float(norms['w']), float(norms['b'])
    (25.0, 2.0)
  """
  return jax.tree.map(lambda x: jnp.sum(jnp.square(wide(x))), tree)


def inner_product(a: Any, b: Any) -> jax.Array:
  """The inner product of two trees of one structure, in float32 or better.

  Products and a sum, not a matrix product: accelerators round those to tf32.

  >>> float(inner_product({'w': jnp.array([1.0, 2.0])}, {'w': jnp.ones(2)}))
  3.0
  """
  products = jax.tree.map(lambda x, y: jnp.sum(wide(x) * wide(y)), a, b)
  return sum(jax.tree.leaves(products))


def local_gradient_and_product(
  loss_fn: Loss, params: Any, batch: Any, vector: Any
) -> tuple[Any, Any]:
  """The local gradient, and the local Hessian times a vector, in one go.

  >>> loss = lambda w, x: x[0] * w**2
  >>> gradient, product = local_gradient_and_product(loss, 1.0, [3.0], 2.0)
  >>> float(gradient), float(product)
  (6.0, 12.0)
  """
  vector = jax.tree.map(
    lambda v, x: jnp.asarray(v, jnp.result_type(x)), vector, params
  )
  point, batch, direction = vary_together(params, batch, vector)
  gradient = lambda p: jax.grad(loss_fn)(p, batch)
  return jax.jvp(gradient, (point,), (direction,))


def hessian_vector_product(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  vector: Any,
  *,
  axis_name: AxisName | None = None,
) -> Any:
  r"""The Hessian of the loss times a vector, forward over reverse.

  .. math:: H v = \frac{d}{d t} \nabla L(\theta + t v) \Big|_{t = 0},

  for the price of about two gradients, in the memory of two.

  Args:
    loss_fn: `loss_fn(params, batch) -> scalar`, the mean over the batch.
    params: pytree of real arrays.
    batch: pytree of arrays with a common leading axis.
    vector: pytree like `params`; cast to its dtypes.
    axis_name: mapped axis or axes of the batch: the product is that of the mean
      of all devices' losses. `None`: of this device's.

  Returns:
    Pytree like `params`.

  Example:
    >>> loss = lambda w, x: jnp.mean(x) * w[0] * w[1]
    >>> w, v = jnp.ones(2), jnp.array([1.0, 2.0])
    >>> print(hessian_vector_product(loss, w, jnp.full(4, 3.0), v))
    [6. 3.]
  """
  _, product = local_gradient_and_product(loss_fn, params, batch, vector)
  return mean_over(product, axis_name)
