"""Muon against AdamW on a byte-level language model, each tuned.

Paper: Liu et al., *Muon is Scalable for LLM Training* (Moonlight), arXiv
2502.16982, figures 1 and 3: at equal loss Muon needs about 52 % of AdamW's
training compute, L = 2.506 C^-0.052 against 2.608 C^-0.054 (petaFLOP-days).

What should be seen: Muon's curve below AdamW's at every width, both learning
rate bowls with their bottoms inside the grid, and Muon trained with its whole
schedule on half to three quarters of the steps ending where AdamW ends.

How: at the smallest width every pair of learning rate and weight decay, one
seed, for both; the decay found there is kept. At the other widths every
learning rate. Then `seeds` seeds at each optimum, and Muon again on fractions
of the budget with the schedule shrunk to it, because a run read off halfway has
not yet had its learning rate decayed and looks worse than it is.

Expected: 0.5 to 0.7 of the steps. Cost on two CPU cores: quick 2.5 minutes,
full 27 minutes.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import optax

from ..checks import require
from ..models.transformer import TransformerConfig
from ..optimizers import muon
from ..training.data import load
from .checked import CheckedConfig
from .comparison import by_run, crossing, power_law, select, spread
from .language_model import Sweep, Task
from .panels import STYLES, band, bowl, rate_axis, scaling, whiskers
from .session import session

MOSAIC = [['curves', 'grid'], ['ratio', 'law']]
OPTIMIZERS = ('adamw', 'muon')
PAPER_RATIO = 0.52


@dataclasses.dataclass
class Config(CheckedConfig):
  """What the figure trains.

  Args:
    dataset: a text of `training.data`.
    widths: model widths; the head width is 32.
    steps: training steps at each width.
    layers: layers at every width.
    length: tokens in a sequence.
    batch_size: sequences in a step.
    learning_rates: the grid, the same for both optimizers at every width.
    weight_decays: tuned at the smallest width only.
    seeds: runs at each optimum.
    budgets: fractions of the steps on which Muon is trained again.
    log_points: evaluations in a run.
    validation_windows: sequences of the validation loss.
  """

  dataset: str = 'kjv'
  widths: tuple[int, ...] = (32, 64)
  steps: tuple[int, ...] = (240, 240)
  layers: int = 2
  length: int = 64
  batch_size: int = 32
  learning_rates: tuple[float, ...] = (0.006, 0.02, 0.06, 0.2)
  weight_decays: tuple[float, ...] = (0.1,)
  seeds: int = 2
  budgets: tuple[float, ...] = (0.5,)
  log_points: int = 20
  validation_windows: int = 256

  @classmethod
  def full(cls) -> 'Config':
    """Three widths, a grid of weight decays, three seeds."""
    return cls(
      widths=(32, 64, 128),
      steps=(600, 700, 800),
      learning_rates=(0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
      weight_decays=(0.0, 0.1, 0.3),
      seeds=3,
      budgets=(0.5, 0.7),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    require(
      len(self.steps) == len(self.widths) > 0,
      'config.steps',
      self.steps,
      f'one number for each of the widths {self.widths}',
    )

    def every(name, good, expected):
      value = getattr(self, name)
      values = value if isinstance(value, tuple) else (value,)
      fine = len(values) > 0 and all(map(good, values))
      require(fine, f'config.{name}', value, expected)

    every('learning_rates', lambda x: x > 0, 'positive numbers')
    every('weight_decays', lambda x: x >= 0, 'numbers of 0 or more')
    every('budgets', lambda x: 0.1 <= x < 1, 'fractions from 0.1 up, below 1')
    every('log_points', lambda x: x >= 2, '2 or more')
    every('steps', lambda x: x >= self.log_points, 'at least log_points each')
    for name in ('seeds', 'length', 'validation_windows', 'batch_size'):
      every(name, lambda x: x >= 1, '1 or more')
    devices = jax.device_count()
    expected = f'a multiple of the {devices} devices'
    every('batch_size', lambda x: x % devices == 0, expected)
    for width in self.widths:
      self.sizes(width)
    load(self.dataset, data_dir=data_dir)

  def sizes(self, width: int) -> TransformerConfig:
    """The model at a width: heads of 32."""
    return TransformerConfig(
      layers=self.layers, width=width, heads=max(1, width // 32)
    )


def _best(rows):
  return min(rows, key=lambda row: row['val_loss'])


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Trains the sweep and returns a row for each log point of each run."""
  c = config
  text = load(c.dataset, data_dir=data_dir)
  with session(workdir, key, _total_steps(c)) as launch:
    _train_all(c, text, launch, parallel)
  return launch.records.rows


