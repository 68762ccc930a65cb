"""Panels of the figure on choices of columns; rows and axes in."""

import numpy as np

from .column_choices import OURS

STYLES = {
  'osinsky': ('tab:blue', 'o'),
  'strong_rrqr': ('tab:green', 's'),
  'randomized': ('tab:cyan', 'v'),
  'pivoted_qr': ('tab:orange', '^'),
  'SciPy-ID': ('tab:brown', '<'),
  'SciPy-RID': ('tab:red', '>'),
  'Optim-RID': ('tab:purple', 'D'),
  'leverage': ('black', '+'),
  'norms': ('dimgray', 'x'),
  'uniform': ('darkgray', '.'),
}


def of(rows: list[dict], **wanted) -> list[dict]:
  """Rows with certain entries."""
  return [
    row for row in rows if all(row.get(k) == v for k, v in wanted.items())
  ]


def kinds(rows: list[dict]) -> list[str]:
  """Names of the matrices, as recorded."""
  return [*dict.fromkeys(row['matrix'] for row in rows if row.get('matrix'))]


def median(rows: list[dict], column: str, **wanted) -> float:
  """The median of a column over rows with certain entries."""
  return float(np.median([row[column] for row in of(rows, **wanted)]))


def plot_selectors(rows, column, ax):
  """A column by kind of matrix, selectors side by side."""
  names = kinds(rows)
  for i, (name, (color, marker)) in enumerate(STYLES.items()):
    offset = 0.075 * (i - (len(STYLES) - 1) / 2)
    values = [
      [row[column] for row in of(rows, matrix=kind, selector=name)]
      for kind in names
    ]
    middle = np.array([np.median(v) for v in values])
    low, high = (np.array([f(v) for v in values]) for f in (np.min, np.max))
    ax.errorbar(
      np.arange(len(names)) + offset,
      middle,
      [middle - low, high - middle],
      fmt=marker,
      color=color,
      markersize=5,
      label=name,
    )
  for i in range(1, len(names)):
    ax.axvline(i - 0.5, color='lightgray', linewidth=0.8)
  ax.set_xticks(range(len(names)), names)
  ax.grid(False, axis='x')
  ax.set_yscale('log')


def plot_time(rows, ax):
  """Error over seconds; filled where values fall fast, hollow where slowly."""
  for spectrum, fill in (('fast', 'full'), ('slow', 'none')):
    for row in of(rows, spectrum=spectrum):
      color, marker = STYLES[row['selector']]
      ax.plot(
        row['seconds_of_one'],
        row['error'],
        marker,
        color=color,
        fillstyle=fill,
        markersize=9,
        label=row['selector'] if fill == 'full' else None,
      )
  ax.set(
    xscale='log',
    xlabel='seconds, without compilation',
    ylabel='error over optimum',
    title=f'{row["shape"]}; hollow: singular values 1 / j',
  )
  ax.legend(fontsize='small')


def plot_article(rows, numbers, ax):
  """The article's tables as ratios to SciPy-RID."""
  names = kinds(rows)
  tables = {
    'error': numbers['median_error_over_optimum'],
    'max |Z|': numbers['median_largest_coefficient'],
  }
  speeds = numbers['large'].values()
  for i, name in enumerate(('Optim-RID', 'osinsky')):
    color, marker = STYLES[name]
    for (title, table), fill in zip(
      tables.items(), ('full', 'none'), strict=True
    ):
      ratio = [table[name][kind] / table['SciPy-RID'][kind] for kind in names]
      ax.plot(
        np.arange(len(names)) + 0.2 * i - 0.1,
        ratio,
        marker,
        color=color,
        fillstyle=fill,
        label=f'{name}, {title}',
      )
    times = [1 / speed[name]['times_as_fast_as_scipy'] for speed in speeds]
    ax.plot(
      [len(names) + 0.2 * i - 0.1] * len(times),
      times,
      '*',
      color=color,
      label=f'{name}, seconds',
    )
  ax.axhline(1, color='black', linewidth=0.8)
  ax.set_xticks(range(len(names) + 1), [*names, 'time'])
  ax.set(
    yscale='log',
    ylabel='ratio to SciPy-RID',
    title="the article's tables: below 1 is better than SciPy-RID",
  )
  ax.legend(fontsize='small', ncols=2)


def plot_kahan(rows, ax):
  """Errors on Kahan's matrix less one column, and the guarantees."""
  sizes = sorted({row['size'] for row in rows if row.get('size')})
  for name in OURS:
    color, marker = STYLES[name]
    errors = [of(rows, size=n, selector=name)[0]['error'] for n in sizes]
    size = 9 if name == 'osinsky' else 5  # Strong RRQR's lie upon it.
    style = dict(color=color, label=name, markersize=size)
    ax.plot(sizes, errors, f'{marker}-', **style)
  n = np.arange(sizes[0], sizes[-1] + 1)
  style = dict(color='black', linewidth=1)
  ax.plot(n, 2.0 ** (n - 1), ':', label=r'$2^r \sqrt{n - r}$', **style)
  label = r'$\sqrt{1 + r (n - r)}$'
  ax.plot(n, np.sqrt(n), '--', label=label, **style)
  ax.set(
    yscale='log',
    ylim=(0.5, 1e15),
    xlabel='n',
    ylabel='error over optimum',
    title="Kahan's matrix, r = n - 1",
  )
  ax.legend(fontsize='small', loc='upper left')


def plot_threshold(rows, ax):
  """Largest coefficients and swaps of strong RRQR over its threshold."""
  other = ax.twinx()
  for kind, color in (('fast', 'tab:blue'), ('kernel', 'tab:orange')):
    some = of(rows, kind=kind)
    f = [row['threshold'] for row in some]
    largest = [row['largest_coefficient'] for row in some]
    ax.plot(f, largest, 'o', color=color, label=f'{kind}, max |Z|')
    swaps = [row['swaps'] for row in some]
    other.plot(f, swaps, ':', color=color)
    ax.plot([], [], ':', color=color, label=f'{kind}, swaps (right)')
  ax.plot(f, f, color='black', label='threshold')
  other.set_ylabel('swaps, mean over seeds')
  other.grid(False)
  ax.set(
    xlabel='threshold f',
    ylabel='largest coefficient over seeds',
    title='strong RRQR: its coefficients and its swaps',
  )
  ax.legend(fontsize='small', loc='upper left', bbox_to_anchor=(0.08, 1))
