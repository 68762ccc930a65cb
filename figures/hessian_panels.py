"""Panels of `adam_hessian`: rows in, axes drawn on."""

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from ..scaling import LogLogFit, adam_hessian_alignment
from .comparison import Row
from .panels import STYLES

# What is compared with the Hessian of the network, and of the regression.
MEASURES = {
  'centred': 'full batch, centred',
  'raw': 'full batch, as it is',
  'moment': 'minibatch, exact',
  'noise': 'minibatch, centred',
  'adam': "Adam's v",
}
CONTROLS = {
  'isotropic': 'isotropic weights, full batch',
  'descent': 'descent, full batch',
  'noise': 'minibatch, exact',
  'adam': "Adam's v",
}
# What with: labels and colors.
AGAINST = {
  'diagonal': ('|H_ii|', 'tab:orange'),
  'row': ('norm of row i', 'tab:blue'),
}


def fit(rows: list[Row], x: str, y: str) -> LogLogFit:
  """Of two columns."""
  values = [jnp.array([row[name] for row in rows]) for name in (y, x, x)]
  found = adam_hessian_alignment(values[0] ** 2, *values[1:]).diagonal
  return LogLogFit(*map(float, found))


def _scatter(ax: Axes, rows: list[Row], x: str, y: str, label: str, **style):
  """Points, and their fit as a line."""
  across, up = (np.array([row[name] for row in rows]) for name in (x, y))
  seen = (across > 0) & (up > 0)
  across, up = across[seen], up[seen]
  found = fit(rows, x, y)
  label = f'{label}: slope {found.slope:.2f}'
  (points,) = ax.plot(across, up, '.', label=label, alpha=0.5, **style)
  ends = np.array([across.min(), across.max()])
  middle = np.exp(np.mean(np.log(up / across**found.slope)))
  color = points.get_color()
  ax.plot(ends, middle * ends**found.slope, color=color, linewidth=1.5)
  ax.set(xscale='log', yscale='log')


def plot_full(ax: Axes, control: list[Row]) -> None:
  """Isotropic weights: on the line of row norms, and of eigenvalues."""
  for x, (label, color) in AGAINST.items():
    _scatter(ax, control, x, 'isotropic', label, color=color)
  style = dict(color='tab:gray', markersize=3)
  label = 'eigenvalues, in the eigenbasis'
  _scatter(ax, control, 'eigenvalue', 'isotropic_eigen', label, **style)
  ends = np.array(ax.get_xlim())
  ax.plot(ends, ends, 'k--', linewidth=0.8, label='equal')
  ax.set(
    xlabel='of the Hessian [1 / weight^2]',
    ylabel='RMS of the gradient per deviation of weights',
    title='regression: full batch, weights scattered alike',
  )
  ax.legend(fontsize='small')


def plot_minibatch(ax: Axes, control: list[Row]) -> None:
  """Runs of Adam and descent, with their theories."""
  for name, color in (('adam', 'tab:red'), ('descent', 'tab:green')):
    _scatter(ax, control, 'diagonal', name, CONTROLS[name], color=color)
  x = np.array([row['diagonal'] for row in control])
  order = np.argsort(x)
  theories = {
    'noise': ('exact noise of a minibatch', '-'),
    'descent_theory': ('theory of descent', ':'),
  }
  for name, (label, style) in theories.items():
    y = np.array([row[name] for row in control])
    style = dict(color='black', linewidth=0.6, linestyle=style)
    ax.plot(x[order], y[order], label=label, **style)
  ax.set(
    xlabel='|H_ii| [1 / weight^2]',
    ylabel='RMS of the gradient [1 / weight]',
    title='regression: runs from the minimum',
  )
  ax.legend(fontsize='small')


