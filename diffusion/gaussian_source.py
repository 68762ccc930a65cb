r"""A source of which all is known: independent normal variables.

For :math:`x_0 \sim N(0, \mathrm{diag}(\lambda))` the best denoiser, and the
least rate at which a codec can have a distortion, are closed forms. They are
what samplers and codecs are tested with.

References:
  Cover and Thomas, *Elements of information theory*, second edition, 2006,
  theorem 10.3.3.

  Blau and Michaeli, `Rethinking lossy compression: the rate-distortion-
  perception tradeoff <https://arxiv.org/abs/1901.07821>`_, 2019.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require
from .process import coefficient, require_position, wide
from .sampler import Denoise
from .schedule import Schedule


def gaussian_denoiser(variances: ArrayLike, schedule: Schedule) -> Denoise:
  r"""The mean of a normal image, given the noisy one.

  .. math::
    \hat x_0 = \frac{\sqrt{\bar\alpha_t} \lambda}
      {\bar\alpha_t \lambda + 1 - \bar\alpha_t} x

  Args:
    variances: of the coordinates, of the shape of an image or one that
      broadcasts with it, 0 or more.
    schedule: the original one, not respaced.

  Returns:
    `denoise(x, t)` of images [B, ...] and an original timestep, a scalar or
    [B].

  Raises:
    ValueError: if the schedule is respaced, or a variance is negative.

  Example:
    >>> denoise = gaussian_denoiser(1.0, Schedule.from_betas([0.36]))
    >>> print(denoise(jnp.ones((1, 2)), 1))
    [[0.8 0.8]]
  """
  require(not schedule.is_respaced, 'schedule', schedule, 'the original one')
  if not isinstance(variances, jax.core.Tracer):
    least = np.min(variances)
    require(bool(least >= 0), 'variances', least, 'numbers of at least 0')

  def denoise(x: jax.Array, t: ArrayLike) -> jax.Array:
    require_position(schedule, t)
    a, rest, root = (
      coefficient(table, t, x)
      for table in (
        schedule.alpha_bar,
        1 - schedule.alpha_bar,
        np.sqrt(schedule.alpha_bar),
      )
    )
    signal = jnp.asarray(variances, root.dtype)
    return root * signal / (a * signal + rest) * x

  return denoise


def _falling(variances: ArrayLike) -> jax.Array:
  return jnp.sort(wide(variances).ravel(), descending=True)


def rate_distortion(variances: ArrayLike, distortion: ArrayLike) -> jax.Array:
  r"""The least rate at which normal variables can have a squared error.

  Reverse water-filling, with the level :math:`\theta` that spends the whole
  distortion:

  .. math::
    R = \frac1D \sum_j \max\Bigl(0, \tfrac12 \log_2
      \frac{\lambda_j}{\theta}\Bigr), \qquad
    \frac1D \sum_j \min(\theta, \lambda_j) = \Delta.

  The level is solved for exactly, as the distortion is linear in it between
  two variances.

  Args:
    variances: `D` of them in any shape, 0 or more.
    distortion: mean squared error of a coordinate, an array of any shape.

  Returns:
    Bits per coordinate, of the shape of `distortion`: 0 from the mean variance
    on, infinite at 0.

  Example:
    >>> rate = rate_distortion([1.0, 0.25], jnp.array([0.25, 0.375, 0.7]))
    >>> print([f'{r:.3f}' for r in rate.tolist()])
    ['0.500', '0.250', '0.000']
  """
  falling = _falling(variances)
  count = jnp.arange(1, falling.size + 1)
  below = jnp.append(jnp.cumsum(falling[:0:-1])[::-1], 0)  # All under water.
  total = jnp.asarray(distortion, falling.dtype)[..., None] * falling.size
  active = jnp.sum(count * falling + below > total, axis=-1, keepdims=True)
  last = jnp.maximum(active - 1, 0)
  level = (total - below[last]) / (last + 1)
  ratios = jnp.where(falling > level, falling / level, 1)
  return jnp.mean(jnp.log2(ratios), axis=-1) / 2


def realistic_rate_distortion(
  variances: ArrayLike, distortion: ArrayLike
) -> jax.Array:
  r"""The least rate if decoded images are to be distributed like the source.

  Of two normal variables of variance :math:`\lambda` and correlation
  :math:`\rho`, one tells :math:`-\frac12 \log_2 (1 - \rho^2)` bits about the
  other, from which it is :math:`2 \lambda (1 - \rho)` away. The least sum of
  rates has the same :math:`\tau` for all coordinates,

  .. math::
    R = \frac1D \sum_j \tfrac12 \log_2 \frac{1 + s_j}{2}, \qquad
    \frac1D \sum_j 2 \lambda_j \Bigl(1 - \frac{\tau \lambda_j}{1 + s_j}
    \Bigr) = \Delta, \qquad s_j = \sqrt{1 + \tau^2 \lambda_j^2},

  found by bisection. It holds for codecs whose two ends share random numbers,
  as those with random codebooks do. Without, as by drawing from the posterior
  of what a codec of half the distortion decodes, it is `rate_distortion(
  variances, distortion / 2)`: half a bit more where all coordinates have many.

  Args:
    variances: `D` of them in any shape, 0 or more.
    distortion: mean squared error of a coordinate, an array of any shape.

  Returns:
    Bits per coordinate, of the shape of `distortion`: 0 from twice the mean
    variance on, infinite at 0.

  Example:
    >>> at = jnp.array([0.02, 1.0])
    >>> for rate in (rate_distortion, realistic_rate_distortion):
    ...   print([f'{r:.2f}' for r in rate([1.0, 1.0], at).tolist()])
    ['2.82', '0.00']
    ['2.83', '0.21']
  """
  falling = _falling(variances)
  unit = falling / jnp.where(falling[0] > 0, falling[0], 1)
  wanted = jnp.asarray(distortion, falling.dtype)

  def root(log_tau):
    u = jnp.exp(log_tau)[..., None] * unit
    return u, jnp.hypot(1.0, u)

  def halve(_, bracket):
    low, high = bracket
    middle = (low + high) / 2
    u, s = root(middle)
    # 1 - u / (1 + s) without the difference.
    away = jnp.mean(2 * falling * (1 + 1 / (s + u)) / (1 + s), axis=-1)
    far = away > wanted
    return jnp.where(far, middle, low), jnp.where(far, high, middle)

  start = jnp.zeros_like(wanted + falling[0])
  low, high = jax.lax.fori_loop(0, 40, halve, (start - 30, start + 60))
  rate = jnp.mean(jnp.log2((1 + root((low + high) / 2)[1]) / 2), axis=-1) / 2
  rate = jnp.where(wanted > 0, rate, jnp.inf)
  return jnp.where(wanted < 2 * jnp.mean(falling), rate, 0)
