"""Panels of `ddcm_restoration`, and its numbers: rows in, axes drawn on."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row
from .rotation_panels import image_of

COLORS = {
  'pooled': 'tab:blue',
  'box': 'tab:orange',
  'pixels': 'tab:green',
  'blurred': 'tab:red',
  'grey': 'tab:purple',
}
NAMES = {
  'pooled': '4 x 4 pixels as one',
  'box': 'a box left out',
  'pixels': 'a quarter of pixels',
  'blurred': 'blurred',
  'grey': 'grey',
}
METHODS = {
  'pseudo-inverse': ('s', 'tab:gray'),
  'cubic': ('v', 'tab:olive'),
  'linear': ('D', 'tab:cyan'),
  'restored': ('o', 'tab:red'),
}
LABELS = {'linear': "Wiener's filter"}
RATE = 'code [bits a pixel]'
PSNR = 'PSNR [dB], mean over images'


def restored(rows: list[Row]) -> list[Row]:
  """Rows of restorations."""
  return [row for row in rows if row.get('method') == 'restored']


def best(rows: list[Row]) -> list[Row]:
  """Those of the largest codebook, with the steps that all codebooks have."""
  own = restored(rows)
  base = min(own, key=lambda row: row['size'])['steps']
  size = max(row['size'] for row in own)
  return [r for r in own if (r['size'], r['steps']) == (size, base)]


def results(rows: list[Row]) -> dict[str, Any]:
  """The headline numbers.

  Args:
    rows: of a run.

  Returns:
    Of the largest codebook without noise the bits, the consistency error and
    PSNR of every task; the same of linear methods, and of all with noise; how
    many values of all decoded images differ from those restored, and by how
    much; PSNR of the originals' codes of as many bits.
  """
  keep = lambda row, *names: {name: row[name] for name in names}
  scores = ('consistency', 'psnr', 'psnr_error')
  shown = best(rows)
  least = min(row['noise'] for row in shown)
  first = shown[0]
  others = [row for row in rows if row.get('method') in METHODS]
  others = [r for r in others if r['method'] != 'restored'] + shown
  codes = [row for row in rows if row.get('method') == 'code']
  (real,) = (row for row in rows if row['run'] == 'real')
  return {
    **keep(first, 'size', 'steps', 'bits_per_pixel'),
    'restored': {
      r['task']: keep(r, *scores) for r in shown if r['noise'] == least
    },
    'methods': [keep(r, 'task', 'noise', 'method', *scores) for r in others],
    'grid': [
      keep(r, 'task', 'noise', 'size', 'steps', 'bits_per_pixel', *scores)
      for r in restored(rows)
    ],
    'codes': [
      keep(r, 'size', 'steps', 'bits_per_pixel', 'psnr') for r in codes
    ],
    'decoded': {
      'differ': sum(r['differ'] for r in restored(rows)),
      'values': sum(r['values'] for r in restored(rows)),
      'difference': max(r['difference'] for r in restored(rows)),
    },
    **keep(real, 'images', 'dataset'),
  }


def _by_noise(rows: list[Row]) -> dict[tuple[str, float], list[Row]]:
  """Rows of every task and level of noise."""
  lines: dict[tuple[str, float], list[Row]] = {}
  for row in rows:
    lines.setdefault((row['task'], row['noise']), []).append(row)
  return lines


def _plot_lines(ax: Axes, rows: list[Row], x: str, y: str) -> None:
  """A line for every task, dashed with noise."""
  quiet = min(row['noise'] for row in rows)
  for (task, noise), own in _by_noise(rows).items():
    own = sorted(own, key=lambda row: row['bits_per_pixel'])
    ax.plot(
      [row[x] for row in own],
      [row[y] for row in own],
      'o-' if noise == quiet else 's--',
      color=COLORS[task],
      label=NAMES[task] if noise == quiet else None,
      markersize=4,
      markerfacecolor=COLORS[task] if noise == quiet else 'white',
    )


def _of_sizes(rows: list[Row]) -> list[Row]:
  """Restorations with the steps that all codebooks have."""
  base = best(rows)[0]['steps']
  return [row for row in restored(rows) if row['steps'] == base]


def _mark_sizes(ax: Axes, rows: list[Row], column: str) -> None:
  """Sizes of codebooks, at the top of a panel over bits."""
  sizes = {row['size']: row[column] for row in rows}
  for size, x in sizes.items():
    ax.annotate(
      f'K={size}',
      (x, 1.0),
      xycoords=('data', 'axes fraction'),
      va='top',
      ha='center',
      fontsize='x-small',
    )


def plot_consistency(ax: Axes, rows: list[Row]) -> None:
  """Error of measurements against the bits of codes."""
  own = _of_sizes(rows)
  _plot_lines(ax, own, 'bits_per_pixel', 'consistency')
  for noise in sorted({row['noise'] for row in own} - {0.0}):
    ax.axhline(noise, color='0.5', linestyle=':')
    ax.annotate(
      'the noise',
      (0.5, noise),
      xycoords=('axes fraction', 'data'),
      va='bottom',
      ha='center',
      fontsize='x-small',
    )
  ax.set_yscale('log')
  ax.yaxis.set_major_formatter('{x:g}')
  ax.yaxis.set_minor_formatter('{x:g}')
  ax.tick_params(which='minor', labelsize='x-small')
  ax.set_ylim(top=1.15 * ax.get_ylim()[1])
  _mark_sizes(ax, own, 'bits_per_pixel')
  ax.legend(fontsize='x-small')
  ax.set(
    xlabel=RATE,
    ylabel='root mean square of A x - y, an entry',
    title='what codes explain (dashed: measurements with noise)',
  )


def plot_psnr(ax: Axes, rows: list[Row]) -> None:
  """Distance to the original against the bits of codes."""
  own = _of_sizes(rows)
  _plot_lines(ax, own, 'bits_per_pixel', 'psnr')
  steps = own[0]['steps']
  codes = [
    (row['bits_per_pixel'], row['psnr'])
    for row in rows
    if row.get('method') == 'code' and row['steps'] == steps
  ]
  ax.plot(
    *zip(*sorted(codes), strict=True), 'k*-', label='code of the original'
  )
  _mark_sizes(ax, own, 'bits_per_pixel')
  ax.legend(fontsize='x-small')
  ax.set(xlabel=RATE, ylabel=PSNR, title='how like the original')


def plot_steps(ax: Axes, rows: list[Row]) -> None:
  """Both errors by the steps, with the largest codebook."""
  size = best(rows)[0]['size']
  own = [row for row in restored(rows) if row['size'] == size]
  own = sorted(own, key=lambda row: row['steps'])
  _plot_lines(ax, own, 'consistency', 'psnr')
  for row in own:
    ax.annotate(
      f'{row["steps"]}',
      (row['consistency'], row['psnr']),
      xytext=(4, 3),
      textcoords='offset points',
      fontsize='x-small',
      color=COLORS[row['task']],
    )
  ax.set(xscale='log')
  ax.xaxis.set_minor_formatter('')
  ax.xaxis.set_major_formatter('{x:g}')
  ax.xaxis.set_minor_formatter('{x:g}')
  ax.tick_params(which='minor', labelsize='x-small')
  ax.set(
    xlabel='root mean square of A x - y, an entry',
    ylabel=PSNR,
    title=f'by the number of steps, K = {size}',
  )


def plot_methods(ax: Axes, numbers: dict[str, Any]) -> None:
  """PSNR of all methods by task; hollow with noise."""
  found = numbers['methods']
  names = [*dict.fromkeys(row['task'] for row in found)]
  quiet = min(row['noise'] for row in found)
  for i, (method, (marker, color)) in enumerate(METHODS.items()):
    shift = (i - 1.5) * 0.15
    own = [row for row in found if row['method'] == method]
    for row in own:
      full = row['noise'] == quiet
      first = full and row is own[0]
      ax.errorbar(
        names.index(row['task']) + shift,
        row['psnr'],
        row['psnr_error'],
        fmt=marker,
        color=color,
        markerfacecolor=color if full else 'white',
        label=LABELS.get(method, method) if first else None,
      )
  same = (numbers['size'], numbers['steps'])
  for row in numbers['codes']:
    if (row['size'], row['steps']) == same:
      ax.axhline(row['psnr'], color='black', linestyle=':')
      ax.annotate(
        'code of the original, as many bits',
        (len(names) - 0.6, row['psnr']),
        ha='right',
        va='bottom',
        fontsize='x-small',
      )
  ax.set_xticks(
    range(len(names)), [NAMES[n].replace(' of ', '\nof ') for n in names]
  )
  ax.legend(fontsize='x-small')
  ax.set(
    xlim=(-0.6, len(names) - 0.4),
    ylabel=PSNR,
    title='against linear methods (hollow: with noise)',
  )


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """Originals, measurements, a linear method and restorations, by task."""
  shown = best(rows)
  names = [*dict.fromkeys(row['task'] for row in shown)]
  noises = sorted({row['noise'] for row in shown})
  (real,) = (row for row in rows if row['run'] == 'real')
  strips = {'original': [image_of(real)] * len(names)}
  found = {
    (row['task'], row['noise'], row['method']): row
    for row in [*rows, *shown]
    if 'task' in row and (row['method'] != 'restored' or row in shown)
  }
  for noise in noises:
    said = f', noise {noise:g}' if noise else ''
    for method in ('measured', 'linear', 'restored'):
      strips[f'{LABELS.get(method, method)}{said}'] = [
        image_of(found[name, noise, method]) for name in names
      ]
  tiles = np.concatenate([np.concatenate(s, axis=1) for s in strips.values()])
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  high, wide = len(tiles) / len(strips), tiles.shape[1] / len(names)
  ax.set_yticks((np.arange(len(strips)) + 0.5) * high, [*strips])
  ax.set_xticks((np.arange(len(names)) + 0.5) * wide, [NAMES[n] for n in names])
  for i in range(1, len(names)):
    ax.axvline(i * wide - 0.5, color='black', linewidth=1)
  ax.grid(visible=False)
  ax.tick_params(length=0)
  bits = shown[0]['bits_per_pixel']
  ax.set(title=f'restored with {bits:.2f} bits a pixel')
