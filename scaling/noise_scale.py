r"""The gradient noise scale from squared norms of gradients of two batch sizes.

For the true gradient `G` and the covariance :math:`\Sigma` of one example's
gradient, a batch of `B` examples has
:math:`E \|G_B\|^2 = \|G\|^2 + \operatorname{tr} \Sigma / B`, so that two sizes
give both. Their ratio is the simple noise scale
:math:`\operatorname{tr} \Sigma / \|G\|^2`, the batch size at which noise and
gradient are equally long, in the unit in which the batch was counted.

What a measurement has to hold to: gradients are those before clipping and
weight decay, after the loss scale is divided out; the loss is a *mean* over
examples, each of which it treats alone, as batch normalisation and losses
between examples do not; dropout and augmentation count as noise. Tokens of one
sequence are not independent: count sequences. Batches drawn without replacement
from `n` examples see :math:`1 - B / n` of the noise.

References:
  McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.1;
  Su, `How should the learning rate scale when the batch size grows?
  <https://kexue.fm/archives/10542>`_, 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, devices_along, mean_over
from .gradients import (
  Loss,
  examples_of,
  local_value_and_grad,
  squared_norms,
)


class NoiseScale(NamedTuple):
  r"""Noise scale, and the estimates of :math:`\|G\|^2` and its noise.

  `scale` is :math:`\operatorname{tr} \Sigma / \|G\|^2` in examples; it is as
  noisy as one step is, and negative or infinite where the estimate of
  :math:`\|G\|^2` is not positive. Average the other two over steps, separately,
  before dividing: `noise_scale_tracker`.

  Example:
    >>> print(NoiseScale.from_moments(jnp.array(2.0), jnp.array(6.0)).scale)
    3.0
  """

  scale: Any
  gradient_sq_norm: Any
  trace: Any

  @classmethod
  def from_moments(cls, gradient_sq_norm: Any, trace: Any) -> 'NoiseScale':
    """Divides two trees of one structure, leaf by leaf."""
    scale = jax.tree.map(jnp.divide, trace, gradient_sq_norm)
    return cls(scale, gradient_sq_norm, trace)


def two_batch_noise_scale(
  small_sq_norm: Any, big_sq_norm: Any, small: Any, big: Any, *, per_leaf=False
) -> NoiseScale:
  r"""Unbiased estimates from squared norms at two batch sizes.

  .. math::
    \widehat{\|G\|^2} = \frac{B |G_B|^2 - b |G_b|^2}{B - b}, \qquad
    \widehat{\operatorname{tr} \Sigma}
      = \frac{|G_b|^2 - |G_B|^2}{1 / b - 1 / B},

  equations A.2 and A.3 of McCandlish et al. With the mean over `N` small
  batches that make up the big one, and Gaussian noise,

  .. math::
    \operatorname{Var} \widehat{\operatorname{tr} \Sigma}
      = \frac{2 \operatorname{tr} \Sigma^2}{N - 1}, \qquad
    \operatorname{Var} \widehat{\|G\|^2} = \frac{4 G^T \Sigma G}{B}
      + \frac{2 \operatorname{tr} \Sigma^2}{b^2 N (N - 1)},

  and the covariance is :math:`-2 \operatorname{tr} \Sigma^2 / (b N (N - 1))`.

  Deviations: the paper takes one small batch; the mean over all of them has the
  same expectation and a fraction of the variance.

  Args:
    small_sq_norm: pytree of squared norms :math:`|G_b|^2`, one for each leaf of
      the gradient, or one array; squared first, then averaged.
    big_sq_norm: the same for :math:`|G_B|^2`.
    small: examples `b` in a small batch, above 0.
    big: examples `B` in the big one, above `b`.
    per_leaf: keeps the leaves apart; the noise scale of a leaf is that of
      training it alone. Otherwise they are summed.

  Returns:
    `NoiseScale` of arrays, or of trees if `per_leaf`. Nothing is clamped: a
    negative :math:`\|G\|^2` is what keeps the average unbiased.

  Raises:
    ValueError: if `0 < small < big` does not hold for two numbers.

  Example:
    >>> estimate = two_batch_noise_scale(12.0, 1.5, 1, 32)
    >>> print(', '.join(f'{float(x):.4f}' for x in estimate))
    9.3333, 1.1613, 10.8387

  References:
    McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
    <https://arxiv.org/abs/1812.06162>`_, 2018, appendix A.1.
  """
  if isinstance(small, int | float):
    require(small > 0, 'small', small, 'a number above 0')
    if isinstance(big, int | float):
      require(big > small, 'big', big, f'more than the small batch of {small}')
  ratio = small / (big - small)
  excess = jax.tree.map(
    lambda s, b: wide(s) - wide(b), small_sq_norm, big_sq_norm
  )
  gradient_sq_norm = jax.tree.map(
    lambda b, e: wide(b) - ratio * e, big_sq_norm, excess
  )
  trace = jax.tree.map(lambda e: big * (ratio * e), excess)
  if not per_leaf:
    gradient_sq_norm, trace = (
      sum(jax.tree.leaves(tree)) for tree in (gradient_sq_norm, trace)
    )
  return NoiseScale.from_moments(gradient_sq_norm, trace)


def per_example_noise_scale(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  axis_name: AxisName | None = None,
  per_leaf: bool = False,
) -> NoiseScale:
  r"""The noise scale from the gradient of every single example.

  `two_batch_noise_scale` with b = 1, the least variance that a batch allows,

  .. math::
    \widehat{\|G\|^2} = \frac{n |\bar G|^2 - \overline{|G_i|^2}}{n - 1}
      = \operatorname{mean}_{i \neq j} G_i \cdot G_j.

  All gradients exist at once, n times the parameters: `accumulate_gradients`
  with as many microbatches as examples is the same in constant memory.

  Args:
    loss_fn: `loss_fn(params, batch) -> scalar`, the mean over the leading axis;
      called with single examples, leading axis 1.
    params: pytree of real arrays.
    batch: pytree of arrays [n, ...], two examples or more on all devices.
    axis_name: mapped axis or axes over which the batch is split.
    per_leaf: see `two_batch_noise_scale`.

  Returns:
    `NoiseScale`; the noise scale counts examples.

  Raises:
    ValueError: if there are fewer than two examples, or leaves differ in them.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w)
    >>> x = jnp.array([[3.0, 0.0], [1.0, 2.0]])
    >>> estimate = per_example_noise_scale(loss, jnp.zeros(2), x)
    >>> print(', '.join(f'{float(v):.3f}' for v in estimate))
    1.333, 3.000, 4.000
  """
  rows = examples_of(batch)
  total = rows * devices_along(axis_name)
  require(total > 1, 'batch', f'{total} example', 'two or more')
  gradients = jax.vmap(
    lambda example: local_value_and_grad(
      loss_fn, params, jax.tree.map(lambda x: x[None], example)
    )[1]
  )(batch)
  gradients = jax.tree.map(wide, gradients)
  mean = mean_over(
    jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients), axis_name
  )
  small = jax.tree.map(lambda s: s / rows, squared_norms(gradients))
  return two_batch_noise_scale(
    mean_over(small, axis_name),
    squared_norms(mean),
    1,
    total,
    per_leaf=per_leaf,
  )
