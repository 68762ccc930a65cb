"""Panels of `ddcm_progressive`, and its numbers: rows in, axes drawn on."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row
from .rotation_panels import image_of

RULES = {'even': 'even timesteps', 'equal_kl': 'timesteps of equal KL'}
LOOKS = {
  'expected': dict(
    color='tab:blue', marker='o', label='prefix, expected image'
  ),
  'finished': dict(color='tab:green', marker='s', label='prefix, then DDIM'),
  'alone': dict(color='tab:red', marker='D', label='encoded with these bits'),
}
BITS = 'bits per pixel'


def as_text(values: np.ndarray) -> str:
  """Numbers in one cell; the x keeps one of them from being a number.

  >>> as_text(np.array([1.0, 2.5]))
  'x1.0000 2.5000'
  """
  return 'x' + ' '.join(f'{x:.4f}' for x in values)


def numbers_of(text: str) -> np.ndarray:
  """The inverse of `as_text`.

  >>> print(numbers_of('x1.0000 2.5000'))
  [1.  2.5]
  """
  return np.array([float(x) for x in text[1:].split()])


def results(rows: list[Row]) -> dict[str, Any]:
  """The headline numbers.

  Args:
    rows: of a run.

  Returns:
    `rules`: by rule an entry for each of the prefixes: `codes`,
    `bits_per_pixel`, mean PSNR of what is `expected`, `finished` and encoded
    `alone`, and the differences to the last, image by image, with standard
    errors; `images`, `dataset`.
  """
  (originals,) = (row for row in rows if row['run'] == 'originals')
  return {
    'rules': {rule: _entries(rows, rule) for rule in RULES},
    'images': originals['images'],
    'dataset': originals['dataset'],
  }


def of(rows: list[Row], rule: str, kind: str) -> list[Row]:
  """Rows of one rule and kind by the number of codes."""
  own = (r for r in rows if (r.get('rule'), r.get('kind')) == (rule, kind))
  return sorted(own, key=lambda row: row['codes'])


def _entries(rows: list[Row], rule: str) -> list[dict[str, Any]]:
  kinds = {
    kind: {r['codes']: r for r in of(rows, rule, kind) if 'psnrs' in r}
    for kind in LOOKS
  }
  whole = of(rows, rule, 'expected')[-1]
  return [
    {
      'codes': k,
      'bits_per_pixel': alone['bits_per_pixel'],
      'whole_bits_per_pixel': whole['bits_per_pixel'],
      **{kind: own[k]['psnr'] for kind, own in kinds.items()},
      **{
        f'{kind}_less_alone': _difference(kinds[kind][k], alone)
        for kind in ('expected', 'finished')
      },
    }
    for k, alone in kinds['alone'].items()
  ]


def _difference(row: Row, alone: Row) -> dict[str, float]:
  """Mean over images, and its standard error."""
  each = numbers_of(row['psnrs']) - numbers_of(alone['psnrs'])
  error = each.std(ddof=1) / np.sqrt(len(each))
  return {'mean': float(each.mean()), 'error': float(error)}


def plot_curves(ax: Axes, rows: list[Row], rule: str, most: float) -> None:
  """PSNR against the bits of prefixes, and of codes made for as many.

  Args:
    ax: where.
    rows: of a run.
    rule: of the timesteps.
    most: the largest PSNR of all panels.
  """
  for kind, look in LOOKS.items():
    own = of(rows, rule, kind)
    x, y, error = (
      np.array([row[k] for row in own])
      for k in ('bits_per_pixel', 'psnr', 'error')
    )
    if kind == 'expected':
      style = look | dict(marker=None)
      ax.plot(x, y, **style)
      ax.fill_between(x, y - error, y + error, color=look['color'], alpha=0.2)
    else:
      ax.errorbar(x, y, error, linestyle='none', capsize=3, **look)
  ax.set(
    ylim=(min(r['psnr'] for r in rows if 'psnr' in r) - 1, most + 1),
    xlabel=BITS,
    ylabel='PSNR, mean over images [dB]',
    title=RULES[rule],
  )
  ax.legend(loc='lower right', fontsize='small')


def plot_differences(ax: Axes, numbers: dict[str, Any]) -> None:
  """PSNR of prefixes less that of codes made for as many bits."""
  for rule, line in (('even', '--'), ('equal_kl', '-')):
    entries = numbers['rules'][rule]
    x = [entry['bits_per_pixel'] for entry in entries]
    for kind in ('expected', 'finished'):
      own = [entry[f'{kind}_less_alone'] for entry in entries]
      mean, error = ([e[k] for e in own] for k in ('mean', 'error'))
      look = LOOKS[kind] | dict(label=f'{RULES[rule]}, {kind}')
      ax.errorbar(x, mean, error, linestyle=line, capsize=3, **look)
  ax.axhline(0, color='0.5', linestyle=':')
  ax.set(
    xlabel=BITS,
    ylabel='PSNR less that of a code of these bits [dB]',
    title='what a prefix loses, image by image',
  )
  low, high = ax.get_ylim()
  ax.set_ylim(low - 0.4 * (high - low), high)  # Room for the legend.
  ax.legend(fontsize='small', loc='lower right')


def plot_images(ax: Axes, rows: list[Row]) -> None:
  """A row of images for each kind, a block for each prefix; originals last."""
  (originals,) = (row for row in rows if row['run'] == 'originals')
  last = image_of(originals)
  lines, names, bits = [], [], []
  for rule, title in RULES.items():
    for kind in LOOKS:
      own = [row for row in of(rows, rule, kind) if 'pixels' in row]
      bits = [row['bits_per_pixel'] for row in own]
      lines.append(np.concatenate([*map(image_of, own), last], axis=1))
      names.append(f'{title}: {kind}')
  tiles = np.concatenate(lines)
  ax.imshow(tiles, cmap='gray_r', vmin=0, vmax=255, interpolation='nearest')
  height, width = last.shape
  ax.set_yticks((np.arange(len(names)) + 0.5) * height, names, fontsize='small')
  ticks = (np.arange(len(bits) + 1) + 0.5) * width
  ax.set_xticks(ticks, [*(f'{b:.2f} {BITS}' for b in bits), 'originals'])
  ax.grid(visible=False)
  ax.tick_params(length=0)
  ax.set(
    title='the same images from prefixes and from codes made for their bits'
  )