def plot_slopes(ax: Axes, numbers: dict) -> None:
  """Every slope, a line for each setting."""
  same = lambda value: {'mean': value, 'min': value, 'max': value}
  lines = {
    f'regression: {CONTROLS[name]}': {x: same(v) for x, v in found.items()}
    for name, found in numbers['regression'].items()
  }
  for name, slope in numbers['regression_in_eigenbasis'].items():
    label = CONTROLS[name].replace('weights, full batch', 'weights')
    lines[f'eigenbasis: {label}'] = {'diagonal': same(slope)}
  for batch, found in numbers['network'].items():
    for name, slopes in found['slopes'].items():
      lines[f'network, B = {batch}: {MEASURES[name]}'] = slopes
    slopes = {'diagonal': found['adam_estimated_slope']}
    lines[f"network, B = {batch}: Adam's v, |H_ii| estimated"] = slopes
  for place, slopes in enumerate(lines.values()):
    for x, at in slopes.items():
      bars = [[at['mean'] - at['min']], [at['max'] - at['mean']]]
      style = dict(fmt='o', color=AGAINST[x][1], markersize=4, capsize=2)
      ax.errorbar(at['mean'], place, xerr=bars, **style)
  for label, color in AGAINST.values():
    ax.plot([], [], 'o', color=color, label=f'against {label}')
  for slope in (0.5, 1.0):
    ax.axvline(slope, color='black', linewidth=0.8, linestyle='--')
  ax.set_yticks(range(len(lines)), [*lines], fontsize='x-small')
  ax.invert_yaxis()
  ax.set(
    xlabel='slope of log RMS of the gradient',
    ylabel='setting',
    title='slopes; networks at the end, range over seeds',
  )
  ax.legend(fontsize='small', loc='lower right')


def plot_entries(ax: Axes, entries: list[Row], name: str, power: float):
  """Some entries of a network against diagonal and row norm."""
  for x, (label, color) in AGAINST.items():
    _scatter(ax, entries, x, name, label, color=color)
  x = np.array([row['diagonal'] for row in entries])
  y = np.array([row[name] for row in entries])
  seen = y > 0
  middle = np.exp(np.mean(np.log(y[seen] / x[seen] ** power)))
  ends = np.array([x[seen].min(), x[seen].max()])
  style = dict(linewidth=0.8, label=f'power {power:g} of |H_ii|')
  ax.plot(ends, middle * ends**power, 'k--', **style)
  row = entries[0]
  ax.set(
    xlabel='of the Hessian [1 / weight^2]',
    ylabel='RMS of the gradient [1 / weight]',
    title=f'network after {row["trained"]} steps, {len(entries)} entries: '
    f'{MEASURES[name]}',
  )
  ax.legend(fontsize='small')


def plot_stages(ax: Axes, looks: list[Row]) -> None:
  """Slopes along training, mean and range over seeds."""
  lines = (
    ('centred', 'row', 'tab:blue'),
    ('centred', 'diagonal', 'tab:green'),
    ('noise', 'diagonal', 'tab:purple'),
    ('adam', 'diagonal', 'tab:red'),
  )
  stages = sorted({row['trained'] for row in looks})
  batches = sorted({row['batch_size'] for row in looks})
  for batch, style in zip(batches, STYLES, strict=False):
    for name, x, color in lines:
      values = [
        [
          row[f'{name}_{x}_slope']
          for row in looks
          if (row['batch_size'], row['trained']) == (batch, stage)
        ]
        for stage in stages
      ]
      mean = [np.mean(v) for v in values]
      label = f'{MEASURES[name]}, against {AGAINST[x][0]}'
      label = label if batch == batches[0] else None
      ax.plot(stages, mean, style, marker='.', color=color, label=label)
      ends = [min(v) for v in values], [max(v) for v in values]
      ax.fill_between(stages, *ends, color=color, alpha=0.2, linewidth=0)
    ax.plot([], [], style, color='gray', label=f'batches of {batch}')
  for slope in (0.5, 1.0):
    ax.axhline(slope, color='black', linewidth=0.8, linestyle='--')
  ax.set_xscale('log', base=2)
  ax.set(
    xlabel='steps of Adam',
    ylabel='slope',
    ylim=(0, 1.1),
    title='network: slopes along training, range over seeds',
  )
  ax.set_xticks(stages, [*map(str, stages)])
  ax.set_xticks([], minor=True)
  ax.legend(fontsize='x-small', loc='lower right')
