r"""A limit on the predicted decrease of the loss, instead of warmup.

Paper: Su, article 10657: to first order a step of learning rate eta along u
lowers the loss by eta <u, g>, which is absurdly much at the start of training;
warmup hides that, and eta_t = eta min(1, T / <u_t, g_t>) would make it needless
and adapt by itself. The article has no experiment.

What should be seen: without either, Adam's <u, g> is large in the first steps
and large learning rates end badly; warmup and the limiter both flatten that
side of the bowl; the limiter's factor is below one mostly at the start. What
was not seen: a gain of the limiter at the best learning rate.

How: AdamW with b2 = 0.999 and no normalised queries and keys, where warmup
matters, on one cosine: as it is; multiplied by a linear ramp over each fraction
of the steps; and with each T. All over the same learning rates with one seed;
the best fraction and the best T over all learning rates with every seed, for
runs at large learning rates differ much.

Expected: the limiter as good as warmup where the learning rate is too large.
Cost on two CPU cores: quick 1.5 minutes, full 5 minutes.
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
from .comparison import by_run, grid, select, spread
from .language_model import Session, Sweep, Task, TaskConfig, session
from .panels import band, bowl, whiskers

MOSAIC = [['grid', 'early', 'large'], ['descent', 'factor', 'loss']]
CONTESTANTS = {
  'neither': 'tab:gray',
  'warmup': 'tab:orange',
  'limiter': 'tab:blue',
}
NAMES = {
  'neither': 'neither',
  'warmup': 'warmup over {:g} of the steps',
  'limiter': 'limiter, T = {:g}',
}


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains.

  Args:
    warmups: fractions of the steps over which the learning rate rises.
    thresholds: T of the limiter, in the unit of the loss over that of the
      learning rate.
  """

  layers: int = 4
  batch_size: int = 16
  steps: int = 150
  learning_rates: tuple[float, ...] = (0.008, 0.016, 0.032, 0.064)
  seeds: int = 2
  log_points: int = 30
  validation_windows: int = 128
  warmups: tuple[float, ...] = (0.1,)
  thresholds: tuple[float, ...] = (10.0, 30.0)

  @classmethod
  def full(cls) -> 'Config':
    """Twice the steps, wider grids, three seeds."""
    return cls(
      steps=300,
      learning_rates=(0.008, 0.016, 0.032, 0.064, 0.128),
      seeds=3,
      log_points=50,
      warmups=(0.05, 0.1, 0.2),
      thresholds=(10.0, 30.0, 100.0),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('warmups', lambda x: 0 < x < 1, 'fractions in (0, 1)')
    self.require_every('thresholds', lambda x: x > 0, 'positive numbers')

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
  return (settings + 3 * (c.seeds - 1)) * len(c.learning_rates) * c.steps


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
  """Every setting of every contestant; seeds at the best of each."""
  make = functools.partial(
    Sweep,
    task,
    steps=c.steps,
    log_every=max(1, c.steps // c.log_points),
    parallel=parallel,
    warmup=0.0,  # The ramp is an input of the program, like the threshold.
    measure=_measure,
    varies='setting',
  )
  ramped = functools.partial(_warmed_up, c.steps)
  sweeps = {
    'neither': make(ramped, 'neither'),
    'warmup': make(ramped, 'warmup'),
    'limiter': make(_limited, 'limiter'),
  }
  for name, settings in _settings(c).items():
    train = functools.partial(
      sweeps[name].train, launch, weight_decay=c.weight_decay
    )
    ends = [
      train(learning_rate=rate, setting=setting)
      for setting, rate in itertools.product(settings, c.learning_rates)
    ]
    best = min(ends, key=lambda row: row['val_loss'])['setting']
    for seed, rate in itertools.product(range(1, c.seeds), c.learning_rates):
      train(learning_rate=rate, setting=best, seed=seed)


def _best_setting(runs, name) -> float:
  """The setting that was best at its best learning rate, first seed."""
  tried = sorted({of[0]['setting'] for of in select(runs, optimizer=name)})
  require(bool(tried), 'records', f'no {name}', 'its runs')
  end = lambda x: min(y for _, y in grid(runs, optimizer=name, setting=x))
  return min(tried, key=end)


def _by_rate(runs, name, setting) -> dict[float, list[list[dict]]]:
  """Runs of all seeds at each learning rate, ascending; infinite ones too."""
  rates = [rate for rate, _ in grid(runs, optimizer=name, setting=setting)]
  at = dict(optimizer=name, setting=setting)
  return {rate: select(runs, learning_rate=rate, **at) for rate in rates}


def _ends(found) -> dict[str, float]:
  return spread([rows[-1]['val_loss'] for rows in found])


def _numbers(runs: dict) -> dict:
  """Losses at the optima and at the largest learning rate, and how limited."""
  best = {name: _best_setting(runs, name) for name in CONTESTANTS}
  every = {name: _by_rate(runs, name, best[name]) for name in CONTESTANTS}
  mean = lambda name: lambda rate: _ends(every[name][rate])['mean']
  rates = {name: min(every[name], key=mean(name)) for name in CONTESTANTS}
  optimal = {name: every[name][rates[name]] for name in CONTESTANTS}
  largest = max(every['neither'])
  rows = lambda name: [row for of in optimal[name] for row in of]
  return {
    'setting': best,
    'learning_rate': rates,
    'final_loss': {name: _ends(optimal[name]) for name in CONTESTANTS},
    'largest_rate': largest,
    'loss_at_largest_rate': {
      name: _ends(every[name][largest]) for name in CONTESTANTS
    },
    'first_descent': _mean_of(optimal['neither'], 0, 'descent'),
    'last_descent': _mean_of(optimal['neither'], -1, 'descent'),
    'limited_share': float(
      np.mean([row.get('factor', 1.0) < 1 for row in rows('limiter')])
    ),
  }


def _mean_of(found, index, column) -> float:
  return float(np.mean([rows[index][column] for rows in found]))


def _finite(found) -> list[list[dict]]:
  return [rows for rows in found if np.isfinite(rows[-1]['val_loss'])]


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  numbers = _numbers(runs)
  best, largest = numbers['setting'], numbers['largest_rate']
  names = {n: NAMES[n].format(best[n]) for n in CONTESTANTS}
  at = lambda n, rate: _finite(_by_rate(runs, n, best[n])[rate])
  optimal = {n: at(n, rate) for n, rate in numbers['learning_rate'].items()}
  _plot_grid(runs, best, names, axes['grid'])
  axes['early'].set_title('each at its best learning rate')
  _plot_curves(optimal, names, axes['early'])
  axes['large'].set_title(f'all at the largest learning rate, {largest:g}')
  _plot_curves({n: at(n, largest) for n in best}, names, axes['large'])
  _plot_descent(optimal, best, names, axes['descent'])
  _plot_factor(optimal, best, names, axes['factor'])
  _plot_loss(numbers, axes['loss'])
  gain = lambda of: ', '.join(
    f'{n} {of["neither"]["mean"] - of[n]["mean"]:+.3f}'
    for n in ('limiter', 'warmup')
  )
  axes['grid'].figure.suptitle(
    f'nats gained over neither: {gain(numbers["final_loss"])} at the best '
    f'learning rates; {gain(numbers["loss_at_largest_rate"])} at a learning '
    f'rate of {largest:g}'
  )
  return numbers


def _plot_grid(runs, best, names, ax):
  """Bowls: all seeds at the best setting, the first at the others."""
  for name, color in CONTESTANTS.items():
    tried = {of[0]['setting'] for of in select(runs, optimizer=name)}
    for setting in tried - {best[name]}:
      points = grid(runs, optimizer=name, setting=setting)
      ax.plot(*zip(*points, strict=True), ':', color=color, linewidth=1)
    of = {
      rate: _finite(found)
      for rate, found in _by_rate(runs, name, best[name]).items()
    }
    ends = {rate: _ends(found) for rate, found in of.items() if found}
    mean, error = whiskers([*ends.values()])
    ax.errorbar([*ends], mean, error, fmt='none', color=color, capsize=3)
    points = [*zip(ends, mean, strict=True)]
    bowl(ax, points, color=color, label=names[name])
  ax.set_xscale('log', base=2)
  ax.set_xticks([*of], [f'{rate:g}' for rate in of])
  ax.set(
    xlabel='learning rate',
    ylabel='final validation loss [nats per byte]',
    title='range over seeds (star: optimum; dotted: other settings, one seed)',
  )
  ax.legend(loc='upper left')


def _plot_curves(found, names, ax):
  """Training loss in the first third of the run."""
  for name, of in found.items():
    if of:
      early = [rows[: len(rows) // 3] for rows in of]
      band(ax, early, 'loss', color=CONTESTANTS[name], label=names[name])
  ax.set(xlabel='step', ylabel='training loss [nats per byte]')
  ax.legend()


def _plot_descent(found, best, names, ax):
  """What the limiter limits, and where."""
  for name, of in found.items():
    band(ax, of, 'descent', color=CONTESTANTS[name], label=names[name])
  style = dict(color='black', linestyle='--', linewidth=1)
  ax.axhline(best['limiter'], label=f'T = {best["limiter"]:g}', **style)
  ax.set(
    yscale='log',
    xlabel='step',
    ylabel='<u, g> [nats per unit of learning rate]',
    title='the predicted decrease, at the best learning rates',
  )
  ax.legend()


def _plot_factor(found, best, names, ax):
  """What multiplies the learning rate at first, next to the cosine."""
  of = [rows[: len(rows) // 3] for rows in found['limiter']]
  band(ax, of, 'factor', color=CONTESTANTS['limiter'], label=names['limiter'])
  steps = np.array([row['step'] for row in of[0]])
  total = found['limiter'][0][-1]['step']
  ramp = np.minimum(1, steps / (best['warmup'] * total))
  ax.plot(steps, ramp, color=CONTESTANTS['warmup'], label=names['warmup'])
  ax.set(
    xlabel='step',
    ylabel='factor on the learning rate',
    ylim=(0, 1.05),
    title='how much the limiter and warmup hold back',
  )
  ax.legend(loc='lower right')


def _plot_loss(numbers, ax):
  """Final losses at the best and at the largest learning rate."""
  largest = numbers['largest_rate']
  for shift, key, marker, label in (
    (-0.1, 'final_loss', 'o', 'best learning rate'),
    (0.1, 'loss_at_largest_rate', 's', f'learning rate {largest:g}'),
  ):
    ends = [numbers[key][name] for name in CONTESTANTS]
    finite = [i for i, end in enumerate(ends) if np.isfinite(end['max'])]
    mean, error = whiskers([ends[i] for i in finite])
    place = np.array(finite) + shift
    ax.errorbar(place, mean, error, fmt=f'k{marker}', capsize=4, label=label)
    for x, y in zip(place, mean, strict=True):
      ax.annotate(f'  {y:.3f}', (x, y), fontsize='small')
  ax.set_xticks(range(len(CONTESTANTS)), CONTESTANTS)
  ax.set(
    xlim=(-0.5, len(CONTESTANTS) - 0.4),
    ylabel='final validation loss [nats per byte]',
    title='final losses, range over seeds',
  )
  ax.legend()
