r"""Second moments of the signs of a correlated Gaussian.

For :math:`x \sim N(s_1, 1)`, :math:`y \sim N(s_2, 1)` of correlation
:math:`\rho` the bivariate normal distribution function, as an integral over the
correlation (Drezner and Wesolowsky), gives

.. math::
  E[\mathrm{sign}\, x\, \mathrm{sign}\, y] = \mu_1 \mu_2 + \frac{2}{\pi}
    \int_0^{\arcsin \rho}
    \exp\Bigl(-\frac{s_1^2 + s_2^2 - 2 s_1 s_2 \sin\theta}{2 \cos^2\theta}\Bigr)
    d\theta, \qquad \mu = \mathrm{erf}(s / \sqrt 2).

Without signal it is :math:`\tfrac{2}{\pi} \arcsin \rho`: small batches see the
curvature :math:`T_0 = \tfrac{2}{\pi} \sum \arcsin(\rho_{ij}) H_{ij}` where the
articles, which take the noise for independent, have :math:`\mathrm{Tr} H`.

References:
  Drezner and Wesolowsky, `On the computation of the bivariate normal integral
  <https://doi.org/10.1080/00949659008811236>`_, 1990;
  Genz, `Numerical computation of rectangular bivariate and trivariate normal
  and t probabilities <https://doi.org/10.1023/B:STCO.0000035304.20635.31>`_,
  2004.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require_one_of, require_shape
from .one_step import as_floats, require_batch_size, require_moments

# Past this many deviations a sign is certain, in float64 too.
_CERTAIN = 40.0
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def signal_to_noise(gradient: jax.Array, deviation: jax.Array) -> jax.Array:
  """The ratio, within the bounds past which its sign is certain.

  >>> g, deviation = jnp.array([1.0, -2.0, 0.0]), jnp.array([2.0, 0.0, 0.0])
  >>> print(signal_to_noise(g, deviation))
  [  0.5 -40.    0. ]
  """
  noisy = deviation > 0
  ratio = gradient / jnp.where(noisy, deviation, 1)
  ratio = jnp.where(noisy, ratio, _CERTAIN * jnp.sign(gradient))
  return jnp.clip(ratio, -_CERTAIN, _CERTAIN)


def _covariance(s1: jax.Array, s2: jax.Array, rho: jax.Array) -> jax.Array:
  """Of the signs: the integral above, over the angle pi / 2 - theta.

  A negative correlation is a positive one with -y. For correlations near one
  the integrand has an edge at the angle |s1 - s2|; nodes at fourth powers find
  it at every scale: the absolute error is below 3e-8.
  """
  sign = jnp.where(rho < 0, -1, 1).astype(rho.dtype)
  s2 = s2 * sign
  smallest = jnp.arctan2(jnp.sqrt((1 - rho) * (1 + rho)), rho * sign)
  start = jnp.sqrt(jnp.sqrt(2 / math.pi * smallest))

  def add(total, node_and_weight):
    node, weight = node_and_weight
    t = start + (1 - start) * (node + 1) / 2
    # The floor keeps derivatives of the exponent in float32's range.
    angle = jnp.maximum(math.pi / 2 * t**4, 1e-9)
    edge = ((s1 - s2) / jnp.sin(angle)) ** 2 / 2
    kernel = jnp.exp(-edge - s1 * s2 / (1 + jnp.cos(angle)))
    return total + weight * t**3 * kernel, None

  nodes = jnp.asarray(_NODES, rho.dtype), jnp.asarray(_WEIGHTS, rho.dtype)
  zeros = jnp.zeros_like(s1 + s2 + rho)
  total, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), zeros, nodes)
  # 2 / pi, and d angle = (1 - start) / 2 * 2 pi t^3 d node.
  return 2 * sign * (1 - start) * total


def _interpolation(s1: jax.Array, s2: jax.Array, rho: jax.Array) -> jax.Array:
  variance = lambda s: 1 - jax.lax.erf(s / math.sqrt(2)) ** 2
  return 2 / math.pi * jnp.arcsin(rho) * jnp.sqrt(variance(s1) * variance(s2))


@functools.partial(jax.jit, static_argnames='method')
def _sign_product(
  s1: jax.Array, s2: jax.Array, rho: jax.Array, method: str
) -> jax.Array:
  covariance = {'exact': _covariance, 'interpolation': _interpolation}[method]
  mean = lambda s: jax.lax.erf(s / math.sqrt(2))
  return mean(s1) * mean(s2) + covariance(s1, s2, rho)


def _as_correlation(rho: ArrayLike, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Rounding may leave a correlation outside [-1, 1]."""
  return jnp.clip(jnp.asarray(rho, dtype), -1, 1)


