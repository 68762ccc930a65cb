r"""A limit on the predicted decrease of the loss, instead of warmup.

Paper: Su, article 10657: to first order a step of learning rate eta along u
lowers the loss by eta <u, g>, which is absurdly much at the start of training;
warmup hides that, and eta_t = eta min(1, T / <u_t, g_t>) would make it needless
and adapt by itself. The article has no experiment.

What should be seen: Adam's <u, g> is tens of times larger in the first steps
than later, and without either large learning rates end badly; warmup and the
limiter both flatten that side of the bowl. What was not seen: a gain of the
limiter over warmup, or of either at the best learning rate.

How: AdamW with b2 = 0.999 and no normalised queries and keys, where warmup
matters, on one cosine: as it is; multiplied by a linear ramp over each fraction
of the steps; and with each T. All over the same learning rates and seeds, for
runs at large ones differ much. Then the first steps again, looked at one by
one, at the best setting for the best and for the largest learning rate.

Expected: the limiter better than nothing, where the learning rate is too large.
Cost on two CPU cores: quick 1.5 minutes, full 6 minutes.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..models.transformer import TransformerConfig
from ..optimizers import clip_by_descent
from ..training.schedules import schedule
from .comparison import by_run, select, spread
from .language_model import Sweep, Task, TaskConfig
from .panels import STYLES, band, whiskers
from .session import Session, session

MOSAIC = [['grid', 'best', 'largest'], ['descent', 'factor', 'loss']]
MOMENTS = ('best', 'largest')  # Learning rates whose first steps are shown.
CONTESTANTS = {
  'neither': 'tab:gray',
  'warmup': 'tab:orange',
  'limiter': 'tab:blue',
}
NAMES = {
  'neither': 'neither',
  'warmup': 'warmup, {:g} of the steps',
  'limiter': 'limiter, T = {:g}',
}


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains.

  Args:
    warmups: fractions of the steps over which the learning rate rises.
    thresholds: T of the limiter, in the unit of the loss over that of the
      learning rate.
    early: steps that are looked at one by one.
  """

  layers: int = 4
  batch_size: int = 16
  steps: int = 150
  learning_rates: tuple[float, ...] = (0.008, 0.016, 0.032, 0.064)
  seeds: int = 2
  log_points: int = 2
  warmups: tuple[float, ...] = (0.1,)
  thresholds: tuple[float, ...] = (10.0, 30.0)
  early: int = 30

  @classmethod
  def full(cls) -> 'Config':
    """Longer, wider grids, three seeds."""
    return cls(
      steps=240,
      learning_rates=(0.008, 0.016, 0.032, 0.064, 0.128),
      seeds=3,
      warmups=(0.05, 0.1, 0.2),
      thresholds=(10.0, 30.0, 100.0),
      early=40,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('warmups', lambda x: 0 < x < 1, 'fractions in (0, 1)')
    self.require_every('thresholds', lambda x: x > 0, 'positive numbers')
    short = f'2 or more, at most the {self.steps} steps'
    self.require_every('early', lambda x: 2 <= x <= self.steps, short)

  @property
  def sizes(self) -> TransformerConfig:
    """The model, without the norms that make large learning rates safe."""
    return dataclasses.replace(super().sizes, qk_norm=False)


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Trains the sweep and returns a row for each log point of each run."""
  with session(workdir, key, _total_steps(config)) as launch:
    _train_all(config, config.task(data_dir), launch, parallel)
  return launch.records.rows


def _settings(c: Config) -> dict[str, tuple[float, ...]]:
  """What each contestant is tuned over, next to the learning rate."""
  return {'neither': (0.0,), 'warmup': c.warmups, 'limiter': c.thresholds}


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  settings = sum(map(len, _settings(c).values()))
  looked_at = len(CONTESTANTS) * len(MOMENTS) * c.early
  whole = settings * len(c.learning_rates) * c.steps
  return c.seeds * (whole + looked_at)


def _limited(rate, decay, threshold):
  """AdamW whose predicted decrease is limited."""
  return optax.chain(
    clip_by_descent(optax.scale_by_adam(b1=0.9, b2=0.999), threshold),
    optax.add_decayed_weights(decay),
    optax.scale_by_learning_rate(rate),
  )


def _warmed_up(steps, rate, decay, fraction):
  """AdamW after a linear ramp over a fraction of the steps, 0 for none."""
  ramp = lambda count: jnp.minimum(
    1.0, (count + 1) / jnp.maximum(1.0, fraction * steps)
  )
  return _limited(lambda count: ramp(count) * rate(count), decay, jnp.inf)


def _measure(state) -> dict[str, jax.Array]:
  """What the limiter saw in the last step, and what it did."""
  get = functools.partial(optax.tree.get, state.opt_state)
  return {'descent': get('descent'), 'factor': get('factor')}


def _train_all(c: Config, task: Task, launch: Session, parallel) -> None:
  """Every setting, learning rate and seed; then the first steps of some."""
  # The ramp is an input of the program, like the threshold.
  options = dict(parallel=parallel, warmup=0.0, varies='setting')
  one_by_one = dict(
    steps=c.early, log_every=1, measure=_measure, tags={'of_steps': c.steps}
  )
  ramped = functools.partial(_warmed_up, c.steps)
  makers = {'neither': ramped, 'warmup': ramped, 'limiter': _limited}
  cosine = schedule('cosine', steps=c.steps)
  seeds = range(c.seeds)
  for name, settings in _settings(c).items():
    sweep = c.sweep(task, makers[name], name, **options)
    for setting, rate, seed in itertools.product(
      settings, c.learning_rates, seeds
    ):
      _train(c, launch, sweep, setting, rate, seed)
    # Of the whole schedule, whatever the number of steps.
    make = lambda _, decay, setting, name=name: makers[name](
      cosine, decay, setting
    )
    sweep = Sweep(task, make, f'early-{name}', **one_by_one, **options)
    choice = _choice(by_run(launch.records.rows), name)
    for moment, seed in itertools.product(MOMENTS, seeds):
      _train(c, launch, sweep, *choice[moment], seed)


def _train(c, launch, sweep, setting, rate, seed) -> None:
  sweep.train(
    launch,
    learning_rate=rate,
    weight_decay=c.weight_decay,
    setting=setting,
    seed=seed,
  )


def _cells(runs, name) -> dict[tuple[float, float], dict[str, float]]:
  """Final losses over seeds by setting and learning rate."""
  cells: dict[tuple[float, float], list[float]] = {}
  for of in select(runs, optimizer=name):
    cell = of[0]['setting'], of[0]['learning_rate']
    cells.setdefault(cell, []).append(of[-1]['val_loss'])
  require(bool(cells), 'records', f'no {name}', 'its runs')
  return {cell: spread(cells[cell]) for cell in sorted(cells)}


def _choice(runs, name) -> dict[str, tuple[float, float]]:
  """The best setting and learning rate, and the best setting at the largest."""
  cells = _cells(runs, name)
  largest = max(rate for _, rate in cells)
  mean = lambda cell: cells[cell]['mean']
  at_largest = [cell for cell in cells if cell[1] == largest]
  return {'best': min(cells, key=mean), 'largest': min(at_largest, key=mean)}


def _numbers(runs: dict) -> dict:
  """Losses at the optima and at the largest learning rate, and how limited."""
  choice = {name: _choice(runs, name) for name in CONTESTANTS}
  early = _early(runs, choice, 'best')
  require(all(early.values()), 'records', 'no first steps', 'those at the best')
  loss = {
    moment: {n: _cells(runs, n)[choice[n][moment]] for n in CONTESTANTS}
    for moment in MOMENTS
  }
  gain = lambda of, name: of['neither']['mean'] - of[name]['mean']
  column = lambda rows, key: [row[key] for row in rows]
  return {
    'choice': {
      moment: {
        n: dict(
          zip(('setting', 'learning_rate'), choice[n][moment], strict=True)
        )
        for n in CONTESTANTS
      }
      for moment in MOMENTS
    },
    'loss': loss,
    'gain_over_neither': {
      moment: {n: gain(of, n) for n in ('warmup', 'limiter')}
      for moment, of in loss.items()
    },
    'first_descent': spread([rows[0]['descent'] for rows in early['neither']]),
    'last_early_descent': spread(
      [rows[-1]['descent'] for rows in early['neither']]
    ),
    'limited_steps': spread(
      [sum(f < 1 for f in column(rows, 'factor')) for rows in early['limiter']]
    ),
  }


def _early(runs, choice, moment) -> dict[str, list[list[dict]]]:
  """The first steps of each contestant at its choice for a moment."""
  found = {}
  for name in CONTESTANTS:
    setting, rate = choice[name][moment]
    at = dict(optimizer=f'early-{name}', setting=setting, learning_rate=rate)
    found[name] = [
      rows for rows in select(runs, **at) if np.isfinite(rows[-1]['val_loss'])
    ]
  return found


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  numbers = _numbers(runs)
  choice = {name: _choice(runs, name) for name in CONTESTANTS}
  largest = choice['neither']['largest'][1]
  early = {moment: _early(runs, choice, moment) for moment in MOMENTS}
  names = {
    moment: {n: NAMES[n].format(choice[n][moment][0]) for n in CONTESTANTS}
    for moment in MOMENTS
  }
  _plot_grid(runs, choice, axes['grid'])
  titles = ('each at its best learning rate', f'learning rate {largest:g}')
  for moment, title in zip(MOMENTS, titles, strict=True):
    ax = axes[moment]
    _plot_early(early[moment], names[moment], 'loss', ax)
    ax.set(ylabel='training loss [nats per byte]', title=title)
  _plot_early(early['largest'], names['largest'], 'descent', axes['descent'])
  axes['descent'].set(
    yscale='log',
    ylabel='<u, g> [nats per unit of learning rate]',
    title=f'the predicted decrease at {largest:g}',
  )
  _plot_factor(early, names, axes['factor'])
  _plot_loss(numbers, largest, axes['loss'])
  say = lambda of: ', '.join(f'{n} {of[n]:+.3f}' for n in ('limiter', 'warmup'))
  gain = numbers['gain_over_neither']
  axes['grid'].figure.suptitle(
    f'nats gained over neither: {say(gain["best"])} at the best learning '
    f'rates; {say(gain["largest"])} at a learning rate of {largest:g}'
  )
  return numbers


def _plot_grid(runs, choice, ax):
  """Bowls of every setting."""
  for name, color in CONTESTANTS.items():
    cells = _cells(runs, name)
    settings = sorted({setting for setting, _ in cells})
    for setting, style in zip(settings, itertools.cycle(STYLES), strict=False):
      of = {
        rate: end
        for (x, rate), end in cells.items()
        if x == setting and np.isfinite(end['max'])
      }
      mean, error = whiskers([*of.values()])
      style = dict(color=color, linestyle=style, capsize=2, marker='.')
      label = NAMES[name].format(setting)
      ax.errorbar([*of], mean, error, elinewidth=0.8, label=label, **style)
    best = choice[name]['best']
    ax.plot(best[1], cells[best]['mean'], '*', color=color, markersize=13)
  rates = sorted({rate for _, rate in cells})
  ax.set_xscale('log', base=2)
  ax.set_xticks(rates, [f'{rate:g}' for rate in rates])
  ax.set(
    xlabel='learning rate',
    ylabel='final validation loss [nats per byte]',
    title='every run, range over seeds (star: optimum)',
  )
  ax.legend(fontsize='small', loc='upper left')


def _plot_early(early, names, column, ax):
  """A column of the first steps of each contestant."""
  for name, of in early.items():
    if of:  # Not all diverged.
      band(ax, of, column, color=CONTESTANTS[name], label=names[name])
  ax.set(xlabel='step')
  ax.legend()


def _plot_factor(early, names, ax):
  """What multiplies the learning rate at first, next to the cosine."""
  for moment, style in zip(MOMENTS, STYLES, strict=False):
    for name in ('warmup', 'limiter'):
      of = early[moment][name]
      if name == 'warmup':  # Its ramp is known, and nothing is limited.
        ramp = lambda row: row['step'] / (row['setting'] * row['of_steps'])
        of = [
          [{**row, 'factor': min(1.0, ramp(row))} for row in rows]
          for rows in of
        ]
      label = f'{names[moment][name]}, {moment} learning rate'
      look = dict(color=CONTESTANTS[name], linestyle=style, label=label)
      if of:
        band(ax, of, 'factor', **look)
  ax.set(
    xlabel='step',
    ylabel='factor on the learning rate',
    ylim=(0, 1.05),
    title='how much the limiter and warmup hold back',
  )
  ax.legend(fontsize='small', loc='lower right')


def _plot_loss(numbers, largest, ax):
  """Final losses at the best and at the largest learning rate."""
  labels = ('best learning rate', f'learning rate {largest:g}')
  for i, (moment, label) in enumerate(zip(MOMENTS, labels, strict=True)):
    ends = [numbers['loss'][moment][name] for name in CONTESTANTS]
    finite = [j for j, end in enumerate(ends) if np.isfinite(end['max'])]
    mean, error = whiskers([ends[j] for j in finite])
    place = np.array(finite) + 0.2 * i - 0.1
    style = dict(fmt=f'k{"os"[i]}', capsize=4, label=label)
    ax.errorbar(place, mean, error, **style)
    for x, y in zip(place, mean, strict=True):
      ax.annotate(f'  {y:.3f}', (x, y), fontsize='small')
  ax.set_xticks(range(len(CONTESTANTS)), CONTESTANTS)
  ax.set(
    xlim=(-0.5, len(CONTESTANTS) - 0.4),
    ylabel='final validation loss [nats per byte]',
    title='final losses at the best settings, range over seeds',
  )
  ax.legend()
