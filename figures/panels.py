"""Panels that figures of training runs share; axes in, nothing returned."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

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


def double_logarithmic(ax: Axes, **labels: str) -> None:
  """Logarithmic axes with plain numbers at them, for a short range too.

  Args:
    ax: where; everything is drawn on it.
    **labels: `xlabel`, `ylabel`, `title`.
  """
  ax.set_xscale('log', base=2)
  ax.set_yscale('log')
  low, high = ax.get_ylim()
  subs = (1, 1.5, 2, 3, 5, 7) if high < 40 * low else (1, 3)
  ax.yaxis.set_major_locator(LogLocator(subs=subs))
  ax.xaxis.set_major_formatter('{x:g}')
  ax.yaxis.set_major_formatter('{x:g}')
  ax.yaxis.set_minor_formatter(NullFormatter())
  ax.set(**labels)


def rate_axis(ax: Axes, rates: Sequence[float], title: str) -> None:
  """Axes of bowls: the learning rates that were tried, and the final loss.

  Args:
    ax: where.
    rates: ticks, in any order.
    title: of the panel.
  """
  ticks = sorted(set(rates))
  ax.set_xscale('log', base=2)
  ax.set_xticks(ticks, [f'{rate:g}' for rate in ticks])
  ax.set(
    xlabel='learning rate',
    ylabel='final validation loss [nats per byte]',
    title=title,
  )


def final_losses(
  ax: Axes,
  spreads: dict[str, dict[str, float]],
  colors: dict[str, str],
  title: str,
) -> None:
  """Mean final losses by contestant, with their range over seeds.

  Args:
    ax: where.
    spreads: mean, smallest and largest loss by name.
    colors: by name; black if it has none.
    title: of the panel.
  """
  mean, error = whiskers([*spreads.values()])
  for i, name in enumerate(spreads):
    style = dict(fmt='o', color=colors.get(name, 'black'), capsize=4)
    ax.errorbar(i, mean[i], error[:, i : i + 1], **style)
    ax.annotate(f'  {mean[i]:.3f}', (i, mean[i]), fontsize='small')
  ax.set_xticks(range(len(spreads)), [*spreads])
  ax.set(
    xlim=(-0.5, len(spreads) - 0.3),
    ylabel='final validation loss [nats per byte]',
    title=title,
  )


def whiskers(spreads: Sequence[dict[str, float]]) -> tuple:
  """Means [n] and error bars [2, n] from means, minima and maxima."""
  mean, low, high = (
    np.array([s[k] for s in spreads]) for k in ('mean', 'min', 'max')
  )
  return mean, np.array([mean - low, high - mean])


def scaling(
  ax: Axes,
  compute: Sequence[float],
  spreads: Sequence[dict[str, float]],
  law: dict[str, float] | None,
  *,
  label: str,
  color: str,
) -> None:
  """Loss against compute on logarithmic axes, with its power law if fitted.

  Args:
    ax: where.
    compute: of each point.
    spreads: mean, smallest and largest loss of each point.
    law: `a` and `b` of L = a C^-b, or `None`.
    label: in the legend, to which the law is added.
    color: of points and line.

  The ticks are the compute of the points drawn last.
  """
  mean, error = whiskers(spreads)
  if law is not None:
    line = np.geomspace(min(compute) / 1.5, max(compute) * 1.5)
    ax.plot(line, law['a'] * line ** -law['b'], color=color)
    label += f': L = {law["a"]:.2f} C^-{law["b"]:.3f}'
  style = dict(fmt='o', color=color, capsize=3, label=label)
  ax.errorbar(compute, mean, error, **style)
  ax.set(xscale='log', yscale='log')
  ax.set_xticks(compute, [f'{c:.1e}' for c in compute])
  ax.set_xticks([], minor=True)
  ax.yaxis.set_major_formatter('{x:.2f}')
  ax.yaxis.set_minor_formatter('{x:.2f}')
