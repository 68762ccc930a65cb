r"""The first two moments of the SoftSign of a noisy gradient.

Of :math:`u = x / \sqrt{x^2 + \epsilon^2}` with
:math:`x \sim N(g, \sigma^2 / B)`, entry by entry. Writing powers of
:math:`x^2 + \epsilon^2` as Gaussian integrals gives both with one kernel: for
:math:`a = g \sqrt B / \sigma`, :math:`b = \epsilon \sqrt B / \sigma` and
:math:`K(\theta) = \exp(-\tfrac12 a^2 \sin^2\theta
- \tfrac12 b^2 \tan^2\theta)`,

.. math::
  E[u] = a \sqrt{\tfrac{2}{\pi}} \int_0^{\pi/2} K(\theta) \cos\theta\, d\theta,
  \qquad
  E[u^2] = \int_0^{\pi/2} K(\theta) \sin\theta\,
    (1 + a^2 \cos^2\theta)\, d\theta.

No term is negative, so that no digits are lost for large epsilon, where
:math:`1 - b \sqrt{\pi/2}\, \mathrm{Re}\, w((a + i b) / \sqrt 2)`, the closed
form of the second, loses all of float32's. The articles have approximations
only.

References:
  Su, `How Adam's epsilon affects the scaling law of the learning rate
  <https://kexue.fm/archives/10563>`_, 2024;
  Su, `article 11280 <https://kexue.fm/archives/11280>`_, 2025.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require_one_of
from .one_step import as_floats, require_batch_size, require_no_negative

METHODS = ('quadrature', 'clip', 'softsign', 'mean_field')

# The kernel is below 3e-18 where sin(theta) is past _REACH / max(a, b).
_REACH = 9.0


class SoftsignMoments(NamedTuple):
  """Mean and second moment [...] of each entry of the update.

  Example:
    >>> mean, second_moment = softsign_moments(1.0, 1.0, 0.0, 1)
    >>> print(f'{float(mean):.4f} {float(second_moment):.4f}')  # erf(2**-.5)
    0.6827 1.0000
  """

  mean: jax.Array
  second_moment: jax.Array


def _quadrature_nodes(count: int = 128) -> tuple[np.ndarray, ...]:
  """Sines, squared cosines and weights, in d sin(theta).

  For a small b the kernel falls from one to zero at cos(theta) near b; the
  fourth power puts nodes there at every scale.
  """
  x, weight = np.polynomial.legendre.leggauss(count)
  t = (1 - x) / 2
  theta = math.pi / 2 * (1 - t**4)
  # The floor keeps derivatives in the range of float32; it moves no digit.
  cosine = np.maximum(np.sin(math.pi / 2 * t**4), 1e-8)
  return np.sin(theta), cosine**2, weight * math.pi * t**3 * cosine


_NODES = _quadrature_nodes()


def _quadrature(
  gradient: jax.Array, deviation: jax.Array, eps: jax.Array
) -> SoftsignMoments:
  """The integrals over sin(theta) up to `reach`, in s = sin(theta) / reach.

  Over the largest of the three scales: without noise it is the SoftSign.
  """
  size = jnp.maximum(jnp.maximum(jnp.abs(gradient), eps), _REACH * deviation)
  size = jnp.where(size > 0, size, 1)
  a, b, reach = (_REACH * x / size for x in (gradient, eps, deviation))

  def add(moments, node):
    s, cosine_sq, weight = node
    cosine_sq = cosine_sq + (1 - reach) * (1 + reach) * s**2
    kernel = jnp.exp(-((a * s) ** 2 + (b * s) ** 2 / cosine_sq) / 2)
    cosine = jnp.sqrt(cosine_sq)
    mean = a * math.sqrt(2 / math.pi)
    second = s * (reach**2 / cosine + a**2 * cosine)
    mean, second = (x * kernel * weight for x in (mean, second))
    return SoftsignMoments(moments.mean + mean, moments.second_moment + second)

  # One node at a time, also backward: no [128, N].
  add = jax.checkpoint(add, prevent_cse=False)
  zeros = jnp.zeros_like(a + b + reach)
  nodes = tuple(jnp.asarray(x, zeros.dtype) for x in _NODES)
  step = lambda moments, node: (add(moments, node), None)
  return jax.lax.scan(step, SoftsignMoments(zeros, zeros), nodes)[0]


def _smooth(
  gradient: jax.Array,
  deviation: jax.Array,
  eps: jax.Array,
  noise_factor: float,
) -> SoftsignMoments:
  """The root with `noise_factor` variances under it."""
  noise = noise_factor * deviation**2
  total = gradient**2 + eps**2 + noise
  total = jnp.where(total > 0, total, 1)
  return SoftsignMoments(
    gradient / jnp.sqrt(total), (gradient**2 + noise) / total
  )


def _clip(
  gradient: jax.Array, deviation: jax.Array, eps: jax.Array
) -> SoftsignMoments:
  """Moments of clip(x / eps, -1, 1), in units of the deviation."""
  machine = jnp.finfo(gradient.dtype).eps
  size = jnp.maximum(jnp.abs(gradient), eps)
  deviation = jnp.maximum(deviation, machine * size)
  deviation = jnp.where(deviation > 0, deviation, jnp.inf)
  a, b = gradient / deviation, eps / deviation
  # Differences of order b and b^2, which the series below does not take.
  small = b < machine ** (1 / 7)
  width = jnp.where(small, 1, b)
  density = lambda z: jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
  erf = lambda z: jax.lax.erf(z / math.sqrt(2))
  high, low = a + width, a - width
  inside = (erf(high) - erf(low)) / 2
  drop = density(high) - density(low)
  mean = (erf(high) + erf(low)) / 2 + (a * inside + drop) / width
  square = (
    (a**2 + 1) * inside
    + 2 * a * drop
    - high * density(high)
    + low * density(low)
  )
  second = 1 - inside + square / width**2
  series_mean = erf(a) - b**2 / 3 * a * density(a)
  series_second = 1 - density(a) * b * (4 / 3 + 2 / 15 * b**2 * (a**2 - 1))
  return SoftsignMoments(
    jnp.where(small, series_mean, mean),
    jnp.where(jnp.isinf(deviation), 0, jnp.where(small, series_second, second)),
  )


@functools.partial(jax.jit, static_argnames='method')
def moments_of(
  gradient: jax.Array,
  deviation: jax.Array,
  eps: jax.Array,
  method: str,
  noise_factor: float = math.pi / 2,
) -> SoftsignMoments:
  """`softsign_moments` with the deviation of the minibatch gradient.

  The scale of the three does not matter, to derivatives neither.
  """
  size = jnp.maximum(jnp.maximum(jnp.abs(gradient), eps), deviation)
  tiny = jnp.finfo(size.dtype).tiny
  inverse = jnp.where(size > 0, 1 / jnp.clip(size, tiny, 1 / tiny), 0)
  inverse = jax.lax.stop_gradient(inverse)
  # A product: quotients of quotients are rearranged by the compiler, past the
  # range of the type.
  scales = tuple(x * inverse for x in (gradient, deviation, eps))
  if method == 'quadrature':
    return _quadrature(*scales)
  if method == 'clip':
    return _clip(*scales)
  return _smooth(*scales, 1.0 if method == 'mean_field' else noise_factor)


def softsign_moments(
  gradient: ArrayLike,
  noise_std: ArrayLike,
  eps: ArrayLike,
  batch_size: ArrayLike,
  *,
  method: str = 'quadrature',
) -> SoftsignMoments:
  r"""Computes E[u] and E[u^2] of the SoftSign of a minibatch gradient.

  Methods, with `a` and `b` as in this file:

  - 'quadrature': the integrals of this file by 128 nodes, with a relative error
    below 1e-9 in float64 and 1e-5 in float32 whatever the arguments;
  - 'clip', article 10563: SoftSign replaced by :math:`\mathrm{clip}(x /
    \epsilon, -1, 1)`, of which both integrals are taken exactly (the article
    has the first); errors up to 0.25 and 0.43;
  - 'softsign', article 10563: :math:`a / \sqrt{a^2 + b^2 + \pi/2}` and
    :math:`1 - b^2 / (a^2 + b^2 + \pi/2)`; errors up to 0.11 and 0.31;
  - 'mean_field', article 11280: the same with 1 for :math:`\pi/2`; errors up
    to 0.08 and 0.24.

  For a small `b` the second moment is :math:`1 - b \sqrt{\pi/2}\, e^{-a^2/2}`
  to first order, where all three approximations of it are too large.

  Args:
    gradient: of the full batch, any shape.
    noise_std: deviation of one example's gradient, 0 or more.
    eps: 0 or more, in the unit of the gradient; 0 is the sign.
    batch_size: number of examples, above 0. All four broadcast.
    method: one of the above.

  Returns:
    `SoftsignMoments` of the broadcast shape, in float32 or better. All zeros
    give zeros. Differentiable; in no memory but the arguments' and a few times
    that.

  Raises:
    ValueError: for an unknown method, or a number out of its range.

  Example:
    >>> mean, second = softsign_moments(jnp.array([0.0, 3.0]), 2.0, 1.0, 4)
    >>> print(mean.round(4), second.round(4))
    [0.     0.9252] [0.3443 0.8637]
  """
  require_one_of('method', method, METHODS)
  require_batch_size(batch_size)
  require_no_negative('noise_std', noise_std)
  require_no_negative('eps', eps)
  gradient, noise_std, eps, batch_size = as_floats(
    gradient, noise_std, eps, batch_size
  )
  return moments_of(gradient, noise_std / jnp.sqrt(batch_size), eps, method)
