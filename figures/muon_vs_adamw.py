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

Expected: 0.55 to 0.75 of the steps. Cost on two CPU cores: quick 2 minutes,
full 25 minutes.
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
from ..training.progress import Progress
from ..training.records import Records
from .comparison import by_run, crossing, power_law, select, spread
from .language_model import Sweep, Task

MOSAIC = [['curves', 'grid'], ['ratio', 'law']]
OPTIMIZERS = ('adamw', 'muon')
PAPER_RATIO = 0.52


@dataclasses.dataclass
class Config:
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
  learning_rates: tuple[float, ...] = (0.016, 0.04, 0.1, 0.25)
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
    for name in ('widths', 'steps', 'learning_rates', 'budgets'):
      value = getattr(self, name)
      require(
        all(x > 0 for x in value), f'config.{name}', value, 'positive numbers'
      )
    for name in ('seeds', 'log_points', 'validation_windows', 'batch_size'):
      value = getattr(self, name)
      require(value >= 1, f'config.{name}', value, '1 or more')
    require(
      len(self.learning_rates) > 0 and len(self.weight_decays) > 0,
      'config.learning_rates, weight_decays',
      (self.learning_rates, self.weight_decays),
      'at least one of each',
    )
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
  write = jax.process_index() == 0
  records = Records(workdir, write=write)
  progress = Progress(_total_steps(c), show=write)
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
      train = functools.partial(sweep.train, records, progress, workdir, key)
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
  progress.close()
  records.close()
  return records.rows


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
  best = _best([rows[-1] for rows in tried])
  return {k: best[k] for k in ('learning_rate', 'weight_decay')}


def _at_width(runs, width) -> dict:
  """Ratios at one width, over all pairs of a Muon and an AdamW seed."""
  best = {n: _optimum(runs, n, width) for n in OPTIMIZERS}
  full = {
    n: select(runs, optimizer=n, width=width, budget=1.0, **best[n])
    for n in OPTIMIZERS
  }
  targets = [rows[-1]['val_loss'] for rows in full['adamw']]
  along, budget = [], []
  for rows in full['muon']:
    seed = rows[0]['seed']
    ladder = sorted(
      (r[0]['budget'], r[-1]['val_loss'])
      for r in select(
        runs, optimizer='muon', width=width, seed=seed, **best['muon']
      )
    )
    for target in targets:
      steps = rows[-1]['step']
      along.append(
        crossing(
          [r['step'] / steps for r in rows],
          [r['val_loss'] for r in rows],
          target,
        )
      )
      budget.append(crossing(*zip(*ladder, strict=True), target))
  row = full['muon'][0][-1]
  overhead = 1 + row['optimizer_flops'] / row['step_flops']
  return {
    'optimum': best,
    'final_loss': {
      n: spread([r[-1]['val_loss'] for r in full[n]]) for n in OPTIMIZERS
    },
    'seconds_per_run': {
      n: spread([r[-1]['seconds'] for r in full[n]]) for n in OPTIMIZERS
    },
    'steps_ratio_along_the_curve': spread(along),
    'steps_ratio': spread(budget),
    'flops_ratio': spread([b * overhead for b in budget]),
    'compute': {
      n: full[n][0][-1]['step'] * full[n][0][-1]['step_flops']
      for n in OPTIMIZERS
    },
  }


def _numbers(rows) -> dict:
  """The headline: ratios at the largest width, all widths, and the fits."""
  runs = by_run(rows)
  widths = sorted({row['width'] for row in rows})
  by_width = {str(w): _at_width(runs, w) for w in widths}
  numbers = {
    'steps_to_target_ratio': by_width[str(widths[-1])]['steps_ratio'],
    'paper_ratio': PAPER_RATIO,
    'by_width': by_width,
  }
  if len(widths) > 1:
    laws = {
      n: power_law(
        [by_width[str(w)]['compute'][n] for w in widths],
        [by_width[str(w)]['final_loss'][n]['mean'] for w in widths],
      )
      for n in OPTIMIZERS
    }
    # Muon's compute at the loss that AdamW's law predicts for its largest run.
    spent = by_width[str(widths[-1])]['compute']['adamw']
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
  """Validation loss over steps, mean and range over seeds."""
  at = numbers['by_width'][str(width)]
  for name in OPTIMIZERS:
    drawn = select(runs, optimizer=name, width=width, **at['optimum'][name])
    for budget in sorted({rows[0]['budget'] for rows in drawn}):
      group = [rows for rows in drawn if rows[0]['budget'] == budget]
      steps = [row['step'] for row in group[0]]
      losses = np.array([[row['val_loss'] for row in rows] for rows in group])
      whole = budget == 1.0
      label = (
        NAMES[name] if whole else f'{NAMES[name]}, {budget:g} of the steps'
      )
      ax.plot(
        steps,
        losses.mean(0),
        color=COLORS[name],
        label=label,
        linestyle='-' if whole else ':',
        linewidth=1.8 if whole else 1.2,
      )
      ax.fill_between(
        steps,
        losses.min(0),
        losses.max(0),
        color=COLORS[name],
        alpha=0.2,
        linewidth=0,
      )
  target = at['final_loss']['adamw']['mean']
  ax.axhline(target, color='gray', linewidth=0.8, linestyle='--')
  finals = [at['final_loss'][n]['mean'] for n in OPTIMIZERS]
  ax.set(
    xlabel='step',
    ylabel='validation loss [nats per byte]',
    ylim=(min(finals) - 0.05, target + 0.9),
    title=f'width {width}, each at its best learning rate',
  )
  ax.legend()


