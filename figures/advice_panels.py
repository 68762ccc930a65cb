"""Panels of `batch_size_advisor`; axes in, nothing returned."""

import numpy as np
from matplotlib.axes import Axes

from .advice import RULES
from .comparison import Row
from .optima import draw_optima, grid_losses

BUDGETS = ('examples', 'steps')
FACTOR = 1.5  # What advice should be within.


def plot_rates(
  ax: Axes,
  runs: dict[str, list[Row]],
  rows: list[Row],
  numbers: dict,
  name: str,
  fixed: str,
) -> None:
  """Every learning rate tried, the optima, and what each rule says."""
  base = numbers['base'][name]
  advised = sorted(
    (r for r in rows if r.get('advised') == name and r['fixed'] == fixed),
    key=lambda row: row['batch_size'],
  )
  if not advised:
    ax.text(0.5, 0.5, f'no runs with the {fixed} fixed', ha='center')
    ax.set_axis_off()
    return
  first = advised[0]['base_batch_size']
  batches = [first, *(row['batch_size'] for row in advised)]
  for rule, (label, color) in RULES.items():
    y = [base['rate'], *(row[rule] for row in advised)]
    ax.plot(
      batches, y, '-' if rule == 'advice' else '--', color=color, label=label
    )
  low, high = (
    [base['rate'], *(row[k] for row in advised)] for k in ('low', 'high')
  )
  ax.fill_between(batches, low, high, color='tab:green', alpha=0.2)
  found = {first: base} | {
    b: x['measured']
    for b, x in numbers['advice'][name][fixed].items()
    if 'measured' in x
  }
  for b in found:
    _plot_tried(ax, runs, name, 'base' if b == first else fixed, b)
  _plot_band(ax, found)
  style = dict(fmt='o', color='black', zorder=4, label='measured optimum')
  draw_optima(ax, [*found], [*found.values()], **style)
  ax.set_xscale('log', base=2)
  ax.set_yscale('log')
  ax.set_xticks(batches, [f'{b}' for b in batches])
  ax.set_xticks([], minor=True)
  ax.set(
    xlabel=f'batch size [images]; optima for {max(found)} at most',
    ylabel='constant learning rate',
    title=f'{name}: as many {fixed} as the base run',
  )
  ax.legend(fontsize='small', loc='upper left')


def _plot_tried(ax: Axes, runs, name: str, fixed: str, batch_size: int) -> None:
  """Dots of the grid, darker the lower the loss."""
  wanted = dict(trained=name, fixed=fixed, batch_size=batch_size)
  rates, losses = grid_losses(runs, **wanted)
  mean = losses.mean(0)
  style = dict(cmap='gray', vmin=0, vmax=0.3, s=14, zorder=3)
  ax.scatter(
    np.full(len(rates), batch_size),
    rates,
    c=np.minimum(mean / mean.min() - 1, 0.25),
    **style,
  )


def _plot_band(ax: Axes, found: dict) -> None:
  """Within the factor of the optima, between them."""
  rates = np.array([best['rate'] for best in found.values()])
  label = f'within a factor of {FACTOR:g}'
  style = dict(color='gray', alpha=0.2, linewidth=0, label=label)
  ax.fill_between([*found], rates / FACTOR, rates * FACTOR, **style)


def plot_noise(ax: Axes, runs: dict[str, list[Row]]) -> None:
  """The noise scale as the base runs went on."""
  for label in sorted(run for run in runs if run.startswith('base-')):
    rows = [r for r in runs[label] if np.isfinite(r['noise_scale'])]
    steps = [r['step'] for r in rows]
    column = lambda name, rows=rows: np.array([r[name] for r in rows])
    (line,) = ax.plot(steps, column('noise_scale'), label=label[5:])
    low, high = column('noise_low'), column('noise_high')
    high = np.where(np.isfinite(high), high, 10 * column('noise_scale'))
    ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
  ax.set_yscale('log')
  ax.yaxis.set_major_formatter('{x:g}')
  ax.set(
    xlabel='step of the base run',
    ylabel='noise scale so far [images]',
    title='tracked noise scale, 95 % interval',
  )
  ax.legend(fontsize='small')


def plot_loss(ax: Axes, advice: dict) -> None:
  """What each rule costs at each batch size that was measured."""
  ticks, groups = [], []
  for name, by in advice.items():
    for fixed, at in by.items():
      for batch, x in at.items():
        if 'measured' in x:
          ticks.append(f'{name}\n{batch}\n{fixed}')
          groups.append(x['excess_loss'])
  looks = RULES | {'malladi': ("Malladi's rule", 'tab:brown')}
  for i, (rule, (label, color)) in enumerate(looks.items()):
    y = [100 * losses.get(rule, np.nan) for losses in groups]
    x = np.arange(len(groups)) + (i - len(looks) / 2) / (len(looks) + 2)
    ax.plot(x, np.maximum(y, 0.1), 'o', color=color, label=label)
  ax.set_yscale('log')
  ax.yaxis.set_major_formatter('{x:g}')
  ax.set_xticks(range(len(ticks)), ticks, fontsize='small')
  ax.set(
    ylabel='loss above that of the best learning rate [%]',
    title='what following a rule costs (missing: diverged or not tried)',
  )
  ax.legend(fontsize='small', ncols=2)
