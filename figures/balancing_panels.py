"""Numbers and panels of `moe_balancing`: rows in, axes drawn on.

A setting is a method and its number, the weight of a loss or the rate of a
bias; 0 if it has none. Lines are means of seeds, bands and bars their range.
"""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from ..models import violation_floor
from .comparison import Row, by_run, spread
from .panels import band, whiskers

Setting = tuple[str, float]
COLORS = {
  'none': 'black',
  'auxiliary': 'tab:orange',
  'sign': 'tab:blue',
  'rms': 'tab:red',
  'quantile': 'tab:green',
}
LOSS_FREE = ('sign', 'rms', 'quantile')
LABEL = 'MaxVio, mean of layers'
_LITTLE = 0.01


class Run(NamedTuple):
  """The rows of training and of held-out text, by windows of a batch."""

  training: list[Row]
  held_out: list[Row]

  @property
  def end(self) -> Row:
    """All of the held-out text."""
    return self.held_out[-1]

  @property
  def late(self) -> float:
    """The violation of batches in the last quarter of training."""
    last = self.training[-max(1, len(self.training) // 4) :]
    return float(np.mean([row['violation'] for row in last]))


Runs = dict[Setting, list[Run]]


def runs_of(rows: list[Row]) -> Runs:
  """The runs of each setting, a seed each; those that diverged are left out."""
  found: Runs = {}
  by_label = by_run(rows)
  for label, own in by_label.items():
    held_out = by_label.get(f'{label}-held-out', [])
    if held_out and np.isfinite(held_out[-1]['val_loss']):
      setting = own[0]['method'], own[0]['value']
      found.setdefault(setting, []).append(Run(own, held_out))
  return found


def name_of(setting: Setting) -> str:
  """As legends and tables have it.

  >>> name_of(('sign', 0.01)), name_of(('none', 0.0))
  ('sign 0.01', 'none')
  """
  method, value = setting
  return f'{method} {value:g}' if value else method


def best_of(runs: Runs) -> Runs:
  """Of each method the most balanced setting of those that lose little.

  Little is 0.01 nats a byte more than the lowest held-out loss of the method:
  nearer ones are not told apart by a few seeds.
  """
  mean = lambda s, name: np.mean([run.end[name] for run in runs[s]])

  def of_method(method):
    settings = [s for s in runs if s[0] == method]
    most = min(mean(s, 'val_loss') for s in settings) + _LITTLE
    near = [s for s in settings if mean(s, 'val_loss') <= most]
    return min(near, key=lambda s: mean(s, 'violation'))

  best = map(of_method, dict.fromkeys(method for method, _ in runs))
  return {s: runs[s] for s in best}


def results(rows: list[Row]) -> dict:
  """All settings, the best ones, and what the loss-free rules cost."""
  runs = runs_of(rows)
  best = {s[0]: name_of(s) for s in best_of(runs)}
  table = {name_of(s): _numbers(own, runs) for s, own in runs.items()}
  end, step = rows_about(rows)
  return {
    'dataset': end['dataset'],
    'table': table,
    'best': best,
    'loss_free': _claims(runs),
    'floor': float(floor(end, end['tokens'])),
    'batch_floor': float(floor(end, step)),
    'runs_that_diverged': len(
      [row for row in rows if row.get('val_loss') == np.inf]
    ),
  }


def rows_about(rows: list[Row]) -> tuple[Row, int]:
  """A last row of held-out text, and the tokens of a training step."""
  end = next(row for row in rows if 'loads' in row and 'method' in row)
  return end, end['step_tokens']


def floor(row: Row, tokens: Any) -> np.ndarray:
  """The violation of random choices of so many tokens."""
  return np.asarray(violation_floor(tokens, row['experts'], row['chosen']))


def _numbers(own: list[Run], runs: Runs) -> dict:
  """Of a setting; losses also against none, the same start and batches."""
  found = {
    'val_loss': spread([run.end['val_loss'] for run in own]),
    'violation': spread([run.end['violation'] for run in own]),
    'batch_violation': spread([run.late for run in own]),
  }
  other = runs.get(('none', 0.0), [])
  if pairs := _paired(own, other):
    found['loss_over_none'] = spread(pairs)
  return found


def _paired(own: list[Run], other: list[Run]) -> list[float]:
  """Differences of held-out losses of the same seed."""
  losses = {run.end['seed']: run.end['val_loss'] for run in other}
  seeds = [run for run in own if run.end['seed'] in losses]
  return [run.end['val_loss'] - losses[run.end['seed']] for run in seeds]


def _claims(runs: Runs) -> dict:
  """Loss-free rules against the auxiliary loss of the lowest held-out loss."""
  loss = lambda own: np.mean([run.end['val_loss'] for run in own])
  others = [own for s, own in runs.items() if s[0] == 'auxiliary']
  other = min(others, key=loss, default=[])
  return {
    setting[0]: {
      'setting': name_of(setting),
      'violation': spread([run.end['violation'] for run in own]),
      'loss_over_auxiliary': spread(pairs),
    }
    for setting, own in best_of(runs).items()
    if setting[0] in LOSS_FREE and (pairs := _paired(own, other))
  }


def plot_pareto(ax: Axes, runs: Runs) -> None:
  """Held-out loss against violation, both over all held-out text.

  Args:
    ax: where.
    runs: all.
  """
  for method, color in COLORS.items():
    own = {s: x for s, x in runs.items() if s[0] == method}
    if not own:
      continue
    (x, xerr), (y, yerr) = (
      whiskers([spread([run.end[name] for run in x]) for x in own.values()])
      for name in ('violation', 'val_loss')
    )
    style = dict(color=color, marker='o', markersize=4, capsize=2)
    ax.errorbar(x, y, yerr, xerr, label=method, linewidth=1, **style)
    for (_, value), *at in zip(own, x, y, strict=True):
      if value:
        offset = dict(xytext=(3, 3), textcoords='offset points')
        ax.annotate(f'{value:g}', at, color=color, fontsize=7, **offset)
  row = next(iter(runs.values()))[0].end
  style = dict(color='grey', linestyle=':', label='random choices')
  ax.axvline(floor(row, row['tokens']), **style)
  ax.set_xscale('log')
  ax.set(
    xlabel=f'{LABEL}, all of the held-out text',
    ylabel='held-out loss [nats per byte]',
    title='balance and loss, by weight of the loss and rate of the bias',
  )
  ax.legend(fontsize='x-small')


def plot_steps(ax: Axes, runs: Runs) -> None:
  """Violation of training batches over steps.

  Args:
    ax: where.
    runs: those to be drawn.
  """
  for setting, own in runs.items():
    style = dict(color=COLORS[setting[0]], label=name_of(setting))
    band(ax, [run.training for run in own], 'violation', **style)
  row = next(iter(runs.values()))[0].end
  style = dict(color='grey', linestyle=':', label='random choices')
  ax.axhline(floor(row, row['step_tokens']), **style)
  ax.set_yscale('log')
  title = f'batches of training, {row["step_tokens"]} tokens'
  ax.set(xlabel='steps', ylabel=LABEL, title=title)
  ax.legend(fontsize='x-small', ncols=2)


def plot_batches(ax: Axes, runs: Runs) -> None:
  """Violation of held-out batches against their size.

  Args:
    ax: where.
    runs: those to be drawn.
  """
  for setting, own in runs.items():
    tokens = [row['tokens'] for row in own[0].held_out]
    each = [[row['violation'] for row in run.held_out] for run in own]
    values = np.array(each)
    style = dict(color=COLORS[setting[0]])
    ax.plot(tokens, values.mean(0), '.-', label=name_of(setting), **style)
    ax.fill_between(tokens, values.min(0), values.max(0), alpha=0.2, **style)
  row = next(iter(runs.values()))[0].end
  style = dict(color='grey', linestyle=':', label='random choices')
  ax.plot(tokens, floor(row, np.array(tokens)), **style)
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='tokens of a batch of held-out text',
    ylabel=LABEL,
    title='balance by size of the batch, after training',
  )
  ax.legend(fontsize='x-small', ncols=2)


def plot_rates(ax: Axes, runs: Runs) -> None:
  """Sign against RMS over the rate: held-out text, and batches of training.

  Args:
    ax: where.
    runs: all.
  """
  columns = {
    'held-out text': ('-', lambda run: run.end['violation']),
    'last batches': ('--', lambda run: run.late),
  }
  for method in ('sign', 'rms'):
    own = {s[1]: x for s, x in runs.items() if s[0] == method}
    rates = sorted(own)
    if not rates:
      continue
    for said, (dashes, read) in columns.items():
      values = np.array([[read(run) for run in own[r]] for r in rates])
      style = dict(color=COLORS[method])
      label = f'{method}, {said}'
      ax.plot(rates, values.mean(1), f'.{dashes}', label=label, **style)
      ax.fill_between(rates, values.min(1), values.max(1), alpha=0.15, **style)
  row = next(iter(runs.values()))[0].end
  for tokens in (row['tokens'], row['step_tokens']):
    ax.axhline(floor(row, tokens), color='grey', linestyle=':')
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='rate of the bias [scores in 0..1]',
    ylabel=LABEL,
    title='sign against RMS at the same rate',
  )
  ax.legend(fontsize='x-small', handlelength=4)


