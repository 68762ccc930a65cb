r"""Learning rate and batch size of SGD: of one step, and to a target loss.

Papers: McCandlish et al., arXiv 1812.06162, equations 2.6 to 2.12; Su, article
10542. The best step, and what it lowers the loss by, with B images are

    eta*(B) = eta_max / (1 + B_noise / B),  dL*(B) = dL_max / (1 + B_noise / B),

and S steps and E images to a target loss lie on a hyperbola,
(S / S_min - 1) (E / E_min - 1) = 1, of a critical batch size E_min / S_min that
should be of the order of B_noise along the run.

What should be seen: both laws, estimated from gradients and Hessian-vector
products, run through what a line search finds; steps to the target fall like
1 / B below the critical batch size and hardly above it; the critical batch size
lies between the noise scales of the start and of the target.

How: a classifier of 101,770 parameters on a population of images, batches drawn
with replacement. At stages of a run of SGD: the law from independent batches of
1,024 images, with a jackknife over them; the probe; and the line search, the
mean over draws of the loss of fresh images after a step, at seven learning
rates about the probe's (parabola through the best three, bootstrap over draws).
Then training at a constant learning rate, every learning rate of the grid at
every batch size and seed, from one start for each seed. One set of runs says
three things: steps to the target at the best learning rate, the best learning
rate after a fixed number of steps, and after a fixed number of images.

Expected: law over search 0.97 to 1.24 once training is under way (loss 1.1 to
0.5), the probe along its own step 0.88 to 1.13. At the start, where for large
batches the best step is so long that the loss is no quadratic, 0.6 to 1.2 and
0.8 to 1.05. B_noise grows from 56 to 240 meanwhile, the critical batch size of
training is 65, and the hyperbola is off by 5 per cent.

Not reproduced: an exact quadratic has the best constant learning rate grow like
B at fixed images up to the critical batch size, and at most like its root at
fixed steps. Here both grow alike, with powers of 0.6 to 0.8 below 32 images and
hardly from 128 on: these runs end before noise is all that is left, and large
batches are held by the edge of stability, not by noise.

Cost on two CPU cores: quick 1 minute, full 8 minutes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import sgd_panels as panels
from .comparison import Row, spread
from .image_model import ImageConfig, ImageTask
from .one_step_search import FRESH, draws
from .session import Session, session
from .sgd_curves import budgets, curves_of, tradeoff
from .sgd_step import law_moments, law_of, search
from .stages import by_stage, parameters_at

MOSAIC = [
  ['first', 'last', 'decrease', 'scales'],
  ['grid', 'tradeoff', 'optima', 'exponents'],
]
# What is compared with what the line search measured.
OVER = {'law': 'measured', 'probe': 'measured', 'law_decrease': 'decrease'}


@dataclasses.dataclass
class Config(ImageConfig):
  """What is measured.

  Args:
    learning_rates: constant ones, tried at every batch size, ascending.
    steps: the fixed number of them; no run is shorter.
    examples: the fixed number of images; no run sees fewer.
    points: looks at the loss of a run, evenly spaced.
    target: training loss in nats, to which steps are counted.
    stages: steps of SGD after which single steps are looked at, ascending.
    stage_rate: its learning rate.
    stage_batch: its batch size.
    one_step_batches: batch sizes of single steps, ascending.
    searched: images of all steps of a line search.
    probed: images of all steps of a probe.
    draws: batches of 1,024 images that the law is estimated from.
  """

  batch_sizes: tuple[int, ...] = (8, 32, 128, 512)
  learning_rates: tuple[float, ...] = tuple(2.0**i for i in range(-7, 0))
  steps: int = 64
  seeds: int = 2
  examples: int = 8192
  points: int = 16
  target: float = 0.65
  stages: tuple[int, ...] = (0, 60)
  stage_rate: float = 0.03125
  stage_batch: int = 64
  one_step_batches: tuple[int, ...] = (8, 32, 128, 512)
  searched: int = 4096
  probed: int = 4096
  draws: int = 64

  @classmethod
  def full(cls) -> 'Config':
    """More batch sizes, learning rates, seeds, stages and draws."""
    return cls(
      batch_sizes=(8, 16, 32, 64, 128, 256, 512, 1024),
      learning_rates=tuple(2 ** (i / 2) for i in range(-14, -2)),
      seeds=5,
      stages=(0, 20, 60, 300),
      one_step_batches=(8, 16, 32, 64, 128, 256, 512, 1024, 2048),
      searched=8192,
      probed=8192,
      draws=200,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('stages', lambda x: x >= 0, '0 or more')
    for name in ('stage_rate', 'target'):
      self.require_every(name, lambda x: x > 0, 'a positive number')
    for name in ('stage_batch', 'one_step_batches', 'searched', 'probed'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('draws', lambda x: x >= 4, '4 or more')
    self.require_every('points', lambda x: x >= 2, '2 or more')
    several = 'three or more, ascending'
    for name in ('learning_rates', 'batch_sizes'):
      values = getattr(self, name)
      rising = len(values) >= 3 and list(values) == sorted({*values})
      self.require_every(name, lambda _, ok=rising: ok, several)
    whole = f'a multiple of the {self.points} points'
    self.require_every('steps', lambda x: x % self.points == 0, whole)
    whole = f'{self.points} points times each of the batch sizes below'
    spread = lambda x: all(
      x % (b * self.points) == 0 for b in self.batch_sizes if b * self.steps < x
    )
    self.require_every('examples', spread, whole)

  def steps_of(self, batch_size: int) -> int:
    """Of a run: the fixed number, or those that the fixed examples last."""
    return max(self.steps, self.examples // batch_size)


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Looks at single steps, trains the grid and returns the rows."""
  c = config
  task = c.task(c.stage_batch, data_dir)
  total = c.seeds * sum(map(c.steps_of, c.batch_sizes)) + max(c.stages)
  with session(workdir, key, total) as launch:
    _single_steps(c, launch, task, parallel)
    for batch_size in c.batch_sizes:
      for seed in range(c.seeds):
        launch.record(
          f'B{batch_size}-s{seed}',
          c.points * len(c.learning_rates),
          functools.partial(_train, c, launch, task, batch_size, seed),
        )
        launch.progress.advance(c.steps_of(batch_size), f'B = {batch_size}')
  return launch.records.rows


