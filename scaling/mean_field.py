r"""The scalar mean field of the sign and of SoftSign: four numbers of moments.

With :math:`\nu = \mathrm{softsign}(g, \epsilon)` for the sign:
:math:`A = \nu^T g`, :math:`P = \nu^T H \nu`, the curvature `T` along the sign
of pure noise (`correlated_trace`), and an average :math:`\kappa^2` of
:math:`\sigma_i^2 / (g_i^2 + \epsilon^2)`, one of

.. math::
  \text{simple: } \frac{\mathrm{Tr} \Sigma}{\sum g_i^2 + \epsilon^2}, \qquad
  \text{small batch: } \Bigl(\frac{A}{\sum g_i^2 / \sigma_i}\Bigr)^2.

The first is that of the articles, :math:`B_{simple}` for the sign; the second
makes the mean field exact for small batches if :math:`c = \pi / 2`. The mean of
the ratios, which the smallest gradients rule, is not offered.

References:
  Su, articles `10542 <https://kexue.fm/archives/10542>`_ and `10563
  <https://kexue.fm/archives/10563>`_, 2024, and `11280
  <https://kexue.fm/archives/11280>`_, 2025.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require_one_of
from ..lowrank.arrays import precise, unit
from ..optimizers.softsign import softsign
from .one_step import as_floats, require_moments, require_no_negative
from .sign_correlation import correlated_trace


@functools.partial(jax.jit, static_argnames='average')
@precise
def _numbers(
  gradient: jax.Array,
  noise_std: jax.Array,
  hessian: jax.Array,
  eps: jax.Array,
  noise_correlation: ArrayLike | None,
  noise_factor: float,
  average: str,
) -> dict[str, jax.Array]:
  direction = softsign(gradient, eps)
  descent = direction @ gradient
  trace = correlated_trace(hessian, noise_correlation)
  trace = jnp.where(trace > 0, trace, jnp.nan)
  if average == 'simple':
    scales = jnp.broadcast_arrays(gradient, noise_std, eps)
    (g, std, e), _ = unit(jnp.stack(scales))
    kappa_sq = std @ std / (g @ g + e @ e)
  else:
    noisy = noise_std > 0
    slope = jnp.where(noisy, gradient / jnp.where(noisy, noise_std, 1), 0)
    kappa_sq = (descent / (slope @ gradient)) ** 2
  return {
    'rate': descent / trace,
    'curvature_ratio': direction @ hessian @ direction / trace,
    'noise_scale': noise_factor * kappa_sq,
    'gradient_l1': descent,
  }


def mean_field_numbers(
  gradient: ArrayLike,
  noise_std: ArrayLike,
  hessian: ArrayLike,
  noise_correlation: ArrayLike | None,
  eps: ArrayLike,
  noise_factor: float,
  average: str,
) -> dict[str, jax.Array]:
  r"""Computes the numbers of `SignLaw` and `SoftsignLaw`.

  Args:
    gradient: of the full batch, [N].
    noise_std: deviation of one example's gradient entries, [N].
    hessian: [N, N].
    noise_correlation: [N, N], or None.
    eps: of SoftSign, 0 or more.
    noise_factor: `c`.
    average: 'simple' or 'small_batch', as in this file.

  Returns:
    The attributes of the laws by name. NaN where `T` is not positive; an
    infinite or NaN noise scale for a gradient of zeros.

  Raises:
    ValueError: if shapes do not fit, for a negative `eps`, or another average.

  Example:
    >>> numbers = mean_field_numbers(
    ...     jnp.ones(2), 3 * jnp.ones(2), jnp.eye(2), None, 0.0, 1.0, 'simple'
    ... )
    >>> print(*(f'{name}={float(x):.0f}' for name, x in numbers.items()))
    curvature_ratio=1 gradient_l1=2 noise_scale=9 rate=1
  """
  require_one_of('average', average, ('simple', 'small_batch'))
  require_no_negative('eps', eps)
  require_moments(gradient, noise_std, hessian, noise_correlation)
  arrays = as_floats(gradient, noise_std, hessian, eps)
  return _numbers(*arrays, noise_correlation, noise_factor, average)
