"""Panels that figures of training runs share; axes in, nothing returned."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row

STYLES = ('-', '--', ':', '-.')


def band(ax: Axes, runs: Sequence[Sequence[Row]], column: str, **style) -> None:
  """Mean of a column over runs against the steps, and their range as a band.

  Args:
    ax: where.
    runs: rows of runs with the same steps, one for each seed.
    column: what to draw.
    **style: of the line.
  """
  steps = [row['step'] for row in runs[0]]
  values = np.array([[row[column] for row in rows] for rows in runs])
  (line,) = ax.plot(steps, values.mean(0), **style)
  ax.fill_between(
    steps,
    values.min(0),
    values.max(0),
    color=line.get_color(),
    alpha=0.2,
    linewidth=0,
  )


def bowl(ax: Axes, points: Sequence[tuple[float, float]], **style) -> None:
  """Loss against learning rate, a star at the best, hollow at an edge.

  Args:
    ax: where; the horizontal axis should be logarithmic.
    points: pairs of learning rate and loss; infinite losses are left out.
    **style: of the line.
  """
  rates, losses = map(np.array, zip(*sorted(points), strict=True))
  seen = np.isfinite(losses)
  (line,) = ax.plot(rates[seen], losses[seen], marker='.', **style)
  best = np.argmin(losses)
  ax.plot(
    rates[best],
    losses[best],
    '*',
    color=line.get_color(),
    markersize=13,
    fillstyle='none' if best in (0, len(rates) - 1) else 'full',
  )


def whiskers(spreads: Sequence[dict[str, float]]) -> tuple:
  """Means [n] and error bars [2, n] from means, minima and maxima."""
  mean, low, high = (
    np.array([s[k] for s in spreads]) for k in ('mean', 'min', 'max')
  )
  return mean, np.array([mean - low, high - mean])
