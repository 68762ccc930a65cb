r"""The interval of a ratio of sums, by leaving out one group after the other.

References:
  Efron, `The Jackknife, the Bootstrap and Other Resampling Plans
  <https://doi.org/10.1137/1.9781611970319>`_, 1982;
  Abramowitz and Stegun, `Handbook of Mathematical Functions`, 1964, 26.7.5.
"""

import functools
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require


class RatioInterval(NamedTuple):
  """A ratio [...] and the ends of its confidence interval."""

  ratio: jax.Array
  low: jax.Array
  high: jax.Array


def require_confidence(confidence: float) -> None:
  """Checks the confidence of an interval."""
  good = isinstance(confidence, float) and 0 < confidence < 1
  require(good, 'confidence', confidence, 'a number in (0, 1)')


def student_quantile(degrees: ArrayLike, *, confidence: float) -> jax.Array:
  """The two-sided quantile of Student's t, for any number of degrees from 2 on.

  Fisher's expansion about the normal quantile; within 2 % of the exact one at
  95 %. Infinite below two degrees of freedom.

  >>> print(f'{student_quantile(19.0, confidence=0.95):.4f}')
  2.0930
  """
  require_confidence(confidence)
  z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  terms = (
    (z**3 + z) / 4,
    (5 * z**5 + 16 * z**3 + 3 * z) / 96,
    (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
  )
  degrees = jnp.asarray(degrees)
  quantile = z + sum(c / degrees**k for k, c in enumerate(terms, 1))
  # A little slack: the degrees are a sum of float32 weights.
  return jnp.where(degrees > 1.999, quantile, jnp.inf)


@functools.partial(jax.jit, static_argnames='confidence')
def _jackknife(numerators, denominators, weights, confidence):
  share = weights / jnp.sum(weights)
  squares = jnp.sum(jnp.square(share))
  quantile = student_quantile(1 / squares - 1, confidence=confidence)
  leverage = jnp.where(share > 0, (1 - share) ** 2 / share, 0.0)

  total, divisor = jnp.sum(numerators, axis=0), jnp.sum(denominators, axis=0)
  ratio = total / divisor
  without = (total - numerators) / (divisor - denominators)
  # Infinities that are all the same, of groups without noise, are no spread.
  spread = jnp.where(without == ratio, 0.0, jnp.square(without - ratio))
  variance = jnp.einsum(
    'k,k...->...', leverage, spread, precision=lax.Precision.HIGHEST
  )
  half = quantile * jnp.sqrt(variance * squares / (1 - squares))
  known = jnp.isfinite(half)
  return RatioInterval(
    ratio,
    jnp.where(known, ratio - half, -jnp.inf),
    jnp.where(known, ratio + half, jnp.inf),
  )


def jackknife_ratio(
  numerators: jax.Array,
  denominators: jax.Array,
  weights: jax.Array | None = None,
  *,
  confidence: float = 0.95,
) -> RatioInterval:
  r"""Delete-one-group jackknife for a ratio of two sums over groups.

  With :math:`r = \sum_k a_k / \sum_k b_k`, the same without group `k` in
  :math:`r_{-k}`, and the group's share of the weight :math:`w_k`,

  .. math::
    s^2 = \frac{\sum_k w_k^2}{1 - \sum_k w_k^2}
      \sum_k \frac{(1 - w_k)^2}{w_k} (r_{-k} - r)^2,

  and the interval is :math:`r \pm t s` with Student's `t` of
  :math:`1 / \sum_k w_k^2 - 1` degrees of freedom.

  Deviations: for equal weights it is the jackknife itself, (K - 1) / K times
  the sum of squares. The weights are those of an exponential average that deals
  its steps out to `K` groups: the means of all groups have one variance, but
  the group that was dealt to last weighs most.

  Args:
    numerators: sums :math:`a_k` [K, ...] of the groups.
    denominators: the same for :math:`b_k`.
    weights: [K], 0 or more; 0 for a group that is still empty. `None`: equal.
    confidence: of the interval, in (0, 1).

  Returns:
    `RatioInterval` [...]: the whole line where there are fewer than three
    groups, or 0 / 0.

  Raises:
    ValueError: if `confidence` is not in (0, 1).

  Example:
    >>> a, b = jnp.array([1.0, 2.0, 3.0, 2.0]), jnp.ones(4)
    >>> print(', '.join(f'{x:.3f}' for x in jackknife_ratio(a, b)))
    2.000, 0.702, 3.298
  """
  require_confidence(confidence)
  if weights is None:
    weights = jnp.ones_like(numerators, shape=numerators.shape[:1])
  return _jackknife(numerators, denominators, weights, confidence)
