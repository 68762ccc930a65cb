r"""Rules for what a change of the batch size does to the hyperparameters.

Pure arithmetic: floats give floats, arrays arrays. `ratio` is
:math:`\kappa = B' / B`, the new batch size over the old. All of them hold the
number of examples fixed. They know nothing of the run but, some of them, its
noise scale; `recommend_learning_rate` knows more.
"""

import math
from typing import Any, NamedTuple

from jax.typing import ArrayLike

from ..checks import require, require_one_of

# Whether the rule looks at the noise scale, and the exponent of the gain.
_RULES = {
  'linear': (False, 1.0),
  'sqrt': (False, 0.5),
  'adascale': (True, 1.0),
  'adamscale': (True, 0.5),
}


def require_positive(**arguments: Any) -> None:
  """Checks those arguments that are python numbers.

  >>> require_positive(ratio=0.0)
  Traceback (most recent call last):
  ValueError: ratio: got 0.0, expected a number above 0
  """
  for name, value in arguments.items():
    if isinstance(value, int | float):
      require(value > 0, name, value, 'a number above 0')


def adascale_gain(
  old_batch_size: ArrayLike,
  new_batch_size: ArrayLike,
  *,
  noise_scale: ArrayLike,
) -> Any:
  r"""By how much a step of a larger batch is worth more.

  .. math:: r = \frac{1 + B_{noise} / B}{1 + B_{noise} / B'}

  between 1, without noise, and :math:`B' / B`, with nothing else: the ratio of
  the best SGD learning rates of the two batch sizes, and of their decreases of
  the loss.

  Deviations: AdaScale estimates the gain from variance and squared norm in each
  step; this is its value.

  Args:
    old_batch_size: above 0.
    new_batch_size: above 0, in the same unit.
    noise_scale: :math:`B_{simple}`, 0 or more, in the same unit; `math.inf` is
      allowed.

  Returns:
    The gain; below 1 for a smaller batch.

  Raises:
    ValueError: for a number outside its range.

  Example:
    >>> adascale_gain(64, 256, noise_scale=64)
    1.6
    >>> adascale_gain(64, 256, noise_scale=math.inf)
    4.0

  References:
    Johnson et al., `AdaScale SGD <https://arxiv.org/abs/2007.05105>`_, 2020.
  """
  require_positive(old_batch_size=old_batch_size, new_batch_size=new_batch_size)
  if isinstance(noise_scale, int | float):
    require(noise_scale >= 0, 'noise_scale', noise_scale, '0 or more')
    if math.isinf(noise_scale):
      return new_batch_size / old_batch_size
  return (1 + noise_scale / old_batch_size) / (1 + noise_scale / new_batch_size)


def scale_learning_rate(
  learning_rate: ArrayLike,
  old_batch_size: ArrayLike,
  new_batch_size: ArrayLike,
  *,
  rule: str,
  noise_scale: ArrayLike | None = None,
) -> Any:
  r"""The learning rate for a new batch size by a rule with a name.

  - "linear", :math:`\kappa`: SGD far below the noise scale;
  - "sqrt", :math:`\kappa^{1/2}`: Adam and SignSGD far below it;
  - "adascale", the gain `r` of `adascale_gain`: SGD;
  - "adamscale", :math:`r^{1/2}`: AdaptDL's for Adam.

  Args:
    learning_rate: at the old batch size.
    old_batch_size: above 0.
    new_batch_size: above 0, in the same unit.
    rule: one of the four.
    noise_scale: in the same unit, for the last two and only for them.

  Returns:
    The learning rate at the new batch size.

  Raises:
    ValueError: for another rule, a number outside its range, or a noise scale
      that is missing or would not be looked at.

  Example:
    >>> scale_learning_rate(0.1, 64, 256, rule='sqrt')
    0.2
    >>> rate = scale_learning_rate(
    ...   0.1, 64, 256, rule='adamscale', noise_scale=64
    ... )
    >>> print(f'{rate:.4f}')
    0.1265

  References:
    Goyal et al., `Accurate, Large Minibatch SGD
    <https://arxiv.org/abs/1706.02677>`_, 2017;
    Krizhevsky, `One weird trick <https://arxiv.org/abs/1404.5997>`_, 2014;
    Johnson et al., `AdaScale SGD <https://arxiv.org/abs/2007.05105>`_, 2020;
    Qiao et al., `Pollux <https://arxiv.org/abs/2008.12260>`_, 2021.
  """
  require_one_of('rule', rule, tuple(_RULES))
  looks, exponent = _RULES[rule]
  expected = 'a noise scale' if looks else 'None, which the rule ignores'
  require(
    looks == (noise_scale is not None), 'noise_scale', noise_scale, expected
  )
  noise_scale = noise_scale if looks else math.inf
  gain = adascale_gain(old_batch_size, new_batch_size, noise_scale=noise_scale)
  return learning_rate * gain**exponent