def _plot_grid(runs, numbers, widths, ax):
  """The learning rate bowls; a star at each optimum, hollow at an edge."""
  styles = ['-', '--', ':', '-.']
  for i, width in enumerate(widths):
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
      points = sorted(
        (r[-1]['learning_rate'], r[-1]['val_loss']) for r in tried
      )
      lrs, losses = map(np.array, zip(*points, strict=True))
      ax.plot(
        lrs,
        losses,
        styles[i % 4],
        color=COLORS[name],
        marker='.',
        label=f'{NAMES[name]}, width {width}',
      )
      edge = best['learning_rate'] in (lrs[0], lrs[-1])
      ax.plot(
        best['learning_rate'],
        losses.min(),
        '*',
        color=COLORS[name],
        markersize=13,
        fillstyle='none' if edge else 'full',
      )
  lrs = sorted({rows[0]['learning_rate'] for rows in runs.values()})
  ax.set_xscale('log', base=2)
  ax.set_xticks(lrs, [f'{lr:g}' for lr in lrs])
  best = min(
    v['final_loss']['muon']['mean'] for v in numbers['by_width'].values()
  )
  ax.set(
    xlabel='learning rate',
    ylabel='final validation loss [nats per byte]',
    ylim=(best - 0.05, best + 0.75),
    title='the same grid for both (star: optimum)',
  )
  ax.legend(fontsize='small', ncols=2)


def _plot_ratio(numbers, widths, ax):
  """What Muon needs of AdamW's steps, per width, range over pairs of seeds."""
  kinds = {
    'steps_ratio': 'steps, schedule shrunk to them',
    'flops_ratio': 'FLOPs of that, with Newton-Schulz',
    'steps_ratio_along_the_curve': 'steps along the full-length curve',
  }
  for i, (kind, label) in enumerate(kinds.items()):
    values = [numbers['by_width'][str(w)][kind] for w in widths]
    mean = np.array([v['mean'] for v in values])
    error = [
      mean - [v['min'] for v in values],
      [v['max'] for v in values] - mean,
    ]
    bars = ax.bar(
      np.arange(len(widths)) + 0.27 * (i - 1),
      mean,
      0.25,
      yerr=error,
      capsize=3,
      label=label,
      color=['tab:blue', 'tab:cyan', 'lightsteelblue'][i],
    )
    ax.bar_label(bars, fmt='%.2f', padding=3, fontsize='small')
  ax.axhline(
    PAPER_RATIO,
    color='black',
    linestyle='--',
    linewidth=1,
    label=f'Moonlight, FLOPs: {PAPER_RATIO}',
  )
  ax.axhline(1, color='tab:orange', linewidth=1, label='AdamW')
  ax.set_xticks(range(len(widths)), [f'width {w}' for w in widths])
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
    compute = np.array([v['compute'][name] for v in at])
    losses = [v['final_loss'][name] for v in at]
    mean = np.array([v['mean'] for v in losses])
    error = [
      mean - [v['min'] for v in losses],
      [v['max'] for v in losses] - mean,
    ]
    label = NAMES[name]
    if 'power_law' in numbers:
      law = numbers['power_law'][name]
      line = np.geomspace(compute.min() / 1.5, compute.max() * 1.5)
      ax.plot(line, law['a'] * line ** -law['b'], color=COLORS[name])
      label += f': L = {law["a"]:.2f} C^-{law["b"]:.3f}'
    ax.errorbar(
      compute, mean, error, fmt='o', color=COLORS[name], capsize=3, label=label
    )
  title = 'loss against compute'
  if 'power_law_compute_ratio' in numbers:
    title += (
      f': the fits put Muon at {numbers["power_law_compute_ratio"]:.2f} '
      'of the compute'
    )
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='training compute C [FLOPs]',
    ylabel='final validation loss [nats per byte]',
    title=title,
  )
  ax.yaxis.set_major_formatter('{x:.2f}')
  ax.yaxis.set_minor_formatter('{x:.2f}')
  ax.legend()
