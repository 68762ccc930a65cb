"""Panels of `ddcm_robustness`, and its numbers: rows in, axes drawn on."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row
from .rotation_panels import image_of

NAMES = {
  'rank': 'Turbo, ranked sets',
  'dense': 'Turbo, one number',
  'independent': 'Turbo, single indices',
  'ddcm': 'DDCM, single indices',
  'jpeg': 'JPEG',
}
STYLES = {
  'rank': ('tab:orange', 'o'),
  'dense': ('tab:purple', '^'),
  'independent': ('tab:green', 's'),
  'ddcm': ('tab:blue', 'D'),
  'jpeg': ('black', 'v'),
}
RATE = 'share of wrong bits'


def _look(name: str) -> dict[str, Any]:
  color, marker = STYLES[name]
  look = {'color': color, 'marker': marker, 'markersize': 5}
  return look | {'label': NAMES[name]}


def damaged(rows: list[Row], name: str) -> list[Row]:
  """Rows of one codec by the rate of wrong bits."""
  own = [row for row in rows if row.get('codec') == name and 'rate' in row]
  return sorted(own, key=lambda row: row['rate'])


def clean(rows: list[Row]) -> dict[str, Row]:
  """The row of each codec without wrong bits."""
  every = [row for row in rows if 'bits' in row]
  return {row['codec']: row for row in every}


def tolerated(rows: list[Row], loss: float = 1.0) -> float | None:
  """The rate of wrong bits at which so many dB are lost.

  Args:
    rows: of one codec, by rate.
    loss: in dB.

  Returns:
    Read off straight lines between logarithms; `None` if all or none lose more.

  Example:
    >>> rows = [{'rate': 0.001, 'loss': 0.1}, {'rate': 0.1, 'loss': 10.0}]
    >>> round(tolerated(rows), 6)
    0.01
  """
  for one, other in zip(rows, rows[1:], strict=False):
    if one['loss'] <= loss < other['loss']:
      x = [math.log(row['rate']) for row in (one, other)]
      y = [math.log(max(row['loss'], 1e-6)) for row in (one, other)]
      return math.exp(np.interp(math.log(loss), y, x))
  return None


def results(rows: list[Row]) -> dict[str, Any]:
  """The headline numbers.

  Args:
    rows: of a run.

  Returns:
    For each codec its bits, PSNR and the rate of wrong bits at which it loses a
    dB; what is lost at the rate of the pictures and at every other one; what a
    wrong bit costs by its place.
  """
  keep = lambda row, *names: {name: row[name] for name in names}
  (real,) = (row for row in rows if row['run'] == 'real')
  scores = ('psnr', 'loss', 'tenth', 'wrong', 'lost')
  codecs, at_pictured, curves, parts = {}, {}, {}, {}
  for name, row in clean(rows).items():
    own = damaged(rows, name)
    codecs[name] = keep(row, 'bits', 'bits_per_pixel', 'psnr')
    codecs[name]['tolerated'] = tolerated(own)
    curves[name] = [keep(r, 'rate', *scores) for r in own]
    (shown,) = (r for r in own if r['rate'] == real['pictured'])
    at_pictured[name] = keep(shown, *scores)
    places = [r for r in rows if r.get('codec') == name and 'part' in r]
    parts[name] = [keep(r, 'part', 'loss', 'loss_error') for r in places]
  return {
    'codecs': codecs,
    'at_pictured': at_pictured,
    'curves': curves,
    'parts': parts,
    **keep(real, 'pictured', 'images', 'seeds', 'dataset'),
  }


def plot_psnr(ax: Axes, rows: list[Row]) -> None:
  """PSNR against the rate of wrong bits, with the range of draws."""
  for name, row in clean(rows).items():
    own = damaged(rows, name)
    rates = [r['rate'] for r in own]
    look = _look(name)
    look['label'] += f', {row["bits_per_pixel"]:.2f} bits a pixel'
    ax.plot(rates, [r['psnr'] for r in own], **look)
    low, high = ([r[f'psnr_{end}'] for r in own] for end in ('low', 'high'))
    ax.fill_between(rates, low, high, color=look['color'], alpha=0.2, lw=0)
    ax.plot(rates, [r['tenth'] for r in own], ':', color=look['color'], lw=1)
    ax.plot(rates[0] / 2, row['psnr'], look['marker'], color=look['color'])
  ax.set(xscale='log')
  ax.annotate(
    'none',
    (rates[0] / 2, 0),
    xycoords=('data', 'axes fraction'),
    ha='center',
    va='bottom',
    fontsize='x-small',
  )
  ax.legend(fontsize='x-small', loc='upper right')
  ax.set(
    xlabel=RATE,
    ylabel='PSNR [dB], mean over images',
    title='with wrong bits (dotted: the worst tenth of images)',
  )


def plot_loss(ax: Axes, rows: list[Row]) -> None:
  """What is lost against the rate of wrong bits, both logarithmic."""
  for name in clean(rows):
    own = [row for row in damaged(rows, name) if row['loss'] > 0]
    rates = [row['rate'] for row in own]
    ax.plot(rates, [row['loss'] for row in own], **_look(name))
  ax.axhline(1, color='0.5', linestyle=':')
  ax.set(xscale='log', yscale='log')
  ax.yaxis.set_major_formatter('{x:g}')
  ax.legend(fontsize='x-small')
  ax.set(xlabel=RATE, ylabel='PSNR lost [dB]', title='what wrong bits cost')


def plot_parts(ax: Axes, rows: list[Row]) -> None:
  """What one wrong bit costs, by its place in the code."""
  for name in clean(rows):
    own = [r for r in rows if r.get('codec') == name and 'part' in r]
    x, y, error = (
      [row[column] for row in own] for column in ('part', 'loss', 'loss_error')
    )
    ax.errorbar(x, y, error, capsize=2, **_look(name))
  ax.set(
    xlabel='place in the code of an image',
    ylabel='PSNR lost [dB], mean over images',
    title='one wrong bit in each image',
    ylim=(min(0, ax.get_ylim()[0]), None),
  )


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """Originals, and what each codec makes of damaged bits."""
  (real,) = (row for row in rows if row['run'] == 'real')
  strips = {'original': image_of(real)}
  for name in clean(rows):
    (row,) = (r for r in damaged(rows, name) if r['rate'] == real['pictured'])
    strips[f'{NAMES[name]}, {row["psnr"]:.1f} dB'] = image_of(row)
  tiles = np.concatenate([*strips.values()])
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  side = len(tiles) / len(strips)
  ax.set_yticks((np.arange(len(strips)) + 0.5) * side, [*strips])
  ax.set_xticks([])
  ax.grid(visible=False)
  ax.tick_params(length=0)
  ax.set(title=f'with one wrong bit in {round(1 / real["pictured"])}')
