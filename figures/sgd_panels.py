"""Panels of `sgd_batch_size`: rows and numbers in, axes drawn on."""

import numpy as np
from matplotlib.axes import Axes

from ..scaling import steps_to_target
from .comparison import Row
from .optima import draw_optima
from .panels import double_logarithmic, whiskers
from .sgd_curves import Curves

BATCH = 'batch size [images]'
BUDGETS = {'steps': ('tab:blue', 's'), 'examples': ('tab:orange', 'o')}


def _column(rows: list[Row], name: str) -> np.ndarray:
  return np.array([row[name] for row in rows], np.float64)


def _bars(middle, low, high) -> np.ndarray:
  """Lengths [2, n] of error bars, of an interval that may miss the middle."""
  return np.maximum([middle - low, high - middle], 0)


def _with_interval(ax: Axes, x, rows, name: str, **style) -> None:
  """A line through a column and a band of its interval."""
  (line,) = ax.plot(x, _column(rows, name), **style)
  low, high = _column(rows, f'{name}_low'), _column(rows, f'{name}_high')
  ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2)


def one_step(ax: Axes, rows: list[Row]) -> None:
  """Search with its interval over law and probe with theirs."""
  batches = _column(rows, 'batch_size')
  _with_interval(
    ax, batches, rows, 'law', color='tab:green', label='law, from estimates'
  )
  _with_interval(
    ax, batches, rows, 'probe', color='tab:blue', linestyle='--', label='probe'
  )
  measured = _column(rows, 'measured')
  ends = _column(rows, 'measured_low'), _column(rows, 'measured_high')
  style = dict(fmt='o', color='black', capsize=3, label='line search')
  ax.errorbar(batches, measured, _bars(measured, *ends), **style)
  row = rows[0]
  scale = row['noise_scale']
  ax.axvline(scale, color='gray', linestyle=':')
  double_logarithmic(
    ax,
    xlabel=BATCH,
    ylabel='best learning rate of one step',
    title=f'after {row["stage"]} steps (loss {row["loss_at_stage"]:.2f}); '
    f'dotted: B_noise = {scale:.0f}',
  )
  ax.legend(fontsize='small')


def decrease(ax: Axes, rows: list[Row]) -> None:
  """What the best step lowers the loss by: measured, and the law."""
  batches, values = _column(rows, 'batch_size'), _column(rows, 'decrease')
  law = _column(rows, 'law_decrease')
  ax.plot(batches, law, color='tab:green', label='law, from estimates')
  errors = _column(rows, 'decrease_error')
  style = dict(fmt='o', color='black', capsize=3, label='line search')
  ax.errorbar(batches, values, np.minimum(errors, 0.9 * values), **style)
  ratio = law / values
  double_logarithmic(
    ax,
    xlabel=BATCH,
    ylabel='decrease of the loss in one step [nats]',
    title=f'after {rows[0]["stage"]} steps; law over search '
    f'{ratio.min():.2f} to {ratio.max():.2f}',
  )
  ax.legend(fontsize='small')


def noise_scales(ax: Axes, stages: dict[int, list[Row]], fit: dict) -> None:
  """Both noise scales along the run, and the critical batch size."""
  rows = [at[0] for at in stages.values()]
  losses = _column(rows, 'loss_at_stage')
  for name, label in (
    ('noise_scale', 'B_noise = tr(Sigma H) / g H g'),
    ('simple', 'B_simple = tr(Sigma) / |g|^2'),
  ):
    middle = _column(rows, name)
    ends = _column(rows, f'{name}_low'), _column(rows, f'{name}_high')
    ax.errorbar(
      losses, middle, _bars(middle, *ends), fmt='o-', capsize=3, label=label
    )
  critical, factor = fit['critical_batch_size'], np.exp(2 * fit['log_error'])
  label = f'critical batch size {critical:.0f}'
  ax.axhline(critical, color='black', linestyle='--', label=label)
  ax.axhspan(critical / factor, critical * factor, color='gray', alpha=0.2)
  ax.set_xlim(losses.max() + 0.1, losses.min() - 0.1)
  ax.set_yscale('log')
  ax.set(
    xlabel='training loss [nats], falling along the run',
    ylabel='noise scale [images]',
    title='noise scales with 95 % intervals',
  )
  ax.legend(fontsize='small')


