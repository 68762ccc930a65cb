"""Learning rate schedules as fractions of a peak, over optax's pieces."""

import optax

from ..checks import require, require_one_of


def schedule(
  kind: str,
  *,
  steps: int,
  warmup: int = 0,
  decay: int | None = None,
  peak: float = 1.0,
  final: float = 0.0,
) -> optax.Schedule:
  """Warmup, then constant, cosine or warmup-stable-decay.

  Linear from zero to `peak` over the first `warmup` steps; then "constant";
  "cosine" down to `final * peak` at `steps`; "linear" likewise; or "wsd":
  constant until the last `decay` steps, then linear to `final * peak`.

  Args:
    kind: "constant", "cosine", "linear" or "wsd".
    steps: length of the run.
    warmup: steps of linear warmup, less than `steps`.
    decay: steps of the final decay of "wsd"; `None`: a fifth of the run.
    peak: the largest value.
    final: last value, as a fraction of the peak.

  Returns:
    An optax schedule, a function of the step count.

  Raises:
    ValueError: for an unknown kind or phases that do not fit into `steps`.

  Example:
    >>> s = schedule('wsd', steps=10, warmup=2, decay=4)
    >>> [round(float(s(t)), 2) for t in range(0, 11, 2)]
    [0.0, 1.0, 1.0, 1.0, 0.5, 0.0]
  """
  require_one_of('kind', kind, ('constant', 'cosine', 'linear', 'wsd'))
  require(steps >= 1, 'steps', steps, '1 or more')
  require(0 <= warmup < steps, 'warmup', warmup, f'0 or more, below {steps}')
  rest = steps - warmup
  if kind == 'constant':
    after = optax.constant_schedule(peak)
  elif kind == 'cosine':
    after = optax.cosine_decay_schedule(peak, rest, final)
  elif kind == 'linear':
    after = optax.linear_schedule(peak, final * peak, rest)
  else:
    decay = max(1, rest // 5) if decay is None else decay
    require(1 <= decay <= rest, 'decay', decay, f'between 1 and {rest}')
    after = optax.linear_schedule(peak, final * peak, decay, rest - decay)
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])
