r"""The terms of the variational bound: what each step tells about an image.

.. math::
  -\log p(x_0) \le \mathrm{KL}(q(x_S | x_0) \| N(0, 1))
    + \sum_{i=2}^S \mathrm{KL}(q(x_{i-1} | x_i, x_0) \| p(x_{i-1} | x_i))
    - \log p(x_0 | x_1)

With a model variance :math:`\sigma^2`, :math:`\rho = \tilde\sigma_i^2/\sigma^2`
and the signal-to-noise ratio, a term is

.. math::
  \mathrm{KL}_i = \tfrac12 \sum \bigl[\rho - 1 - \log\rho
    + \rho (\mathrm{SNR}_{i-1} - \mathrm{SNR}_i) (x_0 - \hat x_0)^2 \bigr],

of which only the last part is left for the variance "fixed_small".

References:
  Ho, Jain and Abbeel, `Denoising diffusion probabilistic models
  <https://arxiv.org/abs/2006.11239>`_, 2020, section 3.3.

  Kingma, Salimans, Poole and Ho, `Variational diffusion models
  <https://arxiv.org/abs/2107.00630>`_, 2021, equation 13.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from .process import coefficient, log_variance_range
from .schedule import Schedule

_OPEN = 40.0  # Deviations beyond which nothing is left in single precision.


def bin_log_probability(
  x: jax.Array, mean: jax.Array, deviation: jax.Array
) -> jax.Array:
  """Nats of the normal distribution within a value's bin of 8 bits.

  Args:
    x: values 2 k / 255 - 1 for k of 0 to 255; the bins of 0 and 255 are open.
    mean: broadcasts with `x`.
    deviation: likewise, above 0.

  Returns:
    Logarithms, like `x`; accurate far out too.
  """
  low = (x - 1 / 255 - mean) / deviation
  high = (x + 1 / 255 - mean) / deviation
  low, high = (
    jnp.where(x < -0.999, jnp.minimum(high - _OPEN, -_OPEN), low),
    jnp.where(x > 0.999, jnp.maximum(low + _OPEN, _OPEN), high),
  )
  # By symmetry both on the left, where the logarithm has all digits.
  mirrored = low + high > 0
  low, high = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
  log_high = log_ndtr(high)
  return log_high + jnp.log(-jnp.expm1(log_ndtr(low) - log_high))


def _model_log_variance(schedule, x, i, variance, fraction):
  least, largest = log_variance_range(schedule)
  if variance == 'fixed_small':
    return coefficient(least, i - 1, x)
  if variance == 'fixed_large':
    return coefficient(np.append(least[:1], largest[1:]), i - 1, x)
  least, largest = (coefficient(t, i - 1, x) for t in (least, largest))
  return fraction * largest + (1 - fraction) * least


def bound_term(
  schedule: Schedule,
  x0: jax.Array,
  x0_hat: jax.Array,
  i: ArrayLike,
  *,
  variance: str = 'fixed_small',
  fraction: jax.Array | None = None,
  decoder_deviation: ArrayLike | None = None,
) -> jax.Array:
  r"""Nats of step `i`: its KL, or the decoder's :math:`-\log p(x_0|x_1)` for 1.

  Args:
    schedule: noise schedule of `S` steps.
    x0: images [B, ...]; of 8 bits, 2 k / 255 - 1, for the decoder.
    x0_hat: predicted images, like them.
    i: position 1 to `S`, a scalar or [B].
    variance: see `posterior`; the decoder's is that of the second step's
      posterior for both fixed ones, as in the DDPM.
    fraction: see `posterior`.
    decoder_deviation: another standard deviation for the decoder.

  Returns:
    Nats of each image, [B].
  """
  i = jnp.asarray(i)
  log_variance = _model_log_variance(schedule, x0, i, variance, fraction)
  least = coefficient(log_variance_range(schedule)[0], i - 1, x0)
  log_ratio = least - log_variance
  gain = np.append(0.0, schedule.snr[1:-1] - schedule.snr[2:])
  squares = coefficient(gain, i - 1, x0) * jnp.square(x0 - x0_hat)
  kl = jnp.exp(log_ratio) * squares + (jnp.expm1(log_ratio) - log_ratio)
  if decoder_deviation is None:
    decoder_deviation = jnp.exp(log_variance / 2)
  decoder = -bin_log_probability(x0, x0_hat, decoder_deviation)
  first = coefficient(np.arange(schedule.steps) == 0, i - 1, x0)
  nats = jnp.where(first > 0, decoder, kl / 2)
  return jnp.sum(nats, axis=tuple(range(1, x0.ndim)))