def grid(ax: Axes, curves: dict[int, Curves], numbers: dict) -> None:
  """Steps to the target at every learning rate and batch size."""
  steps, shades = numbers['tradeoff']['steps'], len(curves)
  for i, (batch, at) in enumerate(curves.items()):
    found = steps[batch]
    values = np.array(found['by_rate'])
    color = (0.9 * i / max(1, shades - 1), 0.3, 0.7)
    ax.plot(at.rates, values, '.-', color=color, label=f'B = {batch}')
    filled = 'none' if found['at_edge'] else 'full'
    style = dict(color=color, markersize=13, fillstyle=filled)
    ax.plot(found['learning_rate'], found['mean'], '*', **style)
  ticks = [*curves.values()][0].rates[::2]
  double_logarithmic(
    ax,
    xlabel='constant learning rate',
    ylabel=f'steps to a loss of {numbers["target"]:g} nats',
    title='star: the best (hollow: at the edge); left out: not reached',
  )
  ax.set_xticks(ticks, [f'{rate:.3g}' for rate in ticks])
  ax.legend(fontsize='small', ncols=2)


def hyperbola(ax: Axes, numbers: dict) -> None:
  """Steps against examples, the fit, and where both are twice their least."""
  fit, steps = numbers['tradeoff'], numbers['tradeoff']['steps']
  least = dict(min_steps=fit['min_steps'], min_examples=fit['min_examples'])
  line = np.geomspace(min(steps) / 2, max(steps) * 2)
  curve = steps_to_target(line, **least)
  label = f'hyperbola, residual {100 * fit["rms"]:.0f} %'
  ax.plot(curve, line * curve, color='tab:green', label=label)
  mean, error = whiskers([*steps.values()])
  batches = np.array([*steps])
  style = dict(fmt='o', color='black', capsize=3, label='mean, range of seeds')
  ax.errorbar(mean, batches * mean, xerr=error, yerr=batches * error, **style)
  for batch, x in zip(batches, mean, strict=True):
    offset = dict(xytext=(7, 5), textcoords='offset points')
    ax.annotate(str(batch), (x, batch * x), fontsize='small', **offset)
  critical = fit['critical_batch_size']
  twice = 2 * fit['min_steps'], 2 * fit['min_examples']
  ax.plot(*twice, 'D', color='tab:red', label=f'B_crit = {critical:.0f}')
  double_logarithmic(
    ax,
    xlabel='steps',
    ylabel='images seen',
    title=f'to a loss of {numbers["target"]:g}: S_min = '
    f'{fit["min_steps"]:.0f}, E_min = {fit["min_examples"]:.0f}',
  )
  ax.legend(fontsize='small')


def optima(ax: Axes, fixed: dict) -> None:
  """Best constant learning rates at both budgets, with their intervals."""
  for name, (color, marker) in BUDGETS.items():
    at = fixed[name]['optima']
    found, batches = [*at.values()], [*at]
    style = dict(color=color, fmt=f'{marker}-', label=f'fixed {name}')
    draw_optima(ax, batches, found, **style)
  middle = found[len(found) // 2]['rate']
  double_logarithmic(
    ax,
    xlabel=BATCH,
    ylabel='best constant learning rate',
    title='by the loss at the end of a budget (hollow: edge)',
  )
  ax.set_ylim(middle / 16, middle * 16)
  ax.legend(fontsize='small')


def exponents(ax: Axes, fixed: dict) -> None:
  """Slopes of the optima between neighbouring batch sizes."""
  for name, (color, marker) in BUDGETS.items():
    batches = np.array([*fixed[name]['optima']], np.float64)
    between = np.sqrt(batches[1:] * batches[:-1])
    style = dict(color=color, label=f'fixed {name}')
    ax.plot(between, fixed[name]['exponents'], f'{marker}-', **style)
  for value, label in ((1, 'linear'), (0.5, 'square root'), (0, 'constant')):
    ax.axhline(value, color='gray', linestyle=':')
    ax.annotate(
      label,
      (1, value),
      xycoords=('axes fraction', 'data'),
      ha='right',
      va='bottom',
    )
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_formatter('{x:g}')
  ax.set(
    xlabel=BATCH,
    ylabel='d log(learning rate) / d log(B)',
    title='local exponent of the optimum',
  )
  ax.legend(fontsize='small')
