"""Best learning rates of measured grids, and how they are drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ..scaling import optimal_learning_rate
from .comparison import Row, select


def grid_losses(
  runs: dict[str, list[Row]], **wanted: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Final losses of the population, of every learning rate and seed.

  Args:
    runs: of `by_run`.
    **wanted: columns that single out one contestant.

  Returns:
    Learning rates [L], ascending, and losses [seeds, L], infinite where a run
    diverged.

  Example:
    >>> row = dict(learning_rate=0.1, seed=0, train_loss=2.0)
    >>> rates, losses = grid_losses({'a': [row]})
    >>> rates.tolist(), losses.tolist()
    ([0.1], [[2.0]])
  """
  ends = {
    (rows[-1]['learning_rate'], rows[-1]['seed']): rows[-1]
    for rows in select(runs, **wanted)
    if 'learning_rate' in rows[-1]  # What else is recorded did not train.
  }
  rates, seeds = (sorted({pair[i] for pair in ends}) for i in (0, 1))
  loss = lambda row: row.get('train_loss') or np.inf
  losses = [[loss(ends[rate, seed]) for rate in rates] for seed in seeds]
  return np.array(rates), np.array(losses, np.float64)


def optimum(rates: ArrayLike, losses: ArrayLike) -> dict[str, Any]:
  """What `optimal_learning_rate` says of a grid, as plain numbers.

  Args:
    rates: learning rates [L].
    losses: [seeds, L].

  Returns:
    `rate`, `low` and `high`, the bootstrap interval over seeds, and `at_edge`.
  """
  best = optimal_learning_rate(rates, losses)
  rate, low, high = map(float, best[:3])
  return dict(rate=rate, low=low, high=high, at_edge=bool(best.at_edge))


def draw_optima(
  ax: Axes,
  x: Sequence[float],
  optima: Sequence[dict[str, Any]],
  *,
  over: ArrayLike = 1.0,
  **style: Any,
) -> None:
  """Optima with their intervals, hollow where the edge of a grid hides them.

  Args:
    ax: where.
    x: positions.
    optima: of `optimum`, one for each.
    over: what learning rates are divided by, one number or one for each.
    **style: of the error bars.
  """
  rate, low, high = (
    np.array([best[k] for best in optima]) / over
    for k in ('rate', 'low', 'high')
  )
  bars = np.maximum(np.nan_to_num([rate - low, high - rate]), 0)
  bar, *_ = ax.errorbar(x, rate, bars, capsize=3, **{'fmt': 'o-'} | style)
  hollow = [best['at_edge'] for best in optima]
  ax.plot(
    np.array(x)[hollow],
    rate[hollow],
    'o',
    color=bar.get_color(),
    markerfacecolor='white',
    zorder=3,
  )
