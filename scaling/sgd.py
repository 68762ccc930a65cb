r"""The optimal learning rate of SGD against the batch size.

The minibatch gradient has mean `g` and covariance :math:`\Sigma / B`, whatever
its distribution, and the one-step identity becomes

.. math::
  \eta^*(B) = \frac{\eta_{\max}}{1 + B_{noise} / B}, \quad
  \eta_{\max} = \frac{g^T g}{g^T H g}, \quad
  B_{noise} = \frac{\mathrm{Tr}(\Sigma H)}{g^T H g}, \quad
  B_{simple} = \frac{\mathrm{Tr} \Sigma}{g^T g}.

References:
  McCandlish et al., `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018, equations 2.6 to 2.9;
  Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..lowrank.arrays import precise, unit
from .one_step import as_floats, require_batch_size, require_moments


class SgdMoments(NamedTuple):
  """What the law of SGD is made of; scalars.

  Attributes:
    lr_max: :math:`g^T g / g^T H g`, the best learning rate without noise.
    noise_scale: :math:`B_{noise}`, in examples.
    simple_noise_scale: :math:`B_{simple}`, which is it for `H = I`.
    decrease_max: of the loss in the best step without noise.

  Example:
    >>> g, one = jnp.array([1.0, 1.0]), jnp.ones(2)
    >>> hessian = jnp.diag(jnp.array([1.0, 3.0]))
    >>> moments = sgd_moments(gradient=g, noise_std=4 * one, hessian=hessian)
    >>> float(moments.lr_max), float(moments.noise_scale)
    (0.5, 16.0)
  """

  lr_max: jax.Array
  noise_scale: jax.Array
  simple_noise_scale: jax.Array
  decrease_max: jax.Array


def sgd_optimal_lr(
  batch_size: ArrayLike, *, lr_max: ArrayLike, noise_scale: ArrayLike
) -> jax.Array:
  r"""Computes :math:`\eta_{\max} / (1 + B_{noise} / B)`.

  Article 10542, and equation 2.6 of McCandlish et al.: linear in the batch size
  far below the noise scale, half of the maximum at it.

  Args:
    batch_size: number of examples, above 0; infinity is the full batch.
    lr_max: learning rate of the full batch.
    noise_scale: in examples, like `batch_size`.

  Returns:
    Learning rates of the broadcast shape; infinite where the formula is
    negative, that is where the curvature along the update is and the quadratic
    has no minimum.

  Raises:
    ValueError: if `batch_size` is a number that is not positive.

  Example:
    >>> lr = sgd_optimal_lr(jnp.array([8, 64]), lr_max=0.1, noise_scale=64.0)
    >>> print(lr.round(4))
    [0.0111 0.05  ]
  """
  require_batch_size(batch_size)
  return _saturating(*as_floats(batch_size, lr_max, noise_scale))


@jax.jit
def _saturating(
  batch_size: jax.Array, lr_max: jax.Array, noise_scale: jax.Array
) -> jax.Array:
  lr = lr_max / (1 + noise_scale / batch_size)
  return jnp.where(lr < 0, jnp.inf, lr)


def sgd_moments(
  *,
  gradient: ArrayLike,
  noise_std: ArrayLike,
  hessian: ArrayLike,
  noise_correlation: ArrayLike | None = None,
) -> SgdMoments:
  r"""Computes the maximum and both noise scales from the exact moments.

  Args:
    gradient: of the full batch, [N].
    noise_std: deviation of one example's gradient entries, [N], 0 or more;
      the root of the diagonal of :math:`\Sigma`.
    hessian: [N, N]; only its symmetric part matters.
    noise_correlation: [N, N], so that
      :math:`\Sigma_{ij} = \sigma_i \rho_{ij} \sigma_j`; `None`: the identity.

  Returns:
    `SgdMoments`, not clipped: negative or infinite where :math:`g^T H g` is
    not positive, NaN for a gradient of zeros.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> moments = sgd_moments(
    ...     gradient=jnp.ones(2),
    ...     noise_std=2 * jnp.ones(2),
    ...     hessian=jnp.eye(2),
    ...     noise_correlation=jnp.array([[1.0, 0.5], [0.5, 1.0]]),
    ... )
    >>> float(moments.noise_scale), float(moments.decrease_max)
    (4.0, 1.0)
  """
  require_moments(gradient, noise_std, hessian, noise_correlation)
  gradient, noise_std, hessian = as_floats(gradient, noise_std, hessian)
  return _sgd_moments(gradient, noise_std, hessian, noise_correlation)


@jax.jit
@precise
def _sgd_moments(
  gradient: jax.Array,
  noise_std: jax.Array,
  hessian: jax.Array,
  noise_correlation: ArrayLike | None,
) -> SgdMoments:
  # Over one power of two: squares of huge and tiny gradients stay in range.
  (g, std), size = unit(jnp.stack([gradient, noise_std]))
  if noise_correlation is None:
    noise_curvature = std**2 @ jnp.diagonal(hessian)
  else:
    correlation = jnp.asarray(noise_correlation, hessian.dtype)
    noise_curvature = std @ (correlation * hessian) @ std
  square, curvature = g @ g, g @ hessian @ g
  lr_max = square / curvature
  return SgdMoments(
    lr_max=lr_max,
    noise_scale=noise_curvature / curvature,
    simple_noise_scale=std @ std / square,
    decrease_max=lr_max * square / 2 * size[0, 0] ** 2,
  )
