r"""Balance without a loss and without a rate: a bias out of quantiles.

Shapes: `...` tokens, `T` of them, `E` experts, `k` chosen.

The assignment of the largest sum of scores in which each token has `k` experts
and each expert `T k / E` tokens is a linear program. Its dual has one number
for each token and one for each expert, the bias; given the others, each is a
quantile, and in turn they converge. One turn for each batch, from the last
bias, follows the router through training.

References:
  Su, `A tour of mixtures of experts, 6: optimal assignment
  <https://kexue.fm/archives/11619>`_, 2026.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_rank, require_shape
from ..mapped_axes import AxisName, sum_over


def _as_integers(x: jax.Array) -> jax.Array:
  """Integers above zero in the order of the float32 they are made of."""
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _as_floats(u: jax.Array) -> jax.Array:
  """The inverse; zero becomes NaN."""
  bits = jnp.where(u >> 31 == 1, u ^ jnp.uint32(1 << 31), ~u)
  return lax.bitcast_convert_type(bits, jnp.float32)


def kth_largest(
  x: jax.Array,
  rank: ArrayLike,
  *,
  mask: jax.Array | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  """Finds the number of a rank in each column, over all devices, exactly.

  Bit by bit, each by counting how many are as large: no sort, no gather, and E
  integers a bit between devices.

  Args:
    x: float32 [N, E].
    rank: 1 for the largest; a whole number, traced or not.
    mask: [N], true where a row counts; `None`: all.
    axis_name: mapped axis or axes over which the rows are split.

  Returns:
    [E]; NaN where there are fewer numbers than the rank.

  Example:
    >>> print(kth_largest(jnp.array([[1.0, -5.0], [3.0, -7.0]]), 2))
    [ 1. -7.]
  """
  u = _as_integers(x)
  if mask is not None:
    u = jnp.where(mask[:, None], u, 0)

  def as_large(bound):
    return sum_over(jnp.sum(u >= bound, axis=0, dtype=jnp.int32), axis_name)

  def add_bit(i, found):
    larger = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(as_large(larger) >= rank, larger, found)

  nothing = jnp.zeros_like(as_large(0), jnp.uint32)
  return _as_floats(lax.fori_loop(0, 32, add_bit, nothing))


def quantile_bias(
  scores: ArrayLike,
  bias: ArrayLike,
  k: int,
  *,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  r"""Moves the bias of loss-free balancing one turn towards its optimum.

  .. math::
    \alpha_t \text{ between the } k\text{-th and } (k + 1)\text{-th largest of }
    s_t + b, \qquad
    b_i \leftarrow -(T k / E + 1)\text{-th largest of } s_{\cdot i} - \alpha,

  so that expert `i` would be one of the `k` of exactly T k / E tokens if the
  others stayed where they are; T k / E is rounded down. As with `update_bias`,
  choose with the old bias, and update afterwards, not in evaluation. Scores of
  any range will do. There is no rate: average over batches, if they are small.

  Deviations: every :math:`\alpha` between the two is optimal; the article takes
  the lower end, which makes ties at which turn after turn gets stuck a few
  per cent off balance. The middle goes on to the last token. The article also
  averages the biases of parts of the batch, to be spared the quantile of all
  tokens, which here is exact, over any devices.

  Args:
    scores: [..., E], the score that chose, without bias.
    bias: [E], float32, the old one.
    k: experts of a token, fewer than E.
    mask: [...], true where a token counts; `None`: all.
    axis_name: mapped axis or axes over which the tokens are split.

  Returns:
    The new bias [E], float32; the old one if no token counts.

  Raises:
    ValueError: unless 1 <= k < E, or if shapes do not fit.

  Example:
    >>> scores = jnp.array([[0.9, 0.1], [0.8, 0.3], [0.7, 0.5], [0.6, 0.4]])
    >>> bias = quantile_bias(scores, jnp.zeros(2), 1)
    >>> print(jnp.argmax(scores + bias, axis=-1))
    [0 0 1 1]

  References:
    Su, `article 11619 <https://kexue.fm/archives/11619>`_, 2026.
  """
  require_rank('scores', scores, 2, at_least=True)
  experts = jnp.shape(scores)[-1]
  require_shape('bias', bias, (experts,))
  good = isinstance(k, int) and 1 <= k < experts
  require(good, 'k', k, f'an integer in 1..{experts - 1}')
  if mask is None:
    mask = jnp.ones_like(scores[..., 0], bool)
  require_shape('mask', mask, jnp.shape(scores)[:-1])
  bias = jnp.asarray(bias, jnp.float32)
  scores = lax.stop_gradient(jnp.asarray(scores, jnp.float32))
  scores = scores.reshape(-1, experts)
  mask = jnp.asarray(mask, bool).reshape(-1)
  tokens = sum_over(jnp.sum(mask, dtype=jnp.int32), axis_name)
  alpha = jnp.mean(lax.top_k(scores + bias, k + 1)[0][:, -2:], -1)[:, None]
  rank = tokens * k // experts + 1
  beta = kth_largest(scores - alpha, rank, mask=mask, axis_name=axis_name)
  return jnp.where(tokens > 0, -beta, bias)
