r"""The learning rate for a new batch size, from what a run has measured.

**Which budget is fixed?** A run of `T` steps of SGD with batches of `B` is
governed by :math:`\eta T`, how far it comes, and :math:`\eta / B`, the noise
that it ends in: its loss is :math:`F(\eta T) + (\eta / B) G`, until curvature
limits :math:`\eta`. With the *examples* `T B` fixed both are functions of
:math:`\eta / B`, and the best rate is linear in `B` up to the critical batch
size. Adam, whose steps grow with :math:`\sqrt B` relative to the gradient where
noise dominates, has :math:`\eta / \sqrt B` for it. With the number of *steps*
fixed, the larger batch sees more data; it should go further rather than faster.
If the loss falls like :math:`(\eta T)^{-p}`, the best rate of SGD grows as
:math:`B^{1 / (1 + p)}` and that of Adam as :math:`B^{1 / (1 + p) - 1/2}`, which
for a loss that falls fast *falls* with the batch size.

**Momentum.** That of SGD and Adam changes neither law: it spreads each gradient
over later steps and forgets none. It is different if the sign is taken of the
momentum: its noise is that of a batch :math:`(1 + \beta_1) / (1 - \beta_1)`
times as large.

References:
  McCandlish et al., `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018;
  Malladi et al., `On the SDEs and Scaling Rules for Adaptive Gradient
  Algorithms <https://arxiv.org/abs/2205.10287>`_, 2022;
  Su, `articles 10542 <https://kexue.fm/archives/10542>`_, `10563
  <https://kexue.fm/archives/10563>`_ and `11280
  <https://kexue.fm/archives/11280>`_, 2024 and 2025.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of
from .laws import SgdLaw, SignLaw
from .rules import adascale_gain, require_positive

# Noise scale of the update's mean over the simple one. An average of squares,
# as Adam's, has exactly 1; the sign's erf has pi / 2 where noise dominates.
_NOISE = {'sgd': 1.0, 'sign': math.pi / 2, 'softsign': 1.0, 'adam': 1.0}
# Where none is given. Under averages of squares runs went on growing past the
# noise scale as if there were no curvature; see the figure batch_size_advisor.
_SURGE_INDEX = {'sgd': 0.5, 'sign': 0.5, 'softsign': 0.5, 'adam': 0.0}
# An infinite noise scale is one so much larger than both batches.
_INFINITE = 1e6


class Recommendation(NamedTuple):
  """Learning rate, its interval, and two warnings.

  Example:
    >>> Recommendation(0.1, 0.05, 0.2, False, True).past_critical
    True
  """

  learning_rate: jax.Array
  low: jax.Array
  high: jax.Array
  past_surge: jax.Array
  past_critical: jax.Array


def _law(
  optimizer: str, scale: jax.Array, surge_index: ArrayLike, softening: ArrayLike
) -> SgdLaw | SignLaw:
  """Learning rates up to a factor, for a simple noise scale.

  The softening, 1 for a sign and 0 for the gradient itself, leaves the quotient
  of both numbers alone, which is the critical batch size.
  """
  if optimizer == 'sgd':
    return SgdLaw(1.0, scale)
  return SignLaw(
    rate=1.0,
    curvature_ratio=2 * surge_index * softening,
    noise_scale=_NOISE[optimizer] * scale * softening,
  )


def _critical_batch_size(
  optimizer: str, scale: jax.Array, surge_index: ArrayLike
) -> jax.Array:
  if optimizer == 'sgd':
    return scale
  return _NOISE[optimizer] * scale / jnp.maximum(2 * surge_index, 1 / _INFINITE)


@functools.partial(jax.jit, static_argnames=('optimizer', 'budget'))
def _recommend(
  learning_rate: ArrayLike,
  old: ArrayLike,
  new: ArrayLike,
  interval: tuple[ArrayLike, ArrayLike, ArrayLike],
  *,
  optimizer: str,
  surge_index: ArrayLike,
  warned_index: ArrayLike,
  kept_noise: ArrayLike,
  hidden: ArrayLike,
  budget: str,
  decay: ArrayLike,
) -> Recommendation:
  """For a noise scale in the middle of an interval; all at their extremes."""
  least, most = (
    jnp.minimum(old, new) / _INFINITE,
    jnp.maximum(old, new) * _INFINITE,
  )
  low, scale, high = (
    jnp.clip(jnp.where(x < 0, most, x), least, most) for x in interval
  )
  surge_index = jnp.maximum(surge_index, 0.0)

  def law(scale):
    # What it is floored at changes nothing within these noise scales.
    softening = jnp.maximum(kept_noise / (1 + scale * hidden), _INFINITE**-2)
    return _law(optimizer, scale, surge_index, softening)

  def factor(scale):
    ratio = law(scale).optimal_lr(new) / law(scale).optimal_lr(old)
    if budget == 'examples':
      return ratio
    critical = _critical_batch_size(optimizer, scale, surge_index)
    gain = adascale_gain(old, new, noise_scale=critical)
    return ratio * gain ** (-decay / (1 + decay))

  # With a surge, the extremes may lie inside the interval.
  weight = jnp.linspace(0, 1, 65).reshape(-1, *(1,) * jnp.ndim(low / high))
  between = jax.vmap(factor)(low ** (1 - weight) * high**weight)
  best, surge = factor(scale), law(scale).surge
  return Recommendation(
    learning_rate * best,
    learning_rate * jnp.minimum(best, jnp.min(between, axis=0)),
    learning_rate * jnp.maximum(best, jnp.max(between, axis=0)),
    new > (jnp.inf if surge is None else surge),
    new > _critical_batch_size(optimizer, scale, warned_index),
  )


def _hidden_by_eps(
  optimizer: str, eps: ArrayLike, size: ArrayLike | None, statistics: Any
) -> ArrayLike:
  """N eps^2 / Tr Sigma, to be compared with |g|^2 / Tr Sigma."""
  if isinstance(eps, int | float):
    require(eps >= 0, 'eps', eps, '0 or more')
    if eps == 0:
      return 0.0
  soft = optimizer in ('softsign', 'adam')
  require(soft, 'eps', eps, f'0 for {optimizer!r}')
  require(size is not None, 'size', size, 'a number of parameters, for eps')
  known = hasattr(statistics, 'trace')
  require(known, 'statistics', statistics, 'some with a trace, for eps')
  return size * jnp.square(eps) / statistics.trace


def recommend_learning_rate(
  learning_rate: ArrayLike,
  old_batch_size: ArrayLike,
  new_batch_size: ArrayLike,
  *,
  statistics: Any,
  optimizer: str,
  surge_index: ArrayLike | None = None,
  b1: ArrayLike = 0.0,
  eps: ArrayLike = 0.0,
  size: ArrayLike | None = None,
  budget: str = 'examples',
  decay: ArrayLike = 1.0,
) -> Recommendation:
  r"""Carries a good learning rate over to another batch size.

  .. math:: \eta' = \eta\, \frac{f(B')}{f(B)}, \qquad
    f_{SGD}(B) = \frac{1}{1 + B_{noise} / B}, \qquad
    f_{sign}(B) = \frac{\sqrt{1 + n / B}}{n / B + 2 s}

  the optimal learning rates of `SgdLaw` and `SignLaw`, with the surge index `s`
  and :math:`n` the noise scale, for the sign times :math:`\tfrac{\pi}{2}`. Far
  below the critical batch size, :math:`B_{noise}` or :math:`n / 2s`, they are
  linear and square root; beyond it flat, or for a surge index above 1 falling
  from :math:`n / (2s - 2)` on. For a fixed number of steps

  .. math:: \eta' = \eta\, \frac{f(B')}{f(B)} \left(
    \frac{1 + B_{crit}/B'}{1 + B_{crit}/B} \right)^{p / (1 + p)}

  with the module's docstring for the reason. Epsilon and the momentum `b1` of a
  sign multiply both `n` and `s` by

  .. math:: \frac{1 - \beta_1}{1 + \beta_1}
    \cdot \frac{\|g\|^2}{\|g\|^2 + N \epsilon^2},

  so that a large one of either turns the square root into SGD's linear law with
  the same critical batch size: article 11280's mean field, for curvature that
  is the same in all directions.

  Deviations: the articles give the best learning rate of one step, which is
  not the best one to train with; only ratios are taken from it, so that the old
  one should have been tuned, for the old batch size and a schedule of the same
  form. Nothing here knows what a larger learning rate does to stability. One
  noise scale stands for all coordinates: expect a factor of 1.5, and more
  across a surge, which on real networks is rarer than article 10542's theory
  of independent noise has it. A law fitted to a grid (`fit_law`) needs none of
  this: the ratio of its `optimal_lr` is the factor.

  Args:
    learning_rate: good at the old batch size.
    old_batch_size: above 0.
    new_batch_size: above 0. Both batch sizes and the noise scale count the
      same: examples, or sequences; tokens of one sequence are not independent.
    statistics: `TrackedNoiseScale`, `NoiseScale`, or anything with a `scale`.
      For SGD that of the curvature if it is known, for SignSGD one of the sign.
      For Adam theory has that of preconditioned gradients, in which entries
      that have had hardly a gradient yet may outweigh all others; the simple
      one has no such tail. Negative counts as infinite. A scale of `nan`, as
      before the first step of a tracker, gives `nan`.
    optimizer: "sgd", "sign" (SignSGD, Signum, Lion), "softsign" or "adam"; with
      or without decoupled weight decay.
    surge_index: :math:`s = P / 2 T_0` of the sign, see `SignLaw`; negative
      counts as zero. SGD does not look at it. `None`: 0.5, that of a diagonal
      Hessian, but 0 for the learning rate of "adam", which then grows past the
      noise scale too. What a single step measures is no better guess for Adam:
      it has kept v from steps before (figure `batch_size_advisor`).
    b1: decay of the momentum of which the sign or softsign is taken. That of
      SGD and Adam has no influence.
    eps: of Adam or SoftSign, in the unit of the gradient. 1e-8 can be left out.
    size: number of parameters `N`, for `eps` alone; `statistics` then must have
      its `trace`.
    budget: "examples" or "steps", what the new run has in common with the old.
    decay: `p` for a fixed number of steps; 0 if the loss has hardly begun to
      fall, large if it falls exponentially.

  Returns:
    `Recommendation` of arrays of the broadcast shape. `low` and `high` are the
    extremes over the interval of the noise scale, from zero to infinity if
    `statistics` has none; they know of no other error. `past_critical`: the new
    batch is above the critical size, and examples are wasted. `past_surge`: it
    is above the peak, and a larger batch wants a smaller learning rate.

  Raises:
    ValueError: for an unknown optimizer or budget, a number outside its range,
      statistics of single leaves, or an epsilon without `size` or `trace`, or
      for an optimizer that has none.

  Example:
    >>> from types import SimpleNamespace
    >>> noise = SimpleNamespace(scale=1000.0, low=500.0, high=4000.0)
    >>> found = recommend_learning_rate(
    ...   1e-3, 256, 1024, statistics=noise, optimizer='adam'
    ... )
    >>> print(f'{found.learning_rate:.5f} {found.low:.5f} {found.high:.5f}')
    0.00254 0.00217 0.00284
    >>> bool(found.past_critical), bool(found.past_surge)
    (True, False)

  References:
    Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024;
    Su, `article 11280 <https://kexue.fm/archives/11280>`_, 2025.
  """
  require_one_of('optimizer', optimizer, tuple(_NOISE))
  require_one_of('budget', budget, ('examples', 'steps'))
  require_positive(old_batch_size=old_batch_size, new_batch_size=new_batch_size)
  if isinstance(b1, int | float):
    require(0 <= b1 < 1, 'b1', b1, 'a number in [0, 1)')
  if isinstance(decay, int | float):
    require(decay >= 0, 'decay', decay, '0 or more')
  total = jax.tree_util.treedef_is_leaf(jax.tree.structure(statistics.scale))
  require(total, 'statistics', 'one for each leaf', 'those of the whole tree')
  interval = (
    getattr(statistics, 'low', 0.0),
    statistics.scale,
    getattr(statistics, 'high', math.inf),
  )
  if surge_index is None:
    surge_index, warned_index = _SURGE_INDEX[optimizer], 0.5
  else:
    warned_index = surge_index
  return _recommend(
    learning_rate,
    old_batch_size,
    new_batch_size,
    interval,
    optimizer=optimizer,
    surge_index=surge_index,
    warned_index=warned_index,
    kept_noise=1.0 if optimizer == 'adam' else (1 - b1) / (1 + b1),
    hidden=_hidden_by_eps(optimizer, eps, size, statistics),
    budget=budget,
    decay=decay,
  )