def _train_all(c, text, launch, parallel):
  """Tuning, then seeds and budgets at the optimum, width by width."""
  decays = {}
  for width, steps in sorted(zip(c.widths, c.steps, strict=True)):
    task = Task(
      c.sizes(width),
      text,
      length=c.length,
      batch_size=c.batch_size,
      validation_windows=c.validation_windows,
    )
    for name in OPTIMIZERS:
      sweep = Sweep(
        task,
        _optimizers(task)[name],
        name,
        steps=steps,
        log_every=max(1, steps // c.log_points),
        parallel=parallel,
        tags={'optimizer_flops': task.newton_schulz_flops() * (name == 'muon')},
      )
      train = functools.partial(sweep.train, launch)
      # Tuned at the smallest width, which comes first; kept afterwards.
      tried = decays.get(name, c.weight_decays)
      best = _best(
        [
          train(learning_rate=rate, weight_decay=decay)
          for decay, rate in itertools.product(tried, c.learning_rates)
        ]
      )
      chosen = {k: best[k] for k in ('learning_rate', 'weight_decay')}
      decays[name] = (best['weight_decay'],)
      for seed in range(1, c.seeds):
        train(**chosen, seed=seed)
      if name == 'muon':
        for budget, seed in itertools.product(c.budgets, range(c.seeds)):
          train(**chosen, seed=seed, budget=budget)


def _optimizers(task: Task) -> dict:
  """What competes: factories from a schedule and a weight decay."""
  adamw = functools.partial(optax.adamw, b1=0.9, b2=0.95)
  return {
    'adamw': lambda rate, decay: adamw(rate, weight_decay=decay),
    'muon': lambda rate, decay: muon(
      rate,
      weight_decay=decay,
      dimension_numbers=task.model.dimension_numbers,
    ),
  }


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  total = 0
  for i, steps in enumerate(c.steps):
    decays = len(c.weight_decays) if c.widths[i] == min(c.widths) else 1
    whole = 2 * (len(c.learning_rates) * decays + c.seeds - 1)
    parts = sum(round(steps * budget) for budget in c.budgets)
    total += whole * steps + c.seeds * parts
  return total


def _optimum(runs, name, width) -> dict:
  """Learning rate and weight decay of the best run of the first seed."""
  tried = select(runs, optimizer=name, width=width, seed=0, budget=1.0)
  require(bool(tried), 'records', f'no {name} at {width}', 'a whole run')
  best = _best([rows[-1] for rows in tried])
  return {k: best[k] for k in ('learning_rate', 'weight_decay')}


def _at_optimum(runs, name, width, best) -> list[list[dict]]:
  """Its whole, finite runs at its optimum, of all seeds and budgets."""
  found = select(runs, optimizer=name, width=width, **best)
  longest: dict[float, int] = {}
  for rows in found:
    budget, step = rows[0]['budget'], rows[-1]['step']
    longest[budget] = max(step, longest.get(budget, 0))
  return [
    rows
    for rows in found
    if np.isfinite(rows[-1]['val_loss'])
    and rows[-1]['step'] == longest[rows[0]['budget']]
  ]


def _at_width(runs, width) -> dict:
  """Ratios at one width, over all pairs of a Muon and an AdamW seed."""
  best = {n: _optimum(runs, n, width) for n in OPTIMIZERS}
  every = {n: _at_optimum(runs, n, width, best[n]) for n in OPTIMIZERS}
  full = {
    n: [rows for rows in every[n] if rows[0]['budget'] == 1.0]
    for n in OPTIMIZERS
  }
  for name in OPTIMIZERS:
    require(bool(full[name]), 'records', f'no {name} at {width}', 'a whole run')
  along, budget = [], []
  for rows, adamw in itertools.product(full['muon'], full['adamw']):
    target, steps = adamw[-1]['val_loss'], rows[-1]['step']
    curve = [(row['step'] / steps, row['val_loss']) for row in rows]
    along.append(crossing(*zip(*curve, strict=True), target))
    ladder = sorted(
      (other[0]['budget'], other[-1]['val_loss'])
      for other in every['muon']
      if other[0]['seed'] == rows[0]['seed']
    )
    if len(ladder) > 1:
      budget.append(crossing(*zip(*ladder, strict=True), target))
  row = full['muon'][0][-1]
  overhead = 1 + row['optimizer_flops'] / row['step_flops']
  budget = budget or along  # Without other budgets, what the curve says.
  end = lambda name, column: [rows[-1][column] for rows in full[name]]
  return {
    'optimum': best,
    'final_loss': {n: spread(end(n, 'val_loss')) for n in OPTIMIZERS},
    'seconds_per_run': {n: spread(end(n, 'seconds')) for n in OPTIMIZERS},
    'steps_ratio_along_the_curve': spread(along),
    'steps_ratio': spread(budget),
    'flops_ratio': spread([b * overhead for b in budget]),
    'compute': {
      n: end(n, 'step')[0] * end(n, 'step_flops')[0] for n in OPTIMIZERS
    },
  }


def _numbers(rows) -> dict:
  """The headline: ratios at the largest width, all widths, and the fits."""
  runs = by_run(rows)
  widths = sorted({row['width'] for row in rows})
  by_width = {str(w): _at_width(runs, w) for w in widths}
  largest = by_width[str(widths[-1])]
  numbers = {
    'steps_to_target_ratio': largest['steps_ratio'],
    'paper_ratio': PAPER_RATIO,
    'by_width': by_width,
  }
  if len(widths) > 1:
    laws = {
      n: power_law(
        [v['compute'][n] for v in by_width.values()],
        [v['final_loss'][n]['mean'] for v in by_width.values()],
      )
      for n in OPTIMIZERS
    }
    # Muon's compute at the loss that AdamW's law has for its largest run.
    spent = largest['compute']['adamw']
    loss = laws['adamw']['a'] * spent ** -laws['adamw']['b']
    needed = (laws['muon']['a'] / loss) ** (1 / laws['muon']['b'])
    numbers['power_law'] = laws
    numbers['power_law_compute_ratio'] = float(needed / spent)
  return numbers


COLORS = {'adamw': 'tab:orange', 'muon': 'tab:blue'}
NAMES = {'adamw': 'AdamW', 'muon': 'Muon'}


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the four panels from the rows and returns the headline numbers."""
  runs, numbers = by_run(rows), _numbers(rows)
  widths = [int(w) for w in numbers['by_width']]
  ratio = numbers['steps_to_target_ratio']
  _plot_curves(runs, numbers, widths[-1], axes['curves'])
  _plot_grid(runs, numbers, widths, axes['grid'])
  _plot_ratio(numbers, widths, axes['ratio'])
  _plot_law(numbers, widths, axes['law'])
  axes['curves'].figure.suptitle(
    f"Muon reaches AdamW's loss in {ratio['mean']:.2f} of the steps "
    f'({ratio["min"]:.2f} to {ratio["max"]:.2f} over seeds, width '
    f'{widths[-1]}); Moonlight: about {PAPER_RATIO}'
  )
  return numbers


def _plot_curves(runs, numbers, width, ax):
  """Validation loss over steps at the largest width."""
  at = numbers['by_width'][str(width)]
  for name in OPTIMIZERS:
    drawn = _at_optimum(runs, name, width, at['optimum'][name])
    for budget in sorted({rows[0]['budget'] for rows in drawn}):
      part = '' if budget == 1 else f', {budget:g} of the steps'
      band(
        ax,
        [rows for rows in drawn if rows[0]['budget'] == budget],
        'val_loss',
        color=COLORS[name],
        label=NAMES[name] + part,
        linestyle=':' if part else '-',
        linewidth=1.2 if part else 1.8,
      )
  final = {n: at['final_loss'][n]['mean'] for n in OPTIMIZERS}
  ax.axhline(final['adamw'], color='gray', linewidth=0.8, linestyle='--')
  ax.set(
    xlabel='step',
    ylabel='validation loss [nats per byte]',
    ylim=(min(final.values()) - 0.05, final['adamw'] + 0.9),
    title=f'width {width}, each at its best learning rate',
  )
  ax.legend()


def _plot_grid(runs, numbers, widths, ax):
  """The learning rate bowls of the first seed."""
  rates, bottoms = set(), []
  for width, style in zip(widths, itertools.cycle(STYLES), strict=False):
    for name in OPTIMIZERS:
      best = numbers['by_width'][str(width)]['optimum'][name]
      tried = select(
        runs,
        optimizer=name,
        width=width,
        seed=0,
        budget=1.0,
        weight_decay=best['weight_decay'],
      )
      ends = [rows[-1] for rows in tried]
      points = [(row['learning_rate'], row['val_loss']) for row in ends]
      rates |= {rate for rate, _ in points}
      bottoms.append(min(loss for _, loss in points))
      bowl(
        ax,
        points,
        color=COLORS[name],
        linestyle=style,
        label=f'{NAMES[name]}, width {width}',
      )
  title = 'the same grid for both (star: optimum, hollow: at the edge)'
  rate_axis(ax, rates, title)
  # Room for a legend.
  ax.set_ylim(min(bottoms) - 0.05, max(bottoms) + 0.35)
  ax.legend(fontsize='small', ncols=len(widths), loc='upper right')


BARS = {
  'steps_ratio': ('steps, schedule shrunk to them', 'tab:blue'),
  'flops_ratio': ('FLOPs of that, with Newton-Schulz', 'tab:cyan'),
  'steps_ratio_along_the_curve': (
    'steps along the full-length curve',
    'lightsteelblue',
  ),
}


def _plot_ratio(numbers, widths, ax):
  """What Muon needs of AdamW's steps, per width, range over pairs of seeds."""
  place = np.arange(len(widths))
  for i, (kind, (label, color)) in enumerate(BARS.items()):
    mean, error = whiskers([numbers['by_width'][str(w)][kind] for w in widths])
    bars = ax.bar(
      place + 0.27 * (i - 1),
      mean,
      0.25,
      yerr=error,
      capsize=3,
      label=label,
      color=color,
    )
    ax.bar_label(bars, fmt='%.2f', padding=3, fontsize='small')
  style = dict(color='black', linestyle='--', linewidth=1)
  ax.axhline(PAPER_RATIO, label=f'Moonlight, FLOPs: {PAPER_RATIO}', **style)
  ax.axhline(1, color=COLORS['adamw'], linewidth=1, label='AdamW')
  ax.set_xticks(place, [f'width {w}' for w in widths])
  ax.set(
    ylabel="Muon / AdamW at AdamW's final loss",
    ylim=(0, 1.55),
    title="what Muon needs to reach AdamW's loss",
  )
  ax.legend(fontsize='small', ncols=2, loc='upper center')


def _plot_law(numbers, widths, ax):
  """Final loss over training compute, with the fitted power laws."""
  for name in OPTIMIZERS:
    at = [numbers['by_width'][str(w)] for w in widths]
    scaling(
      ax,
      [v['compute'][name] for v in at],
      [v['final_loss'][name] for v in at],
      numbers.get('power_law', {}).get(name),
      label=NAMES[name],
      color=COLORS[name],
    )
  title = 'loss against compute'
  if 'power_law' in numbers:
    ratio = numbers['power_law_compute_ratio']
    title += f': the fits put Muon at {ratio:.2f} of the compute'
  ax.set(
    xlabel='training compute C [FLOPs]',
    ylabel='final validation loss [nats per byte]',
    title=title,
  )
  ax.legend()
