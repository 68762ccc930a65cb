"""Nonlinear least squares with a few parameters: Levenberg and Marquardt.

Small enough to run from many starts and under `jax.vmap` over resamples.
Shapes: `k` starts, `n` residuals, `p` parameters.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..lowrank.arrays import precise


class LeastSquares(NamedTuple):
  """Parameters [p], their covariance [p, p], root mean square residual.

  Example:
    >>> x = jnp.arange(4.0)
    >>> line = lambda p: p[0] + p[1] * x - (1 + 2 * x)
    >>> print(least_squares(line, jnp.zeros((1, 2)), jnp.ones(4)).parameters)
    [1. 2.]
  """

  parameters: jax.Array
  covariance: jax.Array
  rms: jax.Array


def _svd(
  residuals: Callable[[jax.Array], jax.Array], x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return jnp.linalg.svd(jax.jacfwd(residuals)(x), full_matrices=False)


def _descend(
  residuals: Callable[[jax.Array], jax.Array], start: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array]:
  """Parameters and sum of squares after a fixed number of damped steps."""

  def square(x):
    total = jnp.sum(jnp.square(residuals(x)))
    return jnp.where(jnp.isfinite(total), total, jnp.inf)

  def step(_, carry):
    x, least, damping = carry
    u, s, vh = _svd(residuals, x)
    trial = x - vh.T @ (s / (s**2 + damping) * (u.T @ residuals(x)))
    found = square(trial)
    better = found < least
    return (
      jnp.where(better, trial, x),
      jnp.where(better, found, least),
      jnp.clip(damping * jnp.where(better, 0.2, 5.0), 1e-12, 1e12),
    )

  least = square(start)
  # What the residuals vary over, the start has to as well.
  start = start + jnp.zeros_like(least)
  carry = start, least, jnp.full_like(least, 0.1)
  return jax.lax.fori_loop(0, iterations, step, carry)[:2]


@precise
def least_squares(
  residuals: Callable[[jax.Array], jax.Array],
  starts: jax.Array,
  weights: jax.Array,
  *,
  iterations: int = 60,
) -> LeastSquares:
  r"""Minimises a weighted sum of squares, from several starts.

  .. math:: \min_x \sum_i w_i r_i(x)^2, \qquad
    \mathrm{cov} = \frac{\sum_i w_i r_i^2}{m - p} (J^T W J)^{-1}

  with `m` the number of positive weights and `J` the Jacobian at the minimum.
  Each step is :math:`-(J^T J + \lambda I)^{-1} J^T r`; one that does not help
  is not taken and raises :math:`\lambda`. The parameters should have comparable
  scales: logarithms.

  Args:
    residuals: maps parameters [p] to residuals [n], finite at one start or
      more.
    starts: [k, p].
    weights: [n], 0 or more.
    iterations: steps from each start.

  Returns:
    `LeastSquares` of the best start. A direction that the residuals do not
    depend on has a variance that is very large; with `m <= p` all are infinite.

  Example:
    >>> x = jnp.arange(1.0, 5.0)
    >>> decay = lambda p: p[0] - p[1] * x - jnp.log(3 * jnp.exp(-2 * x))
    >>> fit = least_squares(decay, jnp.ones((1, 2)), jnp.ones(4))
    >>> print(f'{jnp.exp(fit.parameters[0]):.3f} {fit.parameters[1]:.3f}')
    3.000 2.000

  References:
    Levenberg, 1944; Marquardt, 1963.
  """
  weighted = lambda x: jnp.sqrt(weights) * residuals(x)
  descend = functools.partial(_descend, weighted, iterations=iterations)
  parameters, squares = jax.vmap(descend)(starts)
  best = jnp.argmin(squares)
  x, square = parameters[best], squares[best]
  _, s, vh = _svd(weighted, x)
  s = jnp.maximum(s, jnp.finfo(s.dtype).eps * jnp.max(s))
  spread = (vh.T / s) @ (vh / s[:, None])
  freedom = jnp.sum(weights > 0) - starts.shape[-1]
  variance = jnp.where(freedom > 0, square / jnp.maximum(freedom, 1), jnp.inf)
  # An infinite variance times zero covariance is infinite, not undefined.
  covariance = jnp.where(freedom > 0, variance * spread, jnp.inf)
  rms = jnp.sqrt(square / jnp.sum(weights))
  return LeastSquares(x, covariance, rms)
