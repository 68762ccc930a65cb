r"""Noise scales of sign descent and of preconditioned gradients.

Sign descent does not see :math:`\|G\|_2` but
:math:`\|G\|_1 = \operatorname{sign}(G) \cdot G`, and of its noise the sum of
the standard deviations of the entries. Adam sees the gradient over the root of
its second moment.

References:
  Naganuma et al., `Non-Euclidean Gradient Noise Scale
  <https://arxiv.org/abs/2602.03001>`_, 2026.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, devices_along, mean_over, sum_over
from .gradients import (
  Loss,
  examples_of,
  inner_product,
)
from .microbatches import (
  accumulate_gradients,
  scan_gradients,
  split_batch,
  zeros_like,
)
from .noise_scale import NoiseScale


class SignNoiseScale(NamedTuple):
  r"""Manhattan noise scale and the sums that it is made of.

  `gradient_l1` is :math:`\|\bar G\|_1`, larger than :math:`\|G\|_1` by the
  noise that is left in the mean; `cross_l1` is
  :math:`\operatorname{sign}(\bar G_a) \cdot \bar G_b` of two halves, smaller
  than it in expectation by the signs that noise has turned. `scale` divides by
  the first, `scale_above` by the second.

  Example:
    >>> found = SignNoiseScale(4.0, 1.0, 2.0, 0.5)
    >>> found.scale_above
    16.0
  """

  scale: jax.Array
  gradient_l1: jax.Array
  noise_l1: jax.Array
  cross_l1: jax.Array

  @property
  def scale_above(self) -> jax.Array:
    """What errs to the other side."""
    return (self.noise_l1 / self.cross_l1) ** 2


def _l1(tree: Any) -> jax.Array:
  return inner_product(jax.tree.map(jnp.sign, tree), tree)


def sign_noise_scale(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  microbatches: int,
  axis_name: AxisName | None = None,
) -> SignNoiseScale:
  r"""The noise scale in the norm that the sign is steepest in.

  .. math:: B_{\mathrm{sign}} = \frac{(\sum_i \sigma_i)^2}{\|G\|_1^2}

  with :math:`\sigma_i^2 = \frac{b}{N - 1} \sum_k (G_{k i} - \bar G_i)^2` from
  `N` microbatches of `b` examples, the standard deviations of one example's
  gradient.

  Deviations: none; the estimate of a root is low, by 1 / (4 (N - 1)) for
  Gaussian noise.

  Args:
    loss_fn: see `accumulate_gradients`.
    params: pytree of real arrays.
    batch: pytree of arrays [N * b, ...], this device's examples.
    microbatches: `N`, an even divisor of the number of examples.
    axis_name: mapped axis or axes over which the batch is split.

  Returns:
    `SignNoiseScale` of scalars, in examples. It takes the memory of three
    gradients, and over devices three reductions of one.

  Raises:
    ValueError: if `microbatches` is odd or does not divide the examples.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w)
    >>> x = jnp.array([[3.0, 0.0], [1.0, 2.0]])
    >>> found = sign_noise_scale(loss, jnp.zeros(2), x, microbatches=2)
    >>> print(', '.join(f'{float(v):.3f}' for v in found))
    0.889, 3.000, 2.828, 2.000

  References:
    Naganuma et al., `Non-Euclidean Gradient Noise Scale
    <https://arxiv.org/abs/2602.03001>`_, 2026.
  """
  batches = split_batch('microbatches', batch, microbatches)
  even = microbatches % 2 == 0
  require(even, 'microbatches', microbatches, 'an even number')
  small = examples_of(batch) // microbatches

  def step(sums, _, gradient, k):
    """Welford's, because a sum of squares forgets small noise."""
    mean, squares, difference = sums
    before = jax.tree.map(jnp.subtract, gradient, mean)
    mean = jax.tree.map(lambda m, d: m + d / (k + 1), mean, before)
    squares = jax.tree.map(
      lambda s, d, g, m: s + d * (g - m), squares, before, gradient, mean
    )
    sign = 1 - 2 * (k % 2)
    difference = jax.tree.map(lambda x, g: x + sign * g, difference, gradient)
    return (mean, squares, difference), None

  zeros = zeros_like(params)
  (local, squares, difference), _ = scan_gradients(
    step,
    (zeros, zeros, zeros),
    loss_fn,
    params,
    batches,
    jnp.arange(microbatches),
  )
  count = microbatches * devices_along(axis_name)
  mean = mean_over(local, axis_name)
  squares = jax.tree.map(
    lambda s, m, g: s + microbatches * jnp.square(m - g), squares, local, mean
  )
  squares, difference = sum_over((squares, difference), axis_name)
  noise = jax.tree.map(lambda s: jnp.sqrt(small * s / (count - 1)), squares)
  halves = (
    jax.tree.map(lambda m, d, s=s: m + s * d / count, mean, difference)
    for s in (1, -1)
  )
  return _sign_noise_scale(noise, mean, *halves)


def _sign_noise_scale(noise, mean, first, second):
  """From standard deviations, mean gradient, and means of the two halves."""
  sign = lambda tree: jax.tree.map(jnp.sign, tree)
  gradient_l1, noise_l1 = _l1(mean), _l1(noise)
  cross = inner_product(sign(first), second)
  cross = (cross + inner_product(sign(second), first)) / 2
  scale = (noise_l1 / gradient_l1) ** 2
  return SignNoiseScale(scale, gradient_l1, noise_l1, cross)


def preconditioned_noise_scale(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  second_moment: Any,
  *,
  microbatches: int,
  eps: float = 1e-8,
  axis_name: AxisName | None = None,
) -> NoiseScale:
  r"""The noise scale of :math:`G / (\sqrt v + \epsilon)`.

  What Adam descends along, if its second moment changes slowly: large entries
  no longer drown the small ones.

  Args:
    loss_fn: see `accumulate_gradients`.
    params: pytree of real arrays.
    batch: pytree of arrays [N * b, ...], this device's examples.
    second_moment: `v`, pytree like `params`, 0 or more; bias corrected if `eps`
      matters, and from earlier batches: of this one's it is no constant.
    microbatches: `N`, a divisor of the number of examples.
    eps: 0 or more, in the unit of the gradient; where it and `v` are zero, the
      entry is left out.
    axis_name: mapped axis or axes over which the batch is split.

  Returns:
    `NoiseScale` of scalars. To have it along with accumulation, give the factor
    to `accumulate_gradients`.

  Raises:
    ValueError: if `eps` is negative, or there is one microbatch in all.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w)
    >>> x, v = jnp.array([[3.0, 0.0], [1.0, 2.0]]), jnp.array([4.0, 1.0])
    >>> found = preconditioned_noise_scale(
    ...   loss, jnp.zeros(2), x, v, microbatches=2)
    >>> print(f'{float(found.scale):.3f}')
    3.333
  """
  if isinstance(eps, int | float):
    require(eps >= 0, 'eps', eps, '0 or more')

  def factor(v):
    root = jnp.sqrt(wide(v)) + eps
    return jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1.0), 0.0)

  return accumulate_gradients(
    loss_fn,
    params,
    batch,
    microbatches=microbatches,
    axis_name=axis_name,
    multiplier=jax.tree.map(factor, second_moment),
  ).noise_scale