class AdamHyperparameters(NamedTuple):
  """What an Adam rule changes, in the order of `optax.adam`.

  Example:
    >>> adam = malladi_rule(1e-3, 2.0)  # For `optax.adam(*adam)`.
    >>> adam.b1
    0.8
  """

  learning_rate: ArrayLike
  b1: ArrayLike
  b2: ArrayLike
  eps: ArrayLike


def malladi_rule(
  learning_rate: ArrayLike,
  ratio: ArrayLike,
  *,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-8,
) -> AdamHyperparameters:
  r"""The square-root rule that keeps Adam's stochastic differential equation.

  .. math:: \eta \sqrt\kappa, \quad 1 - \kappa (1 - \beta_1), \quad
    1 - \kappa (1 - \beta_2), \quad \epsilon / \sqrt\kappa

  It assumes that noise dominates the gradient, a batch size far below the noise
  scale. It has no meaning where :math:`\kappa (1 - \beta) \ge 1`: from
  :math:`\kappa = 10` on for `b1 = 0.9`; the half-life rule has.

  Args:
    learning_rate: at the old batch size.
    ratio: new batch size over the old, above 0.
    b1: in [0, 1); 0, no momentum, stays 0.
    b2: in [0, 1).
    eps: 0 or more.

  Returns:
    `AdamHyperparameters`.

  Raises:
    ValueError: for a number outside its range, or a decay that would not be
      positive. Traced values are not looked at.

  Example:
    >>> adam = malladi_rule(1e-3, 4.0)
    >>> print(f'{adam.learning_rate:g} {adam.b1:g} {adam.b2:g} {adam.eps:g}')
    0.002 0.6 0.996 5e-09

  References:
    Malladi et al., `On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms <https://arxiv.org/abs/2205.10287>`_, 2022.
  """
  require_positive(ratio=ratio)

  def decay(name, value):
    numbers = isinstance(value, int | float) and isinstance(ratio, int | float)
    if isinstance(value, int | float):
      require(0 <= value < 1, name, value, 'a number in [0, 1)')
      if value == 0:
        return value
    scaled = 1 - ratio * (1 - value)
    if numbers:
      short = f'a ratio below {1 / (1 - value):g} for {name} = {value:g}'
      require(scaled > 0, 'ratio', ratio, short)
    return scaled

  root = ratio**0.5
  return AdamHyperparameters(
    learning_rate * root, decay('b1', b1), decay('b2', b2), eps / root
  )


def half_life_rule(b2: ArrayLike, ratio: ArrayLike) -> Any:
  r"""The decay with the same half-life in examples, :math:`\beta_2^\kappa`.

  Never negative, and the rule of Malladi et al. to first order in
  :math:`\kappa (1 - \beta_2)`.

  Args:
    b2: in [0, 1).
    ratio: new batch size over the old, above 0.

  Returns:
    The decay at the new batch size.

  Raises:
    ValueError: for a number outside its range.

  Example:
    >>> print(f'{half_life_rule(0.999, 4.0):.6f}')
    0.996006

  References:
    Marek et al., `Small Batch Size Training for Language Models
    <https://arxiv.org/abs/2507.07101>`_, 2025.
  """
  require_positive(ratio=ratio)
  if isinstance(b2, int | float):
    require(0 <= b2 < 1, 'b2', b2, 'a number in [0, 1)')
  return b2**ratio
