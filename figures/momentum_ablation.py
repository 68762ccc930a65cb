"""Muon's momentum: the steps it saves, and what a smoother gradient explains.

Claim: track 3 of the modded-nanogpt speedrun. Muon reaches a loss of 3.28 in
3250 steps and SpectralDescent, which is Muon without momentum, in 8225: 2.53
times as many. Article 10739 of kexue.fm reads the momentum as a smoother
estimate of the gradient that spectral descent follows.

What should be seen: the loss falls from mu = 0 to a flat bottom near mu = 0.95,
and the momentum pays the more the longer the run. If it were only a smoother
gradient, averaging K gradients would be worth a batch K times larger, and the
two curves of the last panel would be one.

How: every momentum, and 0.95 without Nesterov's step, over the same learning
rates; then `seeds` seeds at each optimum. Likewise mu = 0 and 0.95 on fractions
of the steps, with the schedule shrunk to them, and mu = 0 with a larger batch.
The losses of mu = 0.95 over the lengths of its runs say after how many steps it
has the loss of another contestant: linear in the logarithm of the steps. A step
sees 256 tokens, few enough that the noise of a gradient is worth averaging.

Deviations: only the matrices lose their momentum. Embedding, head and gains
stay with AdamW and its betas (0.9, 0.95), at the same learning rate.

Expected: no gain at 600 steps, 1.4 times the steps at 1200 and 1.7 at 2400,
still below the speedrun's. Cost on two CPU cores: quick 1 minute, full 4.5
minutes.
"""

import dataclasses
import functools
import itertools

import jax
import matplotlib
import numpy as np

from ..optimizers import muon
from .comparison import by_run, crossing, grid, spread, tuned
from .language_model import Sweep, Task, TaskConfig
from .panels import bowl, rate_axis, whiskers
from .session import session

MOSAIC = [['length', 'grid'], ['steps', 'batch']]
REFERENCE = 0.95
PAPER_RATIO = 8225 / 3250


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains, besides what `TaskConfig` says.

  Args:
    momenta: of Muon; 0 and 0.95 must be among them.
    budgets: fractions of the steps for which 0 and 0.95 are tuned too.
    batch_factor: multiple of the batch for which 0 is tuned too.
  """

  layers: int = 1
  length: int = 32
  batch_size: int = 8
  steps: int = 1200
  learning_rates: tuple[float, ...] = (0.008, 0.016, 0.032, 0.064, 0.128)
  momenta: tuple[float, ...] = (0.0, 0.8, 0.95)
  budgets: tuple[float, ...] = (0.5,)
  batch_factor: int = 2

  @classmethod
  def full(cls) -> 'Config':
    """Longer runs, all momenta, three seeds."""
    return cls(
      steps=2400,
      momenta=(0.0, 0.5, 0.8, 0.9, 0.95, 0.98),
      budgets=(0.25, 0.5),
      seeds=3,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    known = {0.0, REFERENCE} <= set(self.momenta)
    self.require_every(
      'momenta',
      lambda x: known and 0 <= x < 1,
      f'numbers in [0, 1) with 0 and {REFERENCE} among them',
    )
    self.require_every(
      'budgets', lambda x: 0.1 <= x < 1, 'fractions from 0.1 up, below 1'
    )
    self.require_every('batch_factor', lambda x: x >= 2, '2 or more')


def gradients_averaged(momentum: float, *, nesterov: bool = True) -> float:
  r"""How many gradients the momentum averages, as the variance tells.

  With weights :math:`w_k` that sum to one on the gradients of `k` steps ago,
  white noise keeps :math:`\sum w_k^2 = 1 / K` of its variance. Without
  Nesterov's step :math:`K = (1 + \mu) / (1 - \mu)`; that step puts
  :math:`1 - \mu^2` on the newest gradient and :math:`(1 - \mu) \mu^{k + 1}` on
  the others.

  >>> round(gradients_averaged(0.95, nesterov=False), 1)
  39.0
  >>> round(gradients_averaged(0.95), 1)
  32.9
  """
  newest = (1 - momentum) * (1 + momentum * nesterov)
  second = (1 - momentum) * momentum ** (1 + nesterov)
  return 1 / (newest**2 + second**2 / (1 - momentum**2))


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Trains the sweep and returns a row for each log point of each run."""
  c, task = config, config.task(data_dir)
  larger = dataclasses.replace(c, batch_size=c.batch_size * c.batch_factor)
  with session(workdir, key, _total_steps(c)) as launch:

    def tune(sweep, momentum, budget=1.0):
      sweep.tune(
        launch,
        c.learning_rates,
        seeds=c.seeds,
        weight_decay=c.weight_decay,
        setting=momentum,
        budget=budget,
      )

    nesterov = _sweep(c, task, 'muon', parallel)
    for momentum in c.momenta:
      tune(nesterov, momentum)
    for budget, momentum in itertools.product(c.budgets, (0.0, REFERENCE)):
      tune(nesterov, momentum, budget)
    tune(_sweep(c, task, 'muon-plain', parallel, nesterov=False), REFERENCE)
    tune(_sweep(c, larger.task(data_dir), 'muon-larger-batch', parallel), 0.0)
  return launch.records.rows


