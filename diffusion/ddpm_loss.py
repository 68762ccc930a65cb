r"""Training losses: predictions of noise, image or velocity, and the variance.

References:
  Ho, Jain and Abbeel, `Denoising diffusion probabilistic models
  <https://arxiv.org/abs/2006.11239>`_, 2020, equation 14.

  Salimans and Ho, `Progressive distillation for fast sampling of diffusion
  models <https://arxiv.org/abs/2202.00512>`_, 2022, section 4.

  Hang et al., `Efficient diffusion training via min-SNR weighting strategy
  <https://arxiv.org/abs/2303.09556>`_, 2023, section 3.4.

  Nichol and Dhariwal, `Improved denoising diffusion probabilistic models
  <https://arxiv.org/abs/2102.09672>`_, 2021, section 3.1.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank
from .process import (
  PREDICTIONS,
  add_noise,
  coefficient,
  predict_x0,
  wide,
)
from .sampler import split_output
from .schedule import Schedule
from .variational_bound import bound_term


def prediction_target(
  schedule: Schedule,
  x0: jax.Array,
  noise: jax.Array,
  i: ArrayLike,
  *,
  prediction: str = 'eps',
) -> jax.Array:
  r"""What a network shall give: noise, image, or the velocity.

  The last is :math:`v = \sqrt{\bar\alpha_i} \varepsilon
  - \sqrt{1 - \bar\alpha_i} x_0`.

  Args:
    schedule: noise schedule of `S` steps.
    x0: images [B, ...].
    noise: like them.
    i: position 1 to `S`, a scalar or [B].
    prediction: "eps", "x0" or "v".

  Returns:
    [B, ...].

  Raises:
    ValueError: for another prediction.

  Example:
    >>> schedule = Schedule.from_betas([0.36])
    >>> x0, noise = jnp.ones((1, 1)), jnp.zeros((1, 1))
    >>> v = prediction_target(schedule, x0, noise, 1, prediction='v')
    >>> print(f'{v[0, 0]:.1f}')
    -0.6
  """
  require_one_of('prediction', prediction, PREDICTIONS)
  if prediction != 'v':
    return noise if prediction == 'eps' else x0
  # A right angle further round the circle from image to noise.
  return add_noise(schedule, noise, -x0, i)


def min_snr_weights(
  schedule: Schedule, gamma: float, *, prediction: str = 'eps'
) -> np.ndarray:
  r"""Weights of the steps [S] that do not favour the easy ones.

  An error of the image is weighted by :math:`\min(\mathrm{SNR}, \gamma)`, hence

  .. math::
    w = \frac{\min(\mathrm{SNR}, \gamma)}{\mathrm{SNR}}, \qquad
    \min(\mathrm{SNR}, \gamma), \qquad
    \frac{\min(\mathrm{SNR}, \gamma)}{\mathrm{SNR} + 1}

  for the error of noise, image and velocity. As gamma grows, all become the
  unweighted error of noise.

  Args:
    schedule: noise schedule of `S` steps.
    gamma: above 0; 5 in the paper.
    prediction: "eps", "x0" or "v".

  Returns:
    Float64 on the host.

  Raises:
    ValueError: for another prediction, or gamma out of range.

  Example:
    >>> schedule = Schedule.from_betas([0.1, 0.5])
    >>> print(min_snr_weights(schedule, 5.0).round(2))
    [0.56 1.  ]
  """
  require_one_of('prediction', prediction, PREDICTIONS)
  require(gamma > 0, 'gamma', gamma, 'a number above 0')
  snr = schedule.snr[1:]
  unit = {'eps': snr, 'x0': 1.0, 'v': snr + 1}
  return np.minimum(snr, gamma) / unit[prediction]


def ddpm_loss(
  network: Callable[[jax.Array, jax.Array], jax.Array],
  x0: jax.Array,
  schedule: Schedule,
  key: jax.Array,
  *,
  prediction: str = 'eps',
  gamma: float | None = None,
  learned_range: bool = False,
  bound_weight: float = 1e-3,
  i: ArrayLike | None = None,
) -> jax.Array:
  r"""Mean squared error of a prediction, at one position for each image.

  .. math:: L = E_{i, \varepsilon} \bigl[ w_i \,\overline{
      (\mathrm{output}(x_i, t_i) - \mathrm{target})^2} \bigr]

  averaged over pixels. With `learned_range`, the network's second half of
  channels, -1 to 1, places the logarithm of the variance between its bounds,
  and

  .. math:: L + \lambda S \, E_{i, \varepsilon} [\mathrm{bits}_i]

  adds the variational bound in bits per dimension, whose gradient reaches the
  variance only (Nichol and Dhariwal's hybrid, with their code's lambda).

  Args:
    network: function of noisy images [B, ..., C] and original timesteps [B];
      labels and parameters it knows already.
    x0: images [B, ..., C].
    schedule: noise schedule of `S` steps.
    key: of positions and noise.
    prediction: "eps", "x0" or "v".
    gamma: of `min_snr_weights`; `None`: all weights are 1.
    learned_range: whether the network has 2 C channels.
    bound_weight: lambda, with `learned_range`.
    i: positions [B]; `None`: drawn uniformly from 1 to `S`.

  Returns:
    Scalar.

  Raises:
    ValueError: for another prediction, gamma out of range, or an output of a
      wrong shape.

  Example:
    >>> network = lambda x, t: jnp.zeros_like(x)
    >>> x0, key = jnp.zeros((500, 4, 4, 1)), jax.random.key(0)
    >>> loss = ddpm_loss(network, x0, Schedule.linear(1000), key)
    >>> print(f'{loss:.1f}')  # The variance of the noise.
    1.0
  """
  require_rank('x0', x0, 2, at_least=True)
  x0 = wide(x0)
  position_key, noise_key = jax.random.split(key)
  if i is None:
    i = jax.random.randint(position_key, x0.shape[:1], 1, schedule.steps + 1)
  noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
  x = add_noise(schedule, x0, noise, i)
  t = jnp.asarray(schedule.timesteps)[i - 1]
  output, variance = split_output(network(x, t), x, learned_range)
  target = prediction_target(schedule, x0, noise, i, prediction=prediction)
  loss = jnp.square(output.astype(x.dtype) - target)
  if gamma is not None:
    weights = min_snr_weights(schedule, gamma, prediction=prediction)
    loss = coefficient(weights, i - 1, x) * loss
  if not learned_range:
    return jnp.mean(loss)
  x0_hat = predict_x0(schedule, output, x, i, prediction=prediction)
  nats = bound_term(
    schedule,
    x0,
    jax.lax.stop_gradient(x0_hat),
    i,
    variance='learned_range',
    fraction=(variance + 1) / 2,
  )
  bits = jnp.mean(nats) / (x0[0].size * math.log(2))
  return jnp.mean(loss) + bound_weight * schedule.steps * bits
