r"""Whether sign descent will surge, from the noise as it is.

The best learning rate of sign descent may fall again for large batches, the
surge of article 10542, if the Hessian adds up along the sign of the gradient,
:math:`P = s^T H s`, to more than twice what it adds up to along the sign of
pure noise, :math:`T_0`.

The article puts the trace of the Hessian for :math:`T_0`, which is right for
noise that is independent between entries. In networks it is not: the sign of
the difference of two gradients costs one Hessian-vector product and assumes
nothing but noise that is symmetric, as such a difference is.

References:
  Su, `How should the learning rate scale when the batch size grows?
  <https://kexue.fm/archives/10542>`_, 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, mean_over, sum_over, vary_together
from .curvature import split_off_hessian
from .gradients import (
  Loss,
  hessian_vector_product,
  inner_product,
  local_value_and_grad,
)
from .microbatches import split_batch, zeros_like


class SurgeIndex(NamedTuple):
  r"""Surge index :math:`P / (2 T_0)`, and both parts.

  Above 1 the homogeneous mean field of article 10542 has the best learning rate
  of sign descent fall again for large batches; average the parts over steps
  before dividing. Infinite where :math:`T_0` is not positive.

  Example:
    >>> float(SurgeIndex.from_moments(jnp.array(6.0), jnp.array(2.0)).index)
    1.5
  """

  index: jax.Array
  aligned: jax.Array
  noise_trace: jax.Array

  @classmethod
  def from_moments(
    cls, aligned: jax.Array, noise_trace: jax.Array
  ) -> 'SurgeIndex':
    """Divides averages; infinite where the noise sees no curvature."""
    half = jnp.where(noise_trace > 0, aligned / (2 * noise_trace), jnp.inf)
    return cls(half, aligned, noise_trace)


def surge_index_estimate(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  pairs: int = 1,
  hessian_batch: Any | None = None,
  axis_name: AxisName | None = None,
) -> SurgeIndex:
  r"""Whether sign descent will surge, from correlated noise as it is.

  .. math::
    T_0 = E[v^T H v], \; v = \operatorname{sign}(G_1 - G_2), \qquad
    P = s^T H s, \; s = \operatorname{sign}(\bar G),

  by one Hessian-vector product each. For Gaussian noise of correlations
  :math:`\rho`, :math:`T_0 = \frac{2}{\pi} \sum_{i j} \arcsin(\rho_{i j})
  H_{i j}`; for independent noise it is the trace of the Hessian.

  Deviations: article 10542 takes the trace, a network's is several times less
  than :math:`T_0`. `P` is that of the sign of this batch's mean gradient, and
  tends to that of the true one for large batches.

  Args:
    loss_fn: see `accumulate_gradients`; twice differentiable.
    params: pytree of real arrays.
    batch: pytree of arrays [rows, ...], this device's examples.
    pairs: pairs of microbatches over which :math:`T_0` is averaged; twice their
      number divides the examples for the gradients.
    hessian_batch: independent examples for the Hessian. `None`: the second half
      of `batch`, of which the gradients then have the first.
    axis_name: mapped axis or axes over which the batches are split; each device
      has its own pairs.

  Returns:
    `SurgeIndex(index, aligned, noise_trace)` of scalars: :math:`P / (2 T_0)`,
    `P` and :math:`T_0`. Entries that no example of a pair touches have no sign
    and do not count.

  Raises:
    ValueError: if the pairs do not divide the examples.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w) + jnp.sum(w) ** 2
    >>> x = jnp.array([[3.0, 0.0], [1.0, 2.0]])
    >>> found = surge_index_estimate(loss, jnp.zeros(2), x, hessian_batch=x)
    >>> print(', '.join(f'{float(v):.1f}' for v in found))
    inf, 8.0, 0.0

  References:
    Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024.
  """
  good = isinstance(pairs, int) and pairs >= 1
  require(good, 'pairs', pairs, 'an integer of at least 1')
  batch, hessian_batch = split_off_hessian(batch, hessian_batch)
  batches = split_batch('pairs', batch, 2 * pairs)
  batches = jax.tree.map(lambda x: x.reshape(pairs, 2, *x.shape[1:]), batches)

  def along_sign(vector):
    sign = jax.tree.map(jnp.sign, vector)
    product = hessian_vector_product(loss_fn, params, hessian_batch, sign)
    return inner_product(sign, product)

  def body(total, pair):
    first, second = (
      local_value_and_grad(
        loss_fn, params, jax.tree.map(lambda x, i=i: x[i], pair)
      )[1]
      for i in (0, 1)
    )
    total = jax.tree.map(
      lambda t, a, b: t + (wide(a) + wide(b)), total, first, second
    )
    return total, along_sign(jax.tree.map(jnp.subtract, first, second))

  start, *_ = vary_together(zeros_like(params), params, batches)
  total, noise_traces = lax.scan(body, start, batches)
  aligned = along_sign(sum_over(total, axis_name))
  return SurgeIndex.from_moments(
    *mean_over((aligned, jnp.mean(noise_traces)), axis_name)
  )
