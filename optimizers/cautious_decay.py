r"""Cautious weight decay: decay only where it agrees with the update.

With `u` the update before the learning rate,

.. math::
  W \leftarrow W - \eta \, (u + \lambda \, 1[u \odot W \ge 0] \odot W):

a coordinate that the gradient pushes outwards is not pulled back.

References:
  Chen et al., `Cautious Weight Decay <https://arxiv.org/abs/2510.12402>`_,
  2025, Algorithm 1; in modded-nanogpt's records since 2025.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..checks import require


def add_cautious_decay(
  weight_decay: float | jax.Array, mask: Any | None = None
) -> optax.GradientTransformation:
  r"""Adds :math:`\lambda W` where `W` and the update have the same sign.

  Stands where `optax.add_decayed_weights` stands, after the direction and
  before the learning rate. Deviations: none.

  Args:
    weight_decay: :math:`\lambda`, 0 or more.
    mask: pytree of booleans or function of the parameters: what decays.

  Returns:
    `optax.GradientTransformation` without state.

  Raises:
    ValueError: for a negative weight decay or an update without parameters.

  Example:
    >>> tx = add_cautious_decay(0.1)
    >>> w, u = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5])
    >>> print(tx.update(u, tx.init(w), w)[0])
    [0.6 0.5]

  References:
    Chen et al., `Cautious Weight Decay <https://arxiv.org/abs/2510.12402>`_,
    2025.
  """
  if isinstance(weight_decay, int | float):
    require(weight_decay >= 0, 'weight_decay', weight_decay, '0 or more')

  def decayed(u, w):
    agrees = jnp.signbit(u) == jnp.signbit(w)  # A product could underflow.
    agrees |= (u == 0) | (w == 0)
    return (u + weight_decay * jnp.where(agrees, w, 0)).astype(u.dtype)

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('params: got None, expected the parameters that decay')
    return jax.tree.map(decayed, updates, params), state

  transform = optax.GradientTransformation(
    lambda params: optax.EmptyState(), update
  )
  return transform if mask is None else optax.masked(transform, mask)
