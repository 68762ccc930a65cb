"""Panels of `lora_alignment`: rows and numbers in, axes drawn on."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row
from .lora_contest import (
  CONTESTANTS,
  SETTINGS,
  STARTS,
  Runs,
  names_in,
  scores_of,
  tuned_runs,
)
from .panels import band, bowl, whiskers


def curves(ax: Axes, runs: Runs, numbers: dict, setting: str) -> None:
  """Losses at each optimum, with their target, that of LoRA at the end."""
  by = numbers['by_setting'][setting]
  for name, at in by.items():
    best, loss = tuned_runs(runs, setting, name), at['final_loss']['mean']
    style = dict(color=CONTESTANTS[name].color, label=f'{name}: {loss:.3g}')
    band(ax, best, 'score', **style)
  target = by['LoRA']['final_loss']['mean']
  ax.axhline(target, color=CONTESTANTS['LoRA'].color, linestyle=':')
  ax.set(
    xlabel='step',
    ylabel=SETTINGS[setting].score,
    title=f'{SETTINGS[setting].title}: each at its optimum (dotted: target)',
  )
  if setting == 'digits':
    ax.set_yscale('log')
  else:
    early = tuned_runs(runs, setting, 'LoRA')[0]
    ax.set_ylim(None, early[len(early) // 4]['score'])
  ax.legend(fontsize='small', title='final, mean of the seeds')


def rates(ax: Axes, runs: Runs, setting: str) -> None:
  """The learning rate bowls, each of the seeds that a rate was run with."""
  bottoms, tried = [], set()
  for name in names_in(setting):
    scores = scores_of(runs, setting, name)
    points = [(rate, float(np.mean(s))) for rate, s in scores.items()]
    tried |= {rate for rate, _ in points}
    bottoms.append(min(loss for _, loss in points))
    bowl(ax, points, color=CONTESTANTS[name].color, label=name)
  ax.set_xscale('log', base=2)
  ax.set_xticks(sorted(tried), [f'{rate:g}' for rate in sorted(tried)])
  ax.set(
    xlabel='learning rate',
    ylabel=f'final {SETTINGS[setting].score}',
    title=f'{SETTINGS[setting].title} (star: optimum, hollow: at the edge)',
  )
  if setting == 'digits':
    ax.set_yscale('log')
  else:
    ax.set_ylim(min(bottoms) - 0.02, max(bottoms) + 0.15)
  ax.legend(fontsize='small', ncols=2)


def first_steps(ax: Axes, rows: Sequence[Row]) -> None:
  """What the first step misses, by rank."""
  for name, (_, color) in STARTS.items():
    at = [row for row in rows if row['start'] == name]
    ranks = [row['rank'] for row in at]
    column = lambda key, at=at: [row[key] for row in at]
    ax.plot(ranks, column('missed'), 'o', color=color, label=name)
    ax.plot(ranks, column('missed_at_best_rate'), '--', color=color)
    if name == 'LoRA-GA':
      style = dict(
        color=color, fillstyle='none', label=f'{name}, other batches'
      )
      ax.plot(ranks, column('missed_of_fresh'), 'o', **style)
      style = dict(color='black', label='theory: singular values past 2 r')
      ax.plot(ranks, column('theory'), zorder=0, **style)
  ax.plot([], [], '--', color='gray', label='each at its best rate')
  ax.set_xscale('log', base=2)
  ax.set_xticks(ranks, [str(rank) for rank in ranks])
  ax.set(
    xlabel='rank',
    ylabel=r'$\|\Delta W - \Delta W_{full}\| / \|\Delta W_{full}\|$',
    title='text: first step of SGD at the rate of full fine-tuning',
  )
  ax.legend(fontsize='small')


def cosines(ax: Axes, runs: Runs) -> None:
  """How steps lie to the full gradient while training."""
  for name in names_in('sgd'):
    best = tuned_runs(runs, 'sgd', name)
    band(ax, best, 'cosine', color=CONTESTANTS[name].color, label=name)
  ax.set(
    xlabel='step',
    ylabel='cosine of the step and the full gradient',
    title='text, SGD: each at its optimum',
    ylim=(0, 1.05),
  )
  ax.legend(fontsize='small', ncols=2)


def steps(ax: Axes, numbers: dict) -> None:
  """Steps to LoRA's final loss."""
  names = [name for name in CONTESTANTS if name != 'LoRA']
  width = 0.8 / len(names)
  for i, name in enumerate(names):
    at = {s: by[name] for s, by in numbers['by_setting'].items() if name in by}
    mean, error = whiskers([v['steps_ratio'] for v in at.values()])
    place = [list(SETTINGS).index(s) + (i - 2) * width for s in at]
    bars = ax.bar(
      place,
      mean,
      0.9 * width,
      yerr=error,
      capsize=2,
      color=CONTESTANTS[name].color,
      label=name,
    )
    ax.bar_label(bars, fmt='%.2f', fontsize='x-small', padding=2)
  ax.axhline(1, color=CONTESTANTS['LoRA'].color, label='LoRA, or never')
  ax.set_xticks(range(len(SETTINGS)), [s.title for s in SETTINGS.values()])
  ax.set(
    ylabel="steps to LoRA's final loss, over LoRA's",
    ylim=(0, 1.5),
    title='what each needs for the same loss, range over seeds',
  )
  ax.legend(fontsize='small', ncols=3, loc='upper center')
