r"""Which experts a token goes to, and how much of each it gets.

Shapes: `...` tokens, `E` experts, `k` chosen, `G` groups of experts.

A score of the router's logits plus a bias chooses; a score without the bias, of
another activation if wanted, is the gate. The bias belongs to nobody's
gradient: `update_bias` or `quantile_bias` moves it, so that the load evens out.

References:
  Su, `A tour of mixtures of experts, 3: another way to share
  <https://kexue.fm/archives/10757>`_, 2025;
  DeepSeek-AI, `DeepSeek-V3 <https://arxiv.org/abs/2412.19437>`_, 2024, section
  2.1.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName
from .code_statistics import (
  code_counts,
)

SCORES = {
  'softmax': jax.nn.softmax,
  'sigmoid': jax.nn.sigmoid,
  'relu': jax.nn.relu,
  'softplus': jax.nn.softplus,
}


class Routing(NamedTuple):
  """Experts [..., k] of each token, int32, their gates [..., k], the load [E].

  The expert E, which there is not, stands for none: padding goes there, with
  gates of zero. The load, int32, is how often each expert was chosen.

  Example:
    >>> routing = route(jnp.array([[0.0, 2.0, 1.0]]), None, 2)
    >>> print(routing.indices, routing.load)
    [[1 2]] [0 1 1]
  """

  indices: jax.Array
  gates: jax.Array
  load: jax.Array


def _within_groups(score: jax.Array, groups: int, kept: int) -> jax.Array:
  """Scores, -inf outside the groups with the largest sums of two scores."""
  parts = score.reshape(*score.shape[:-1], groups, -1)
  two = min(2, parts.shape[-1])
  rank = jnp.sum(lax.top_k(parts, two)[0], axis=-1)
  best = lax.top_k(rank, kept)[1]
  chosen = jnp.any(best[..., None] == jnp.arange(groups), axis=-2)
  return jnp.where(chosen[..., None], parts, -jnp.inf).reshape(score.shape)


def _check_choice(experts: int, k: int, groups: int, kept: int) -> None:
  good = isinstance(groups, int) and groups >= 1 and experts % groups == 0
  require(good, 'groups', groups, f'a divisor of the {experts} experts')
  good = isinstance(kept, int) and 1 <= kept <= groups
  require(good, 'kept_groups', kept, f'an integer in 1..{groups}')
  most = experts // groups * kept
  good = isinstance(k, int) and 1 <= k <= most
  require(good, 'k', k, f'an integer in 1..{most}')


def route(
  logits: ArrayLike,
  bias: ArrayLike | None,
  k: int,
  *,
  score: str = 'sigmoid',
  gate: str | None = None,
  renormalize: bool = False,
  scale: float = 1.0,
  groups: int = 1,
  kept_groups: int | None = None,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> Routing:
  r"""Chooses k experts for each token.

  .. math::
    S = \operatorname{argtop}_k \sigma(z) + b, \qquad g_i = h(z_i)
    \text{ for } i \in S,

  of the logits `z`, with the score :math:`\sigma`, the bias `b`, and the gate
  `h` (article 10757); renormalised, :math:`g_i / \sum_{j \in S} g_j`. The bias
  chooses and takes no other part: no gradient reaches it. Any activation will
  do as a gate that rises and is not negative; a router that predicts lengths
  (article 10699) has gates that need not add up to 1.

  Args:
    logits: [..., E]; in half precision they are routed in float32.
    bias: [E], in the unit of the score; `None`: zero.
    k: experts of a token.
    score: "softmax", "sigmoid", "relu" or "softplus".
    gate: another of them; `None`: the same.
    renormalize: make the gates of a token add up to 1; those of a token with
      nothing but zeros stay zero.
    scale: factor of the gates after that, DeepSeek-V3's `route_scale`; see
      `shared_expert_scale`.
    groups: G, of E / G experts in a row each, of which the best alone are open
      to a token, by the sum of their two largest scores with bias: fewer
      devices to send to. 1: all are open.
    kept_groups: how many groups are open; `None`: all.
    mask: [...], true where a token counts; `None`: all. The others, which may
      be NaN, go to no expert.
    axis_name: mapped axis or axes over which the tokens are split.

  Returns:
    `Routing`: indices by descending score, the first one of equals; gates in
    float32 or better, with the gradient of `h`; the load over all devices.

  Raises:
    ValueError: for another activation, a number of experts that does not work
      out, or shapes that do not fit.

  Example:
    >>> logits = jnp.array([[2.0, 1.0, 0.0], [3.0, 1.0, -1.0]])
    >>> routing = route(logits, jnp.array([-1.0, 0.0, 0.0]), 1)
    >>> print(routing.indices.ravel(), routing.load)
    [1 1] [0 2 0]
    >>> print(routing.gates.ravel() == jax.nn.sigmoid(1.0))
    [ True  True]

  References:
    Su, `article 10757 <https://kexue.fm/archives/10757>`_, 2025;
    Wang et al., `Auxiliary-Loss-Free Load Balancing
    <https://arxiv.org/abs/2408.15664>`_, 2024.
  """
  require_one_of('score', score, SCORES)
  gate = score if gate is None else gate
  require_one_of('gate', gate, SCORES)
  require_rank('logits', logits, 1, at_least=True)
  logits = wide(logits)
  experts = logits.shape[-1]
  kept = groups if kept_groups is None else kept_groups
  _check_choice(experts, k, groups, kept)
  if mask is not None:
    require_shape('mask', mask, logits.shape[:-1])
    mask = jnp.asarray(mask, bool)[..., None]
    logits = jnp.where(mask, logits, 0)
  chosen_by = SCORES[score](logits)
  if bias is not None:
    require_shape('bias', bias, (experts,))
    chosen_by = chosen_by + jnp.asarray(bias)
  chosen_by = lax.stop_gradient(chosen_by)
  if kept < groups:
    chosen_by = _within_groups(chosen_by, groups, kept)
  indices = lax.top_k(chosen_by, k)[1]
  if mask is not None:
    indices = jnp.where(mask, indices, experts)
  gates = jnp.take_along_axis(
    SCORES[gate](logits), indices, axis=-1, mode='fill', fill_value=0
  )
  if renormalize:
    total = jnp.sum(gates, axis=-1, keepdims=True)
    gates = gates / jnp.where(total > 0, total, 1)
  load = code_counts(indices, experts, axis_name=axis_name)
  return Routing(indices, gates * scale, load)
