r"""A source of codecs of which all is known: independent normal coordinates.

Their variances fall as :math:`k^{-1.2}`, as those of images do about, and so do
the exact denoiser, the nats of every step and the least bits for a distortion.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..diffusion import Schedule, gaussian_denoiser
from .codec_contest import Contest

BED_SHAPE = (32, 32, 1)
_POWER, _MEAN = -1.2, 0.25


def bed_variances() -> np.ndarray:
  """Of the coordinates of the Gaussian bed [H, W, C]."""
  falling = np.arange(1.0, math.prod(BED_SHAPE) + 1) ** _POWER
  return (_MEAN * falling / falling.mean()).reshape(BED_SHAPE)


def bed_information(variances: np.ndarray, schedule: Schedule) -> np.ndarray:
  """Exact nats that each step tells about a draw; 0 for the first."""
  a = schedule.alpha_bar[2:, None]
  error = np.sum(
    variances.ravel() * (1 - a) / (a * variances.ravel() + 1 - a), axis=1
  )
  snr = schedule.snr
  return np.concatenate([[0.0], (snr[1:-1] - snr[2:]) / 2 * error])


def bed_contest(batch: int) -> Contest:
  """Codecs of the source, with the linear schedule of a thousand steps."""
  schedule, variances = Schedule.linear(1000), bed_variances()
  nats = bed_information(variances, schedule)
  denoise = lambda _: gaussian_denoiser(variances, schedule)
  return Contest(denoise, None, schedule, nats, batch=batch)


def bed_images(key: jax.Array, count: int) -> jax.Array:
  """Draws of the source, float32 [N, H, W, C]."""
  normal = jax.random.normal(key, (count, *BED_SHAPE))
  return normal * jnp.sqrt(bed_variances())
