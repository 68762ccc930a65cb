"""Panels of `lowrank_error`: rows and axes in, nothing returned."""

import numpy as np

FAMILIES = {'SVD': 'tab:blue', 'ID': 'tab:orange', 'CUR': 'tab:green'}
NORMALIZERS = {'none': 'tab:red', 'LU': 'tab:purple', 'QR': 'black'}


def ratios(runs, panel, styles, ax):
  """Error over optimum against rank, all methods on one matrix."""
  title, ranks = 'no weights installed', []
  for name, style in styles.items():
    found = runs.get(f'{panel}-{name}')
    if not found:
      continue
    title = found[0]['title']
    ranks = [row['rank'] for row in found]
    mean, low, high = (
      [row[key] for row in found] for key in ('ratio', 'ratio_min', 'ratio_max')
    )
    ax.plot(ranks, mean, label=name, **style)
    ax.fill_between(ranks, low, high, color=style['color'], alpha=0.1, lw=0)
  _rank_axis(ax, ranks, title)


def _rank_axis(ax, ranks, title):
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='rank',
    ylabel='Frobenius error / optimum',
    title=title,
  )
  ax.set_xticks(ranks, [*map(str, ranks)])
  ax.set_xticks([], minor=True)
  _plain_ticks(ax)


def _plain_ticks(ax):
  ax.yaxis.set_major_formatter('{x:g}')
  ax.yaxis.set_minor_formatter('{x:g}')
  ax.tick_params(axis='y', which='minor', labelsize='x-small')


def bounds(runs, ax):
  """The guarantees in expectation or at worst, over what was measured."""
  found = {n: runs[f'slow-{n}'] for n in ('SVD, q = 0', 'ID, osinsky')}
  ranks = np.array([row['rank'] for row in found['ID, osinsky']])
  bounds = {
    # Width r + 10 of which 10 are spare; the truncation adds the optimum.
    'SVD, q = 0': 1 + np.sqrt(1 + ranks / 9),
    'ID, osinsky': np.sqrt(ranks + 1),
  }
  names = {
    'SVD, q = 0': r'$1 + \sqrt{1 + r / 9}$',
    'ID, osinsky': r'$\sqrt{r + 1}$',
  }
  for name, rows in found.items():
    color = FAMILIES[name.split(',')[0]]
    ax.plot(ranks, bounds[name], ':', color=color, label=names[name])
    ratios = [row['ratio'] for row in rows]
    ax.plot(ranks, ratios, 'o-', color=color, label=f'{name}, measured')
  _rank_axis(ax, ranks, r'dotted: the guarantees, on $s_j = 1 / j$')
  ax.legend(fontsize='small')


def power(rows, ax):
  """Power iterations need something between them, in float32 at once."""
  colors = {**NORMALIZERS, 'kexue': 'tab:blue'}
  for name, color in colors.items():
    found = [row for row in rows if row['normalizer'] == name]
    ax.plot(
      [row['iterations'] for row in found],
      [row['ratio'] for row in found],
      'o-' if name == 'kexue' else '.--',
      color=color,
      label='kexue, Cholesky QR'
      if name == 'kexue'
      else f'scikit-learn, {name}',
    )
  ax.set(
    yscale='log',
    xlabel='power iterations q',
    ylabel='Frobenius error / optimum',
    title='normalisation of power iterations, float32, fast spectrum',
  )
  _plain_ticks(ax)
  ax.legend(fontsize='small')


def tolerance(runs, panels, ax):
  """Delivered against requested; the numbers are ranks over optimal ranks."""
  for panel in panels:
    found = runs.get(f'tolerance-{panel}')
    if found:
      asked = [row['rtol'] for row in found]
      got = [row['delivered'] for row in found]
      ratio = np.mean([r['rank'] / max(1, r['optimal_rank']) for r in found])
      ax.plot(asked, got, 'o-', label=f'{panel}, rank {ratio:.2f} of optimal')
  limits = [min(asked), max(asked)]
  ax.plot(limits, limits, ':', color='black', label='as requested')
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='relative tolerance requested',
    ylabel='relative Frobenius error delivered',
    # One that needs all the rank is left with rounding.
    ylim=(min(asked) / 10, 2 * max(asked)),
    title='adaptive_range',
  )
  ax.legend(fontsize='small')
