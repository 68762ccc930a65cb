r"""The optimal learning rate of SignSGD and SoftSign from exact moments.

For a Gaussian minibatch gradient of signal over noise
:math:`s_i = g_i \sqrt B / \sigma_i` the sign has the mean
:math:`\mu_i = \mathrm{erf}(s_i / \sqrt 2)`, and for independent entries

.. math::
  \eta^*(B) = \frac{\sum_i \mu_i g_i}
    {\sum_i H_{ii} + \sum_{i \ne j} \mu_i \mu_j H_{ij}}.

It is the root of the batch size for small ones, and may fall for large ones.

References:
  Su, articles `10542 <https://kexue.fm/archives/10542>`_ and `10563
  <https://kexue.fm/archives/10563>`_, 2024, and `11280
  <https://kexue.fm/archives/11280>`_, 2025.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of
from .laws import SoftsignLaw
from .one_step import (
  OneStep,
  as_floats,
  one_step,
  require_batch_size,
  require_moments,
  require_no_negative,
)
from .sign_correlation import sign_second_moment, signal_to_noise
from .softsign_moments import SoftsignMoments, moments_of, softsign_moments


@jax.jit
def _sign_moments(
  gradient: jax.Array, noise_std: jax.Array, batch_size: jax.Array
) -> SoftsignMoments:
  s = signal_to_noise(gradient, noise_std / jnp.sqrt(batch_size))
  alive = jnp.broadcast_to((gradient != 0) | (noise_std > 0), s.shape)
  return SoftsignMoments(jax.lax.erf(s / math.sqrt(2)), alive.astype(s.dtype))


def sign_mean(
  gradient: ArrayLike,
  noise_std: ArrayLike,
  batch_size: ArrayLike,
  *,
  method: str = 'exact',
) -> jax.Array:
  r"""Computes E[sign] of a minibatch gradient, with the articles beside it.

  With :math:`s = g \sqrt B / \sigma`:

  - 'exact': :math:`\mathrm{erf}(s / \sqrt 2)`, for Gaussian noise;
  - 'softsign', article 10542: :math:`s / \sqrt{s^2 + \pi/2}`, with the exact
    slope at 0, and errors up to 0.108;
  - 'mean_field', article 11280: :math:`s / \sqrt{s^2 + 1}`, with errors up to
    0.064, and a slope 25 % too large.

  Args:
    gradient: of the full batch, any shape.
    noise_std: deviation of one example's gradient, 0 or more.
    batch_size: number of examples, above 0. All three broadcast.
    method: one of the above.

  Returns:
    Array of the broadcast shape, in [-1, 1]; the sign itself without noise.

  Raises:
    ValueError: for an unknown method, or a batch size that is a number and not
      positive.

  Example:
    >>> for method in ('exact', 'softsign', 'mean_field'):
    ...   print(f'{float(sign_mean(0.5, 2.0, 16, method=method)):.4f}')
    0.6827
    0.6237
    0.7071
  """
  require_one_of('method', method, ('exact', 'softsign', 'mean_field'))
  require_batch_size(batch_size)
  gradient, noise_std, batch_size = as_floats(gradient, noise_std, batch_size)
  if method == 'exact':
    return _sign_moments(gradient, noise_std, batch_size).mean
  return softsign_moments(
    gradient, noise_std, 0.0, batch_size, method=method
  ).mean


def _require_exact_signs(eps: ArrayLike, method: str) -> None:
  exact = method == 'exact' and isinstance(eps, int | float) and eps == 0
  require(
    exact,
    'noise_correlation',
    f'a matrix with method={method!r}, eps={eps!r}',
    "None, method='exact' with eps=0.0, or method='mean_field'",
  )


@functools.partial(jax.jit, static_argnames='method')
def _one_step(
  batch_size: jax.Array,
  gradient: jax.Array,
  noise_std: jax.Array,
  hessian: jax.Array,
  eps: jax.Array,
  noise_correlation: ArrayLike | None,
  noise_factor: float,
  method: str,
) -> OneStep:
  each = batch_size[..., None]
  if method == 'sign':
    mean, second = _sign_moments(gradient, noise_std, each)
  else:
    deviation = noise_std / jnp.sqrt(each)
    mean, second = moments_of(gradient, deviation, eps, method, noise_factor)
  if noise_correlation is not None:
    second = sign_second_moment(
      gradient, noise_std, noise_correlation, batch_size
    )
  return one_step(mean, second, gradient, hessian)


def sign_one_step(
  batch_size: ArrayLike,
  *,
  gradient: ArrayLike,
  noise_std: ArrayLike,
  hessian: ArrayLike,
  eps: ArrayLike = 0.0,
  noise_correlation: ArrayLike | None = None,
  method: str = 'exact',
  noise_factor: float = math.pi / 2,
) -> OneStep:
  r"""Computes the best step of SignSGD or SoftSign, and what it gains.

  What `method` may be:

  - 'exact': the moments of each entry, by erf, or by quadrature for
    :math:`\epsilon > 0`, in the one-step identity. Entries of the gradient
    noise are independent, or for the sign of the correlation given;
  - 'clip', 'softsign': the same with the approximate moments of article 10563
    (`softsign_moments`), the latter with `noise_factor` for its
    :math:`\pi / 2`;
  - 'mean_field': the law of all entries at once, `SoftsignLaw.from_moments`;
    qualitative.

  Noise that is called independent and is not makes the exact form wrong too, on
  small networks by factors of 3 to 10.

  Args:
    batch_size: number of examples, above 0, of any shape [...].
    gradient: of the full batch, [N].
    noise_std: deviation of one example's gradient entries, [N], 0 or more.
    hessian: [N, N]; only its symmetric part matters.
    eps: of SoftSign, 0 or more, in the unit of the gradient; 0 is the sign.
    noise_correlation: of one example's gradient entries, [N, N]; `None`: they
      are independent. Known for the sign only, or in the mean field.
    method: one of the above.
    noise_factor: `c` of 'softsign' and 'mean_field'; 1 is article 11280.

  Returns:
    `OneStep` [...], infinite where there is no minimum.

  Raises:
    ValueError: for an unknown method, a correlation that the method cannot
      take, shapes that do not fit, or a number out of its range.

  Example:
    >>> g = jnp.array([1.0, -0.5])
    >>> lr, decrease = sign_one_step(
    ...     16, gradient=g, noise_std=4 * jnp.abs(g), hessian=jnp.eye(2)
    ... )
    >>> print(f'{float(lr):.3f} {float(decrease):.3f}')
    0.512 0.262
  """
  require_one_of('method', method, ('exact', 'clip', 'softsign', 'mean_field'))
  require_batch_size(batch_size)
  require_moments(gradient, noise_std, hessian, noise_correlation)
  if method == 'mean_field':
    law = SoftsignLaw.from_moments(
      gradient=gradient,
      noise_std=noise_std,
      hessian=hessian,
      eps=eps,
      noise_correlation=noise_correlation,
      noise_factor=noise_factor,
    )
    return OneStep(law.optimal_lr(batch_size), law.loss_decrease(batch_size))
  require_no_negative('eps', eps)
  if noise_correlation is not None:
    _require_exact_signs(eps, method)
  if method == 'exact':
    sign = isinstance(eps, int | float) and eps == 0
    method = 'sign' if sign else 'quadrature'
  arrays = as_floats(batch_size, gradient, noise_std, hessian, eps)
  return _one_step(*arrays, noise_correlation, noise_factor, method)


def sign_optimal_lr(
  batch_size: ArrayLike,
  *,
  gradient: ArrayLike,
  noise_std: ArrayLike,
  hessian: ArrayLike,
  eps: ArrayLike = 0.0,
  noise_correlation: ArrayLike | None = None,
  method: str = 'exact',
  noise_factor: float = math.pi / 2,
) -> jax.Array:
  r"""Computes :math:`\eta^*(B)` of SignSGD or SoftSign: `sign_one_step`'s.

  Args:
    batch_size: see `sign_one_step`, like all others.
    gradient: [N].
    noise_std: [N].
    hessian: [N, N].
    eps: of SoftSign.
    noise_correlation: [N, N].
    method: 'exact', 'clip', 'softsign' or 'mean_field'.
    noise_factor: `c`.

  Returns:
    Learning rates, of the shape of `batch_size`.

  Raises:
    ValueError: as `sign_one_step`.

  Example:
    >>> lr = sign_optimal_lr(
    ...     jnp.array([4, 32, 1024]),
    ...     gradient=jnp.ones(3),
    ...     noise_std=4 * jnp.ones(3),
    ...     hessian=jnp.eye(3) + 5,
    ... )
    >>> [f'{float(x):.4f}' for x in lr]  # A surge: it falls again.
    ['0.0513', '0.0643', '0.0625']
  """
  return sign_one_step(
    batch_size,
    gradient=gradient,
    noise_std=noise_std,
    hessian=hessian,
    eps=eps,
    noise_correlation=noise_correlation,
    method=method,
    noise_factor=noise_factor,
  ).learning_rate