def _sweep(
  c: Config, task: Task, name: str, parallel: str, nesterov: bool = True
) -> Sweep:
  """Muon on the task, its momentum an input of the program."""
  matrices = functools.partial(
    muon, nesterov=nesterov, dimension_numbers=task.model.dimension_numbers
  )
  return c.sweep(
    task,
    lambda rate, decay, momentum: matrices(
      rate, weight_decay=decay, momentum=momentum
    ),
    name,
    parallel=parallel,
    varies='momentum',
    tags={'batch_factor': task.batch_size // c.batch_size},
  )


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  contestants = len(c.momenta) + 2
  shorter = 2 * sum(round(c.steps * budget) for budget in c.budgets)
  runs = len(c.learning_rates) + c.seeds - 1
  return runs * (contestants * c.steps + shorter)


def _end(runs) -> dict[str, float]:
  """Learning rate and final loss of a contestant's runs."""
  losses = spread([rows[-1]['val_loss'] for rows in runs])
  return losses | {'learning_rate': runs[0][0]['learning_rate']}


def _contestants(rows) -> dict[str, dict]:
  """Columns that single out each contestant at the whole length, by name."""
  pairs = {(row['optimizer'], row['momentum']) for row in rows}
  return {
    f'{mu:g}' + ', plain' * (name == 'muon-plain'): {
      'optimizer': name,
      'momentum': mu,
      'budget': 1.0,
    }
    for name, mu in sorted(pairs)
    if name != 'muon-larger-batch'
  }


def _lengths(rows, runs) -> dict[float, dict[int, list]]:
  """Runs at the best learning rate, by momentum and number of steps."""
  budgets = sorted({row['budget'] for row in rows})
  found = {
    momentum: [
      tuned(runs, optimizer='muon', momentum=momentum, budget=budget)
      for budget in budgets
    ]
    for momentum in (0.0, REFERENCE)
  }
  return {
    momentum: {at[0][-1]['step']: at for at in every}
    for momentum, every in found.items()
  }


def _ratios(reference, contestant) -> dict[str, float]:
  """Steps of a contestant over the reference's at equal loss.

  Args:
    reference: runs of the reference by number of steps.
    contestant: runs of the contestant.

  Returns:
    Mean and range over the pairs of a seed of each.
  """
  ladders: dict[int, list] = {}
  for steps, at in sorted(reference.items()):
    for rows in at:
      point = (np.log2(steps), rows[-1]['val_loss'])
      ladders.setdefault(rows[0]['seed'], []).append(point)
  steps = contestant[0][-1]['step']
  return spread(
    [
      steps / 2 ** crossing(*zip(*ladder, strict=True), rows[-1]['val_loss'])
      for ladder in ladders.values()
      for rows in contestant
    ]
  )


def _numbers(rows) -> dict:
  """The headline, and for each contestant what the panels show."""
  runs, by_momentum = by_run(rows), {}
  contestants, lengths = _contestants(rows), _lengths(rows, runs)
  larger = tuned(runs, optimizer='muon-larger-batch')
  factor = larger[0][0]['batch_factor']
  one, more = _end(tuned(runs, **contestants['0'])), _end(larger)
  for name, wanted in contestants.items():
    found = tuned(runs, **wanted)
    losses = [one['mean'], more['mean']]
    worth = crossing([0.0, np.log2(factor)], losses, _end(found)['mean'])
    by_momentum[name] = {
      'final_loss': _end(found),
      'steps_ratio': _ratios(lengths[REFERENCE], found),
      'gradients_averaged': gradients_averaged(
        wanted['momentum'], nesterov=wanted['optimizer'] == 'muon'
      ),
      'worth_a_batch_times': float(2**worth),
    }
  return {
    'steps_ratio_without_momentum': by_momentum['0']['steps_ratio'],
    'paper_ratio': PAPER_RATIO,
    'by_momentum': by_momentum,
    'ratio_by_steps': {
      str(steps): _ratios(lengths[REFERENCE], at)
      for steps, at in lengths[0.0].items()
    },
    'loss_by_steps': {
      f'{momentum:g}': {str(steps): _end(at) for steps, at in every.items()}
      for momentum, every in lengths.items()
    },
    'larger_batch': {'factor': factor, 'final_loss': more},
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the four panels from the rows and returns the headline numbers."""
  numbers, contestants = _numbers(rows), _contestants(rows)
  shades = matplotlib.colormaps['viridis'](
    np.linspace(0, 0.9, len(contestants))
  )
  colors = dict(zip(contestants, map(tuple, shades), strict=True))
  colors[f'{REFERENCE:g}, plain'] = 'tab:red'
  rates = {row['learning_rate'] for row in rows}
  _plot_length(numbers, colors, (min(rates), max(rates)), axes['length'])
  _plot_grid(by_run(rows), contestants, colors, axes['grid'])
  _plot_steps(numbers, colors, axes['steps'])
  _plot_batch(numbers, axes['batch'])
  ratio = numbers['steps_ratio_without_momentum']
  axes['length'].figure.suptitle(
    f'Without momentum Muon needs {ratio["mean"]:.2f} times the steps '
    f'({ratio["min"]:.2f} to {ratio["max"]:.2f} over seeds); speedrun, '
    f'track 3: {PAPER_RATIO:.2f}'
  )
  return numbers


def _points(ax, x, spreads, **style):
  mean, error = whiskers(spreads)
  ax.errorbar(x, mean, error, capsize=3, **style)
  ax.set_xscale('log', base=2)
  ax.set_ylabel('final validation loss [nats per byte]')
  return mean


def _label(name: str) -> str:
  return f'$\\mu$ = {name}'.replace('plain', 'no Nesterov')


def _plot_length(numbers, colors, edges, ax):
  """Loss over the length of the run; the horizontal distance is the ratio."""
  for name, losses in numbers['loss_by_steps'].items():
    steps = [int(step) for step in losses]
    style = dict(color=colors[name], label=_label(name), fmt='o-')
    mean = _points(ax, steps, list(losses.values()), **style)
    for step, loss in zip(steps, losses.values(), strict=True):
      if loss['learning_rate'] in edges:
        ax.plot(step, loss['mean'], 'o', color='white', markersize=3, zorder=3)
    if name == '0':
      ratios = numbers['ratio_by_steps'].values()
      for step, loss, ratio in zip(steps, mean, ratios, strict=True):
        at = dict(textcoords='offset points', xytext=(5, 7))
        ax.annotate(f'{ratio["mean"]:.2f}', (step, loss), **at)
  ax.set_xticks(steps, [str(step) for step in steps])
  ax.set(
    xlabel='steps of the run (hollow: best learning rate at the edge)',
    title=f'number: steps without momentum / steps of $\\mu$ = {REFERENCE}',
  )
  ax.legend()


def _plot_grid(runs, contestants, colors, ax):
  """The learning rate bowls of the first seed."""
  rates, bottoms = [], []
  for name, wanted in contestants.items():
    points = grid(runs, **wanted)
    rates += [rate for rate, _ in points]
    bottoms.append(min(loss for _, loss in points))
    bowl(ax, points, color=colors[name], label=_label(name))
  title = 'the same grid for all (star: optimum, hollow: at the edge)'
  rate_axis(ax, rates, title)
  ax.set_ylim(min(bottoms) - 0.02, max(bottoms) + 0.2)
  ax.legend(fontsize='small', ncols=2, loc='upper center')


def _plot_steps(numbers, colors, ax):
  """Steps over the reference's at equal loss, range over pairs of seeds."""
  by_name = numbers['by_momentum']
  mean, error = whiskers([v['steps_ratio'] for v in by_name.values()])
  place = np.arange(len(mean))
  bars = ax.bar(
    place,
    mean,
    0.6,
    yerr=error,
    capsize=3,
    color=[colors[name] for name in by_name],
  )
  ax.bar_label(bars, fmt='%.2f', padding=3)
  at = list(by_name).index('0')
  label = f'speedrun: {PAPER_RATIO:.2f} without momentum'
  paper = dict(color='black', linestyle='--', label=label)
  ax.plot([at - 0.4, at + 0.4], [PAPER_RATIO] * 2, **paper)
  ax.axhline(1, color='gray', linewidth=0.8)
  ax.set_xticks(place, [name.replace(', ', '\n') for name in by_name])
  ax.set(
    xlabel='momentum $\\mu$ (plain: without Nesterov)',
    ylabel=f'steps / steps of $\\mu$ = {REFERENCE}, at equal loss',
    ylim=(0, 1.15 * max(PAPER_RATIO, *(mean + error[1]))),
    title='what each needs for the same loss',
  )
  ax.legend(loc='upper right')


def _plot_batch(numbers, ax):
  """Loss against the gradients averaged, by momentum and by a larger batch."""
  by_name, larger = numbers['by_momentum'], numbers['larger_batch']
  nesterov = [v for name, v in by_name.items() if 'plain' not in name]
  _points(
    ax,
    [1, larger['factor']],
    [by_name['0']['final_loss'], larger['final_loss']],
    fmt='s--',
    color='black',
    label='no momentum, batch K times larger',
  )
  _points(
    ax,
    [v['gradients_averaged'] for v in nesterov],
    [v['final_loss'] for v in nesterov],
    fmt='o-',
    color='tab:blue',
    label='momentum that averages K gradients',
  )
  at = by_name[f'{REFERENCE:g}']
  ax.xaxis.set_major_formatter('{x:g}')
  ax.set(
    xlabel='gradients averaged, K = 1 / sum of squared weights',
    title=f'$\\mu$ = {REFERENCE} averages {at["gradients_averaged"]:.0f} '
    f'gradients and is worth a batch {at["worth_a_batch_times"]:.1f} times '
    'larger',
  )
  ax.legend(loc='upper right')
