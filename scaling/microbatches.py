r"""Gradient accumulation that leaves the noise scale behind.

A step that adds up the gradients of `N` microbatches, or averages those of `N`
devices, has the small batches of a noise scale in its hands: their squared
norms cost one pass over a gradient that is there anyway, and one scalar per
leaf where devices are to be averaged.

References:
  McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, devices_along, mean_over, vary_together
from .gradients import (
  Loss,
  examples_of,
  local_value_and_grad,
  squared_norms,
)
from .noise_scale import NoiseScale, two_batch_noise_scale


def split_batch(name: str, batch: Any, parts: int) -> Any:
  """Leaves [parts * rows, ...] as [parts, rows, ...]; none is left over.

  >>> split_batch('microbatches', jnp.arange(6), 3).shape
  (3, 2)
  """
  rows = examples_of(batch)
  good = isinstance(parts, int) and parts >= 1 and rows % parts == 0
  require(good, name, parts, f'a divisor of the {rows} examples')
  split = lambda x: jnp.reshape(x, (parts, rows // parts, *jnp.shape(x)[1:]))
  return jax.tree.map(split, batch)


def zeros_like(params: Any) -> Any:
  """Where sums of gradients begin, in float32 or better."""
  return jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)


def scan_gradients(
  step: Callable[[Any, jax.Array, Any, Any], tuple[Any, Any]],
  carry: Any,
  loss_fn: Loss,
  params: Any,
  batches: Any,
  inputs: Any = None,
) -> tuple[Any, Any]:
  """Scans `step(carry, loss, gradient, input) -> (carry, output)`.

  Args:
    step: gets gradients in float32 or better.
    carry: where it starts.
    loss_fn: see `accumulate_gradients`.
    params: see `accumulate_gradients`.
    batches: leaves [N, rows, ...], see `split_batch`.
    inputs: pytree of arrays [N, ...], one entry for each microbatch.

  Returns:
    The last carry, and the outputs [N, ...].
  """

  def body(carry, xs):
    value, gradient = local_value_and_grad(loss_fn, params, xs[0])
    return step(carry, value, jax.tree.map(wide, gradient), xs[1])

  carry, *_ = vary_together(carry, params, batches, inputs)
  return lax.scan(body, carry, (batches, inputs))


class GradientMoments(NamedTuple):
  """Mean loss and gradient, and squared norms at two batch sizes.

  `small_sq_norm` and `big_sq_norm` are trees like `gradient` of scalars: the
  mean of the squared norms of the gradients of `small` examples, and the
  squared norm of the mean over `big` examples.

  Example:
    >>> moments = GradientMoments(0.0, {}, {'w': 3.5}, {'w': 2.0}, 2, 8)
    >>> print(f'{float(moments.noise_scale.scale):.4f}')
    2.6667
  """

  loss: jax.Array
  gradient: Any
  small_sq_norm: Any
  big_sq_norm: Any
  small: int
  big: int

  @property
  def noise_scale(self) -> NoiseScale:
    """The estimate of this step alone, over all leaves."""
    return two_batch_noise_scale(*self[2:])


def accumulate_gradients(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  microbatches: int = 1,
  axis_name: AxisName | None = None,
  multiplier: Any = None,
) -> GradientMoments:
  r"""The mean gradient over microbatches and devices, and its noise.

  With gradients :math:`G_k` of `N` microbatches of `b` examples, on each of `D`
  devices,

  .. math::
    \bar G = \operatorname{mean}_k G_k, \qquad
    |G_b|^2 = \operatorname{mean}_k |G_k|^2, \qquad
    |G_B|^2 = |\bar G|^2, \quad B = b N D,

  leaf by leaf, by one `lax.scan` in the memory of one gradient and one sum.
  Over devices the mean gradient is reduced, as it is without, and one scalar
  per leaf more.

  Deviations: none; `mesh-transformer-jax` averages norms before it squares
  them, which is less than the mean of the squares.

  Args:
    loss_fn: `loss_fn(params, batch) -> scalar`, the mean over the leading axis,
      in which all examples have the same weight: a loss that divides by a
      number of tokens that differs between microbatches is none.
    params: pytree of real arrays.
    batch: pytree of arrays [N * b, ...], this device's examples.
    microbatches: `N`, a divisor of the number of examples.
    axis_name: mapped axis or axes over which the batch is split: what each
      device sees is then small, whether it accumulates or not.
    multiplier: pytree like `params` that the squared norms, not the gradient,
      are taken after, entry by entry; for a preconditioned noise scale.

  Returns:
    `GradientMoments`, the same on all devices; the gradient has the dtypes of
    the parameters. With one microbatch on one device there are no two sizes,
    and asking for the noise scale raises.

  Raises:
    ValueError: if the microbatches do not divide the examples.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w)
    >>> x = jnp.array([[3.0, 0.0], [1.0, 2.0]])
    >>> step = accumulate_gradients(loss, jnp.ones(2), x, microbatches=2)
    >>> print(float(step.loss), step.gradient, f'{step.noise_scale.scale:.3f}')
    3.0 [2. 1.] 1.333

  References:
    McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
    <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.1.
  """
  batches = split_batch('microbatches', batch, microbatches)
  small = examples_of(batch) // microbatches
  norms = lambda gradient: squared_norms(
    gradient
    if multiplier is None
    else jax.tree.map(lambda g, m: g * wide(m), gradient, multiplier)
  )

  def step(total, value, gradient, _):
    total = jax.tree.map(jnp.add, total, gradient)
    return total, (value, norms(gradient))

  total, outputs = scan_gradients(
    step, zeros_like(params), loss_fn, params, batches
  )
  mean = jax.tree.map(lambda g: g / microbatches, total)
  value, small_sq_norm = jax.tree.map(lambda x: jnp.mean(x, axis=0), outputs)
  value, mean, small_sq_norm = mean_over(
    (value, mean, small_sq_norm), axis_name
  )
  gradient = jax.tree.map(
    lambda g, x: g.astype(jnp.result_type(x)), mean, params
  )
  big = small * microbatches * devices_along(axis_name)
  return GradientMoments(
    value, gradient, small_sq_norm, norms(mean), small, big
  )
