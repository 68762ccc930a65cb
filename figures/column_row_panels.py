"""Panels of the figure of column-row products: errors, checks, time.

Rows are those of `column_row_variance`, by run.
"""

import numpy as np

COLORS = {
  'uniform': 'tab:gray',
  'norm_iid': 'tab:orange',
  'bernoulli': 'tab:green',
  'norm_systematic': 'tab:blue',
  'top_norm': 'tab:red',
  'greedy': 'tab:purple',
}
CLOSED = ('norm_iid', 'uniform', 'bernoulli')  # With chance and a formula.
FIXED = ('top_norm', 'greedy')
REWEIGHTED = ('uniform', 'norm_iid', 'norm_systematic', *FIXED)
MARKERS = {'gaussian': 'o', 'images': 's', 'gradient': '^'}
TIMED = (
  ('uniform', 'unbiased'),
  ('norm_systematic', 'unbiased'),
  ('top_norm', 'unbiased'),
  ('norm_systematic', 'optimal'),
)


def speed_ups(runs: dict, data: str) -> list[dict]:
  """Timed rows with their speed-up over the full product."""
  full, *rows = runs[f'timing-{data}']
  return [
    row
    | {
      'speedup': full['seconds'] / row['seconds'],
      'median_speedup': full['median_seconds'] / row['median_seconds'],
    }
    for row in rows
  ]


def plot_curves(runs, data, ax):
  """Squared errors against rank: exact lines, measured dots."""
  theory = runs[f'theory-{data}']
  ranks = [row['rank'] for row in theory]
  for method, color in COLORS.items():
    found = [row['error'] for row in runs[f'{data}-{method}-unbiased']]
    if method in theory[0]:
      ax.plot(ranks, [row[method] for row in theory], color=color)
      ax.plot(ranks, found, 'o', color=color, label=method, markersize=5)
    else:
      style = dict(color=color, linewidth=1, markersize=6, fillstyle='none')
      ax.plot(ranks, found, 's:', label=f'{method} (no formula)', **style)
  optimum = [max(row['optimum'], 1e-12) for row in theory]
  ax.plot(ranks, optimum, 'k--', label='best matrix of the rank')
  guide = theory[0]['norm_iid'] * ranks[0] / np.array(ranks)
  ax.plot(ranks, guide * 2, 'k:', linewidth=0.8, label='slope -1')
  low = min(min(row[m] for m in (*CLOSED, *FIXED)) for row in theory)
  ax.set(
    xscale='log',
    yscale='log',
    ylim=(low / 5, None),
    xlabel='rank, terms kept',
    ylabel='squared error / squared norm, mean',
    title=theory[0]['title'],
  )
  ax.set_xscale('log', base=2)
  ax.set_xticks(ranks, [str(rank) for rank in ranks])
  if data == 'gaussian':
    ax.legend(fontsize='small', loc='lower left')


def plot_check(checks, ax):
  """Measured over exact, less one, with two standard deviations."""
  ranks = sorted({row['rank'] for row in checks})
  for i, (data, marker) in enumerate(MARKERS.items()):
    for j, method in enumerate(CLOSED):
      of = [r for r in checks if (r['data'], r['method']) == (data, method)]
      place = [ranks.index(r['rank']) + 0.08 * (3 * j + i - 4) for r in of]
      gaps, bars = ([r[k] for r in of] for k in ('gap', 'bar'))
      style = dict(color=COLORS[method], markersize=4, linewidth=1)
      label = method if data == 'gaussian' else None
      bars = 2 * np.array(bars)
      ax.errorbar(place, gaps, bars, fmt=marker, label=label, **style)
  for data, marker in MARKERS.items():
    ax.plot([], [], marker, color='black', label=data, markersize=4)
  ax.axhline(0, color='black', linewidth=0.8)
  ax.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
  ax.set(
    xlabel='rank, terms kept',
    ylabel='measured / exact - 1',
    title=f'means of {checks[0]["draws"]} draws, bars: 2 standard errors',
  )
  ax.legend(fontsize='small', ncols=2)


def plot_weights(runs, ax):
  """Unbiased and best weights, on the gradient."""
  for method in REWEIGHTED:
    for weights, line in (('unbiased', '-'), ('optimal', '--')):
      found = runs[f'gradient-{method}-{weights}']
      ranks = [row['rank'] for row in found]
      errors = np.sqrt([max(row['error'], 1e-16) for row in found])
      label = method if weights == 'unbiased' else None
      ax.plot(
        ranks, errors, f'{line}', color=COLORS[method], label=label, marker='.'
      )
  ax.plot([], [], 'k-', label='unbiased, or ones')
  ax.plot([], [], 'k--', label='of least error')
  ax.set_xscale('log', base=2)
  ax.set_xticks(ranks, [str(rank) for rank in ranks])
  ax.set(
    yscale='log',
    xlabel='rank, terms kept',
    ylabel='relative error, root mean square',
    title='weights, on the gradient',
  )
  ax.legend(fontsize='small')


def plot_speed(runs, ax):
  """What a relative error buys, on incoherent data and on images."""
  colors = {'unbiased': COLORS, 'optimal': dict.fromkeys(COLORS, 'black')}
  for data, line in (('gaussian', '-'), ('images', '--')):
    for method, weights in TIMED:
      of = [
        row
        for row in speed_ups(runs, data)
        if (row['method'], row['weights']) == (method, weights)
      ]
      error, speed, median = (
        [row[k] for row in of]
        for k in ('relative_error', 'speedup', 'median_speedup')
      )
      color = colors[weights][method]
      label = f'{method}, {weights}' if weights == 'optimal' else method
      label = label if data == 'gaussian' else None
      ax.plot(
        error, speed, line, marker=MARKERS[data], color=color, label=label
      )
      ax.plot(error, median, '_', color=color)
    shape = runs[f'timing-{data}'][0]['shape']
    ax.plot(
      [], [], line, marker=MARKERS[data], color='gray', label=f'{data}, {shape}'
    )
  ax.plot([], [], '_', color='gray', label='of medians, not of minima')
  ax.axhline(1, color='black', linestyle=':', label='the full product')
  shares = sorted({row['share'] for row in speed_ups(runs, 'gaussian')})
  listed = ', '.join(f'{share:g}' for share in reversed(shares))
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='relative error of the product',
    ylabel='speed-up over the full product, float32',
    title=f'shares {listed} of the terms, upwards',
  )
  ticks = (0.2, 0.5, 1, 2, 5, 10, 20)
  ax.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
  ax.set_yticks([], minor=True)
  low, high = ax.get_ylim()
  ax.set_ylim(low / 8, high)  # Room for a legend.
  ax.legend(fontsize='small', loc='lower center', ncols=2)
