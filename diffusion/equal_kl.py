r"""Timesteps between which a network's loss, and so a codec's bits, are equal.

Going from :math:`x_i` to :math:`x_{i-1}` tells something about the image:
:math:`\mathrm{KL}_i` nats of the variational bound. Evenly spaced timesteps
spend most of a codec's bits where the KL is small, as each step costs the same;
these go where it is not.
"""

from collections.abc import Sequence

import numpy as np

from ..checks import require, require_shape
from .schedule import Schedule


def _spread(positions: np.ndarray, low: int, high: int) -> np.ndarray:
  """The nearest strictly ascending positions within [low, high]."""
  rank = np.arange(positions.size)
  room = np.minimum(positions - rank, high - rank[-1:])
  falling = np.minimum.accumulate(room[::-1])[::-1]
  return np.maximum(falling, low) + rank


def _positions_of(wanted: np.ndarray, rising: np.ndarray) -> np.ndarray:
  """Where a rising table, whose first entry is position 1, comes closest."""
  above = np.clip(np.searchsorted(rising, wanted), 1, rising.size - 1)
  down = wanted - rising[above - 1] < rising[above] - wanted
  return above - down + 1


def _tail_positions(schedule: Schedule, tail: int, below: int) -> np.ndarray:
  """Evenly in log SNR between positions 1 and `below`, neither included."""
  noise = -np.log(schedule.snr[1:])
  wanted = np.linspace(noise[0], noise[below - 1], tail + 2)[1:-1]
  return _spread(_positions_of(wanted, noise), 1, below - 1)


def equal_kl_timesteps(
  schedule: Schedule,
  kl_per_step: Sequence[float],
  count: int,
  *,
  nats: float | None = None,
  tail: int = 0,
) -> tuple[int, ...]:
  r"""Timesteps that cut the KL into equal parts, for `Schedule.respace`.

  With :math:`R(t) = \sum_{i=2}^{t} \mathrm{KL}_i`, what is told from position
  `t` down to 1, they are the ones where

  .. math:: R(t_k) = R(S) - k c, \qquad k = 0 \dots n - 1,

  rounded to the table, with :math:`c = R(S) / n`, or of `nats`: those from
  where on `k` steps of that many nats have been spent. The last timestep is
  always `S`; each of the `n - 1` steps between them spends `c`, and what the
  lowest leaves over is for steps without codes: none but the last, from the
  lowest timestep to the image; or `tail` more, which cut the log SNR from there
  to position 1 into equal parts.

  A step of the table cannot be cut: where one is worth more than `c`, timesteps
  are neighbours; and there are `tail` timesteps below, come what may. A step of
  the new schedule costs somewhat more than the steps that it replaces, whose
  predictions become better on the way.

  Args:
    schedule: of `S` steps.
    kl_per_step: nats [S], for instance of the function of that name. The first
      is the decoder's and is ignored.
    count: `n`, 1 or more.
    nats: what a step is to spend; that of an index into `K` atoms is `log(K)`.
    tail: how many more timesteps there are at the end, without codes.

  Returns:
    `count + tail` timesteps, ascending.

  Raises:
    ValueError: if the schedule has less steps, the KL is negative, infinite or
      0, or is too small for `count - 1` steps of so many nats.

  Example:
    >>> schedule = Schedule.linear(100)
    >>> kl = [9.0] + [0.5] * 40 + [2.0] * 20 + [0.0] * 39  # Nats 20 and 40.
    >>> equal_kl_timesteps(schedule, kl, 6)
    (21, 41, 46, 51, 56, 100)
    >>> equal_kl_timesteps(schedule, kl, 3, nats=20.0, tail=2)
    (4, 16, 41, 51, 100)
  """
  kl = np.asarray(kl_per_step, np.float64)
  require_shape('kl_per_step', kl, (schedule.steps,))
  good = np.all((kl[1:] >= 0) & np.isfinite(kl[1:])) and np.sum(kl[1:]) > 0
  require(bool(good), 'kl_per_step', kl, 'finite, 0 or more, not all 0')
  most = schedule.steps - tail
  require(tail >= 0, 'tail', tail, '0 or more')
  require(1 <= count <= most, 'count', count, f'1 to {most}')
  spent = np.concatenate([[0.0], np.cumsum(kl[1:])])
  if nats is None:
    nats = spent[-1] / count
  require(nats > 0, 'nats', nats, 'a number above 0')
  affordable = 1 + int(spent[-1] / nats * (1 + 1e-9))
  expected = f'at most {affordable}: the KL is {spent[-1]:.4g} nats'
  require(count <= affordable, 'count', count, expected)
  wanted = spent[-1] - nats * np.arange(count)[::-1]
  positions = _positions_of(wanted, spent)
  positions[-1] = schedule.steps
  positions = _spread(positions, tail + 1, schedule.steps)
  ending = _tail_positions(schedule, tail, positions[0])
  chosen = np.concatenate([ending, positions]).astype(int)
  return tuple(schedule.timesteps[chosen - 1].tolist())
