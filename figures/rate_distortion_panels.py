"""Panels of `ddcm_rate_distortion`: rows or its table in, axes drawn on."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..diffusion import rate_distortion, realistic_rate_distortion
from .comparison import Row
from .rate_distortion_table import (
  NAMES,
  PICTURED,
  codecs,
  family,
  frontier,
  ladders,
  lines,
  name_of,
)
from .rotation_panels import image_of

# Of a line: what its points have in common.
COLORS = {
  'DDCM': 'tab:blue',
  'pursuit': 'tab:cyan',
  'Turbo': 'tab:red',
  'pca': 'tab:green',
  'dct': 'tab:olive',
  'jpeg': 'black',
}
LINES = {'even': '--', 'equal_kl': '-'}
RATE = 'payload [bits a pixel]'


def _look(line: tuple[str, str]) -> dict[str, Any]:
  name, rule = line
  return {
    'color': COLORS[name],
    'linestyle': LINES.get(rule, ':'),
    'label': name_of(line),
    'markerfacecolor': 'white' if rule == 'even' else COLORS[name],
    'marker': 's' if name in NAMES else 'o',
    'markersize': 4,
    'capsize': 2,
    'linewidth': 1.2,
  }


def plot_lines(ax: Axes, rows: list[Row], column: str) -> None:
  """PSNR or distance of all codecs against their bits."""
  for line, own in lines(rows).items():
    x, y, error = (
      [row[name] for row in own]
      for name in ('bits_per_pixel', column, f'{column}_error')
    )
    look = _look(line)
    ax.errorbar(x, y, error, **look | {'linestyle': 'none', 'label': None})
    best = frontier(own, column)
    x, y = ([row[name] for row in best] for name in ('bits_per_pixel', column))
    del look['capsize']
    ax.plot(x, y, **look)
    if line[0] == 'jpeg':
      whole, y = ([r[name] for r in own] for name in ('file_rate', column))
      ax.plot(whole, y, 's', color='black', fillstyle='none', markersize=4)
      ax.annotate(
        'whole JPEG files',
        (whole[0], y[0]),
        xytext=(0, -12 if column == 'psnr' else 10),
        textcoords='offset points',
        fontsize='x-small',
        ha='center',
      )
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_formatter('{x:g}')
  ax.set(xlabel=RATE)


def plot_psnr(ax: Axes, rows: list[Row]) -> None:
  """The distortion of every codec."""
  plot_lines(ax, rows, 'psnr')
  ax.legend(fontsize='x-small')
  ax.set(
    ylabel='PSNR [dB], mean over images',
    title='distortion: codes on equal-KL steps, even steps, transforms',
  )


def plot_ladders(ax: Axes, rows: list[Row]) -> None:
  """What more atoms, more of them in a step, and more steps bring."""
  symbols = {'size': 'K', 'atoms': 'M', 'steps': 'T'}
  by_codec: dict[tuple, dict[str, list[Row]]] = {}
  for (rule, name, *fixed), own in ladders(rows).items():
    by_codec.setdefault((name, *fixed), {})[rule] = own
  for i, ((name, *_), both) in enumerate(by_codec.items()):
    for rule, own in both.items():
      x, y = ([row[k] for row in own] for k in ('bits_per_pixel', 'psnr'))
      ax.plot(x, y, LINES[rule], color=f'C{i}', marker='.', linewidth=1)
    first = own[0]
    fixed = [f'{v} = {first[k]}' for k, v in symbols.items() if v != name]
    label = f'{family(own[-1])} over {name} ({", ".join(fixed)})'
    ax.plot([], [], color=f'C{i}', label=label)
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_formatter('{x:g}')
  if by_codec:
    ax.legend(fontsize='x-small')
  ax.set(
    xlabel=RATE,
    ylabel='PSNR [dB], mean over images',
    title='which number to raise; dashed: even steps',
  )


def plot_frechet(ax: Axes, rows: list[Row], real: float) -> None:
  """The realism of every codec."""
  plot_lines(ax, rows, 'frechet')
  ax.axhline(real, color='0.5', linestyle=':')
  ax.annotate(
    'other real images',
    (0.01, real),
    xycoords=('axes fraction', 'data'),
    ha='left',
    va='top',
    fontsize='x-small',
    color='0.4',
  )
  ax.set_yscale('log')
  ax.set(
    ylabel='Fréchet distance to the originals',
    title='realism: classifier features, distance over their variance',
  )


def plot_gains(ax: Axes, compared: list[Row]) -> None:
  """What equal-KL steps bring at equal bits, from few bits to many."""
  ordered = sorted(compared, key=lambda row: row['bits_per_pixel'])
  for i, row in enumerate(ordered):
    color = COLORS[row['family']]
    ax.errorbar(row['gain'], i, xerr=row['error'], fmt='o', color=color)
  labels = [
    f'{r["family"]} {r["setting"]}: {r["bits_per_pixel"]:.2f}' for r in ordered
  ]
  ax.set_yticks(range(len(labels)), labels, fontsize='x-small')
  ax.axvline(1, color='0.5', linestyle=':')
  ax.axvline(0, color='0.8')
  ax.set(
    xlabel='gain in PSNR [dB], with standard error',
    title='equal KL over even steps, at equal bits a pixel',
  )


def plot_kinds(ax: Axes, compared: list[Row]) -> None:
  """Structured codebooks against Gaussian ones."""
  ax.axhspan(-0.2, 0.2, color='0.93')
  ax.axhline(0, color='0.6')
  names = [f'{row["kind"]}\n{row["family"]}' for row in compared]
  for i, row in enumerate(compared):
    ax.errorbar(
      i,
      row['gain'],
      row['error'],
      fmt='o',
      capsize=4,
      color=COLORS[row['family']],
    )
  ax.set_xticks(range(len(names)), names, fontsize='small')
  top = max([0.3, *(abs(r['gain']) + r['error'] for r in compared)]) * 1.1
  settings = dict.fromkeys(f'{r["family"]}: {r["setting"]}' for r in compared)
  ax.set(
    ylim=(-top, top),
    ylabel='PSNR over that of Gaussian codebooks [dB]',
    title='structured codebooks\n' + '; '.join(settings),
  )


def plot_bed(ax: Axes, rows: list[Row], variances: np.ndarray) -> None:
  """Where all is known: codecs and what is possible."""
  found = codecs(rows, bed=True)
  for name, rule in dict.fromkeys((family(r), r['rule']) for r in found):
    own = [r for r in found if (family(r), r['rule']) == (name, rule)]
    look = _look((name, rule))
    del look['capsize']
    ax.plot(
      [r['bits_per_pixel'] for r in own], [r['psnr'] for r in own], **look
    )
  psnrs = [row['psnr'] for row in found] or [15.0, 25.0]
  levels = np.linspace(min(psnrs) - 1, max(psnrs) + 3)
  at = 4 / 10 ** (levels / 10)
  for rates, style, label in (
    (rate_distortion(variances, at), '-', 'R(D), exact'),
    (realistic_rate_distortion(variances, at), '--', 'R(D), realistic'),
    (rate_distortion(variances, at / 2), ':', 'R(D/2)'),
  ):
    ax.plot(rates, levels, color='0.4', linestyle=style, label=label)
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_formatter('{x:g}')
  ax.legend(fontsize='x-small')
  ax.set(
    xlabel='bits a coordinate',
    ylabel='PSNR of the mean squared error [dB]',
    title='1024 normal coordinates, variances as k^-1.2, exact denoiser',
  )


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """Originals, and what each line makes of them at about the same bits."""
  strips = {'original': image_of(next(r for r in rows if r['run'] == 'real'))}
  away = lambda row: abs(math.log(row['bits_per_pixel'] / PICTURED))
  for line, own in lines(rows).items():
    shown = [row for row in own if 'pixels' in row]
    if not shown:
      continue
    row = min(shown, key=away)
    said = f'{name_of(line)}: {row["bits_per_pixel"]:.2f} bits'
    strips[f'{said}, {row["psnr"]:.1f} dB'] = image_of(row)
  tiles = np.concatenate([*strips.values()])
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  side = len(tiles) / len(strips)
  ax.set_yticks((np.arange(len(strips)) + 0.5) * side, [*strips])
  ax.set_xticks([])
  ax.grid(visible=False)
  ax.tick_params(length=0)
  ax.set(title=f'at about {PICTURED} bits a pixel')
