r"""The diffusion process: noising, predictions, posteriors and single steps.

Positions `i` count the steps of a schedule from 1 to `S` and may be traced,
scalars or one for each image; position 0 is the image itself. With
:math:`a_i = \bar\alpha_i`, the posterior of a step is

.. math::
  q(x_{i-1} \mid x_i, x_0) = N\Bigl(
    \tfrac{\sqrt{a_{i-1}} \beta_i}{1 - a_i} x_0
    + \tfrac{\sqrt{\alpha_i} (1 - a_{i-1})}{1 - a_i} x_i,\;
    \tilde\sigma_i^2 = \tfrac{1 - a_{i-1}}{1 - a_i} \beta_i \Bigr),
  \qquad \alpha_i = 1 - \beta_i = a_i / a_{i-1}.

Coefficients are formed in float64 on the host and rounded to float32, or kept
for float64 images.

References:
  Ho, Jain and Abbeel, `Denoising diffusion probabilistic models
  <https://arxiv.org/abs/2006.11239>`_, 2020.

  Song, Meng and Ermon, `Denoising diffusion implicit models
  <https://arxiv.org/abs/2010.02502>`_, 2020.

  Nichol and Dhariwal, `Improved denoising diffusion probabilistic models
  <https://arxiv.org/abs/2102.09672>`_, 2021.

  Salimans and Ho, `Progressive distillation for fast sampling of diffusion
  models <https://arxiv.org/abs/2202.00512>`_, 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require, require_one_of
from .schedule import Schedule

PREDICTIONS = ('eps', 'x0', 'v')
VARIANCES = ('fixed_small', 'fixed_large', 'learned_range')


def wide(x: ArrayLike) -> jax.Array:
  """The array in float32, or in float64 if it is."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def coefficient(table: np.ndarray, i: ArrayLike, x: jax.Array) -> jax.Array:
  """Entries `i` of a table: a scalar, or [B, 1, ...] that multiplies `x`."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  entries = jnp.asarray(table, dtype)[jnp.asarray(i)]
  ones = (1,) * (x.ndim - 1) if entries.ndim else ()
  return jnp.reshape(entries, entries.shape + ones)


def require_position(schedule: Schedule, i: ArrayLike, least: int = 1) -> None:
  """Checks a position that is a number; traced ones cannot be checked."""
  if isinstance(i, int | np.integer):
    good = least <= i <= schedule.steps
    require(good, 'i', i, f'{least} to {schedule.steps}')


def _signal_and_noise(
  schedule: Schedule, i: ArrayLike, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The coefficients of image and noise, roots of a and 1 - a."""
  require_position(schedule, i, least=0)
  signal = coefficient(np.sqrt(schedule.alpha_bar), i, x)
  return signal, coefficient(np.sqrt(1 - schedule.alpha_bar), i, x)


def add_noise(
  schedule: Schedule, x0: jax.Array, noise: jax.Array, i: ArrayLike
) -> jax.Array:
  r"""Images after `i` steps, :math:`\sqrt{a} x_0 + \sqrt{1 - a} \varepsilon`.

  Args:
    schedule: noise schedule of `S` steps.
    x0: images [B, ...].
    noise: normal, like `x0`.
    i: position 0 to `S`, a scalar or [B].

  Returns:
    Noisy images [B, ...].

  Raises:
    ValueError: if `i` is a number outside its range.

  Example:
    >>> schedule, x0 = Schedule.from_betas([0.75]), jnp.array([[2.0, 4.0]])
    >>> print(add_noise(schedule, x0, jnp.zeros((1, 2)), 1))
    [[1. 2.]]
  """
  signal, noise_size = _signal_and_noise(schedule, i, x0)
  return signal * x0 + noise_size * noise


def predict_x0(
  schedule: Schedule,
  output: jax.Array,
  x: jax.Array,
  i: ArrayLike,
  *,
  prediction: str = 'eps',
) -> jax.Array:
  r"""The image that a network's output stands for.

  .. math::
    \hat x_0 = \frac{x - \sqrt{1-a} \hat\varepsilon}{\sqrt a}, \qquad
    \hat x_0 = \sqrt a x - \sqrt{1-a} \hat v
    \quad\text{for}\quad v = \sqrt a \varepsilon - \sqrt{1-a} x_0.

  It is not clipped: `denoiser` does that.

  Args:
    schedule: noise schedule of `S` steps.
    output: of the network, like `x`.
    x: noisy images [B, ...].
    i: position 1 to `S` of the noisy images, a scalar or [B].
    prediction: what the network gives, "eps", "x0" or "v".

  Returns:
    Images [B, ...].

  Raises:
    ValueError: for another prediction, or a position out of range.

  Example:
    >>> schedule, x = Schedule.from_betas([0.75]), jnp.array([[1.0, 2.0]])
    >>> print(predict_x0(schedule, jnp.zeros((1, 2)), x, 1))
    [[2. 4.]]
  """
  require_one_of('prediction', prediction, PREDICTIONS)
  require_position(schedule, i)
  signal, noise_size = _signal_and_noise(schedule, i, x)
  output = wide(output)
  if prediction == 'eps':
    return (x - noise_size * output) / signal
  return output if prediction == 'x0' else signal * x - noise_size * output


