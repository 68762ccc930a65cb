r"""Laws of the optimal learning rate against the batch size, of few numbers.

For SGD the law of two numbers is exact. For the sign and for SoftSign it is the
scalar mean field of the articles: with :math:`A = \nu^T g`,
:math:`P = \nu^T H \nu` for :math:`\nu = \mathrm{softsign}(g, \epsilon)`, the
curvature `T` along the sign of pure noise, and :math:`x = c \kappa^2 / B` with
an average :math:`\kappa^2` of :math:`\sigma_i^2 / (g_i^2 + \epsilon^2)`, every
entry of the update is
taken to shrink by :math:`\beta = (1 + x)^{-1/2}`, and

.. math::
  \eta^*(B) = \frac{\beta A}{\beta^2 P + (1 - \beta^2) T}
    = \frac{A}{T} \frac{\sqrt{1 + x}}{x + P / T}, \qquad
  \Delta L^*(B) = \frac{A^2}{2 T} \frac{1}{x + P / T}.

The decrease is a hyperbola with the critical batch size
:math:`c \kappa^2 T / P`. The learning rate has a peak at
:math:`c \kappa^2 T / (P - 2 T)` if :math:`P > 2 T` and falls after it: the
Surge phenomenon. Article 10542 takes :math:`c = \pi / 2`, which is right for
small batches, and 11280 :math:`c = 1`.

It is qualitative. On random problems of 200 entries with heavy tails its worst
error over the batch sizes was 60 to 80 percent in the median, and the peak off
by an order of magnitude, which the choice of :math:`\kappa^2` alone moves it
by. On networks :math:`T = \mathrm{Tr} H`, the articles' choice, is worse: their
noise is correlated (`correlated_trace`). `sign_optimal_lr` computes the curve
itself from the same moments; a law is for what was fitted, and to be read.

References:
  Li et al., `Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling
  <https://arxiv.org/abs/2405.14578>`_, 2024;
  Su, articles `10542 <https://kexue.fm/archives/10542>`_ and `10563
  <https://kexue.fm/archives/10563>`_, 2024, and `11280
  <https://kexue.fm/archives/11280>`_, 2025.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .mean_field import mean_field_numbers
from .one_step import as_floats, require_batch_size
from .sgd import sgd_moments, sgd_optimal_lr


def _require_scale(name: str, scale: Any) -> None:
  require(scale is not None, name, scale, 'the scale of the loss decrease')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SgdLaw:
  r""":math:`\eta^*(B) = \eta_{\max} / (1 + B_{noise} / B)`, see `sgd.py`.

  Attributes:
    lr_max: learning rate of the full batch.
    noise_scale: batch size at which the optimum is half of that, in examples.
    decrease_max: of the loss, in the best step of the full batch; or None.

  Example:
    >>> law = SgdLaw(lr_max=0.125, noise_scale=64.0)
    >>> float(law.optimal_lr(64)), law.critical_batch_size, law.surge
    (0.0625, 64.0, None)
  """

  lr_max: ArrayLike
  noise_scale: ArrayLike
  decrease_max: ArrayLike | None = None

  @classmethod
  def from_moments(
    cls,
    *,
    gradient: ArrayLike,
    noise_std: ArrayLike,
    hessian: ArrayLike,
    noise_correlation: ArrayLike | None = None,
  ) -> 'SgdLaw':
    """The exact law; arguments of `sgd_moments`."""
    moments = sgd_moments(
      gradient=gradient,
      noise_std=noise_std,
      hessian=hessian,
      noise_correlation=noise_correlation,
    )
    return cls(moments.lr_max, moments.noise_scale, moments.decrease_max)

  def optimal_lr(self, batch_size: ArrayLike) -> jax.Array:
    """`sgd_optimal_lr` of these numbers."""
    return sgd_optimal_lr(
      batch_size, lr_max=self.lr_max, noise_scale=self.noise_scale
    )

  def loss_decrease(self, batch_size: ArrayLike) -> jax.Array:
    """Of the best step; it shrinks with the batch as the learning rate does."""
    _require_scale('decrease_max', self.decrease_max)
    return sgd_optimal_lr(
      batch_size, lr_max=self.decrease_max, noise_scale=self.noise_scale
    )

  @property
  def critical_batch_size(self) -> ArrayLike:
    """Where half of the largest decrease is reached."""
    return self.noise_scale

  @property
  def surge(self) -> None:
    """The learning rate of SGD has no peak."""
    return None


@jax.jit
def _curve(
  rate: jax.Array,
  ratio: jax.Array,
  noise_scale: jax.Array,
  batch_size: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Learning rate, and decrease over A / 2; infinite without a minimum."""
  x = noise_scale / batch_size
  step = rate / (x + ratio)
  step = jnp.where(step < 0, jnp.inf, step)
  return step * jnp.sqrt(1 + x), step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SignLaw:
  r"""The mean field of the sign, :math:`\rho \sqrt{1 + x} / (x + r)`.

  With the rate :math:`\rho = A / T`, the curvature ratio :math:`r = P / T` and
  :math:`x = c \kappa^2 / B`, see this file.

  Attributes:
    rate: :math:`|g|_1 / T`, positive.
    curvature_ratio: `P / T`.
    noise_scale: :math:`c \kappa^2`, in examples.
    gradient_l1: :math:`|g|_1`, which the loss decrease needs; or None.

  Example:
    >>> law = SignLaw(rate=0.01, curvature_ratio=6.0, noise_scale=40.0)
    >>> law.surge_index, law.surge
    (3.0, 10.0)
    >>> print(law.optimal_lr(jnp.array([1.0, 10.0, 1e6])).round(5))
    [0.00139 0.00224 0.00167]
  """

  rate: ArrayLike
  curvature_ratio: ArrayLike
  noise_scale: ArrayLike
  gradient_l1: ArrayLike | None = None

  @classmethod
  def from_moments(
    cls,
    *,
    gradient: ArrayLike,
    noise_std: ArrayLike,
    hessian: ArrayLike,
    noise_correlation: ArrayLike | None = None,
    noise_factor: float = math.pi / 2,
    average: str = 'simple',
  ) -> 'SignLaw':
    r"""The law of the articles, or with correlated noise.

    Args:
      gradient: of the full batch, [N].
      noise_std: deviation of one example's gradient entries, [N].
      hessian: [N, N].
      noise_correlation: [N, N]; replaces the trace by `correlated_trace`.
      noise_factor: `c`: :math:`\pi / 2` in article 10542, 1 in 11280.
      average: :math:`\kappa^2` is for 'simple'
        :math:`\mathrm{Tr} \Sigma / g^T g`, as in the articles, and for
        'small_batch' :math:`(|g|_1 / \sum g_i^2 / \sigma_i)^2`, exact for small
        batches if :math:`c = \pi / 2`. The mean of the ratios, which the
        smallest gradients rule, is not offered: the choice moves the peak by an
        order of magnitude.

    Returns:
      The law. All of it is NaN where the trace is not positive, and the noise
      scale is infinite or NaN for a gradient of zeros.

    Raises:
      ValueError: if shapes do not fit, or for an unknown average.
    """
    return cls(
      **mean_field_numbers(
        gradient,
        noise_std,
        hessian,
        noise_correlation,
        0.0,
        noise_factor,
        average,
      )
    )

  @classmethod
  def from_critical_batch_size(
    cls,
    critical_batch_size: ArrayLike,
    *,
    noise_scale: ArrayLike,
    rate: ArrayLike,
    gradient_l1: ArrayLike | None = None,
  ) -> 'SignLaw':
    """Inverts a critical batch size that was fitted to a loss curve.

    Args:
      critical_batch_size: of the hyperbola, in examples.
      noise_scale: the attribute.
      rate: the attribute.
      gradient_l1: the attribute.

    Returns:
      The law whose `critical_batch_size` it is.
    """
    ratio = noise_scale / critical_batch_size
    return cls(rate, ratio, noise_scale, gradient_l1)

  def _values(self, batch_size: ArrayLike) -> tuple[jax.Array, jax.Array]:
    require_batch_size(batch_size)
    numbers = self.rate, self.curvature_ratio, self.noise_scale
    return _curve(*as_floats(*numbers, batch_size))

  def optimal_lr(self, batch_size: ArrayLike) -> jax.Array:
    """Learning rates of the broadcast shape; infinite without a minimum."""
    return self._values(batch_size)[0]

  def loss_decrease(self, batch_size: ArrayLike) -> jax.Array:
    """Of the best step; always growing with the batch, surge or not."""
    _require_scale('gradient_l1', self.gradient_l1)
    return self._values(batch_size)[1] * self.gradient_l1 / 2

  @property
  def critical_batch_size(self) -> ArrayLike:
    """Where half of the largest decrease is reached."""
    return self.noise_scale / self.curvature_ratio

  @property
  def surge_index(self) -> ArrayLike:
    """P / (2 T): above one there is a surge."""
    return self.curvature_ratio / 2

  @property
  def turning_point(self) -> jax.Array:
    r"""The shrinkage at the peak, :math:`\beta_n = (P / T - 1)^{-1/2}`.

    Above one it is reached by no batch, and infinite for a ratio below one.
    """
    (ratio,) = as_floats(self.curvature_ratio)
    above = ratio > 1
    return jnp.where(
      above, jax.lax.rsqrt(jnp.where(above, ratio, 2) - 1), jnp.inf
    )

  @property
  def surge(self) -> ArrayLike | None:
    """Batch size of the largest learning rate; None if it only grows.

    For arrays and traced numbers, which cannot be None, infinity.
    """
    excess = self.curvature_ratio - 2
    if isinstance(excess, jax.core.Tracer) or jnp.ndim(excess):
      falls = excess > 0
      return jnp.where(
        falls, self.noise_scale / jnp.where(falls, excess, 1), jnp.inf
      )
    return self.noise_scale / excess if excess > 0 else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftsignLaw(SignLaw):
  r"""The mean field of SoftSign: `SignLaw` with other numbers.

  Those of :math:`\nu = \mathrm{softsign}(g, \epsilon)` in place of the sign, so
  that a large epsilon makes `P`, and with it the surge index, small: the surge
  disappears, in the mean field before it does in truth.

  Attributes:
    rate: :math:`\nu^T g / T`.
    curvature_ratio: :math:`\nu^T H \nu / T`.
    noise_scale: :math:`c \kappa^2`, in examples.
    gradient_l1: :math:`\nu^T g`; or None.
    eps: epsilon, in the unit of the gradient. A record: the other numbers are
      those for it.

  Example:
    >>> g, hessian = jnp.array([1.0, -1.0, 1.0]), jnp.eye(3) + 1.0
    >>> law = SoftsignLaw.from_moments(
    ...     gradient=g, noise_std=4 * jnp.abs(g), hessian=hessian, eps=0.75
    ... )
    >>> print(f'{float(law.curvature_ratio):.3f}')  # 4 / 6 at epsilon 0.
    0.427
  """

  eps: ArrayLike = 0.0

  @classmethod
  def from_moments(
    cls,
    *,
    gradient: ArrayLike,
    noise_std: ArrayLike,
    hessian: ArrayLike,
    eps: ArrayLike,
    noise_correlation: ArrayLike | None = None,
    noise_factor: float = math.pi / 2,
    average: str = 'simple',
  ) -> 'SoftsignLaw':
    r"""The law of article 10563, or with correlated noise.

    For `average='simple'` :math:`\kappa^2` is
    :math:`\mathrm{Tr} \Sigma / \sum (g_i^2 + \epsilon^2)`, that of article
    11280, and for 'small_batch' :math:`(\nu^T g / \sum g_i^2 / \sigma_i)^2`.
    With `eps` to infinity and `noise_factor=1` the learning rate over epsilon
    tends to that of SGD for noise that is the same in every entry; with
    :math:`\pi / 2`, which article 10563 keeps, its noise is too large by that.

    Args:
      gradient: see `SignLaw.from_moments`, like what is not named here.
      noise_std: likewise.
      hessian: likewise.
      eps: 0 or more; scalar, or [N].
      noise_correlation: likewise.
      noise_factor: likewise.
      average: likewise.

    Returns:
      The law.

    Raises:
      ValueError: for a negative `eps`, and as `SignLaw.from_moments`.
    """
    numbers = mean_field_numbers(
      gradient,
      noise_std,
      hessian,
      noise_correlation,
      eps,
      noise_factor,
      average,
    )
    return cls(**numbers, eps=eps)
