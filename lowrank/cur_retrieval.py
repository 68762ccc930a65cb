r"""Retrieval with an expensive scorer, through the CUR of its score matrix.

Shapes: `A` anchor queries, `N` keys, `Q` queries, `L` landmark keys; score
functions and calls as in `cur_index`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .cur_index import (
  ScoreFn,
  as_arrays,
  count_rows,
  cur_index,
  require_integer,
  take_rows,
)
from .cur_search import Retrieved, cur_search, require_search


def cur_retrieval(
  score_fn: ScoreFn,
  queries: Any,
  keys: Any,
  *,
  landmarks: int,
  top_k: int,
  rescore: int | None = None,
  rounds: int = 5,
  anchors: int | None = None,
  method: str = 'osinsky',
  key: jax.Array | None = None,
  ridge: float | jax.Array = 0.03,
  batch_size: int = 1,
) -> Retrieved:
  """Retrieves the best keys of every query without scoring all pairs.

  Some of the queries become anchors of a `cur_index`, scored with every key and
  so with exact results; the others go through `cur_search`. Where queries come
  one after the other, build the index once and search in it.

  Args:
    score_fn: [a, ...], [b, ...] -> [a, b]; larger is better.
    queries: [Q, ...].
    keys: [N, ...].
    landmarks: L, keys that every query is scored with.
    top_k: keys to return, 1 to L + `rescore`.
    rescore: calls a query after the landmarks. `None`: 3 L, or N - L.
    rounds: of the search.
    anchors: A, 1 to Q. `None`: 2 L, or Q.
    method: of choosing landmarks, see `cur_index`.
    key: chooses the anchors at random; `None`: evenly spaced queries.
    ridge: of the search.
    batch_size: queries that are treated at a time.

  Returns:
    `Retrieved`, in the order of the queries, with A N + (Q - A) (L + `rescore`)
    calls.

  Raises:
    ValueError: for numbers out of range.

  Example:
    >>> x = jnp.linspace(0.0, 1.0, 40)[:, None]
    >>> near = lambda q, k: -((q - k.T) ** 2)
    >>> found = cur_retrieval(near, x, x, landmarks=4, top_k=2)
    >>> found.indices[:, 0].tolist() == list(range(40)), int(found.calls)
    (True, 832)

  References:
    Yadav et al., `ANNCUR <https://arxiv.org/abs/2210.12579>`_, 2022.
    Yadav et al., `ADACUR <https://arxiv.org/abs/2305.02996>`_, 2023.
    Su, `article 9336 <https://kexue.fm/archives/9336>`_, 2022.
  """
  total, count = count_rows('queries', queries), count_rows('keys', keys)
  require_integer('landmarks', landmarks, 1, count)
  if rescore is None:
    rescore = min(3 * landmarks, count - landmarks)
  if anchors is None:
    anchors = min(2 * landmarks, total)
  require_integer('anchors', anchors, 1, total)
  require_search(count, landmarks, top_k, rescore, rounds, ridge)
  queries, keys = as_arrays(queries, keys)
  chosen, others = _split(total, anchors, key)
  index = cur_index(
    score_fn,
    take_rows(queries, chosen),
    keys,
    landmarks=landmarks,
    method=method,
    key=key,
    batch_size=batch_size,
  )
  scores, indices = jax.lax.top_k(index.scores, top_k)
  known = Retrieved(indices.astype(jnp.int32), scores, index.calls)
  if anchors == total:
    return known
  found = cur_search(
    score_fn,
    index,
    take_rows(queries, others),
    keys,
    top_k=top_k,
    rescore=rescore,
    rounds=rounds,
    ridge=ridge,
    batch_size=batch_size,
  )
  order = jnp.argsort(jnp.concatenate([chosen, others]))
  merge = lambda a, b: jnp.concatenate([a, b])[order]
  return Retrieved(
    merge(known.indices, found.indices),
    merge(known.scores, found.scores),
    known.calls + found.calls,
  )


def _split(total: int, anchors: int, key) -> tuple[jax.Array, jax.Array]:
  """Numbers of the anchors, and of the other queries."""
  if key is None:
    chosen = jnp.arange(anchors) * total // anchors
    order = jnp.argsort(~jnp.zeros(total, bool).at[chosen].set(True))
  else:
    order = jax.random.permutation(key, total)
  return order[:anchors], order[anchors:]