@functools.partial(jax.jit, static_argnums=0)
def descend(
  task: ImageTask, population: Any, params: Any, rates: jax.Array, batches: Any
) -> jax.Array:
  """Losses [points, rates] of the population along runs of SGD.

  Args:
    task: the model.
    population: whose loss it is.
    params: where all runs start.
    rates: constant learning rates [rates].
    batches: leaves [points, steps, B, ...], the same for all rates.
  """

  def of(rate):
    def step(params, batch):
      gradient = jax.grad(task.mean_loss)(params, batch)
      return jax.tree.map(lambda x, g: x - rate * g, params, gradient), None

    def look(params, batches):
      params, _ = jax.lax.scan(step, params, batches)
      return params, task.mean_loss(params, population)

    return jax.lax.scan(look, params, batches)[1]

  return jax.vmap(of, out_axes=1)(rates)


def _train(c: Config, launch: Session, task: ImageTask, batch_size, seed):
  """A row for every learning rate and look of one batch size and seed."""
  key = jax.random.fold_in(launch.key, seed)
  steps = c.steps_of(batch_size)
  batches = jax.tree.map(
    lambda x: x.reshape(c.points, -1, *x.shape[1:]),
    draws(task, jax.random.fold_in(key, batch_size), steps, batch_size),
  )
  rates = jnp.array(c.learning_rates)
  losses = descend(task, task.population, task.init(key), rates, batches)
  for i, at in enumerate(np.asarray(losses, np.float64), start=1):
    for rate, loss in zip(c.learning_rates, at, strict=True):
      yield {
        'batch_size': batch_size,
        'seed': seed,
        'learning_rate': rate,
        'steps': i * steps // c.points,
        'train_loss': loss if np.isfinite(loss) else float('inf'),
        'fixed_steps': c.steps,
        'fixed_examples': c.examples,
        'target': c.target,
      }


