r"""Losses that even the load of experts out, and keep logits small.

Shapes: `...` tokens, `T` tokens of a sequence, `E` experts, `k` chosen.

The load :math:`F` has no gradient, but the mean score :math:`P` follows it.
Article 10735: write any loss of :math:`F`, and put :math:`P + \operatorname{sg}
[F - P]` for it, whose value is the load and whose gradient the score's.

References:
  Su, `A tour of mixtures of experts, 2: not scarcity but inequality
  <https://kexue.fm/archives/10735>`_, 2025;
  Fedus, Zoph and Shazeer, `Switch Transformers
  <https://arxiv.org/abs/2101.03961>`_, 2021.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require_one_of, require_rank, require_shape
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName
from .code_statistics import (
  code_counts,
)
from .quantized import global_mean
from .routing import SCORES, Routing

FORMS = ('product', 'square', 'entropy')
SCOPES = ('batch', 'sequence')
COUNTED = ('all', 'first')

_LEAST = 1e-6  # A share whose logarithm is not out of all proportion.


def straight_through_load(p: ArrayLike, f: ArrayLike) -> jax.Array:
  r"""Gives the load the gradient of the mean score, :math:`P + sg[F - P]`.

  Args:
    p: mean score, of any shape.
    f: share of the load, of the same shape.

  Returns:
    The value of `f`, bit for bit, with the gradient of `p`.

  Example:
    >>> square = lambda p: jnp.sum(straight_through_load(p, jnp.ones(2)) ** 2)
    >>> print(jax.grad(square)(jnp.zeros(2)))
    [2. 2.]

  References:
    Su, `article 10735 <https://kexue.fm/archives/10735>`_, 2025, equation 5.
  """
  p = jnp.asarray(p)
  return (p - lax.stop_gradient(p)) + lax.stop_gradient(f)


def _mean_score(logits: jax.Array, counts: jax.Array, score: str) -> jax.Array:
  """The mean [B, E] of the normalised scores of [B, T, E] that count [B, T]."""
  logits = jnp.where(counts[..., None], logits, 0)
  rho = SCORES[score](logits) * counts[..., None]
  total = jnp.sum(rho, axis=-1, keepdims=True)
  p = rho / jnp.where(total > 0, total, 1)
  tokens = jnp.sum(counts, axis=-1, keepdims=True)
  return jnp.sum(p, axis=-2) / jnp.maximum(tokens, 1)


def _load(
  load: jax.Array,
  chosen: jax.Array,
  experts: int,
  scope: str,
  counted: str,
  axis_name: AxisName | None,
) -> jax.Array:
  """Counts [E] of the batch, or [B, E] of sequences, of choices [B, T, k]."""
  if counted == 'first':
    chosen = chosen[..., :1]
  if scope == 'sequence':
    return jax.vmap(lambda c: code_counts(c, experts))(chosen)
  if counted == 'all':
    return load
  return code_counts(chosen, experts, axis_name=axis_name)


def _share(load: jax.Array) -> jax.Array:
  """The load over its sum, T k: the one place that knows of k."""
  load = wide(load)
  return load / jnp.maximum(jnp.sum(load, axis=-1, keepdims=True), 1)


def _loss_of(p: jax.Array, f: jax.Array, form: str) -> jax.Array:
  """One loss for each row of [..., E]."""
  experts = p.shape[-1]
  if form == 'product':
    return experts * jnp.sum(lax.stop_gradient(f) * p, axis=-1)
  if form == 'square':
    load = straight_through_load(p, f)
    return experts / 2 * jnp.sum(jnp.square(load - 1 / experts), axis=-1)
  load = straight_through_load(p, jnp.maximum(f, _LEAST))
  return jnp.log(experts) + jnp.sum(load * jnp.log(load), axis=-1)


def balance_loss(
  logits: ArrayLike,
  routing: Routing,
  *,
  score: str = 'sigmoid',
  form: str = 'product',
  scope: str = 'batch',
  counted: str = 'all',
  axis_name: AxisName | None = None,
) -> jax.Array:
  r"""Computes the auxiliary loss, to be added times a small weight.

  .. math::
    L = E \sum_i F_i P_i, \qquad p_i = \rho_i / \textstyle\sum_j \rho_j, \quad
    P = \langle p \rangle, \quad F_i = \mathrm{count}_i / (T k),

  1 if balanced, for any k. Its gradient is that of the second form,

  .. math::
    \tfrac{E}{2} |P + \operatorname{sg}[F - P] - 1 / E|^2 \quad \text{and} \quad
    \log E + \sum_i S_i \log S_i, \quad S = P + \operatorname{sg}[F - P],

  as the :math:`P_i` add up to a constant. The second and the third are true
  losses, 0 if balanced; the first one's value says nothing: it can be below 1.
  The bias of `route` takes part in :math:`F`, not in :math:`P`.

  Args:
    logits: [..., E], those that were routed.
    routing: what `route` returned. Tokens without an expert do not count. To
      count microbatches together, replace its load by their sum.
    score: of `route`.
    form: "product" (Switch, GShard and most others), "square" or "entropy".
    scope: "batch": one loss over all tokens. "sequence": the mean of the losses
      of sequences, of [..., T, E], DeepSeek-V3's.
    counted: "all" choices, or the "first" of each token, as GShard does.
    axis_name: mapped axis or axes over which the tokens are split, that of
      `route`. The mean of the result over devices is then the loss of the whole
      batch, as long as its F is that of the whole batch: P is not reduced, as
      its gradient is to be averaged over devices with all the others.

  Returns:
    Scalar, float32 or better.

  Raises:
    ValueError: for another option, or shapes that do not fit.

  Example:
    >>> from kexue.models import route
    >>> logits = jnp.array([[3.0, 1.0], [1.0, 3.0], [2.0, 1.0], [1.0, 2.0]])
    >>> routing = route(logits, None, 1)
    >>> print(f'{balance_loss(logits, routing):.2f}')
    1.00
    >>> print(f'{balance_loss(logits, routing, form="entropy"):.2f}')
    0.00

  References:
    Su, `article 10735 <https://kexue.fm/archives/10735>`_, 2025, equations 4 to
    8; Lepikhin et al., `GShard <https://arxiv.org/abs/2006.16668>`_, 2020;
    DeepSeek-AI, `DeepSeek-V3 <https://arxiv.org/abs/2412.19437>`_, 2024,
    equations 17 to 20.
  """
  require_one_of('score', score, SCORES)
  require_one_of('form', form, FORMS)
  require_one_of('scope', scope, SCOPES)
  require_one_of('counted', counted, COUNTED)
  require_rank('logits', logits, 2, at_least=True)
  logits = wide(logits)
  experts = logits.shape[-1]
  k = jnp.shape(routing.indices)[-1]
  require_shape('routing.indices', routing.indices, (*logits.shape[:-1], k))
  rows = -1 if scope == 'sequence' else 1
  length = logits.shape[-2] if scope == 'sequence' else logits.size // experts
  chosen = routing.indices.reshape(rows, length, k)
  counts = chosen[..., 0] < experts
  p = _mean_score(logits.reshape(rows, length, experts), counts, score)
  f = _share(_load(routing.load, chosen, experts, scope, counted, axis_name))
  if scope == 'batch':
    return _loss_of(global_mean(p[0], counts, axis_name), f, form)
  some = jnp.any(counts, axis=-1)  # Sequences that are not padding alone.
  mean = jnp.sum(some * _loss_of(p, f, form)) / jnp.maximum(jnp.sum(some), 1)
  return global_mean(mean, some, axis_name)


def router_z_loss(
  logits: ArrayLike,
  *,
  mask: ArrayLike | None = None,
  axis_name: AxisName | None = None,
) -> jax.Array:
  r"""Computes the loss that keeps a router's logits small.

  .. math:: L_z = \left\langle \left(\log \textstyle\sum_i e^{z_i} \right)^2
    \right\rangle

  Large logits are rounded coarsely in half precision, and saturate; its usual
  weight is 1e-3.

  Args:
    logits: [..., E].
    mask: [...], true where a token counts; `None`: all.
    axis_name: mapped axis or axes over which the tokens are split; the mean of
      the result over devices is that of the whole batch.

  Returns:
    Scalar, float32 or better.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> print(f'{router_z_loss(jnp.zeros((5, 8))):.3f}')  # log(8)^2
    4.324

  References:
    Zoph et al., `ST-MoE <https://arxiv.org/abs/2202.08906>`_, 2022, equation 5.
  """
  require_rank('logits', logits, 1, at_least=True)
  logits = wide(logits)
  if mask is None:
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))
  require_shape('mask', mask, logits.shape[:-1])
  mask = jnp.asarray(mask, bool)
  logits = jnp.where(mask[..., None], logits, 0)
  squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
  mean = jnp.sum(mask * squares) / jnp.maximum(jnp.sum(mask), 1)
  return global_mean(mean, mask, axis_name)
