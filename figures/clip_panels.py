"""Panels of `clip_norm`: rows and numbers in, axes drawn on."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from .comparison import Row
from .optima import draw_optima
from .panels import band, bowl

THRESHOLD = 1.0  # Of the norm of the gradient, where it would be clipped.
GAUSSIAN = (2 / np.pi) ** 0.5  # cos(sign g, g) of a Gaussian g.
LABELS = {'adam': 'Adam', 'sign': 'SignSGD', 'sgd': 'SGD'}
COLORS = {'adam': 'tab:red', 'sign': 'tab:blue', 'sgd': 'tab:gray'}


def _shades(widths) -> dict[int, tuple]:
  """A color for each width, the widest the lightest."""
  places = np.linspace(0, 0.85, len(widths))
  return dict(zip(widths, colormaps['viridis'](places), strict=True))


def plot_curves(axes: dict, followed: dict[int, list[list[Row]]]) -> None:
  """Norm, clip fraction and cosine along the runs of each width."""
  for width, color in _shades([*followed]).items():
    style = dict(color=color, label=f'width {width}')
    for name, column in (
      ('norm', 'norm'),
      ('clipped', 'clipped'),
      ('cosine', 'sign_cosine'),
    ):
      band(axes[name], followed[width], column, **style)
  line = dict(color='black', linestyle='--', linewidth=0.8)
  label = f'the threshold, {THRESHOLD:g}'
  axes['norm'].axhline(THRESHOLD, label=label, **line)
  label = f'Gaussian, {GAUSSIAN:.3f}'
  axes['cosine'].axhline(GAUSSIAN, label=label, **line)
  axes['norm'].set(ylim=(0, None), ylabel='norm of the gradient |g|')
  label = f'fraction of steps with |g| > {THRESHOLD:g}'
  axes['clipped'].set(ylim=(0, 1.05), ylabel=label)
  axes['cosine'].set(ylim=(0, 1), ylabel='cos(sign g, g)')
  for name, title in (
    ('norm', 'Adam at its best rate: norms'),
    ('clipped', 'Adam: what clipping would meet'),
    ('cosine', 'Adam: how far gradients are from one size'),
  ):
    axes[name].set_xscale('log', base=2)
    axes[name].xaxis.set_major_formatter('{x:.0f}')
    label = 'step, means since the point before'
    axes[name].set(xlabel=label, title=f'{title}, range over seeds')
    axes[name].legend(fontsize='small', loc='lower left')


def _sizes(ax: Axes, numbers: dict, base: int = 2) -> np.ndarray:
  """The parameters, which it makes the horizontal axis."""
  sizes = np.array([*numbers['parameters'].values()])
  ax.set_xscale('log')
  ax.set_xticks(sizes, [f'{n / 1000:.0f}k' for n in sizes])
  ax.set_xticks([], minor=True)
  ax.set_yscale('log', base=base)
  ax.yaxis.set_major_formatter('{x:.3g}')
  ax.set(xlabel='parameters N')
  return sizes


def plot_descent(ax: Axes, numbers: dict) -> None:
  """Decrease per unit of learning rate, with the laws of the article."""
  sizes = _sizes(ax, numbers, base=10)
  for name, label in LABELS.items():
    found, color = numbers[name], COLORS[name]
    won = [*found['won'].values()]
    label = f'{label}: power {found["power_of_won"]:.2f}'
    ax.plot(sizes, won, 'o-', color=color, label=label)
  norm = np.array([*numbers['sign']['norm'].values()])
  l1 = [*numbers['sign']['norm_l1'].values()]
  style = dict(color=COLORS['sign'], linewidth=0.8)
  ax.plot(sizes, l1, 's:', label='SignSGD, on its own batch: |g|_1', **style)
  law = np.sqrt(2 * sizes / np.pi) * norm
  ax.plot(sizes, law, '--', label='sqrt(2 N / pi) |g|', **style)
  ax.set(
    ylabel='<u, g> on another batch [nats per learning rate]',
    title='what a step wins to first order, mean over a run',
  )
  ax.legend(fontsize='x-small')


def plot_won(ax: Axes, numbers: dict) -> None:
  """The same at the best learning rate: the article wants it level."""
  sizes = _sizes(ax, numbers)
  for name, label in LABELS.items():
    found = numbers[name]
    won = np.array([*found['won_at_best'].values()])
    label = f'{label}: power {found["power_of_won_at_best"]:.2f}'
    ax.plot(sizes, won, 'o-', color=COLORS[name], label=label)
    middle = np.exp(np.mean(np.log(won[won > 0])))
    ax.axhline(middle, color=COLORS[name], linestyle='--', linewidth=0.8)
  ax.plot([], [], 'k--', linewidth=0.8, label='article: the same')
  ax.set(
    ylabel='best learning rate times <u, g> [nats per step]',
    title='what the law of the article keeps',
  )
  ax.legend(fontsize='small')


def plot_optima(ax: Axes, numbers: dict) -> None:
  """Best learning rates over their geometric mean, with the laws."""
  sizes = _sizes(ax, numbers)
  for shift, (name, label) in zip((0.95, 1, 1.05), LABELS.items(), strict=True):
    found = numbers[name]
    best = [*found['by_width'].values()]
    middle = np.exp(np.mean(np.log([x['rate'] for x in best])))
    span = found['power_of_seeds']
    label += f': power {found["power"]:.2f}'
    label += f' ({span["min"]:.2f} to {span["max"]:.2f})'
    style = dict(over=middle, color=COLORS[name], fmt='o', label=label)
    draw_optima(ax, shift * sizes, best, **style)
    law = (sizes / np.exp(np.mean(np.log(sizes)))) ** found['power_of_article']
    ax.plot(sizes, law, '--', color=COLORS[name], linewidth=0.8)
  ax.plot([], [], 'k--', linewidth=0.8, label='article: N^(-1/2), SGD N^0')
  ax.set(
    ylabel='best learning rate over its geometric mean',
    title='optima (hollow: at the edge), bootstrap over seeds',
  )
  ax.legend(fontsize='small')


def plot_bowls(ax: Axes, grids: dict[int, tuple], name: str) -> None:
  """The grid of an optimizer: final loss against learning rate."""
  for width, color in _shades([*grids]).items():
    rates, losses = grids[width]
    points = [*zip(rates, losses.mean(0), strict=True)]
    bowl(ax, points, color=color, label=f'width {width}')
    seen = np.isfinite(losses).all(0)
    ends = losses.min(0)[seen], losses.max(0)[seen]
    ax.fill_between(rates[seen], *ends, color=color, alpha=0.2, linewidth=0)
  ax.set_xscale('log', base=2)
  ax.set_xticks(rates, [f'{rate:g}' for rate in rates], fontsize='small')
  ax.set(
    yscale='log',
    xlabel='constant learning rate',
    ylabel='final loss of the population [nats]',
    title=f'{LABELS[name]}: the grid, star at its best, range over seeds',
  )
  ax.yaxis.set_major_formatter('{x:.2g}')
  ax.yaxis.set_minor_formatter('{x:.2g}')
  ax.legend(fontsize='small')
