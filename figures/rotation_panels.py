"""Panels of `rotation_trick`: rows in, axes drawn on.

A place is a tuple of technique, codebook, commitment weight and norm ratio; it
comes with the last rows of its seeds.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from .comparison import Row

Places = dict[tuple, list[Row]]
COLORS = {
  'ste': 'black',
  'rotation': 'tab:blue',
  'rotation_no_rescale': 'tab:cyan',
  'reflection': 'tab:orange',
  'diveq': 'tab:red',
  'simvq': 'tab:purple',
  'fsq': 'tab:green',
}
# Words of an axis: index in a place, or column of rows.
LABELS = {
  2: 'commitment weight',
  3: 'norm of codes over that of vectors, at the start',
  'val_loss': 'error of reconstruction [square a pixel of 0..1]',
  'quantization_error': 'quantization error / mean square of latents',
  'usage': 'codes used on held-out images [share]',
}


def value(row: Row, column: str) -> float:
  """Of a row; the quantization error over the mean square of latents.

  >>> value({'quantization_error': 1.0, 'latent_square': 4.0},
  ...       'quantization_error')
  0.25
  """
  if column == 'quantization_error':
    return row.get(column, np.nan) / row.get('latent_square', np.nan)
  return row.get(column, np.nan)


def plot_lines(
  ax: Axes, places: Places, axis: int, column: str, title: str
) -> None:
  """A column over weight or ratio: means of seeds, their range as a band.

  Args:
    ax: where.
    places: of which techniques with a single place are drawn as levels.
    axis: 2 or 3, what differs along the axis.
    column: of the rows.
    title: of the panel.
  """
  pairs = dict.fromkeys(place[:2] for place in places)
  at = sorted({place[axis] for place in places})
  for technique, codebook in pairs:
    own = sorted(
      (p[axis], [value(row, column) for row in ends])
      for p, ends in places.items()
      if p[:2] == (technique, codebook)
    )
    x, values = zip(*own, strict=True)
    values = np.where(np.isfinite(values), values, np.nan)
    dashed = codebook == 'ema' and column != 'val_loss'
    style = dict(color=COLORS[technique], label=None if dashed else technique)
    if technique == 'fsq':  # It has neither weight nor codes to scale.
      ax.axhline(values.mean(), linestyle=':', **style)
      continue
    marker = 'D' if len(x) == 1 < len(at) else 'o'
    line = '--' if dashed else '-'
    ax.plot(x, values.mean(1), line, marker=marker, **style)
    ax.fill_between(
      x, values.min(1), values.max(1), color=style['color'], alpha=0.2
    )
  ax.set_xscale('log')
  ax.set_xticks(at, [f'{x:g}' for x in at])
  ax.xaxis.set_minor_formatter(NullFormatter())
  if column == 'quantization_error':
    ax.set_yscale('log')
  elif column == 'val_loss':
    ax.set_yscale('log')
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5)))
    ax.yaxis.set_major_formatter('{x:g}')
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])
  else:  # Room for the legend.
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.25 * (high - low))
  ax.set(xlabel=LABELS[axis], ylabel=LABELS[column], title=title)
  ax.legend(fontsize='x-small', ncols=3, loc='upper center')


def image_of(row: Row) -> np.ndarray:
  """Bytes [H, W] or, in colour, [H, W, C] out of their text.

  >>> image_of({'pixels': 'x00ff', 'height': 1, 'columns': 2}).tolist()
  [[0, 255]]
  """
  flat = np.frombuffer(bytes.fromhex(row['pixels'][1:]), np.uint8)
  colours = (row['channels'],) if 'channels' in row else ()
  return flat.reshape(row['height'], row['columns'], *colours)


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """A column of images for each that is shown, the originals first."""
  columns: dict[str, list[np.ndarray]] = {}
  for row in rows:
    if 'images' in row:
      columns.setdefault(row['images'], []).append(image_of(row))
  names = sorted(columns, key=lambda name: name != 'originals')
  stack = [np.concatenate(columns[name]) for name in names]
  tiles = np.concatenate(stack, axis=1)
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  side = tiles.shape[1] / len(names)
  ticks = (np.arange(len(names)) + 0.5) * side
  ax.set_xticks(ticks, [name.replace(', ', '\n') for name in names])
  ax.set_yticks([])
  ax.grid(visible=False)
  ax.tick_params(labelsize='small', length=0)
  title = 'held-out images: technique, codebook, ratio of norms at the start'
  ax.set(title=title)


def plot_best(ax: Axes, table: dict[str, dict[str, Any]]) -> None:
  """The best setting of every technique and codebook, and what it says."""
  names = sorted(
    table, key=lambda name: table[name]['best']['val_loss']['mean']
  )
  for i, name in enumerate(reversed(names)):
    best, speed = table[name]['best'], table[name]['tokens_per_second']
    color, loss = COLORS[name.split()[0]], best['val_loss']
    ax.plot([loss['min'], loss['max']], [i, i], color=color)
    ax.plot(loss['mean'], i, 'o', color=color)
    said = f'{best["usage"]["mean"]:.0%}, {best["perplexity"]["mean"]:.0f}'
    said += f', {speed / 1e3:.0f}k' if speed else ''
    if not name.startswith('fsq'):
      said += f' ({best["commitment_weight"]:g}, {best["ratio"]:g})'
    ax.annotate(f'  {said}', (loss['max'], i), va='center', fontsize='x-small')
  ax.set_yticks(range(len(names)), [*reversed(names)], fontsize='small')
  low, high = ax.get_xlim()
  ax.set(
    xlim=(low, high + 0.7 * (high - low)),
    xlabel=LABELS['val_loss'],
    title='best settings: usage, perplexity, tokens/s (weight, ratio)',
  )
