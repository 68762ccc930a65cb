"""How loud routed experts must be beside shared ones."""

import jax
import jax.numpy as jnp

from ..checks import require
from .code_statistics import (
  require_count,
)
from .routing import route


def shared_expert_scale(
  n: int,
  k: int,
  s: int,
  *,
  score: str = 'softmax',
  gate: str | None = None,
  renormalize: bool = False,
  samples: int = 10_000,
) -> float:
  r"""Estimates the factor that balances routed and shared experts at the start.

  .. math::
    y = \sum_{i=1}^s e_i + \lambda \sum_{i \in S} \rho_i e_i, \qquad
    \lambda = E \sqrt{s} \Big/ \sqrt{\textstyle\sum_{i \in S} \rho_i^2},

  the mean over logits from N(0, 1), as article 10945 simulates it: both sums
  are equally long if experts are orthogonal and of one length. It belongs into
  the `scale` of `route`.

  Args:
    n: experts in all, s shared and n - s routed ones.
    k: active experts in all, s shared and k - s routed ones.
    s: shared experts.
    score: see `route`, like the other arguments.
    gate: see `route`.
    renormalize: see `route`.
    samples: tokens of the simulation, of a fixed seed; their error is that of
      the third digit or so.

  Returns:
    A number. For DeepSeek-V2's choices 16, which it uses; for DeepSeek-V3's
    2.83, which uses 2.5. Infinite where all gates of a token may be zero.

  Raises:
    ValueError: unless 1 <= s < k <= n, or as `route`.

  Example:
    >>> print(f'{shared_expert_scale(162, 8, 2):.0f}')
    16
    >>> factor = shared_expert_scale(
    ...   257, 9, 1, score='sigmoid', renormalize=True)
    >>> print(f'{factor:.2f}')
    2.83

  References:
    Su, `A tour of mixtures of experts, 5: reflections on uniformity
    <https://kexue.fm/archives/10945>`_, 2025.
  """
  for name, value in {'s': s, 'k': k, 'n': n, 'samples': samples}.items():
    require_count(name, value)
  require(s < k, 's', s, f'fewer than the {k} active experts')
  require(k <= n, 'k', k, f'at most {n}')
  with jax.ensure_compile_time_eval():
    logits = jax.random.normal(jax.random.key(0), (samples, n - s))
    routing = route(
      logits, None, k - s, score=score, gate=gate, renormalize=renormalize
    )
    return float(jnp.mean(s**0.5 / jnp.linalg.norm(routing.gates, axis=-1)))
