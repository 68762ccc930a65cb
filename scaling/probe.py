r"""The best learning rate of one step, measured for any update map.

To second order a step :math:`-\eta u` changes the loss by
:math:`-\eta\, u \cdot G + \frac{1}{2} \eta^2 u^T H u`. If `u` is what an
optimizer makes of the gradient of `B` random examples, the best learning rate
is

.. math:: \eta^*(B) = \frac{E[u] \cdot G}{E[u^T H u]},

of which the laws of this room are special cases with assumptions: Gaussian and
independent noise, a mean field. Nothing of the kind is needed to measure both
expectations.

A loss is a quadratic for short steps only. With the mean of `H` along a step of
length :math:`\eta_0` in place of that at its start the formula has the best
learning rate of the loss itself as its fixed point :math:`\eta^* = \eta_0`:
there the slope at the step's end is zero.

References:
  Su, `How should the learning rate scale when the batch size grows?
  <https://kexue.fm/archives/10542>`_, 2024, equation 3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from ..checks import require
from ..mapped_axes import AxisName, mean_over
from .gradients import (
  Loss,
  examples_of,
  inner_product,
  local_gradient_and_product,
  local_value_and_grad,
)
from .jackknife import jackknife_ratio, require_confidence


class ProbedLearningRate(NamedTuple):
  r"""Best learning rate of one step, its interval, and both expectations.

  `descent` is :math:`E[u] \cdot G` and `curvature` :math:`E[u^T H u]`. Where
  the curvature is not positive, the quadratic has no minimum: `learning_rate`
  is infinite and the interval [0, inf].

  Example:
    >>> probed = ProbedLearningRate(0.5, 0.4, 0.6, 2.0, 4.0)
    >>> probed.loss_decrease
    0.5
  """

  learning_rate: jax.Array
  low: jax.Array
  high: jax.Array
  descent: jax.Array
  curvature: jax.Array

  @property
  def loss_decrease(self) -> jax.Array:
    """By how much a step with that learning rate lowers the loss."""
    return self.descent * self.learning_rate / 2


def probe_learning_rate(
  loss_fn: Loss,
  params: Any,
  batches: Any,
  optimizer: optax.GradientTransformation,
  *,
  batch_size: int,
  opt_state: Any | None = None,
  trial: ArrayLike | None = None,
  confidence: float = 0.95,
  axis_name: AxisName | None = None,
) -> ProbedLearningRate:
  r"""Measures :math:`\eta^*(B)` of an optimizer where a run stands.

  Each draw has its own examples, the first `B` for the direction, the others,
  independent of them, for gradient and Hessian:

  .. math::
    \hat\eta = \frac{\sum_t u(G_t) \cdot G'_t}{\sum_t u(G_t)^T H'_t u(G_t)},

  a ratio of averages, with a jackknife interval over the draws. One gradient
  and one Hessian-vector product, which brings the second gradient along, for
  each draw, all in one `lax.scan`.

  It is the best rate for *one* step. Training is more than a sum of single
  steps: where the noise dominates, a constant learning rate below it does
  better in the end.

  Args:
    loss_fn: see `accumulate_gradients`; twice differentiable.
    params: pytree of real arrays.
    batches: pytree of arrays [draws, rows, ...], this device's examples, three
      draws or more for an interval; more rows than `batch_size` lower the
      variance.
    optimizer: any optax transformation at learning rate 1, such as
      `optax.adam(1.0)`, so that its updates are to be *added*; one that keeps
      the sign of the gradient, like `optax.scale_by_adam()`, comes out with a
      negative learning rate.
    batch_size: `B`, below `rows`; on each device.
    opt_state: where the optimizer stands, such as Adam's averages of the run.
      `None`: before its first step.
    trial: a learning rate of about the result's size, above 0, such as the
      result of a first probe. The curvature is then the mean along a step of
      that length, :math:`u \cdot (G'_t(0) - G'_t(\eta_0)) / \eta_0`, from two
      gradients instead of a Hessian-vector product; calls that hand their
      results on converge to where the loss, quadratic or not, is lowest.
      `None`: the curvature at the start.
    confidence: of the interval, in (0, 1).
    axis_name: mapped axis or axes over which the rows of each draw are split.

  Returns:
    `ProbedLearningRate` of scalars.

  Raises:
    ValueError: if no rows are left beside the batch, for a trial that is not
      positive, or for a confidence out of range.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w) + 2 * jnp.sum(w**2)
    >>> x = 1 + jax.random.normal(jax.random.key(0), (1000, 8, 2))
    >>> probed = probe_learning_rate(
    ...   loss, jnp.zeros(2), x, optax.sgd(1.0), batch_size=1)
    >>> exact = 0.25 / (1 + 1)  # lr_max / (1 + noise scale).
    >>> bool(probed.low < exact < probed.high)
    True

  References:
    Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024, equation 3.
  """
  rows = examples_of(jax.tree.map(lambda x: x[0], batches))
  examples_of(batches)
  good = isinstance(batch_size, int) and 0 < batch_size < rows
  require(good, 'batch_size', batch_size, f'1 to {rows - 1}, of {rows} rows')
  if isinstance(trial, int | float):
    require(trial > 0, 'trial', trial, 'a positive number')
  require_confidence(confidence)
  opt_state = optimizer.init(params) if opt_state is None else opt_state

  def draw(_, batch):
    used, rest = (
      jax.tree.map(lambda x, part=part: x[part], batch)
      for part in (slice(batch_size), slice(batch_size, None))
    )
    _, gradient = local_value_and_grad(loss_fn, params, used)
    updates, _ = optimizer.update(
      mean_over(gradient, axis_name), opt_state, params
    )
    direction = jax.tree.map(jnp.negative, updates)
    if trial is None:
      fresh, product = local_gradient_and_product(
        loss_fn, params, rest, direction
      )
    else:
      _, fresh = local_value_and_grad(loss_fn, params, rest)
      moved = jax.tree.map(lambda x, u: x + trial * u, params, updates)
      _, there = local_value_and_grad(loss_fn, moved, rest)
      product = jax.tree.map(lambda a, b: (a - b) / trial, fresh, there)
    both = inner_product(direction, fresh), inner_product(direction, product)
    return None, mean_over(both, axis_name)

  _, (descents, curvatures) = lax.scan(draw, None, batches)
  ratio = jackknife_ratio(descents, curvatures, confidence=confidence)
  curvature = jnp.mean(curvatures)
  guard = lambda x, bound: jnp.where(curvature > 0, x, bound)
  return ProbedLearningRate(
    guard(ratio.ratio, jnp.inf),
    guard(ratio.low, 0.0),
    guard(ratio.high, jnp.inf),
    jnp.mean(descents),
    curvature,
  )
