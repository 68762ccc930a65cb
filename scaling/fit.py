r"""A law through the optimal learning rates that were measured.

By least squares of logarithms. Shapes: `n` optima, `p` parameters.

References:
  McCandlish et al., `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018;
  Li et al., `Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling
  <https://arxiv.org/abs/2405.14578>`_, 2024.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from ..lowrank.arrays import wide
from .laws import SgdLaw, SignLaw
from .least_squares import least_squares


class SgdPowerLaw(NamedTuple):
  r"""The SGD law with an exponent, for what lies between SGD and Adam.

  .. math:: \eta^*(B) = \eta_{\max} / (1 + B_{noise} / B)^\alpha

  the form of McCandlish et al., 2018, with :math:`\alpha` 1 for SGD and, by
  their conjecture, in [1/2, 1] for Adam. It says nothing about the loss.

  Args:
    lr_max: learning rate of an infinite batch.
    noise_scale: batch size of the bend.
    exponent: slope far below it.

  Example:
    >>> SgdPowerLaw(0.1, 300.0, 0.5).optimal_lr(100.0)
    0.05
  """

  lr_max: ArrayLike
  noise_scale: ArrayLike
  exponent: ArrayLike

  def optimal_lr(self, batch_size: ArrayLike) -> Any:
    """Best learning rate at a batch size."""
    return self.lr_max / (1 + self.noise_scale / batch_size) ** self.exponent

  @property
  def critical_batch_size(self) -> Any:
    """The noise scale."""
    return self.noise_scale

  @property
  def surge(self) -> None:
    """There is none."""
    return None


class LawFit(NamedTuple):
  """A law, standard errors of its parameters' logarithms, and the residual.

  Example:
    >>> batches = jnp.array([8.0, 64.0, 512.0])
    >>> law = SgdLaw(0.1, 100.0)
    >>> fit = fit_law(batches, law.optimal_lr(batches), law='sgd')
    >>> print(f'{fit.law.noise_scale:.1f}', sorted(fit.standard_errors))
    100.0 ['lr_max', 'noise_scale']
  """

  law: Any
  standard_errors: dict[str, jax.Array]
  covariance: jax.Array
  rms: jax.Array


class _Family(NamedTuple):
  """Name of the factor, of the batch size, and starts of what else there is."""

  law: Callable[..., Any]
  factor: str
  others: dict[str, tuple[float, ...]]

  @property
  def names(self) -> tuple[str, ...]:
    return self.factor, 'noise_scale', *self.others


_FAMILIES = {
  'sgd': _Family(SgdLaw, 'lr_max', {}),
  'sgd_power': _Family(SgdPowerLaw, 'lr_max', {'exponent': (0.5, 1.0)}),
  'sign': _Family(SignLaw, 'rate', {'curvature_ratio': (0.3, 1.0, 3.0, 30.0)}),
}


@functools.partial(jax.jit, static_argnames='name')
def _fit(batches, rates, weights, name):
  """Least squares of logarithms; noise scales from below to above the data."""
  family = _FAMILIES[name]
  usable = jnp.isfinite(rates) & (rates > 0)
  weights = jnp.where(usable, weights, 0)
  measured = jnp.log(jnp.where(usable, rates, 1))

  def predicted(logs):
    law = family.law(**dict(zip(family.names, jnp.exp(logs), strict=True)))
    return jnp.log(law.optimal_lr(batches))

  low, high = jnp.log(jnp.min(batches)), jnp.log(jnp.max(batches))
  scales = jnp.linspace(low - 1, high + 1, 6)
  others = jnp.log(jnp.array([*itertools.product(*family.others.values())]))
  count = len(others)
  shape = jnp.concatenate(
    [
      jnp.repeat(scales, count)[:, None],
      jnp.tile(others.astype(scales.dtype), (len(scales), 1)),
    ],
    axis=1,
  )

  def start(shape):
    logs = jnp.append(jnp.zeros_like(shape, shape=1), shape)
    error = weights * (measured - predicted(logs))
    return logs.at[0].set(jnp.sum(error) / jnp.sum(weights))

  return least_squares(
    lambda logs: predicted(logs) - measured, jax.vmap(start)(shape), weights
  )


def fit_law(
  batch_sizes: ArrayLike,
  optimal_lrs: ArrayLike,
  *,
  law: str,
  weights: ArrayLike | None = None,
) -> LawFit:
  r"""Fits a law of the optimal learning rate to measured optima.

  .. math:: \min \sum_i w_i (\log \eta_i - \log \eta^*(B_i))^2

  over the logarithms of the law's parameters, from a grid of starts:

  - "sgd", :math:`\eta_{\max} / (1 + B_{noise}/B)`: `SgdLaw`;
  - "sgd_power", the same to the power :math:`\alpha`: `SgdPowerLaw`;
  - "sign", with the surge or without it: `SignLaw`. SoftSign and Adam with an
    epsilon have the same curve, with other parameters.

  A grid that ends before the bend, or starts after it, does not know the noise
  scale: its standard error says so, and only `optimal_lr` inside the grid is
  worth anything. The errors come from the scatter about the law. For those of
  the seeds, map over resampled optima: everything here is jittable.

  Args:
    batch_sizes: [n], positive.
    optimal_lrs: [n]; those that are not finite and positive are left out.
    law: "sgd", "sgd_power" or "sign".
    weights: [n], 0 or more; `None`: all equal. `~at_edge` of
      `optimal_learning_rate` leaves out what is only a bound.

  Returns:
    `LawFit`: the law; the standard error of each parameter's natural logarithm
    (0.1 is ten per cent), by name, infinite if there are no more optima than
    parameters; the covariance [p, p] of these logarithms; and the root mean
    square of the residuals, a relative error.

  Raises:
    ValueError: for another law, or lengths that differ or are less than the
      number of parameters.

  Example:
    >>> batches = jnp.array([16.0, 64.0, 256.0, 1024.0, 4096.0])
    >>> rates = jnp.array([0.013, 0.020, 0.022, 0.020, 0.03])
    >>> at_edge = jnp.array([False, False, False, False, True])
    >>> fit = fit_law(batches, rates, law='sign', weights=~at_edge)
    >>> print(f'peak at {fit.law.surge:.0f}, off by {fit.rms:.3f}')
    peak at 197, off by 0.003

  References:
    McCandlish et al., `An Empirical Model of Large-Batch Training
    <https://arxiv.org/abs/1812.06162>`_, 2018, appendix;
    Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024.
  """
  require_one_of('law', law, tuple(_FAMILIES))
  family = _FAMILIES[law]
  require_rank('batch_sizes', batch_sizes, 1)
  require_shape('optimal_lrs', optimal_lrs, jnp.shape(batch_sizes))
  size, least = jnp.shape(batch_sizes)[0], len(family.names)
  require(size >= least, 'batch_sizes', f'{size} of them', f'{least} or more')
  weights = jnp.ones(size) if weights is None else weights
  require_shape('weights', weights, (size,))
  fit = _fit(wide(batch_sizes), wide(optimal_lrs), wide(weights), law)
  found = dict(zip(family.names, jnp.exp(fit.parameters), strict=True))
  errors = jnp.sqrt(jnp.diagonal(fit.covariance))
  return LawFit(
    family.law(**found),
    dict(zip(family.names, errors, strict=True)),
    fit.covariance,
    fit.rms,
  )