def _single_steps(c: Config, launch: Session, task: ImageTask, parallel):
  """Looks at single steps from every stage."""
  key = jax.random.fold_in(launch.key, len(c.stages))
  for stage, params in parameters_at(
    launch, task, optax.sgd(c.stage_rate), c.stages, key, parallel
  ):
    look = functools.partial(
      _look, c, task, params, stage, jax.random.fold_in(key, stage)
    )
    launch.record(f'stage-{stage}', len(c.one_step_batches), look)


def _look(c: Config, task: ImageTask, params, stage: int, key):
  """A row for each batch size: law, probe, search."""
  of_law, key = jax.random.split(key)
  moments = law_moments(
    task, params, draws(task, of_law, c.draws, 2 * FRESH), of_law
  )
  loss = float(jax.jit(task.mean_loss)(params, task.population))
  for i, batch_size in enumerate(c.one_step_batches):
    yield {
      'stage': stage,
      'batch_size': batch_size,
      'loss_at_stage': loss,
      **law_of(moments, batch_size),
      **search(
        task,
        params,
        batch_size,
        jax.random.fold_in(key, i),
        loss=loss,
        searched=c.searched,
        probed=c.probed,
      ),
    }


def _numbers(rows: list[Row]) -> dict:
  """Ratios to the search, both noise scales, the hyperbola, the optima."""
  stages, curves = by_stage(rows), curves_of(rows)
  trained = next(row for row in rows if 'train_loss' in row)
  over = lambda rows, name, of: spread([r[name] / r[of] for r in rows])
  scale = lambda row, name: {
    end: row[f'{name}{end}'] for end in ('', '_low', '_high')
  }
  return {
    'over_search': {
      name: {str(at): over(rows, name, of) for at, rows in stages.items()}
      for name, of in OVER.items()
    },
    'searches_at_an_edge': sum(
      row['at_edge'] for rows in stages.values() for row in rows
    ),
    'noise_scales': {
      str(at): {
        name: scale(rows[0], name) for name in ('noise_scale', 'simple')
      }
      for at, rows in stages.items()
    },
    'target': trained['target'],
    'tradeoff': tradeoff(curves, trained['target']),
    'fixed': budgets(curves, trained['fixed_steps'], trained['fixed_examples']),
  }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the eight panels from the rows and returns the headline numbers."""
  numbers, stages = _numbers(rows), by_stage(rows)
  first, *_, last = [*stages]
  panels.one_step(axes['first'], stages[first])
  panels.one_step(axes['last'], stages[last])
  panels.decrease(axes['decrease'], stages[last])
  panels.noise_scales(axes['scales'], stages, numbers['tradeoff'])
  panels.grid(axes['grid'], curves_of(rows), numbers)
  panels.hyperbola(axes['tradeoff'], numbers)
  panels.optima(axes['optima'], numbers['fixed'])
  panels.exponents(axes['exponents'], numbers['fixed'])
  over = numbers['over_search']['law'][str(last)]
  fit, scales = numbers['tradeoff'], numbers['noise_scales']
  path = spread([at['noise_scale'][''] for at in scales.values()])
  axes['first'].figure.suptitle(
    f'law over line search after {last} steps: {over["min"]:.2f} to '
    f'{over["max"]:.2f}; critical batch size of training '
    f'{fit["critical_batch_size"]:.0f}, noise scale of the learning rate '
    f'{path["min"]:.0f} to {path["max"]:.0f} along a run'
  )
  return numbers
