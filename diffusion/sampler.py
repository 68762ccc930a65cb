"""A network as a denoiser, and images out of noise by one scan over steps.

References:
  Ho, Jain and Abbeel, `Denoising diffusion probabilistic models
  <https://arxiv.org/abs/2006.11239>`_, 2020.

  Song, Meng and Ermon, `Denoising diffusion implicit models
  <https://arxiv.org/abs/2010.02502>`_, 2020.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_shape
from .process import (
  PREDICTIONS,
  VARIANCES,
  ddim_step,
  ddpm_step,
  predict_x0,
)
from .schedule import Schedule

Denoise = Callable[[jax.Array, ArrayLike], jax.Array]


def split_output(
  output: jax.Array, x: jax.Array, learned_range: bool
) -> tuple[jax.Array, jax.Array]:
  """Prediction and variance: the first C channels, and C more or none."""
  channels = x.shape[-1]
  both = learned_range or output.shape != x.shape
  expected = (*x.shape[:-1], 2 * channels if both else channels)
  require_shape("the network's output", output, expected)
  return output[..., :channels], output[..., channels:]


def denoiser(
  network: Callable[[jax.Array, jax.Array], jax.Array],
  schedule: Schedule,
  *,
  prediction: str = 'eps',
  clip: bool = True,
  learned_range: bool = False,
) -> Denoise:
  """What every sampler takes: noisy images and a timestep to clean images.

  Args:
    network: function of noisy images [B, ..., C] and timesteps int32 [B] with
      an output like the images, or one of 2 C channels, of which the second
      half stands for the variance, -1 to 1.
    schedule: the one that the network was trained with, not respaced.
    prediction: what the network gives, "eps", "x0" or "v".
    clip: keeps predicted images within [-1, 1]; not for a latent space.
    learned_range: makes `denoise` return the fraction beside the image, for
      `sample(..., variance="learned_range")`.

  Returns:
    `denoise(x, t)` of images [B, ...] and the original timestep, a scalar or
    [B]: predicted images [B, ...], or `(images, fraction)`.

  Raises:
    ValueError: if the schedule is respaced or the prediction is none of them;
      by `denoise`, if the network's output has a wrong shape.

  Example:
    >>> schedule = Schedule.linear(1000)
    >>> network = lambda x, t: jnp.ones_like(x) * t[:, None]
    >>> denoise = denoiser(network, schedule, prediction='x0', clip=False)
    >>> print(denoise(jnp.zeros((2, 3)), 7))
    [[7. 7. 7.]
     [7. 7. 7.]]
  """
  require(not schedule.is_respaced, 'schedule', schedule, 'the original one')
  require_one_of('prediction', prediction, PREDICTIONS)

  def denoise(x: jax.Array, t: ArrayLike) -> jax.Array:
    t = jnp.broadcast_to(jnp.asarray(t, jnp.int32), x.shape[:1])
    output, variance = split_output(network(x, t), x, learned_range)
    x0_hat = predict_x0(schedule, output, x, t, prediction=prediction)
    x0_hat = jnp.clip(x0_hat, -1, 1) if clip else x0_hat
    return (x0_hat, (variance + 1) / 2) if learned_range else x0_hat

  return denoise


def sample(
  denoise: Denoise,
  schedule: Schedule,
  key: jax.Array,
  shape: Sequence[int],
  *,
  eta: ArrayLike | None = None,
  variance: str = 'fixed_small',
  start: jax.Array | None = None,
) -> jax.Array:
  """Images by the steps of a schedule, ancestral (DDPM) or with `eta` (DDIM).

  Args:
    denoise: function of images and an original timestep, see `denoiser`.
    schedule: the steps to be taken, respaced or not.
    key: of all noise.
    shape: of the images, [B, ...].
    eta: `None` for ancestral steps, 0 for the ordinary differential equation,
      in between see `ddim_step`.
    variance: of ancestral steps, "fixed_small", "fixed_large" or
      "learned_range", for which `denoise` returns `(x0_hat, fraction)`.
    start: noise [B, ...] to start from; `None`: drawn.

  Returns:
    Images [B, ...].

  Raises:
    ValueError: for another variance, `eta` together with one, or a start of
      another shape.

  Example:
    >>> from kexue.diffusion import gaussian_denoiser
    >>> schedule = Schedule.linear(1000)
    >>> denoise = gaussian_denoiser(jnp.array([0.0, 0.25]), schedule)
    >>> steps = schedule.respace(500)
    >>> x = sample(denoise, steps, jax.random.key(0), (1000, 2))
    >>> print(f'{jnp.std(x[:, 0]):.1f} {jnp.std(x[:, 1]):.1f}')
    0.0 0.5
  """
  require_one_of('variance', variance, VARIANCES)
  good = eta is None or variance == 'fixed_small'
  require(good, 'variance', variance, 'fixed_small, with eta')
  start_key, step_key = jax.random.split(key)
  if start is None:
    start = jax.random.normal(start_key, shape, jnp.float32)
  require_shape('start', start, shape)
  timesteps = jnp.asarray(schedule.timesteps)

  def step(x, i):
    t = timesteps[i - 1]
    noise = jax.random.normal(jax.random.fold_in(step_key, t), shape, x.dtype)
    if variance == 'learned_range':
      x0_hat, fraction = denoise(x, t)
    else:
      x0_hat, fraction = denoise(x, t), None
    if eta is not None:
      return ddim_step(schedule, x0_hat, x, i, noise, eta=eta), None
    x = ddpm_step(
      schedule, x0_hat, x, i, noise, variance=variance, fraction=fraction
    )
    return x, None

  return lax.scan(step, start, jnp.arange(schedule.steps, 0, -1))[0]
