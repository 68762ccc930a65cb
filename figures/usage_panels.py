"""Numbers and panels of `codebook_usage`: rows in, axes drawn on.

A curve is the technique and the start, with the last rows of the seeds of every
number of codes.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from .comparison import Row, by_run, spread
from .panels import band

Curves = dict[tuple[str, str], dict[int, list[Row]]]
COLORS = {
  'ste': 'black',
  'rotation': 'tab:blue',
  'revival': 'tab:orange',
  'balanced_sign': 'tab:pink',
  'balanced': 'tab:red',
  'simvq': 'tab:purple',
  'fsq': 'tab:green',
}
COLUMNS = ('usage', 'perplexity', 'val_loss', 'quantization_error')
LABELS = {
  'usage': 'codes used on held-out images [share]',
  'val_loss': 'error of reconstruction [square a pixel of 0..1]',
}


def curves_of(rows: list[Row]) -> Curves:
  """The last rows of the seeds by technique, start and number of codes."""
  curves: Curves = {}
  for run in by_run(rows).values():
    row = run[-1]
    curve = curves.setdefault((row['technique'], row['start']), {})
    curve.setdefault(row['num_codes'], []).append(row)
  return curves


def of_start(curves: Curves, start: str) -> Curves:
  """Those of a start, and those that have none."""
  return {k: v for k, v in curves.items() if k[1] in (start, 'none')}


def results(rows: list[Row]) -> dict:
  """The table, who reconstructs best, and usage at the most codes."""
  curves = curves_of(rows)
  table: dict[str, dict[int, dict[str, Any]]] = {
    ' '.join(pair): {
      size: {
        name: spread([row[name] for row in ends])
        for name in COLUMNS
        if all(name in row for row in ends)
      }
      for size, ends in curve.items()
    }
    for pair, curve in curves.items()
  }
  most = max(size for curve in curves.values() for size in curve)
  starts = [s for s in dict.fromkeys(s for _, s in curves) if s != 'none']
  winners, at_most = {}, {}
  for start in starts:
    own = {p: table[' '.join(p)] for p in of_start(curves, start)}
    for size in sorted({size for curve in own.values() for size in curve}):
      loss = lambda p, size=size, own=own: own[p][size]['val_loss']['mean']
      winners[f'{start}, {size}'] = min(own, key=loss)[0]
    at_most[start] = {
      technique: {k: v['mean'] for k, v in curve[most].items()}
      for (technique, _), curve in own.items()
    }
  return {
    'dataset': rows[0]['dataset'],
    'table': table,
    'winners': winners,
    'most_codes': most,
    'most': at_most,
  }


def plot_sizes(ax: Axes, curves: Curves, column: str, title: str) -> None:
  """A column against the number of codes: means of seeds, range as a band.

  Args:
    ax: where.
    curves: what is drawn.
    column: of the rows.
    title: of the panel.
  """
  for (technique, _), curve in curves.items():
    sizes = sorted(curve)
    values = np.array([[row[column] for row in curve[k]] for k in sizes])
    style = dict(color=COLORS[technique], label=technique)
    ax.plot(sizes, values.mean(1), marker='.', **style)
    ax.fill_between(
      sizes, values.min(1), values.max(1), color=style['color'], alpha=0.2
    )
  ax.set_xscale('log', base=2)
  ticks = sorted({size for curve in curves.values() for size in curve})
  ax.set_xticks(ticks, [f'{size:g}' for size in ticks])
  ax.xaxis.set_minor_formatter(NullFormatter())
  ax.set(xlabel='codes', ylabel=LABELS[column], title=title)
  ax.legend(fontsize='x-small', ncols=2)


def plot_bits(ax: Axes, curves: Curves) -> None:
  """Reconstruction against the entropy of the tokens, what a code is for.

  Args:
    ax: where.
    curves: what is drawn, a start that is unfit dashed.
  """
  for (technique, start), curve in curves.items():
    points = [curve[size] for size in sorted(curve)]
    bits, loss = (
      [np.mean([read(row) for row in ends]) for ends in points]
      for read in (lambda r: np.log2(r['perplexity']), lambda r: r['val_loss'])
    )
    unfit = start == 'unfit'
    style = dict(color=COLORS[technique], marker='.')
    label = None if unfit else technique
    ax.plot(bits, loss, '--' if unfit else '-', label=label, **style)
  ax.set(
    xlabel='log2 of the perplexity of tokens [bits]',
    ylabel=LABELS['val_loss'],
    title='by what tokens hold: fit solid, unfit dashed',
  )
  ax.legend(fontsize='x-small', ncols=2)


def plot_steps(ax: Axes, rows: list[Row], start: str) -> None:
  """Usage over training, of the most codes.

  Args:
    ax: where.
    rows: all.
    start: of the codes.
  """
  most = max(row['num_codes'] for row in rows)
  runs: dict[str, list[list[Row]]] = {}
  for own in by_run(rows).values():
    if own[0]['num_codes'] == most and own[0]['start'] in (start, 'none'):
      runs.setdefault(own[0]['technique'], []).append(own)
  for technique, seeds in runs.items():
    band(ax, seeds, 'usage', color=COLORS[technique], label=technique)
  ax.set(
    xlabel='steps',
    ylabel=LABELS['usage'],
    title=f'{most} codes over training, {start} start',
  )
  ax.legend(fontsize='x-small', ncols=2)
