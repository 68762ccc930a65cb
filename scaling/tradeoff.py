r"""Steps against examples: the hyperbola of large-batch training.

.. math:: \left(\frac{S}{S_{\min}} - 1\right)
  \left(\frac{E}{E_{\min}} - 1\right) = 1, \qquad
  B_{crit} = E_{\min} / S_{\min}

with `S` steps and `E = B S` examples to a target loss. In the batch size both
are simple, :math:`S = S_{\min} + E_{\min} / B` and
:math:`E = E_{\min} + S_{\min} B`; at the critical one both are twice their
least.

References:
  McCandlish et al., `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_shape
from ..lowrank.arrays import wide
from .fit import fit_law
from .rules import require_positive


def steps_examples_tradeoff(
  steps: ArrayLike, *, min_steps: ArrayLike, min_examples: ArrayLike
) -> jax.Array:
  r"""Examples to a target loss, if it has to be reached in so many steps.

  .. math:: E = E_{\min} \frac{S}{S - S_{\min}}

  Args:
    steps: `S`.
    min_steps: :math:`S_{\min}`, of an infinite batch, above 0.
    min_examples: :math:`E_{\min}`, of a batch that is infinitely small.

  Returns:
    `E`, infinite where `S` is the least number of steps or below.

  Raises:
    ValueError: for a number that is not positive.

  Example:
    >>> float(steps_examples_tradeoff(2000, min_steps=1000, min_examples=64000))
    128000.0
  """
  require_positive(min_steps=min_steps, min_examples=min_examples)
  steps = wide(steps)
  beyond = steps - min_steps
  enough = beyond > 0
  examples = min_examples * steps / jnp.where(enough, beyond, 1)
  return jnp.where(enough, examples, jnp.inf)


def steps_to_target(
  batch_size: ArrayLike, *, min_steps: ArrayLike, min_examples: ArrayLike
) -> Any:
  r"""Steps to a target loss, :math:`S = S_{\min} (1 + B_{crit} / B)`.

  Args:
    batch_size: `B`, above 0.
    min_steps: of an infinite batch.
    min_examples: of a batch that is infinitely small.

  Returns:
    `S`. Times `B`, the examples.

  Raises:
    ValueError: for a number that is not positive.

  Example:
    >>> steps_to_target(32, min_steps=1000, min_examples=64000)
    3000.0
  """
  require_positive(
    batch_size=batch_size, min_steps=min_steps, min_examples=min_examples
  )
  return min_steps + min_examples / batch_size


class Tradeoff(NamedTuple):
  """A fitted hyperbola, standard errors of logarithms by name, the residual.

  Example:
    >>> Tradeoff(1000.0, 64000.0, {}, 0.0).critical_batch_size
    64.0
  """

  min_steps: ArrayLike
  min_examples: ArrayLike
  standard_errors: dict[str, jax.Array]
  rms: ArrayLike

  @property
  def critical_batch_size(self) -> Any:
    """Where steps and examples are twice their least."""
    return self.min_examples / self.min_steps


def fit_tradeoff(
  batch_sizes: ArrayLike, steps: ArrayLike, *, weights: ArrayLike | None = None
) -> Tradeoff:
  r"""Fits the hyperbola to measured numbers of steps to a target loss.

  .. math:: \min \sum_i w_i (\log S_i - \log S_{\min}
    - \log(1 + B_{crit} / B_i))^2

  The same curve as that of SGD's learning rate, :math:`1 / S` for
  :math:`\eta`, and the same fit: see `fit_law`. Judge it by `rms`, a relative
  error: the product of the two excesses, which the theory has at 1, is a
  difference of close numbers at both ends and runs from 0.3 to 24 where the
  residuals are 4 per cent.

  Args:
    batch_sizes: [n], positive.
    steps: [n], to the target with the best learning rate of each batch size;
      those that are not finite, where the target was not reached, are left out.
    weights: [n], 0 or more; `None`: all equal.

  Returns:
    `Tradeoff`. Its `standard_errors` are those of the natural logarithms of
    "min_steps", "min_examples" and "critical_batch_size".

  Raises:
    ValueError: for lengths that differ or are below 2.

  Example:
    >>> batches = jnp.array([8.0, 32.0, 128.0, 512.0])
    >>> fit = fit_tradeoff(batches, 1000 * (1 + 64 / batches))
    >>> print(f'{fit.min_steps:.1f} {fit.critical_batch_size:.2f}')
    1000.0 64.00
  """
  require_shape('steps', steps, jnp.shape(batch_sizes))
  fit = fit_law(batch_sizes, 1 / wide(steps), law='sgd', weights=weights)
  rate, critical = fit.law.lr_max, fit.law.noise_scale
  # log E_min = log B_crit - log(1 / S_min).
  minus = jnp.array([-1.0, 1.0])
  variance = jnp.vdot(minus, fit.covariance @ minus)
  errors = {
    'min_steps': fit.standard_errors['lr_max'],
    'min_examples': jnp.sqrt(variance),
    'critical_batch_size': fit.standard_errors['noise_scale'],
  }
  return Tradeoff(1 / rate, critical / rate, errors, fit.rms)


def adaptive_batch_size(noise_scale: ArrayLike, ratio: ArrayLike) -> Any:
  r"""The batch size of a moment, :math:`\hat B = \sqrt{r B_{noise}}`.

  It minimises :math:`E + r S`, examples and steps at an exchange rate, at each
  point of a run along which the noise scale changes.

  Args:
    noise_scale: :math:`B_{noise}` at this moment, 0 or more.
    ratio: `r`, examples that one step may cost, above 0; the critical batch
      size of the whole run is the natural choice.

  Returns:
    The batch size, in the unit of the two.

  Raises:
    ValueError: for a number outside its range.

  Example:
    >>> adaptive_batch_size(16.0, 64.0)
    32.0
  """
  require_positive(ratio=ratio)
  if isinstance(noise_scale, int | float):
    require(noise_scale >= 0, 'noise_scale', noise_scale, '0 or more')
  return (ratio * noise_scale) ** 0.5


def adaptive_batch_gain(
  noise_scales: ArrayLike, *, weights: ArrayLike | None = None
) -> jax.Array:
  r"""How much closer to free an adaptive batch size comes.

  .. math:: \gamma = \frac{\left(\int \sqrt{B_{noise}}\, ds\right)^2}
    {\int ds \int B_{noise}\, ds} \le 1

  replaces the 1 on the right of the hyperbola; `ds` counts the steps of an
  infinite batch. 1 if the noise scale does not change: nothing to adapt to.

  Args:
    noise_scales: [..., n], 0 or more, along the run.
    weights: [n] or [..., n], the `ds` of each; `None`: all equal.

  Returns:
    [...], in (0, 1].

  Raises:
    ValueError: for weights of another length.

  Example:
    >>> profile = jnp.array([1.0, 100.0])
    >>> print(f'{adaptive_batch_gain(profile):.3f}')
    0.599
  """
  noise_scales = wide(noise_scales)
  if weights is None:
    weights = jnp.ones_like(noise_scales)
  weights = wide(weights)
  require_shape(
    'weights', weights, (*weights.shape[:-1], noise_scales.shape[-1])
  )
  mean = lambda x: jnp.sum(weights * x, axis=-1) / jnp.sum(weights, axis=-1)
  return mean(jnp.sqrt(noise_scales)) ** 2 / mean(noise_scales)
