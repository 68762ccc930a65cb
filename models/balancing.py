r"""Balance without a loss: a bias that only chooses, moved against the load.

Codes or experts are chosen by score plus bias; the bias rises where the load
:math:`F` is below its share :math:`Q = 1 / n` and falls where it is above. No
gradient is involved, so that nothing works against the loss. Made for mixtures
of experts, it cures a collapsed codebook as well: the bias of `nearest_code`.

References:
  Su, `A tour of mixtures of experts, 3: another way to share
  <https://kexue.fm/archives/10757>`_, 2025;
  Wang et al., `Auxiliary-Loss-Free Load Balancing
  <https://arxiv.org/abs/2408.15664>`_, 2024.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape

RULES = ('sign', 'rms')


def _excess(load: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """Load minus its mean, and the mean [..., 1], in float32.

  Whole numbers are subtracted before they are rounded: bfloat16 does not tell
  40,840 from 41,216, nor float32 one in seventeen million.
  """
  require_rank('load', load, 1, at_least=True)
  load = jnp.asarray(load)
  integers = jnp.issubdtype(load.dtype, jnp.integer)
  require(integers, 'load', load.dtype, 'counts of an integer dtype')
  size = load.shape[-1]
  whole, rest = jnp.divmod(jnp.sum(load, axis=-1, keepdims=True), size)
  rest = rest.astype(jnp.float32) / size
  return (load - whole).astype(jnp.float32) - rest, whole + rest


def update_bias(
  bias: ArrayLike,
  load: ArrayLike,
  *,
  rate: ArrayLike = 1e-3,
  rule: str = 'sign',
  recenter: bool = False,
) -> jax.Array:
  r"""Moves the bias of loss-free balancing one step.

  .. math::
    b \leftarrow b - \gamma \operatorname{sign}(F - Q) \quad \text{or} \quad
    b \leftarrow b - \gamma \frac{F - Q}{\mathrm{rms}(F - Q)},

  the equations of article 10757. Choose with the old bias, update afterwards,
  once for each step of the optimizer, with the load of the whole batch; not in
  evaluation.

  Args:
    bias: [..., n], float32 or float64: in half precision 0.5 + 0.001 is 0.5.
    load: counts [..., n], int32, already summed over microbatches and devices
      (`code_counts`), below 2^31 in all; normalised here. No load at all
      changes nothing.
    rate: :math:`\gamma`, 0 or more, in the unit of the scores: 1e-3 is made for
      scores in (0, 1); for `nearest_code` take a tenth to a hundredth of the
      mean squared distance of a vector to its code.
    rule: 'sign' or 'rms', by which the load evens out further for the same
      rate.
    recenter: subtract the mean of the new bias, which a choice of the k largest
      does not see, and by which the sign rule drifts.

  Returns:
    The bias, in its dtype.

  Raises:
    ValueError: for a bias in half precision, a load that does not count, shapes
      that differ, a negative rate, or another rule.

  Example:
    >>> bias, load = jnp.zeros(3), jnp.array([5, 1, 3])
    >>> print(update_bias(bias, load, rate=0.5))
    [-0.5  0.5  0. ]

  References:
    Su, `article 10757 <https://kexue.fm/archives/10757>`_, 2025.
  """
  require_one_of('rule', rule, RULES)
  if isinstance(rate, int | float):
    require(rate >= 0, 'rate', rate, '0 or more')
  bias = jnp.asarray(bias)
  exact = bias.dtype in (jnp.float32, jnp.float64)
  require(exact, 'bias', bias.dtype, 'float32 or float64')
  excess, _ = _excess(load)
  require_shape('bias', bias, excess.shape)
  if rule == 'sign':
    step = jnp.sign(excess)
  else:
    size = jnp.max(jnp.abs(excess), axis=-1, keepdims=True)
    excess = excess / jnp.where(size > 0, size, 1)
    mean = jnp.mean(jnp.square(excess), axis=-1, keepdims=True)
    step = excess / jnp.sqrt(jnp.where(mean > 0, mean, 1))
  bias = bias - jnp.asarray(rate, bias.dtype) * step.astype(bias.dtype)
  return bias - jnp.mean(bias, axis=-1, keepdims=True) if recenter else bias


def max_violation(load: ArrayLike) -> jax.Array:
  r"""Measures imbalance, :math:`\max_i F_i / Q - 1`: 0 if balanced.

  `MaxVio` of Wang et al.; n - 1 if everything chose the same one of n. Random
  choices are not at 0 either, see `violation_floor`. Add the loads of batches
  up to see beyond it.

  Args:
    load: counts [..., n], integers.

  Returns:
    [...], float32; 0 without any load.

  Raises:
    ValueError: if the load does not consist of integers.

  Example:
    >>> print(max_violation(jnp.array([[6, 6], [9, 3]])))
    [0.  0.5]

  References:
    Wang et al., `Auxiliary-Loss-Free Load Balancing
    <https://arxiv.org/abs/2408.15664>`_, 2024, section 2.
  """
  excess, mean = _excess(load)
  most = jnp.max(excess, axis=-1)
  mean = mean[..., 0]
  return most / jnp.where(mean > 0, mean, 1)


def violation_floor(tokens: ArrayLike, n: int, k: int) -> jax.Array:
  r"""Computes the violation of random choices, below which all is chance.

  .. math:: \mathbb{E} \max_{i \le n} z_i \sqrt{\frac{n (n - k)}{(n - 1) T k}},
    \quad z_i \sim N(0, 1)

  Each token chooses k different ones of n, all subsets equally likely: loads
  have the mean T k / n, the variance T k (n - k) / n^2, and the correlation
  -1 / (n - 1), as they add up to T k. Normal for many tokens; skewness puts the
  violation a few per cent above it at ten for each of n.

  Args:
    tokens: T, a number or an array, of a batch or of all that were added up.
    n: of how many is chosen.
    k: how many each token chooses.

  Returns:
    Expected `max_violation`, float32, of the shape of `tokens`.

  Raises:
    ValueError: unless 1 <= k <= n.

  Example:
    >>> print(f'{violation_floor(512, 16, 2):.2f}')
    0.21
  """
  good = isinstance(n, int) and isinstance(k, int) and 1 <= k <= n
  require(good, 'k', k, f'an integer in 1..{n}')
  tokens = jnp.asarray(tokens, jnp.float32)
  # E max = int_0^inf P(max > z) - P(max < -z) dz; nothing is left beyond 10.
  z = jnp.linspace(0, 10, 1001)
  upper, lower = jax.scipy.special.ndtr(z), jax.scipy.special.ndtr(-z)
  largest = jnp.trapezoid(1 - upper**n - lower**n, z)
  return largest * jnp.sqrt(n * (n - k) / (max(n - 1, 1) * k) / tokens)
