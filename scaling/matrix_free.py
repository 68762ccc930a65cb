r"""The learning rate of one step on networks, whose Hessian is products only.

`one_step` wants :math:`\mathrm{Tr}(E[u u^T] H)` with a Hessian that no network
has in memory. With the mean and the second moment of each entry of the update,
and random signs :math:`v` for how entries go together,

.. math::
  E[u u^T] \approx E[u] E[u]^T + E_v[w w^T], \qquad
  w_i = v_i \sqrt{E[u_i^2] - E[u_i]^2},

so that two kinds of Hessian-vector products are enough. For independent signs
this is the theory of the articles exactly: of independent noise, entry by
entry. For the signs of differences of two minibatch gradients, which go
together as the noise does,
:math:`E[v_i v_j] = \tfrac{2}{\pi} \arcsin \rho_{ij}`, it is the interpolation
of `sign_product_mean`: right for no signal, right for no noise, and for
SoftSign in place of the sign an approximation of the same kind.

References:
  Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..lowrank.arrays import wide
from .gradients import (
  inner_product,
)
from .one_step import OneStep, best_step


def matrix_free_step(
  mean: Any,
  second_moment: Any,
  *,
  gradient: Any,
  product: Callable[[Any], Any],
  signs: Any,
) -> OneStep:
  r"""Computes the best step of an update from its moments and products.

  .. math::
    \eta^* = \frac{\mu^T g}{\mu^T H \mu + E_v[w^T H w]}, \qquad
    \mu = E[u],

  `w` as in this file.

  Args:
    mean: :math:`E[u]`, pytree of arrays.
    second_moment: :math:`E[u_i^2]`, the same tree.
    gradient: of the full batch, the same tree.
    product: `product(v) -> H v` of such trees, such as
      `functools.partial(hessian_vector_product, loss_fn, params, batch)`.
    signs: the same tree, leaves [draws, ...]: independent signs, or those of
      differences of gradients of as large batches.

  Returns:
    `OneStep` of scalars; infinite where the curvature is not positive. As many
    Hessian-vector products as draws, and one.

  Example:
    >>> g, h = jnp.array([1.0, -2.0]), jnp.diag(jnp.array([1.0, 2.0]))
    >>> mean, signs = 0.5 * jnp.sign(g), jnp.array([[1.0, 1.0], [1.0, -1.0]])
    >>> step = matrix_free_step(
    ...     mean, jnp.ones(2), gradient=g, product=lambda v: h @ v, signs=signs)
    >>> print(f'{float(step.learning_rate):.3f}')  # 1.5 / (1 + 2).
    0.500
  """
  spread = jax.tree.map(
    lambda m, s: jnp.sqrt(jnp.maximum(wide(s) - wide(m) ** 2, 0)),
    mean,
    second_moment,
  )
  along = lambda v: inner_product(v, product(v))

  def add(total, signs):
    return total + along(jax.tree.map(jnp.multiply, signs, spread)), None

  draws = len(jax.tree.leaves(signs)[0])
  start = jnp.zeros_like(along(mean))
  noise = lax.scan(add, start, signs)[0] / draws
  return best_step(inner_product(mean, gradient), along(mean) + noise)
