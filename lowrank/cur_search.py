r"""Retrieval by estimates from the keys seen so far, and exact scores.

Shapes: `A` anchor queries, `N` keys, `Q` queries, `L` landmark keys; score
functions and calls as in `cur_index`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_shape
from .arrays import precise, unit, wide
from .cur_index import (
  CURIndex,
  ScoreFn,
  as_arrays,
  count_rows,
  require_integer,
  scores_of_one,
  take_rows,
)


class Retrieved(NamedTuple):
  """The best keys found: `indices` [Q, top_k] int32, descending.

  `scores` [Q, top_k] are exact, and `calls` is how many pairs were scored.

  Example:
    >>> from kexue.lowrank import cur_index
    >>> x = jnp.arange(6.0)[:, None]
    >>> score = lambda q, k: q @ k.T
    >>> index = cur_index(score, x[:2], x, landmarks=1)
    >>> found = cur_search(score, index, x[3:4], x, top_k=2, rescore=2)
    >>> found.indices.tolist(), found.scores.tolist(), int(found.calls)
    ([[5, 4]], [[15.0, 12.0]], 3)
  """

  indices: jax.Array
  scores: jax.Array
  calls: int


def cur_search(
  score_fn: ScoreFn,
  index: CURIndex,
  queries: Any,
  keys: Any,
  *,
  top_k: int,
  rescore: int,
  rounds: int = 5,
  start: ArrayLike | None = None,
  ridge: float | jax.Array = 0.03,
  batch_size: int = 1,
) -> Retrieved:
  r"""Finds the best keys of each query with L + `rescore` calls of N.

  The online part. With the scores `c` of a query with the keys `J` seen so far,
  those with all keys are estimated by CUR, `R` the index,

  .. math::
    \hat s = \mu + (c - \mu_J) R_J^T (R_J R_J^T + \lambda I)^{-1} R,

  less the mean :math:`\mu` over anchors; the best of the estimates are scored
  for good. `rounds` of this share `rescore` calls: in each all that was scored
  before is a landmark, and serves the estimate where it counts, near the top.
  Nothing is scored twice, the result is chosen from exact scores, and the
  calls of a query are a static number.

  Deviations: one round is ANNCUR with rescoring, several are ADACUR from
  landmarks chosen by the index and with the best estimates as landmarks. Both
  papers take the pseudo-inverse of :math:`R_J`, which noise makes useless where
  it is nearly square; here it is regularised, by :math:`\lambda` relative to
  the mean eigenvalue of :math:`R_J R_J^T`, after the mean is taken away, whose
  size would set that of :math:`\lambda`.

  Args:
    score_fn: [a, ...], [b, ...] -> [a, b]; larger is better.
    index: of `cur_index`, of the same scores and keys.
    queries: [Q, ...].
    keys: [N, ...].
    top_k: keys to return, 1 to L + `rescore`.
    rescore: calls a query after the landmarks, 0 to N - L. Three times as many
      as landmarks are a good share.
    rounds: 1 or more, of one call at least; at each the index is read once.
    start: distinct keys [L] or [Q, L], by number, which go in the place of the
      landmarks: what a cheaper retriever finds for each query, say.
    ridge: above 0; raised to 4 A times the machine epsilon.
    batch_size: queries that are searched at a time.

  Returns:
    `Retrieved`, with Q (L + `rescore`) calls.

  Raises:
    ValueError: for numbers out of range, or keys that are not the index's.

  Example:
    >>> from kexue.lowrank import cur_index
    >>> x = jax.random.normal(jax.random.key(0), (50, 3))  # Scores of rank 3.
    >>> score = lambda q, k: q @ k.T
    >>> index = cur_index(score, x[:10], x, landmarks=3)
    >>> found = cur_search(
    ...   score, index, x[10:], x, top_k=5, rescore=5, rounds=1, ridge=1e-5
    ... )
    >>> best = jax.lax.top_k(x[10:] @ x.T, 5)[0]
    >>> bool(jnp.allclose(found.scores, best)), int(found.calls) // 40
    (True, 8)
  """
  total, count = count_rows('queries', queries), count_rows('keys', keys)
  require_shape('index.scores', index.scores, (None, count))
  first = jnp.asarray(index.landmarks if start is None else start)
  expected = (total, None)[-first.ndim :] if first.ndim else (None,)
  require_shape('start', first, expected)
  size = first.shape[-1]
  require_search(count, size, top_k, rescore, rounds, ridge)
  require_integer('batch_size', batch_size, 1, 2**31)
  first = jnp.broadcast_to(first.astype(jnp.int32), (total, size))
  found = _search(
    score_fn,
    wide(index.scores),
    *as_arrays(queries, keys),
    first,
    ridge,
    top_k=top_k,
    rescore=rescore,
    rounds=rounds,
    batch_size=batch_size,
  )
  return Retrieved(*found, total * (size + rescore))


def require_search(count, size, top_k, rescore, rounds, ridge) -> None:
  """Checks what a search of `count` keys does after `size` of them."""
  require_integer('rescore', rescore, 0, count - size)
  require_integer('top_k', top_k, 1, size + rescore)
  require_integer('rounds', rounds, 1, 2**31)
  if isinstance(ridge, int | float):
    require(ridge > 0, 'ridge', ridge, 'a number above 0')


@functools.partial(
  jax.jit,
  static_argnames=('score_fn', 'top_k', 'rescore', 'rounds', 'batch_size'),
)
def _search(
  score_fn,
  scores,
  queries,
  keys,
  first,
  ridge,
  *,
  top_k,
  rescore,
  rounds,
  batch_size,
) -> tuple[jax.Array, jax.Array]:
  table, power = unit(scores)
  mean = jnp.mean(table, axis=0)
  rows = (table - mean).T  # [N, A], of which single keys are read.

  def score(query, seen):
    return scores_of_one(score_fn, query, take_rows(keys, seen))

  def search(query, first):
    seen, got = first, score(query, first)
    for size in _sizes(rescore, rounds):
      estimates = _estimates(mean, rows, seen, got / power[0, 0], ridge)
      _, new = jax.lax.top_k(estimates.at[seen].set(-jnp.inf), size)
      seen = jnp.concatenate([seen, new.astype(jnp.int32)])
      got = jnp.concatenate([got, score(query, new)])
    best, place = jax.lax.top_k(got, top_k)
    return seen[place], best

  return jax.lax.map(
    lambda pair: search(*pair), (queries, first), batch_size=batch_size
  )


def _sizes(total: int, parts: int) -> list[int]:
  """Of nonempty parts as even as can be.

  >>> _sizes(7, 3)
  [3, 2, 2]
  """
  return [size for i in range(parts) if (size := -((i - total) // parts))]


@precise
def _estimates(mean, rows, seen, scores, ridge) -> jax.Array:
  """Scores [N] with all keys from those with the keys seen."""
  chosen = rows[seen]
  gram = chosen.T @ chosen
  anchors = gram.shape[0]
  floor = 4 * anchors * jnp.finfo(gram.dtype).eps
  shift = jnp.maximum(ridge, floor) * jnp.trace(gram) / anchors
  shift = jnp.where(shift > 0, shift, 1) * jnp.eye(anchors, dtype=gram.dtype)
  factor = jax.scipy.linalg.cho_factor(gram + shift)
  target = chosen.T @ (scores - mean[seen])
  return mean + rows @ jax.scipy.linalg.cho_solve(factor, target)
