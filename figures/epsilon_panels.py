"""Panels of `epsilon_scaling`; axes in, nothing returned.

`single` are rows of single steps by epsilon, `optima` those of training by
epsilon and batch size.
"""

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from .optima import draw_optima, grid_losses
from .panels import bowl, double_logarithmic

# Labels, colors and lines of what is compared with the search.
THEORIES = {
  'article': ('article 10563, mean field', 'tab:red', ':'),
  'independent': ('independent noise, exact', 'tab:orange', '--'),
  'correlated': ('correlated noise', 'tab:green', '-'),
  'probe': ('probe', 'tab:blue', '-'),
}
LAST = 'over that at the largest B'


def _color(i: int, among: dict):
  """Of an epsilon, from dark to light."""
  return matplotlib.colormaps['plasma'](0.85 * i / max(1, len(among) - 1))


def _finish(ax: Axes, ylabel: str, title: str) -> None:
  """Logarithmic axes against the batch size, and what colors are."""
  labels = dict(xlabel='batch size [images]', ylabel=ylabel, title=title)
  double_logarithmic(ax, **labels)
  ax.legend(fontsize='small', title='epsilon', title_fontsize='small')


def plot_article(ax: Axes, single: dict) -> None:
  """The mean field, and the exact theory of independent noise."""
  for i, (eps, rows) in enumerate(single.items()):
    batches = [r['batch_size'] for r in rows]
    label = f'{eps:g}: P / 2 T = {rows[0]["surge_index"]:.2g}'
    for name, shown in (('article', label), ('independent', None)):
      y = np.array([r[name] for r in rows])
      style = dict(color=_color(i, single), linestyle=THEORIES[name][2])
      ax.plot(batches, y / y[-1], marker='.', label=shown, **style)
  ax.axhline(1, color='gray', linewidth=0.8)
  _finish(
    ax,
    f'best rate of one step, {LAST}',
    'independent noise: article 10563 (dotted), exact (dashed)',
  )


def plot_measured(ax: Axes, single: dict) -> None:
  """The search with its interval, the probe, theory with correlations."""
  for i, (eps, rows) in enumerate(single.items()):
    column = lambda name, rows=rows: np.array([r[name] for r in rows])
    batches, color = column('batch_size'), _color(i, single)
    searches = [
      {
        'rate': r['measured'],
        'low': r['measured_low'],
        'high': r['measured_high'],
        'at_edge': bool(r['at_edge']),
      }
      for r in rows
    ]
    style = dict(over=column('measured')[-1], color=color, fmt='o')
    draw_optima(ax, batches, searches, label=f'{eps:g}', **style)
    for name, line in (('correlated', '-'), ('probe', ':')):
      ax.plot(batches, column(name) / column(name)[-1], line, color=color)
  ax.axhline(1, color='gray', linewidth=0.8)
  _finish(
    ax,
    f'best rate of one step, {LAST}',
    'line search (points), correlated noise (solid), probe (dotted)',
  )


def plot_trained(ax: Axes, optima: dict) -> None:
  """Best constant learning rates."""
  for i, (eps, at) in enumerate(optima.items()):
    *_, last = found = [*at.values()]
    style = dict(over=last['rate'], color=_color(i, optima), label=f'{eps:g}')
    draw_optima(ax, [*at], found, **style)
  ax.axhline(1, color='gray', linewidth=0.8)
  _finish(
    ax,
    f'best constant rate, {LAST}',
    'a fixed number of steps; bootstrap over seeds (hollow: at the edge)',
  )


def plot_growth(ax: Axes, by_batch: dict) -> None:
  """Largest over smallest batch, against epsilon."""
  for name, (label, color, line) in {
    'measured': ('line search', 'black', '-'),
    **THEORIES,
    'trained': ('training', 'tab:purple', '-.'),
  }.items():
    every = [*by_batch[name]]
    y = [of['largest_over_smallest'] for of in by_batch[name].values()]
    ax.plot(every, y, line, marker='o', color=color, label=label)
  ax.set_xscale('symlog', linthresh=min([x for x in every if x > 0] or [1]))
  ax.set_yscale('log', base=2)
  ax.yaxis.set_major_formatter('{x:.2g}')
  ax.axhline(1, color='gray', linewidth=0.8)
  ax.set(
    xlabel='epsilon [RMS noise of the gradient of one image]',
    ylabel='best learning rate, largest batch over smallest',
    title='what a larger batch allows (below 1: a surge)',
  )
  ax.legend(fontsize='small')


def plot_bowls(ax: Axes, runs: dict, numbers: dict) -> None:
  """Losses over the grid at the batch size in the middle."""
  batches = [*next(iter(numbers['growth'].values()))]
  batch = batches[len(batches) // 2]
  for i, (eps, of) in enumerate(numbers['growth'].items()):
    rates, losses = grid_losses(runs, eps=eps, batch_size=batch)
    rates, color = rates / of[batch], _color(i, numbers['growth'])
    points = [*zip(rates, losses.mean(0), strict=True)]
    bowl(ax, points, color=color, label=f'{eps:g}')
    band = dict(color=color, alpha=0.2, linewidth=0)
    ax.fill_between(rates, losses.min(0), losses.max(0), **band)
  _finish(
    ax,
    'final loss of the population [nats]',
    f'every run with a batch of {batch} (star: best, hollow: at the edge)',
  )
  ax.set_yscale('linear')
  ax.set_xticks(rates, [f'{rate:.2g}' for rate in rates])
  ax.set_xlabel('learning rate / sqrt(1 + (epsilon / RMS gradient)^2)')


def plot_optima(ax: Axes, runs: dict, numbers: dict) -> None:
  """Optima over what epsilon should do, on the grid that was tried."""
  for i, (eps, at) in enumerate(numbers['optima'].items()):
    scale = np.array([*numbers['growth'][eps].values()])
    color = _color(i, numbers['optima'])
    style = dict(over=scale, color=color, label=f'{eps:g}')
    draw_optima(ax, [*at], [*at.values()], **style)
  tried, _ = grid_losses(runs, eps=0.0, batch_size=[*at][0])
  for rate in tried:
    ax.axhline(rate, color='gray', linewidth=0.8, linestyle=':')
  _finish(
    ax,
    'best constant rate over the same root',
    'the same optima on the grid that was tried (dotted)',
  )
  ax.set_yticks(tried, [f'{rate:g}' for rate in tried])