def predict_noise(
  schedule: Schedule, x0_hat: jax.Array, x: jax.Array, i: ArrayLike
) -> jax.Array:
  r"""The noise that is left, :math:`(x - \sqrt{a} \hat x_0) / \sqrt{1 - a}`.

  Args:
    schedule: noise schedule of `S` steps.
    x0_hat: predicted images [B, ...].
    x: noisy images, like them.
    i: position 1 to `S`, a scalar or [B].

  Returns:
    Noise [B, ...].

  Raises:
    ValueError: if `i` is a number outside its range.

  Example:
    >>> schedule, x0 = Schedule.from_betas([0.75]), jnp.array([[2.0, 4.0]])
    >>> print(predict_noise(schedule, x0, jnp.array([[1.0, 2.0]]), 1))
    [[0. 0.]]
  """
  require_position(schedule, i)
  signal, noise_size = _signal_and_noise(schedule, i, x)
  return (x - signal * x0_hat) / noise_size


class Posterior(NamedTuple):
  """What a step draws from: means [B, ...], and a standard deviation.

  The deviation is a scalar, or [B, 1, ...] for positions [B], or like the mean
  where it is learned.

  Example:
    >>> x = jnp.ones((1, 2))
    >>> mean, deviation = posterior(Schedule.linear(1000), 0 * x, x, 1000)
    >>> print(f'{mean[0, 0]:.3f} {deviation:.3f}')
    0.990 0.141
  """

  mean: jax.Array
  deviation: jax.Array


def small_variances(schedule: Schedule) -> np.ndarray:
  """Variances of the posteriors [S], the first of which is 0."""
  noise = 1 - schedule.alpha_bar
  return schedule.betas * noise[:-1] / noise[1:]


