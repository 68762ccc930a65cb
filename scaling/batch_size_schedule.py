"""A schedule of learning rates for another batch size, or for one that grows.

References:
  Smith et al., `Don't Decay the Learning Rate, Increase the Batch Size
  <https://arxiv.org/abs/1711.00489>`_, 2018.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from ..checks import require
from .recommend import recommend_learning_rate
from .rules import require_positive


def batch_size_schedule(
  schedule: optax.ScalarOrSchedule,
  old_batch_size: float,
  new_batch_size: float | Mapping[int, float],
  *,
  statistics: Any,
  optimizer: str,
  budget: str = 'examples',
  **options: Any,
) -> optax.Schedule:
  r"""A schedule of learning rates, carried over to other batch sizes.

  .. math:: \eta'(t) = \eta\Bigl(\sum_{s < t} B'_s / B\Bigr)
    \frac{\eta'(B'_t)}{\eta(B)}

  The schedule's clock is that of the old run: with the examples fixed it reads
  how many old steps the examples so far would have been, so that warmup and
  decay end after as many examples; with the steps fixed it is the step itself.
  The factor is that of `recommend_learning_rate`.

  The statistics are those of one moment. The noise scale grows along a run,
  mostly at its start: a batch size that grows should come with the statistics
  of the time when it does, which a new schedule from a checkpoint gives.

  Args:
    schedule: of learning rates, made for the old batch size; or a number.
    old_batch_size: above 0.
    new_batch_size: above 0; or a schedule of batch sizes, {first step: size},
      with an entry for step 0.
    statistics: see `recommend_learning_rate`, like `optimizer` and `budget`.
    optimizer: see there.
    budget: see there.
    **options: its other arguments.

  Returns:
    An optax schedule, for `optax.adamw(learning_rate=...)` and others.

  Raises:
    ValueError: what `recommend_learning_rate` raises, or for a schedule of
      batch sizes that does not start at step 0.

  Example:
    >>> from types import SimpleNamespace
    >>> noise = SimpleNamespace(scale=1e9)
    >>> schedule = batch_size_schedule(
    ...   optax.linear_schedule(0.0, 0.1, 100), 64, {0: 64, 50: 256},
    ...   statistics=noise, optimizer='adam',
    ... )
    >>> print(' '.join(f'{schedule(t):.3f}' for t in (20, 50, 60, 90)))
    0.020 0.100 0.180 0.200
  """
  pieces = new_batch_size
  if not isinstance(pieces, Mapping):
    pieces = {0: pieces}
  starts = sorted(pieces)
  good = starts[:1] == [0] and all(isinstance(s, int) for s in starts)
  require(good, 'new_batch_size', starts, 'integer steps, the first of them 0')
  sizes = [pieces[start] for start in starts]
  for each in sizes:
    require_positive(new_batch_size=each)
  factors = recommend_learning_rate(
    1.0,
    old_batch_size,
    jnp.array(sizes, float),
    statistics=statistics,
    optimizer=optimizer,
    budget=budget,
    **options,
  ).learning_rate
  base = schedule if callable(schedule) else lambda step: schedule
  begin = jnp.array(starts)
  length = jnp.diff(begin, append=jnp.iinfo(begin.dtype).max)
  worth = jnp.array(sizes, float) / old_batch_size

  def scaled(step):
    steps = jnp.clip(step - begin, 0, length)
    clock = jnp.sum(steps * worth) if budget == 'examples' else step
    piece = jnp.searchsorted(begin, step, side='right') - 1
    return base(clock) * factors[piece]

  return scaled
