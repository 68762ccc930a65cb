r"""What CUR retrieval computes once: scores of anchors, landmark keys.

Shapes: `A` anchor queries, `N` keys, `L` landmark keys. A score function takes
queries [a, ...] and keys [b, ...] to real scores [a, b], each of which depends
on its query and its key alone. It is called under `jit` and `vmap` with blocks
of any size; a program outside JAX goes through `jax.pure_callback`. Queries and
keys are arrays, or pytrees of arrays, with their number as first axis. Calls
count pairs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..checks import require, require_one_of, require_shape
from .arrays import wide
from .interpolative import METHODS as _SELECTORS
from .interpolative import interpolative

METHODS = (*_SELECTORS, 'uniform')
ScoreFn = Callable[[Any, Any], jax.Array]


class CURIndex(NamedTuple):
  """What is computed once for a set of keys, at A N calls.

  `scores` [A, N] of the anchor queries with every key, and `landmarks` [L]
  int32, the keys which every query will be scored with.

  Example:
    >>> x = jnp.arange(6.0)[:, None]
    >>> index = cur_index(lambda q, k: q @ k.T, x[:2], x, landmarks=1)
    >>> index.scores.shape, index.landmarks.shape, index.calls
    ((2, 6), (1,), 12)
  """

  scores: jax.Array
  landmarks: jax.Array

  @property
  def calls(self) -> int:
    """Pairs that were scored: A N."""
    return self.scores.size


def count_rows(name: str, items: Any) -> int:
  """The common length of the first axes."""
  counts = {jnp.shape(x)[:1] for x in jax.tree.leaves(items)}
  good = len(counts) == 1 and counts != {()} and counts != {(0,)}
  require(good, name, counts, 'arrays with one number of rows, at least 1')
  return counts.pop()[0]


def take_rows(items: Any, rows: jax.Array | None) -> Any:
  """Some of the rows; `None` makes one row of a single item."""
  return jax.tree.map(lambda x: x[rows], items)


def as_arrays(*trees: Any) -> Any:
  """The pytrees, NumPy's arrays made JAX's."""
  return jax.tree.map(jnp.asarray, trees)


def require_integer(name: str, value: Any, low: int, high: int) -> None:
  """Checks for an integer in low..high."""
  good = isinstance(value, int) and low <= value <= high
  require(good, name, value, f'an integer in {low}..{high}')


def scores_of_one(score_fn: ScoreFn, query: Any, keys: Any) -> jax.Array:
  """Scores [b] of one query with keys [b, ...]."""
  scores = score_fn(take_rows(query, None), keys)
  shape = (1, count_rows('keys', keys))
  require_shape('score_fn(queries[:1], keys)', scores, shape)
  return wide(scores)[0]


def cur_index(
  score_fn: ScoreFn,
  queries: Any,
  keys: Any,
  *,
  landmarks: int,
  method: str = 'osinsky',
  key: jax.Array | None = None,
  batch_size: int = 1,
) -> CURIndex:
  """Scores anchor queries with all keys, and chooses landmarks among these.

  The offline part: :math:`A N` calls. Landmarks are chosen by the interpolative
  decomposition of the scores less their mean over anchors, so that the scores
  of an anchor with every key follow best from those with the landmarks.

  Args:
    score_fn: [a, ...], [b, ...] -> [a, b]; larger is better.
    queries: the anchors [A, ...], all of them used. Like those to come; more of
      them than landmarks, twice as many or more.
    keys: [N, ...].
    landmarks: L, 1 to N; 1 to min(A, N) unless they are "uniform".
    method: of `interpolative`, or "uniform" for a random choice.
    key: for the random methods; `None`: key 0.
    batch_size: anchors that are scored at a time.

  Returns:
    `CURIndex`.

  Raises:
    ValueError: for numbers out of range, an unknown method, or scores that have
      not the shape agreed upon.

  Example:
    >>> x = jnp.arange(6.0)[:, None]
    >>> near = lambda q, k: -jnp.abs(q - k.T)
    >>> cur_index(near, x[::2], x, landmarks=3).scores.shape
    (3, 6)
  """
  anchors, count = count_rows('queries', queries), count_rows('keys', keys)
  require_one_of('method', method, METHODS)
  most = count if method == 'uniform' else min(anchors, count)
  require_integer('landmarks', landmarks, 1, most)
  require_integer('batch_size', batch_size, 1, 2**31)
  key = jax.random.key(0) if key is None else key
  scores = _all_scores(
    score_fn, *as_arrays(queries, keys), batch_size=batch_size
  )
  if method == 'uniform':
    chosen = jax.random.choice(key, count, (landmarks,), replace=False)
  else:
    centred = scores - jnp.mean(scores, axis=0)
    chosen = interpolative(centred, landmarks, method=method, key=key).indices
  return CURIndex(scores, chosen.astype(jnp.int32))


@functools.partial(jax.jit, static_argnames=('score_fn', 'batch_size'))
def _all_scores(score_fn, queries, keys, *, batch_size) -> jax.Array:
  score = functools.partial(scores_of_one, score_fn, keys=keys)
  return jax.lax.map(score, queries, batch_size=batch_size)
