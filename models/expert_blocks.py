r"""Experts applied to blocks of rows in a loop, fast on CPU.

Shapes: `N` blocks of `S` rows, `E` experts, `D` width.

`jax.lax.ragged_dot` is a dense product with zeros where it has no kernel, on
CPU among others: E times the work. Here the rows come in blocks of one expert
each, and a loop applies its expert to each block. The derivative of that loop
would make zeros of the size of all parameters for each block; its own adds the
gradient of a block to its expert's in place. It keeps the rows alone and
computes the hidden layer of a block again, for a sixth more work in a training
step: what is between the products stays in the cache, and never exists for all
rows at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..mapped_axes import vary_together

Expert = Callable[[Any, jax.Array], jax.Array]


def _if_used(
  expert: jax.Array, params: Any, function: Callable[[Any], Any]
) -> Any:
  """What a function makes of an expert's parameters; zeros if there is none."""
  number = len(jax.tree.leaves(params)[0])
  of_one = lambda: function(jax.tree.map(lambda p: p[expert], params))
  like = lambda a: jnp.zeros_like(expert, a.dtype, shape=a.shape)
  nothing = lambda: jax.tree.map(like, jax.eval_shape(of_one))
  return lax.cond(expert < number, of_one, nothing)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(
  function: Expert, params: Any, x: jax.Array, experts: jax.Array
) -> jax.Array:
  def block(inputs):
    rows, expert = inputs
    return _if_used(expert, params, lambda p: function(p, rows))

  return lax.map(block, (x, experts))


def _forward(function, params, x, experts):
  return _apply(function, params, x, experts), (params, x, experts)


def _backward(function, residuals, gradient):
  params, x, experts = residuals
  sums = lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32))

  def add(totals, inputs):
    rows, gradient, expert = inputs
    pull = lambda p: jax.vjp(function, p, rows)[1](gradient)
    of_params, of_rows = _if_used(expert, params, pull)
    one = lambda total, g: total.at[expert].add(g, mode='drop')
    return jax.tree.map(one, totals, of_params), of_rows

  totals, of_x = lax.scan(
    add, jax.tree.map(sums, params), (x, gradient, experts)
  )
  cast = lambda total, p: total.astype(p.dtype)
  return jax.tree.map(cast, totals, params), of_x, None


_apply.defvjp(_forward, _backward)


def apply_in_blocks(
  function: Expert, params: Any, x: jax.Array, experts: jax.Array
) -> jax.Array:
  r"""Applies to each block of rows the function with its expert's parameters.

  .. math:: y_i = f(\theta_{e_i}, x_i)

  Args:
    function: `function(params, x)` of one expert's parameters and rows [S, D],
      to rows [S, D']; differentiated by `jax.vjp`, so that it must not close
      over traced arrays.
    params: pytree of all experts' parameters, leaves [E, ...].
    x: blocks [N, S, D].
    experts: int32 [N] in 0..E; E: the block is not used.

  Returns:
    [N, S, D'], zeros for blocks not used. Gradients of parameters are added up
    in float32 or better.

  Example:
    >>> w = jnp.array([[[1.0]], [[10.0]]])
    >>> y = apply_in_blocks(
    ...   lambda w, x: x @ w, w, jnp.ones((3, 2, 1)), jnp.array([0, 1, 2]))
    >>> print(y[..., 0])
    [[ 1.  1.]
     [10. 10.]
     [ 0.  0.]]
  """
  return _apply(function, *vary_together(params, x, experts))
