"""Panels of `vq_prior`: rows or its table in, axes drawn on."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row, by_run
from .panels import band, whiskers
from .prior_table import judged
from .rotation_panels import COLORS, image_of

Table = dict[str, dict[str, Any]]
LABELS = {
  'error': 'error of reconstruction [square a pixel of 0..1]',
  'bits': 'bits of the prior for an image, given its class',
  'samples_frechet': 'Fréchet distance of samples [variance of real features]',
  'frechet': 'Fréchet distance to real images [variance of features]',
  'accuracy': 'share taken for the class they should be',
}
TITLES = {'frechet': 'Fréchet distance', 'accuracy': 'recognised'}
REAL = 'real, held out'


def style(name: str) -> dict[str, Any]:
  """Colour of a technique, and a dashed line for another number of codes."""
  technique, _, codes = name.partition('-')
  return {
    'color': COLORS.get(technique, 'tab:brown'),
    'linestyle': '--' if codes else '-',
    'marker': '^' if codes else 'o',
  }


def plot_training(ax: Axes, rows: list[Row]) -> None:
  """Held-out bits per token along the runs of priors."""
  priors: dict[str, list[list[Row]]] = {}
  for run, own in by_run(rows).items():
    if run.startswith('prior-') and np.isfinite(own[-1]['val_loss']):
      bits = [row | {'bits': row['val_loss'] / math.log(2)} for row in own]
      priors.setdefault(own[0]['tokenizer'], []).append(bits)
  for name, runs in priors.items():
    band(ax, runs, 'bits', label=name, **style(name), markersize=3)
  ax.set(
    xlabel='steps of the prior',
    ylabel='held-out bits per token',
    title='the same transformer on the tokens of each',
  )
  ax.legend(fontsize='small')


def plot_information(ax: Axes, table: Table) -> None:
  """Bars: what a token could hold, its entropy alone, and for the prior."""
  bars = {
    'capacity': ('log2 of the codes', 0.25),
    'entropy': ('entropy of their frequencies', 0.5),
    'bits_per_token': ('bits for the prior', 1.0),
  }
  for i, (name, entry) in enumerate(table.items()):
    color = style(name)['color']
    for column, (_, alpha) in bars.items():
      mean = entry[column]['mean']
      ax.barh(i, mean, color=color, alpha=alpha, label=column)
    said = f' {mean:.2f}'
    ax.annotate(said, (mean, i), va='center', fontsize='small', color='white')
  ax.set_yticks(range(len(table)), [*table])
  ax.invert_yaxis()
  words = ', '.join(words for words, _ in bars.values())
  ax.set(xlabel=f'bits per token: {words}', title='usage is not information')
  ax.xaxis.label.set_size('small')


def plot_plane(
  ax: Axes, rows: list[Row], columns: tuple[str, str], title: str
) -> None:
  """One column against another: a point for each seed, named at the mean.

  Args:
    ax: where.
    rows: of a run.
    columns: horizontal and vertical, of judged rows. Those of equal total
      description are joined if they are its two parts, "error" and "bits".
    title: of the panel.
  """
  for name, own in judged(rows).items():
    x, y = ([row[column] for row in own] for column in columns)
    look = style(name) | {'linestyle': 'none'}
    ax.plot(x, y, alpha=0.6, **look)
    ax.annotate(
      name,
      (np.mean(x), np.mean(y)),
      xytext=(7, 5),
      textcoords='offset points',
      fontsize='small',
      color=look['color'],
    )
  ax.margins(0.2)
  if columns == ('error', 'bits'):
    _equal_lengths(ax, rows)
  ax.set(xlabel=LABELS[columns[0]], ylabel=LABELS[columns[1]], title=title)


def _equal_lengths(ax: Axes, rows: list[Row]) -> None:
  """Lines on which bits and those of the residual have one sum."""
  own = [row for each in judged(rows).values() for row in each]
  (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
  first = own[0]
  # P / 2, where residual bits are P / 2 log2(error) + constant.
  half = first['pixels_of_an_image'] / 2
  error = np.geomspace(max(left, 1e-9), right, 50)
  lengths = [row['bits'] + half * math.log2(row['error']) for row in own]
  for length in np.linspace(min(lengths), max(lengths), 4):
    ax.plot(error, length - half * np.log2(error), color='0.8', zorder=0)
  ax.set(xlim=(left, right), ylim=(low, high))


def plot_scores(ax: Axes, table: Table, what: str, real: float) -> None:
  """A score of reconstructions, hollow, and of samples, with seeds' range.

  Args:
    ax: where.
    table: of `prior_table.results`.
    what: "frechet" or "accuracy".
    real: that of real images, a line.
  """
  for kind in ('reconstructions', 'samples'):
    for i, (name, entry) in enumerate(table.items()):
      mean, error = whiskers([entry[f'{kind}_{what}']])
      look = style(name) | {'linestyle': 'none'}
      if kind == 'reconstructions':
        look['markerfacecolor'] = 'white'
      ax.errorbar(i, mean, error, capsize=4, **look)
      ax.annotate(f'  {mean[0]:.3f}', (i, mean[0]), fontsize='x-small')
  ax.axhline(real, color='0.5', linestyle=':')
  ax.annotate(REAL, (-0.4, real), va='bottom', fontsize='small', color='0.4')
  ax.margins(y=0.12)
  if what == 'frechet':
    ax.set_ylim(bottom=0)
  ax.set_xticks(range(len(table)), [*table])
  ax.set(
    xlim=(-0.5, len(table) - 0.3),
    ylabel=LABELS[what],
    title=f'{TITLES[what]}: reconstructions (hollow), samples (full)',
  )


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """A row of images for each tokenizer, real ones on top."""
  strips = {
    row.get('tokenizer', 'real'): image_of(row)
    for row in rows
    if 'pixels' in row
  }
  names = sorted(strips, key=lambda name: name != 'real')
  tiles = np.concatenate([strips[name] for name in names])
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  side = len(tiles) / len(names)
  ax.set_yticks((np.arange(len(names)) + 0.5) * side, names)
  ax.set_xticks([])
  ax.grid(visible=False)
  ax.tick_params(length=0)
  ax.set(title='real images, and samples of the prior for the same classes')
