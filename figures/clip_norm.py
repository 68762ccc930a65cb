r"""Why gradients are clipped at 1, and what a model's size does to the sign.

Paper: Su, article 10657: a step of learning rate eta along u lowers the loss by
eta <u, g> to first order. For descent that is eta |g|^2, in the long run less
than eta, so |g| < 1 and a threshold of 1 meets outliers alone. For the sign,
and about so for Adam, it is eta |g|_1 = eta sqrt(N) |g| cos(sign g, g), with a
cosine of sqrt(2 / pi) for Gaussian gradients: if steps are to win the same, the
best learning rate falls like 1 / sqrt(N), and that of descent stays. The
article has no experiment.

What should be seen: |g| does not depend on the size of the model, as the
article assumes (power 0.00 to 0.06 of N), and the best learning rate of SignSGD
goes with N to the power -0.45, so that a step wins the same at all sizes. That
of SGD does not fall, it rises with the power 0.2. Adam's is between, -0.34, but
its bowls are so flat that seeds say -0.60 to 0.19. What was not seen: a norm
below 1. It is 2 to 2.5, still 1.7 after four times the steps: a threshold is in
the unit of a loss and a model, here it would clip every step. The cosine is
below 0.798 from the start, 0.5 to 0.7, and falls to 0.3 to 0.5. And |g|_1 of a
batch is about twice what the sign wins on another batch: the rest is the
batch's own noise.

How: classifiers of images, rectifiers of several widths. Adam, SignSGD
(SoftSign at epsilon 0) and SGD, each tuned over its grid at every width, all
seeds at every learning rate, judged by the loss of the population; parabola
through the best three, bootstrap over seeds. Then the same runs at the best of
the grid once more and on, statistics at every step, and <u, g> with a gradient
of other images beside the batch's own.

Expected: power of SignSGD -0.5 within 0.1, of the norm 0 within 0.1. Cost on
two CPU cores: quick 1 minute, full 3 minutes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..optimizers import softsign_sgd
from ..scaling import clipping_statistics, optimal_learning_rate
from .checked import CheckedConfig
from .clip_panels import (
  GAUSSIAN,
  THRESHOLD,
  plot_bowls,
  plot_curves,
  plot_descent,
  plot_optima,
  plot_won,
)
from .comparison import Row, by_run, power_law, select, spread
from .image_model import ImageConfig, ImageTask
from .language_model import Sweep
from .optima import grid_losses, optimum
from .session import Session, session

MOSAIC = [
  ['norm', 'clipped', 'cosine'],
  ['descent', 'won', 'optima'],
  ['adam', 'sign', 'sgd'],
]
OPTIMIZERS = {
  'adam': lambda rate, decay: optax.adam(rate, b1=0.9, b2=0.95),
  'sign': lambda rate, decay: softsign_sgd(rate, eps=0.0),
  'sgd': lambda rate, decay: optax.sgd(rate),
}
HALVINGS = 4  # Of the steps of a run, where statistics are looked at.
# The best learning rate goes with N to this power, by the article.
POWERS = {'adam': -0.5, 'sign': -0.5, 'sgd': 0.0}


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is trained.

  Args:
    dataset: labelled images of `training.data`; "auto": the best that is there.
    widths: of the rectifiers, ascending, three or more.
    layers: how many of them.
    batch_size: images in a step.
    population: training images, the first ones; their loss is the score.
    learning_rates: the grid of Adam and SignSGD, ascending, three or more.
    descent_rates: that of SGD.
    steps: of a run that is tuned, at a constant learning rate; a multiple of
      16.
    doublings: of the steps, for the runs that are followed.
    seeds: runs of each learning rate.
  """

  dataset: str = 'auto'
  widths: tuple[int, ...] = (16, 40, 100, 256)
  layers: int = 1
  batch_size: int = 64
  population: int = 2048
  learning_rates: tuple[float, ...] = (
    0.00025,
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
  )
  descent_rates: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16, 0.32)
  steps: int = 64
  doublings: int = 2
  seeds: int = 4

  @classmethod
  def full(cls) -> 'Config':
    """Wider networks, longer runs, a finer grid and more seeds."""
    return cls(
      widths=(16, 32, 64, 128, 256, 512),
      population=4096,
      learning_rates=tuple(0.0001 * 2**i for i in range(8)),
      descent_rates=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
      steps=128,
      seeds=6,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('widths', 'learning_rates', 'descent_rates'):
      values = getattr(self, name)
      rising = len(values) >= 3 and list(values) == sorted({*values})
      good = lambda x, rising=rising: rising and x > 0
      self.require_every(name, good, '3 or more positive ones, ascending')
    parts = 2**HALVINGS
    good = lambda x: x >= parts and x % parts == 0
    self.require_every('steps', good, f'a multiple of {parts}')
    self.require_every('doublings', lambda x: x >= 0, '0 or more')
    self.images(self.widths[0]).check(data_dir)

  def images(self, width: int) -> ImageConfig:
    """The part of it that says what is trained at one width."""
    return ImageConfig(
      dataset=self.dataset,
      width=width,
      layers=self.layers,
      batch_sizes=(self.batch_size,),
      steps=self.steps,
      seeds=self.seeds,
      population=self.population,
    )

  def rates(self, name: str) -> tuple[float, ...]:
    """The grid of a contestant."""
    return self.descent_rates if name == 'sgd' else self.learning_rates

  @property
  def ends(self) -> list[int]:
    """Steps between which statistics are averaged, each twice the last."""
    powers = range(-HALVINGS, self.doublings + 1)
    return [round(self.steps * 2.0**i) for i in powers]


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Tunes every optimizer at every width, follows the best, returns rows."""
  c = config
  tuned = c.steps * sum(len(c.rates(name)) for name in OPTIMIZERS)
  followed = c.ends[-1] * len(OPTIMIZERS)
  total = len(c.widths) * c.seeds * (tuned + followed)
  with session(workdir, key, total) as launch:
    for width in c.widths:
      task = c.images(width).task(c.batch_size, data_dir)
      for name in OPTIMIZERS:
        _tune(c, launch, task, name, parallel)
        _follow(c, launch, task, name)
  return launch.records.rows


def _tune(c: Config, launch: Session, task: ImageTask, name: str, parallel):
  """Every learning rate and seed."""
  sweep = Sweep(
    task,
    OPTIMIZERS[name],
    name,
    steps=c.steps,
    log_every=c.steps,
    parallel=parallel,
    kind='constant',
    warmup=0,
    tags={'parameters': task.parameters},
  )
  for rate in c.rates(name):
    for seed in range(c.seeds):
      sweep.train(launch, learning_rate=rate, weight_decay=0.0, seed=seed)


def _follow(c: Config, launch: Session, task: ImageTask, name: str) -> None:
  """The runs at the best learning rate of the grid, and on."""
  width, runs = task.sizes.width, by_run(launch.records.rows)
  rates, losses = grid_losses(runs, optimizer=name, width=width)
  rate = rates[np.argmin(losses.mean(0))]
  for seed in range(c.seeds):
    key = jax.random.fold_in(jax.random.fold_in(launch.key, width), seed)
    launch.record(
      f'{name}-d{width}-s{seed}-followed',
      len(c.ends),
      lambda key=key, seed=seed: _followed(c, task, name, key, rate, seed),
    )
    launch.progress.skip(c.ends[-1])


def _followed(
  c: Config, task: ImageTask, name: str, key, rate: float, seed: int
) -> Iterator[Row]:
  """Means of the statistics over parts of a run, each twice the last."""
  draw = lambda key: jax.tree.map(jnp.asarray, task.batches(key)(0, c.ends[-1]))
  other = draw(jax.random.fold_in(key, 1))
  found = statistics(task, name, task.init(key), draw(key), other, rate)
  for start, end in itertools.pairwise([0, *c.ends]):
    yield {
      'followed': name,
      'step': end,
      'steps': end - start,
      'width': task.sizes.width,
      'parameters': task.parameters,
      'learning_rate': rate,
      'seed': seed,
      **{k: float(np.mean(x[start:end])) for k, x in found.items()},
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def statistics(
  task: ImageTask, name: str, params: Any, batches: Any, other: Any, rate
) -> dict[str, jax.Array]:
  """What a gradient and a step have been, at every step of a run.

  Args:
    task: the model.
    name: of the optimizer.
    params: where it starts.
    batches: [steps, B, ...] that it is trained on.
    other: batches like them, independent.
    rate: the learning rate.

  Returns:
    Arrays [steps]: fields of `ClippingStatistics`, and `won`, <u, g> with the
    gradient of the other batch: what a step wins, to first order and on
    average, per unit of learning rate.
  """
  optimizer = OPTIMIZERS[name](1.0, 0.0)
  gradient = jax.grad(task.mean_loss)

  def step(carry, xs):
    params, state = carry
    g = gradient(params, xs[0])
    update, state = optimizer.update(g, state, params)
    down = optax.tree.scale(-1.0, update)
    found = clipping_statistics(g, down, max_norm=THRESHOLD)._asdict()
    found['won'] = optax.tree.vdot(down, gradient(params, xs[1]))
    return (optax.tree.add_scale(params, rate, update), state), found

  start = params, optimizer.init(params)
  _, found = jax.lax.scan(step, start, (batches, other))
  return found


def _optima(runs: dict, name: str, sizes: dict[int, int]) -> dict:
  """Best learning rates by width, and the power of N they go with."""
  optima, by_seed = {}, []
  for width in sizes:
    rates, losses = grid_losses(runs, optimizer=name, width=width)
    optima[str(width)] = optimum(
      *grid_losses(runs, optimizer=name, width=width)
    )
    alone = [optimal_learning_rate(rates, x[None]) for x in losses]
    by_seed.append([float(x.learning_rate) for x in alone])
  powers = [_power(sizes, rates) for rates in zip(*by_seed, strict=True)]
  return {
    'by_width': optima,
    'power': _power(sizes, [best['rate'] for best in optima.values()]),
    'power_of_seeds': spread(powers),
    'power_of_article': POWERS[name],
  }


def _power(sizes: dict[int, int], values: Iterable[float]) -> float:
  """Of the sizes that the values go with; NaN if one is not positive."""
  values = [*values]
  return (
    -power_law([*sizes.values()], values)['b'] if min(values) > 0 else np.nan
  )


def _numbers(rows: list[Row]) -> dict:
  """Of each optimizer: best learning rates, statistics of their runs, powers.

  Statistics are at the best learning rate of the grid, means over seeds and
  over the steps for which it was tuned; norm and clipping also at the end.
  """
  runs = by_run(rows)
  size = {row['width']: row['parameters'] for row in rows}
  size = dict(sorted(size.items()))
  tuned_for = max(row['step'] for row in rows if 'optimizer' in row)
  numbers = {'parameters': {str(w): n for w, n in size.items()}}
  for name in OPTIMIZERS:
    found = numbers[name] = _optima(runs, name, size)
    of = {
      str(w): sum(select(runs, followed=name, width=w), start=[]) for w in size
    }
    for column in ('norm', 'clipped', 'sign_cosine', 'norm_l1', 'won'):
      found[column] = {
        w: _mean([row for row in every if row['step'] <= tuned_for], column)
        for w, every in of.items()
      }
    for column in ('norm', 'clipped'):
      last = max(row['step'] for row in rows if 'followed' in row)
      found[f'{column}_at_the_end'] = {
        w: _mean([row for row in every if row['step'] == last], column)
        for w, every in of.items()
      }
    best = found['by_width']
    found['won_at_best'] = {
      w: best[w]['rate'] * won for w, won in found['won'].items()
    }
    for column in ('norm', 'won', 'won_at_best'):
      found[f'power_of_{column}'] = _power(size, found[column].values())
  return numbers


def _mean(rows: list[Row], column: str) -> float:
  """Over the steps that the rows stand for."""
  values, steps = zip(*((r[column], r['steps']) for r in rows), strict=True)
  return float(np.average(values, weights=steps))


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the nine panels from the rows and returns the headline numbers."""
  numbers, runs = _numbers(rows), by_run(rows)
  widths = [*map(int, numbers['parameters'])]
  followed = {w: select(runs, followed='adam', width=w) for w in widths}
  plot_curves(axes, followed)
  plot_descent(axes['descent'], numbers)
  plot_won(axes['won'], numbers)
  plot_optima(axes['optima'], numbers)
  for name in OPTIMIZERS:
    grids = {
      width: grid_losses(runs, optimizer=name, width=width) for width in widths
    }
    plot_bowls(axes[name], grids, name)
  said = ', '.join(
    f'{name} {numbers[name]["power"]:.2f} ({POWERS[name]:g})'
    for name in OPTIMIZERS
  )
  cosine = np.mean([*numbers['adam']['sign_cosine'].values()])
  axes['norm'].figure.suptitle(
    f'best learning rate against parameters, power (article): {said}; '
    f'cos(sign g, g) {cosine:.2f} (Gaussian {GAUSSIAN:.2f})'
  )
  return numbers
