"""Panels of `ddcm_codebook_size`, and its numbers: rows in, axes drawn on."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row, power_law
from .panels import double_logarithmic
from .rotation_panels import image_of

COLORS = {'independent': 'tab:blue', 'shared': 'tab:orange'}
ATOMS = 'atoms K of a codebook'
FRECHET = 'Fréchet distance [variance of real features]'
# From this size on distances on the bed are what they tend to.
FITTED = 8


def results(rows: list[Row]) -> dict[str, Any]:
  """The headline numbers.

  Args:
    rows: of a run.

  Returns:
    `table`: of each set of images the distances to the real ones and to the
    first set of DDPM, these less those of the second set, with intervals and
    with the chance of DDPM to be so far off or further, and what the
    classifier knows; `indistinguishable`: by kind of codebook the
    least size from which on all these intervals hold 0, or `None`; `bed`: by
    kind the means of excesses by size, the fitted slope and factor, and the
    factor that it should be; `judged`, `steps`, `dataset`.
  """
  left_out = ('run', 'step', 'pixels', 'height', 'columns', 'dataset')
  table = {
    row['run']: {k: x for k, x in row.items() if k not in left_out}
    for row in rows
    if 'pixels' in row
  }
  (real,) = (row for row in rows if row['run'] == 'real')
  return {
    'table': table,
    'indistinguishable': {k: _like_ddpm(of_kind(table, k)) for k in COLORS},
    'bed': {kind: _bed(rows, kind) for kind in COLORS},
    **{name: real[name] for name in ('judged', 'steps', 'dataset')},
  }


def of_kind(table: dict[str, dict], kind: str) -> list[dict[str, Any]]:
  """Entries of codebooks, independent or shared, in ascending order."""
  wanted = kind == 'shared'
  own = [x for x in table.values() if x.get('shared') == wanted]
  return sorted(own, key=lambda entry: entry['size'])


def holds_zero(entry: dict[str, Any]) -> bool:
  """Whether neither of its intervals is above or below 0."""
  return all(
    entry[f'{to}_low'] <= 0 <= entry[f'{to}_high']
    for to in ('reference', 'ddpm-1')
  )


def _like_ddpm(entries: list[dict[str, Any]]) -> int | None:
  found = None
  for entry in reversed(entries):
    if not holds_zero(entry):
      break
    found = entry['size']
  return found


def _bed(rows: list[Row], kind: str) -> dict[str, Any]:
  own = [row for row in rows if row['run'] == f'bed-{kind}']
  sizes = sorted({row['size'] for row in own})
  of = lambda size: [row['excess'] for row in own if row['size'] == size]
  means = {size: float(np.mean(of(size))) for size in sizes}
  large = [size for size in sizes if size >= FITTED]
  fit = power_law(large, [means[size] for size in large])
  return {
    'excess': means,
    'slope': -fit['b'],
    'factor': fit['a'],
    'expected_factor': own[0]['law'],
  }


def plot_distance(ax: Axes, numbers: dict[str, Any]) -> None:
  """Distance to real images over the size, with those of DDPM and real ones."""
  table = numbers['table']
  for kind, color in COLORS.items():
    own = of_kind(table, kind)
    x, y = ([e[k] for e in own] for k in ('size', 'reference_distance'))
    ax.plot(x, y, 'o-', color=color, label=f'{kind} codebooks')
  levels = [table[f'ddpm-{n}']['reference_distance'] for n in (1, 2)]
  real = table['real']['reference_distance']
  ax.axhspan(*sorted(levels), color='black', alpha=0.5)
  ax.axhline(real, color='0.5', linestyle=':')
  left = min(entry['size'] for entry in table.values() if 'size' in entry)
  text = dict(fontsize='small', va='bottom')
  ax.annotate('two sets of DDPM', (left, max(levels)), **text)
  ax.annotate('real images, held out', (left, real), **text)
  double_logarithmic(
    ax,
    xlabel=f'atoms K; a factor of two: {numbers["steps"]} bits of an image',
    ylabel=FRECHET,
    title=f'to {numbers["judged"]} real images, as many of each',
  )
  ax.legend()


def plot_excess(ax: Axes, numbers: dict[str, Any]) -> None:
  """Distance to images of DDPM beyond that of its second set."""
  for kind, color in COLORS.items():
    own = of_kind(numbers['table'], kind)
    x = np.array([entry['size'] for entry in own])
    value, low, high = (
      np.array([entry[f'ddpm-1_{k}'] for entry in own])
      for k in ('value', 'low', 'high')
    )
    error = np.maximum([value - low, high - value], 0)
    ax.errorbar(x, value, error, fmt='o', capsize=3, color=color, label=kind)
    first = value > 0
    if np.any(first):
      line = value[first][0] * x[first][0] / x
      ax.plot(x, line, '--', color=color, linewidth=1)
  floor = numbers['table']['ddpm-2']['ddpm-1_distance']
  ax.axhline(floor, color='0.5', linestyle=':')
  right = max(e.get('size', 1) for e in numbers['table'].values())
  ax.annotate(
    'DDPM to itself', (right, floor), ha='right', va='bottom', fontsize='small'
  )
  ax.set_yscale('log')
  ax.set_ylim(bottom=floor / 30)
  double_logarithmic(
    ax,
    xlabel=ATOMS,
    ylabel=FRECHET,
    title='to images of DDPM, less what DDPM has; dashed: 1/K',
  )
  ax.legend()


def plot_bed(ax: Axes, rows: list[Row], numbers: dict[str, Any]) -> None:
  """The exact excess on the Gaussian source; each seed is a dot."""
  for kind, color in COLORS.items():
    own = [row for row in rows if row['run'] == f'bed-{kind}']
    x, y = ([row[k] for row in own] for k in ('size', 'excess'))
    ax.plot(x, y, '.', color=color, alpha=0.3)
    bed = numbers['bed'][kind]
    sizes = np.array([*bed['excess']], float)
    ax.plot(sizes, bed['expected_factor'] / sizes, ':', color='black')
    label = f'{kind}: {bed["factor"]:.2f} K^{bed["slope"]:.2f}'
    fit = bed['factor'] * sizes ** bed['slope']
    ax.plot(sizes, fit, color=color, label=label)
  double_logarithmic(
    ax,
    xlabel=ATOMS,
    ylabel="Fréchet distance to DDPM's law [its variance]",
    title='exact, of pixels of a Gaussian source; dotted: theory / K',
  )
  ax.legend()


def plot_intervals(ax: Axes, numbers: dict[str, Any]) -> None:
  """Differences to the second set of DDPM, with intervals, of larger K."""
  table = numbers['table']
  names = ['ddpm-1']
  for kind in COLORS:
    names += [f'{kind}-{entry["size"]}' for entry in of_kind(table, kind)[-4:]]
  looks = {
    'reference': (-0.12, dict(marker='s', color='black')),
    'ddpm-1': (0.12, dict(marker='o', color='tab:red')),
  }
  for to, (shift, look) in looks.items():
    for i, name in enumerate(names):
      if f'{to}_value' in table[name]:
        value, low, high = (
          1e3 * table[name][f'{to}_{k}'] for k in ('value', 'low', 'high')
        )
        ax.plot([low, high], [i + shift] * 2, color=look['color'])
        ax.plot(value, i + shift, **look)
        chance = f'  {table[name][f"{to}_chance"]:.2g}'
        style = dict(color=look['color'], fontsize='x-small', va='center')
        ax.annotate(chance, (high, i + shift), **style)
  ax.axvline(0, color='0.5', linestyle=':')
  ax.set_xscale('symlog', linthresh=10)
  ax.set_xlim(right=4 * ax.get_xlim()[1])  # Room for the chances.
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.set(
    xlabel='distance less that of another set of DDPM [10^-3 variances]',
    title='to real images (black), to DDPM (red): 95 %, and chances',
  )


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """A row of images for every set."""
  sets = [row for row in rows if 'pixels' in row and row['run'] != 'ddpm-2']
  tiles = np.concatenate([image_of(row) for row in sets])
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  side = len(tiles) / len(sets)
  names = [row['run'] for row in sets]
  ax.set_yticks((np.arange(len(names)) + 0.5) * side, names, fontsize='small')
  ax.set_xticks([])
  ax.grid(visible=False)
  ax.tick_params(length=0)
  ax.set(title='images for the same classes')