def sign_product_mean(
  s1: ArrayLike, s2: ArrayLike, rho: ArrayLike, *, method: str = 'exact'
) -> jax.Array:
  r"""Computes E[sign x sign y] for x of N(s1, 1) and y of N(s2, 1).

  The integral of this file by 64 nodes, with an absolute error below 3e-8; or
  the interpolation
  :math:`\mu_1 \mu_2 + \tfrac{2}{\pi} \arcsin(\rho)
  \sqrt{(1 - \mu_1^2)(1 - \mu_2^2)}`, exact for :math:`\rho = 0` or no signal,
  with an error of 0.36 at worst, for signals of opposite signs and a high
  correlation.

  Args:
    s1: signal over noise, of any shape.
    s2: likewise.
    rho: correlation of the noise, in [-1, 1]; clipped to it. The derivative in
      it is infinite at the ends.
    method: 'exact' or 'interpolation'.

  Returns:
    Array of the broadcast shape, in [-1, 1].

  Raises:
    ValueError: for an unknown method.

  Example:
    >>> print(f'{float(sign_product_mean(0.0, 0.0, 0.5)):.4f}')  # 1 / 3.
    0.3333
    >>> print(f'{float(sign_product_mean(1.0, -1.0, 0.5)):.4f}')
    -0.3805
  """
  require_one_of('method', method, ('exact', 'interpolation'))
  s1, s2, rho = as_floats(s1, s2, rho)
  s1, s2 = (jnp.clip(s, -_CERTAIN, _CERTAIN) for s in (s1, s2))
  return _sign_product(s1, s2, jnp.clip(rho, -1, 1), method)


def _off_diagonal(matrix: jax.Array) -> jax.Array:
  """With zeros on the diagonal, where arcsin has no derivative."""
  return jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), 0, matrix)


@functools.partial(jax.jit, static_argnames='method')
def _second_moment(
  gradient: jax.Array,
  noise_std: jax.Array,
  rho: jax.Array,
  batch_size: jax.Array,
  method: str,
) -> jax.Array:
  s = signal_to_noise(gradient, noise_std / jnp.sqrt(batch_size[..., None]))
  noisy = noise_std > 0
  rho = jnp.where(noisy[:, None] & noisy, _off_diagonal(rho), 0)
  moment = _sign_product(s[..., :, None], s[..., None, :], rho, method)
  alive = (gradient != 0) | noisy
  return _off_diagonal(moment) + jnp.diag(alive.astype(s.dtype))


def sign_second_moment(
  gradient: ArrayLike,
  noise_std: ArrayLike,
  noise_correlation: ArrayLike,
  batch_size: ArrayLike,
  *,
  method: str = 'exact',
) -> jax.Array:
  r"""Computes E[sign sign^T] of a minibatch gradient with correlated noise.

  Of :math:`\tilde g \sim N(g, \Sigma / B)` with
  :math:`\Sigma_{ij} = \sigma_i \rho_{ij} \sigma_j`. The articles take
  :math:`\mu_i \mu_j` off the diagonal, which on real networks is far off.

  Args:
    gradient: [N].
    noise_std: of one example's gradient, [N], 0 or more.
    noise_correlation: [N, N], in [-1, 1]; its diagonal is not read.
    batch_size: above 0, of any shape [...].
    method: see `sign_product_mean`.

  Returns:
    [..., N, N]; 1 on the diagonal, 0 for an entry without gradient and noise.

  Raises:
    ValueError: for shapes that do not fit, an unknown method, or a batch size
      that is a number and not positive.

  Example:
    >>> rho = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    >>> print(sign_second_moment(jnp.zeros(2), jnp.ones(2), rho, 8).round(3))
    [[1.    0.333]
     [0.333 1.   ]]
  """
  require_one_of('method', method, ('exact', 'interpolation'))
  require_batch_size(batch_size)
  require_moments(gradient, noise_std, noise_correlation=noise_correlation)
  gradient, noise_std, batch_size = as_floats(gradient, noise_std, batch_size)
  rho = _as_correlation(noise_correlation, gradient.dtype)
  return _second_moment(gradient, noise_std, rho, batch_size, method)


def correlated_trace(
  hessian: ArrayLike, noise_correlation: ArrayLike | None = None
) -> jax.Array:
  r"""Computes :math:`T_0 = \tfrac{2}{\pi} \sum \arcsin(\rho_{ij}) H_{ij}`.

  The curvature along the sign of pure noise, for Gaussian noise; the trace for
  independent noise. One Hessian-vector product estimates it, as
  :math:`E[v^T H v]` for the sign `v` of a difference of two gradients.

  Args:
    hessian: [N, N].
    noise_correlation: [N, N], in [-1, 1]; its diagonal is not read. `None`:
      the identity.

  Returns:
    Scalar, in the unit of the Hessian.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> rho = jnp.array([[1.0, 0.5], [0.5, 1.0]])
    >>> float(correlated_trace(jnp.eye(2), rho))
    2.0
    >>> trace = correlated_trace(jnp.ones((2, 2)), rho)
    >>> print(f'{float(trace):.4f}')  # 2 + 2 / 3.
    2.6667
  """
  (hessian,) = as_floats(hessian)
  n = hessian.shape[0] if hessian.ndim else None
  require_shape('hessian', hessian, (n, n))
  if noise_correlation is not None:
    require_shape('noise_correlation', noise_correlation, (n, n))
  trace = jnp.trace(hessian)
  if noise_correlation is None:
    return trace
  rho = _off_diagonal(_as_correlation(noise_correlation, hessian.dtype))
  return trace + 2 / math.pi * jnp.sum(jnp.arcsin(rho) * hessian)
