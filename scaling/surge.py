r"""Whether, and where, the optimal learning rate of the sign falls again.

In the mean field it does if :math:`P > 2 T_0`, with :math:`P = s^T H s` for the
signs `s` of the gradient and :math:`T_0` the curvature along the sign of pure
noise: the surge index :math:`P / 2 T_0` is above one. What the exact curve does
at large batches the least certain sign decides, as all others are certain long
before it.

References:
  Li et al., `Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling
  <https://arxiv.org/abs/2405.14578>`_, 2024;
  Su, `article 10542 <https://kexue.fm/archives/10542>`_, 2024.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from ..lowrank.arrays import precise
from ..optimizers.softsign import softsign
from .one_step import as_floats, require_moments
from .sign_correlation import correlated_trace


@precise
def surge_index(
  gradient: ArrayLike,
  hessian: ArrayLike,
  noise_correlation: ArrayLike | None = None,
  *,
  eps: ArrayLike = 0.0,
) -> jax.Array:
  r"""Computes :math:`P / (2 T_0)`: the mean field has a surge if above one.

  Articles 10542 and 10563, with :math:`T_0` for their :math:`\mathrm{Tr} H`.
  A criterion of the mean field: the exact curve may surge for an index below
  one, and come to its limit from below for one above (`large_batch_surge`).

  Args:
    gradient: of the full batch, [N].
    hessian: [N, N].
    noise_correlation: of one example's gradient entries, [N, N]; `None`: they
      are independent, which on networks overstates the index tenfold.
    eps: of SoftSign, 0 or more.

  Returns:
    Scalar. It has no meaning where the trace is not positive.

  Raises:
    ValueError: if shapes do not fit, or for a negative `eps`.

  Example:
    >>> g, hessian = jnp.ones(4), jnp.eye(4) + 1
    >>> rho = jnp.eye(4) / 2 + 0.5
    >>> float(surge_index(g, hessian))
    1.25
    >>> print(f'{float(surge_index(g, hessian, rho)):.4f}')
    0.8333
  """
  require_moments(
    gradient, hessian=hessian, noise_correlation=noise_correlation
  )
  gradient, hessian = as_floats(gradient, hessian)
  direction = softsign(gradient, eps)
  curvature = direction @ hessian @ direction
  return curvature / (2 * correlated_trace(hessian, noise_correlation))


class LargeBatchSurge(NamedTuple):
  """Whether the curve comes down to its limit from above; scalars.

  Attributes:
    surge: whether `curvature_share` exceeds `gradient_share`.
    coordinate: the least certain sign.
    curvature_share: of the curvature, what this sign will add when it settles.
    gradient_share: likewise of the descent.

  Example:
    >>> g = jnp.array([1.0, 0.1])
    >>> hessian = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    >>> result = large_batch_surge(g, jnp.ones(2), hessian)
    >>> bool(result.surge), int(result.coordinate)
    (True, 1)
  """

  surge: jax.Array
  coordinate: jax.Array
  curvature_share: jax.Array
  gradient_share: jax.Array


def large_batch_surge(
  gradient: ArrayLike, noise_std: ArrayLike, hessian: ArrayLike
) -> LargeBatchSurge:
  r"""Decides whether :math:`\eta^*(B) > \eta^*(\infty)` for all large `B`.

  For Gaussian noise of any correlation short of one, and `k` of the smallest
  :math:`|g_k| / \sigma_k`, it does if and only if

  .. math::
    \frac{2 (s_k (H s)_k - H_{kk})}{P} > \frac{|g_k|}{|g|_1}.

  Not in the articles: to first order in :math:`1 - |\mu_k|`, to which all other
  signs are certain, the right side is what the numerator of the one-step
  identity lacks, and the left side what the denominator does. It says nothing
  of how large the surge is, and not that there is none at smaller batches. On
  200 random problems of 6 entries it was always right, and the mean field's
  :math:`P > 2 T` missed 69 of 166 surges and saw 4 that were not there.

  Deviations: coordinates that attain the same minimum count together; one
  without noise never does; one of zero gradient is noise for every `B` and adds
  its :math:`H_{kk}` to `P`, as if independent of the others.

  Args:
    gradient: of the full batch, [N].
    noise_std: deviation of one example's gradient entries, [N].
    hessian: symmetric, [N, N].

  Returns:
    `LargeBatchSurge`; `surge` is false without noise, and for
    :math:`P \le 0`, where no learning rate is best.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> g, hessian = jnp.ones(3), jnp.eye(3) + 2
    >>> bool(large_batch_surge(g, g, hessian).surge)
    True
    >>> bool(large_batch_surge(g, g, jnp.eye(3)).surge)
    False
  """
  require_moments(gradient, noise_std, hessian)
  return _large_batch_surge(*as_floats(gradient, noise_std, hessian))


@jax.jit
@precise
def _large_batch_surge(
  gradient: jax.Array, noise_std: jax.Array, hessian: jax.Array
) -> LargeBatchSurge:
  sign, size = jnp.sign(gradient), jnp.abs(gradient)
  noisy = noise_std > 0
  settles = noisy & (size > 0)
  certainty = size / jnp.where(noisy, noise_std, 1)
  certainty = jnp.where(settles, certainty, jnp.inf)
  least = settles & (certainty == jnp.min(certainty))

  diagonal = jnp.diagonal(hessian)
  along = sign * (hessian @ sign)
  curvature = jnp.sum(along) + jnp.sum(jnp.where(size > 0, 0, noisy * diagonal))
  share = lambda x, whole: jnp.sum(jnp.where(least, x, 0)) / whole
  curvature_share = 2 * share(along - diagonal, curvature)
  gradient_share = share(size, jnp.sum(size))
  return LargeBatchSurge(
    (curvature > 0) & (curvature_share > gradient_share),
    jnp.argmin(certainty),
    curvature_share,
    gradient_share,
  )


class SurgePeak(NamedTuple):
  """The peak of a curve; scalars.

  Example:
    >>> curve = lambda batch_size: batch_size / (1 + batch_size / 100) ** 2
    >>> peak = surge_peak(curve, highest=1e4)
    >>> print(f'{float(peak.batch_size):.0f} {float(peak.learning_rate):.1f}')
    100 25.0
  """

  batch_size: jax.Array
  learning_rate: jax.Array
  overshoot: jax.Array


def surge_peak(
  optimal_lr: Callable[[jax.Array], jax.Array],
  *,
  lowest: float = 1e-3,
  highest: float = 1e8,
  points: int = 129,
  rounds: int = 16,
) -> SurgePeak:
  r"""Finds the largest learning rate over the batch sizes.

  By a grid in the logarithm of the batch size, refined fourfold around the best
  point in every round. A maximum is flat: in float32 expect four digits of the
  learning rate's six, and two or three of the batch size's.

  Args:
    optimal_lr: from batch sizes [n] to learning rates [n]; `optimal_lr` of a
      law, or a function that calls `sign_optimal_lr`.
    lowest: the smallest batch size tried, above 0; below 1 it has no meaning
      but that of a law.
    highest: the largest; should be past every noise scale, as its learning rate
      stands for that of the full batch.
    points: of the first grid, 3 or more; of several peaks the highest on it is
      refined.
    rounds: of refinement, 0 or more.

  Returns:
    `SurgePeak`: batch size, learning rate, and by which fraction this exceeds
    the one of `highest`. Infinity and zero for a curve that does not fall, up
    to rounding.

  Raises:
    ValueError: if a number is out of its range.

  Example:
    >>> def curve(batch_size):
    ...   x = 100 / batch_size  # That of SignLaw(1.0, 4.0, 100.0).
    ...   return jnp.sqrt(1 + x) / (x + 4)
    >>> peak = surge_peak(curve)
    >>> print(f'{float(peak.batch_size):.0f} {float(peak.overshoot):.3f}')
    50 0.155
  """
  require(lowest > 0, 'lowest', lowest, 'a number above 0')
  require(highest > lowest, 'highest', highest, f'a number above {lowest}')
  require(points >= 3, 'points', points, 'at least 3')
  require(rounds >= 0, 'rounds', rounds, 'at least 0')

  def around_best(low, high, count):
    logs = jnp.linspace(low, high, count)
    best = jnp.argmax(optimal_lr(jnp.exp(logs)))
    last = count - 1
    return logs[jnp.maximum(best - 1, 0)], logs[jnp.minimum(best + 1, last)]

  @jax.jit
  def search():
    bracket = around_best(math.log(lowest), math.log(highest), points)
    low, high = jax.lax.fori_loop(
      0, rounds, lambda _, bracket: around_best(*bracket, 9), bracket
    )
    batch_size = jnp.exp((low + high) / 2)
    ends = jnp.stack([batch_size, jnp.full_like(batch_size, highest)])
    peak, last = optimal_lr(ends)
    overshoot = peak / last - 1
    falls = overshoot > jnp.finfo(peak.dtype).eps ** 0.75
    return SurgePeak(
      jnp.where(falls, batch_size, jnp.inf),
      jnp.where(falls, peak, last),
      jnp.where(falls, overshoot, 0),
    )

  return search()
