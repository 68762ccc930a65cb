"""Who takes part in `lora_alignment`, and what the rows say of each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import optax

from ..checks import require
from .comparison import Row, by_run, crossing, select, spread

Runs = dict[str, list[Row]]


class Contestant(NamedTuple):
  """An adapter's start and steps.

  Attributes:
    start: options of `lora_init`; `None`: full fine-tuning.
    variant: of `lora_pro`; `None`: gradients as they are.
    color: of its lines.
  """

  start: dict | None
  variant: str | None
  color: str


_GA = dict(method='lora_ga', ga_scale='gd')
CONTESTANTS = {
  'full': Contestant(None, None, 'black'),
  'LoRA': Contestant(dict(method='kaiming'), None, 'tab:orange'),
  'PiSSA': Contestant(dict(method='pissa'), None, 'tab:green'),
  'LoRA-GA': Contestant(_GA, None, 'tab:blue'),
  'LoRA-Pro': Contestant(_GA, 'full', 'tab:red'),
  'LoRA-Pro efficient': Contestant(_GA, 'efficient', 'tab:pink'),
}
# For the first step: starts and colors.
STARTS = {
  'LoRA': (dict(method='kaiming'), 'tab:orange'),
  'PiSSA': (dict(method='pissa'), 'tab:green'),
  'LoRA-GA': (_GA, 'tab:blue'),
  'LoRA-GA stable': (dict(method='lora_ga'), 'tab:cyan'),
}


class Setting(NamedTuple):
  """What adapts, and how it is shown.

  Attributes:
    task: "text" or "digits".
    direction: the optimizer without its learning rate.
    title: of panels.
    score: what the runs are judged by, for labels.
  """

  task: str
  direction: optax.GradientTransformation
  title: str
  score: str


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.95)
_TEXT = 'validation loss [nats per byte]'
SETTINGS = {
  'adam': Setting('text', _ADAM, 'text, Adam', _TEXT),
  'sgd': Setting('text', optax.identity(), 'text, SGD', _TEXT),
  'digits': Setting(
    'digits', _ADAM, 'digits, Adam', 'training loss [nats per image]'
  ),
}


def names_in(setting: str) -> list[str]:
  """Contestants: the two variants of LoRA-Pro are one for SGD."""
  return [n for n in CONTESTANTS if setting != 'sgd' or 'efficient' not in n]


def best_rate(scores: Mapping[float, Sequence[float]]) -> float:
  """The rate of the lowest mean, over the seeds that each was run with.

  One is run with all seeds once it leads; if it diverges for one of them it
  leads no longer, and the next is run.

  Example:
    >>> best_rate({1.0: [2.3, 2.3], 2.0: [2.2, 3.3], 4.0: [4.0]})
    1.0
  """
  return min(scores, key=lambda rate: np.mean(scores[rate]))


def scores_of(runs: Runs, setting: str, name: str) -> dict[float, list[float]]:
  """Final losses by learning rate, ascending."""
  found = select(runs, setting=setting, contestant=name)
  ends = sorted((rows[-1] for rows in found), key=lambda r: r['learning_rate'])
  scores: dict[float, list[float]] = {}
  for row in ends:
    scores.setdefault(row['learning_rate'], []).append(row['score'])
  return scores


def tuned_runs(runs: Runs, setting: str, name: str) -> list[list[Row]]:
  """The runs at the best learning rate, the first seed first."""
  scores = scores_of(runs, setting, name)
  rate = best_rate(scores) if scores else None
  finite = rate is not None and np.isfinite(np.mean(scores[rate]))
  require(
    finite, 'records', f'none of {setting} {name}', 'a rate of finite ends'
  )
  found = select(runs, setting=setting, contestant=name, learning_rate=rate)
  return sorted(found, key=lambda rows: rows[0]['seed'])


def _steps_ratio(rows: Sequence[Row], target: float) -> float:
  """Fraction of the steps after which a run has the loss, 1 if never."""
  steps, scores = ([row[k] for row in rows] for k in ('step', 'score'))
  if min(scores) > target:
    return 1.0
  return min(1.0, crossing(steps, scores, target) / steps[-1])


def _summary(runs: Runs, setting: str) -> dict[str, dict]:
  """Of each contestant: its best rate, final loss, steps and cosines.

  The target of a seed is LoRA's own final loss with this seed.
  """
  targets = {
    rows[0]['seed']: rows[-1]['score']
    for rows in tuned_runs(runs, setting, 'LoRA')
  }
  numbers = {}
  for name in names_in(setting):
    best, rates = (
      tuned_runs(runs, setting, name),
      scores_of(runs, setting, name),
    )
    pairs = [(r, targets[s]) for r in best if (s := r[0]['seed']) in targets]
    rate = best[0][0]['learning_rate']
    numbers[name] = {
      'learning_rate': rate,
      'at_the_edge_of_the_grid': rate in (min(rates), max(rates)),
      'final_loss': spread([rows[-1]['score'] for rows in best]),
      'less_than_lora': spread([t - rows[-1]['score'] for rows, t in pairs]),
      'steps_ratio': spread([_steps_ratio(*pair) for pair in pairs]),
      'mean_cosine': float(
        np.mean([row['cosine'] for rows in best for row in rows])
      ),
    }
  return numbers


def headline(rows: Sequence[Row]) -> dict:
  """The headline, and for each setting what the panels show."""
  runs = by_run(rows)
  require('first' in runs, 'records', 'no first steps', 'their rows')
  settings = {setting: _summary(runs, setting) for setting in SETTINGS}
  lowest = lambda by: min(
    (n for n in by if n != 'full'), key=lambda n: by[n]['final_loss']['mean']
  )
  first = runs['first']
  ga = [row for row in first if row['start'] == 'LoRA-GA']
  return {
    'steps_of_lora_ga_over_lora': {
      setting: by['LoRA-GA']['steps_ratio'] for setting, by in settings.items()
    },
    'lowest_adapter': {s: lowest(by) for s, by in settings.items()},
    'largest_ratio_to_theory': max(r['missed'] / r['theory'] for r in ga),
    'missed_at_first': {
      name: {str(r['rank']): r['missed'] for r in first if r['start'] == name}
      for name in STARTS
    },
    'by_setting': settings,
  }