def plot_loads(ax: Axes, runs: Runs, rows: list[Row]) -> None:
  """Shares of the experts, the most frequent first, layer by layer.

  Args:
    ax: where.
    runs: those to be drawn.
    rows: all; that of the run "start" is drawn as well.
  """
  start = [Run([], [row]) for row in rows if row['run'] == 'start']
  start = {('before training', 0.0): start} if start else {}
  for setting, own in (start | runs).items():
    each = np.array([_shares(run.end['loads']) for run in own])
    ranked = -np.sort(-each, axis=-1) * each.shape[-1]
    mean, low, high = ranked.mean(0), ranked.min(0), ranked.max(0)
    layers, experts = mean.shape
    color = COLORS.get(setting[0], 'grey')
    for layer in range(layers):
      at = layer * (experts + 1) + np.arange(experts) + 1
      label = name_of(setting) if layer == 0 else None
      ax.plot(at, mean[layer], '.-', color=color, label=label, linewidth=1)
      ax.fill_between(at, low[layer], high[layer], color=color, alpha=0.15)
  ax.axhline(1, color='grey', linestyle=':')
  centres = [(experts + 1) * (i + 0.5) for i in range(layers)]
  ax.set_xticks(centres, [f'layer {i + 1}' for i in range(layers)])
  ax.set(
    xlabel='experts by load',
    ylabel='load over its share',
    title='load of the experts, held-out text',
  )
  ax.legend(fontsize='x-small', ncols=2)


def _shares(text: str) -> np.ndarray:
  """[layers, experts] of the column `loads`."""
  return np.array([layer.split() for layer in text.split(';')], float)


def plot_losses(ax: Axes, runs: Runs) -> None:
  """Training loss less that without balancing, of the same batches.

  Args:
    ax: where.
    runs: those to be drawn, ("none", 0) among them.
  """
  none = {r.end['seed']: r.training for r in runs.get(('none', 0.0), [])}
  for setting, own in runs.items():
    both = [r.training for r in own if r.end['seed'] in none]
    less = [
      [
        {'step': a['step'], 'loss': a['loss'] - b['loss']}
        for a, b in zip(mine, none[mine[0]['seed']], strict=True)
      ]
      for mine in both
    ]
    if less:
      style = dict(color=COLORS[setting[0]], label=name_of(setting))
      band(ax, less, 'loss', **style)
  ax.set(
    xlabel='steps',
    ylabel='training loss less that of none [nats per byte]',
    title='what balance costs or brings: same start, same batches',
  )
  ax.legend(fontsize='x-small', ncols=2)