def log_variance_range(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
  """Logarithms of the least and the largest variance of steps, [S] each.

  The posterior of the first step has no variance; it gets that of the second,
  as in the DDPM, or of a single step the largest.
  """
  least, largest = small_variances(schedule), schedule.betas
  least[0] = least[1] if schedule.steps > 1 else largest[0]
  return np.log(least), np.log(largest)


def _deviation(
  schedule: Schedule,
  x: jax.Array,
  i: ArrayLike,
  variance: str,
  fraction: jax.Array | None,
) -> jax.Array:
  require_one_of('variance', variance, VARIANCES)
  given, learned = fraction is not None, variance == 'learned_range'
  came = 'one' if given else 'none'
  require(given == learned, 'fraction', came, 'one for learned_range only')
  if variance == 'fixed_small':
    return coefficient(np.sqrt(small_variances(schedule)), i - 1, x)
  if variance == 'fixed_large':
    return coefficient(np.sqrt(schedule.betas), i - 1, x)
  least, largest = (
    coefficient(table, i - 1, x) for table in log_variance_range(schedule)
  )
  return jnp.exp((fraction * largest + (1 - fraction) * least) / 2)


def posterior(
  schedule: Schedule,
  x0_hat: jax.Array,
  x: jax.Array,
  i: ArrayLike,
  *,
  variance: str = 'fixed_small',
  fraction: jax.Array | None = None,
) -> Posterior:
  r"""Where the image was one step before, given what it shall become.

  The mean is the one at the head of this file. Variances are

  .. math::
    \tilde\sigma_i^2, \qquad \beta_i \qquad\text{or}\qquad
    \exp(w \log \beta_i + (1 - w) \log \tilde\sigma_i^2),

  "fixed_small", exact if :math:`x_0` is one point, "fixed_large", exact if it
  is normal with variance 1, and "learned_range", in between. The first step has
  :math:`\tilde\sigma_1 = 0`; in the learned range it is that of the second.

  Args:
    schedule: noise schedule of `S` steps.
    x0_hat: predicted images [B, ...].
    x: noisy images, like them.
    i: position 1 to `S` of the noisy images, a scalar or [B].
    variance: "fixed_small", "fixed_large" or "learned_range".
    fraction: `w`, like `x`, in [0, 1], of "learned_range" only.

  Returns:
    `Posterior`.

  Raises:
    ValueError: for another variance, a position out of range, or a fraction
      that is missing or not wanted.

  Example:
    >>> schedule, x = Schedule.linear(1000), jnp.ones((1, 2))
    >>> for kind in ('fixed_small', 'fixed_large'):
    ...   deviation = posterior(schedule, x, x, 2, variance=kind).deviation
    ...   print(f'{deviation:.5f}')
    0.00738
    0.01095
  """
  require_position(schedule, i)
  a, betas = schedule.alpha_bar, schedule.betas
  of_x0 = np.sqrt(a[:-1]) * betas / (1 - a[1:])
  of_x = np.sqrt(1 - betas) * (1 - a[:-1]) / (1 - a[1:])
  mean = coefficient(of_x0, i - 1, x) * x0_hat + coefficient(of_x, i - 1, x) * x
  return Posterior(mean, _deviation(schedule, x, i, variance, fraction))


def ddpm_step(
  schedule: Schedule,
  x0_hat: jax.Array,
  x: jax.Array,
  i: ArrayLike,
  noise: jax.Array,
  *,
  variance: str = 'fixed_small',
  fraction: jax.Array | None = None,
) -> jax.Array:
  """A draw from the posterior: mean + deviation * noise, the mean for i = 1.

  Args:
    schedule: see `posterior`.
    x0_hat: see `posterior`.
    x: see `posterior`.
    i: see `posterior`.
    noise: normal, like `x`.
    variance: see `posterior`.
    fraction: see `posterior`.

  Returns:
    Images [B, ...] of position `i - 1`.

  Raises:
    ValueError: see `posterior`.

  Example:
    >>> x, noise = jnp.zeros((1, 2)), jnp.ones((1, 2))
    >>> print(ddpm_step(Schedule.linear(1000), x, x, 1, noise))
    [[0. 0.]]
  """
  mean, deviation = posterior(
    schedule, x0_hat, x, i, variance=variance, fraction=fraction
  )
  last = coefficient(np.arange(schedule.steps) > 0, i - 1, x)
  return mean + last * deviation * noise


def ddim_step(
  schedule: Schedule,
  x0_hat: jax.Array,
  x: jax.Array,
  i: ArrayLike,
  noise: jax.Array,
  *,
  eta: ArrayLike = 0.0,
) -> jax.Array:
  r"""A step that keeps some of the noise that is there, instead of drawing it.

  .. math::
    x_{i-1} = \sqrt{a_{i-1}} \hat x_0
      + \sqrt{1 - a_{i-1} - \sigma^2} \hat\varepsilon + \sigma z,
      \qquad \sigma = \eta \tilde\sigma_i,

  with the noise :math:`\hat\varepsilon` that belongs to the predicted image,
  clipped or not. One for `eta` gives `ddpm_step` of the variance "fixed_small",
  0 a step of the ordinary differential equation.

  Args:
    schedule: noise schedule of `S` steps.
    x0_hat: predicted images [B, ...].
    x: noisy images, like them.
    i: position 1 to `S` of the noisy images, a scalar or [B].
    noise: normal, like `x`.
    eta: in [0, 1].

  Returns:
    Images [B, ...] of position `i - 1`.

  Raises:
    ValueError: if `i` or `eta` is a number outside its range.

  Example:
    >>> x, noise = jnp.ones((1, 2)), jnp.zeros((1, 2))
    >>> print(ddim_step(Schedule.linear(1000), x, x, 1, noise))
    [[1. 1.]]
  """
  if isinstance(eta, int | float):
    require(0 <= eta <= 1, 'eta', eta, 'a number in [0, 1]')
  eps = predict_noise(schedule, x0_hat, x, i)
  small = small_variances(schedule)
  # Without the difference, in which single precision would lose digits.
  kept = 1 - schedule.alpha_bar[:-1]
  rest = (1 - schedule.betas) * kept**2 / (1 - schedule.alpha_bar[1:])
  signal, small, rest = (
    coefficient(table, i - 1, x)
    for table in (np.sqrt(schedule.alpha_bar[:-1]), small, rest)
  )
  old, new = jnp.sqrt(rest + (1 - eta**2) * small), eta * jnp.sqrt(small)
  return signal * x0_hat + old * eps + new * noise
