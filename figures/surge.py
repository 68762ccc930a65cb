"""Surge: whether the best learning rate of the sign falls for large batches.

Papers: Li et al., arXiv 2405.14578; Su, article 10542: with independent noise
the best learning rate of a step of the sign rises like sqrt(B), has a peak and
falls again, if the Hessian adds up to more along the sign of the gradient than
along independent signs: P = s^T H s > 2 T = 2 Tr H.

What should be seen: P / 2 T in the hundreds, so that the article has the peak
far below one example, and a learning rate that only falls. Measured, it rises,
1.2 to 2.3 times from 8 to 2,048 images. What the article leaves out is that
noise is correlated between entries; along its signs the Hessian adds up to as
much as along the gradient's, T0 in place of T. With it theory
(`matrix_free_step`) rises as the line search does, 0.7 to 1.0 of it, because
the best step is too long for a quadratic loss. The probe assumes neither: with
the curvature along its own step it is where the line search is. Training for a
fixed number of steps is another thing: the best learning rate of the sign falls
from 32 images on, by 40 per cent to 1,024, that of Adam grows fourfold.

How: a classifier of 101,770 parameters on a population of images. At stages of
a run of sign descent: for each batch size a line search (the loss of the
population after a step, its mean over draws of batches, at seven learning rates
about the probe's; parabola through the best three, bootstrap over draws), the
probe from independent draws, and the theories from the population's gradient,
noise and Hessian. Then training from the start, a constant learning rate for a
fixed number of steps, every learning rate at every batch size and seed, judged
by the loss of the population.

Expected: probe over search 0.89 to 1.10 for B >= 32, at all stages. Cost on two
CPU cores: quick 1 minute, full 10 minutes.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
from matplotlib.axes import Axes

from ..optimizers import softsign_sgd
from ..training import init_state
from .comparison import Row, by_run, select, spread
from .image_model import ImageTask
from .language_model import Sweep
from .one_step_search import (
  SearchConfig,
  article_law,
  draws,
  exact_moments,
  noise_signs,
  random_signs,
  search,
  sign_descent,
  theory,
)
from .optima import draw_optima, grid_losses, optimum
from .panels import double_logarithmic
from .session import Session, session
from .stages import by_stage, parameters_at

MOSAIC = [
  ['first', 'last', 'ratio'],
  ['sign', 'adam', 'optima'],
]
OPTIMIZERS = {
  'sign': lambda rate, decay: softsign_sgd(rate, eps=0.0),
  'adam': lambda rate, decay: optax.adam(rate, b1=0.9, b2=0.95),
}
# Labels and colors of what is compared with the search.
THEORIES = {
  'article': ('article 10542, mean field', 'tab:red', ':'),
  'independent': ('independent noise, exact', 'tab:orange', '--'),
  'correlated': ('correlated noise', 'tab:green', '-'),
  'quadratic': ('probe, loss as a quadratic', 'tab:blue', '--'),
  'probe': ('probe', 'tab:blue', '-'),
}
EXACT = 32  # Batch size from which the probe is compared with the search.


@dataclasses.dataclass
class Config(SearchConfig):
  """What is measured; see `SearchConfig`.

  Args:
    stages: steps of sign descent after which single steps are looked at,
      ascending.
  """

  stages: tuple[int, ...] = (0, 60)

  @classmethod
  def full(cls) -> 'Config':
    """A larger population, more draws, batches, seeds and stages."""
    return cls(
      population=8192,
      batch_sizes=(16, 32, 64, 128, 256, 512, 1024),
      learning_rates=(
        0.00025,
        0.0005,
        0.001,
        0.002,
        0.004,
        0.008,
        0.016,
      ),
      steps=60,
      seeds=5,
      stages=(0, 60, 300),
      one_step_batches=(8, 16, 32, 64, 128, 256, 512, 1024, 2048),
      searched=32,
      probed=200,
      signs=16,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('stages', lambda x: x >= 0, '0 or more')


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Looks at single steps, trains the map and returns the rows."""
  c = config
  trained = len(OPTIMIZERS) * len(c.learning_rates) * c.seeds * c.steps
  total = trained * len(c.batch_sizes) + max(c.stages)
  with session(workdir, key, total) as launch:
    _single_steps(c, launch, c.task(c.stage_batch, data_dir), parallel)
    for batch_size in c.batch_sizes:
      task = c.task(batch_size, data_dir)
      for name in OPTIMIZERS:
        _train(c, launch, task, name, parallel)
  return launch.records.rows


def _single_steps(c: Config, launch: Session, task: ImageTask, parallel):
  """Looks at single steps from every stage."""
  key = jax.random.fold_in(launch.key, 1)
  optimizer = softsign_sgd(c.stage_rate, eps=0.0)
  for stage, params in parameters_at(
    launch, task, optimizer, c.stages, key, parallel
  ):
    look = functools.partial(
      _look, c, task, params, stage, jax.random.fold_in(key, stage)
    )
    launch.record(f'stage-{stage}', len(c.one_step_batches), look)


def _look(c: Config, task: ImageTask, params, stage: int, key):
  """A row for each batch size: search, probe, theories."""
  moments = exact_moments(task, params)
  independent = random_signs(key, params, c.signs)
  law = article_law(task, params, moments, independent)
  loss = float(
    task.evaluate(init_state(params, sign_descent(0.0)))['train_loss']
  )
  for i, batch_size in enumerate(c.one_step_batches):
    pairs = draws(task, jax.random.fold_in(key, i), c.signs, 2 * batch_size)
    of = lambda signs, b=batch_size: theory(
      task, params, moments, signs, b, 0.0
    )
    found = search(
      task,
      params,
      batch_size,
      jax.random.fold_in(key, i),
      searched=c.searched,
      probed=c.probed,
    )
    yield {
      'stage': stage,
      'batch_size': batch_size,
      'loss_at_stage': loss,
      'surge_index': float(law.surge_index),
      'article': float(law.optimal_lr(batch_size)),
      'independent': of(independent),
      'correlated': of(noise_signs(task, params, pairs)),
      **found,
    }


def _train(c: Config, launch: Session, task: ImageTask, name: str, parallel):
  """Every learning rate and seed of an optimizer at one batch size."""
  sweep = Sweep(
    task,
    OPTIMIZERS[name],
    f'{name}-B{task.batch_size}',
    steps=c.steps,
    log_every=c.steps,
    parallel=parallel,
    kind='constant',
    warmup=0,
    tags={'map': name, 'batch_size': task.batch_size},
  )
  for rate in c.learning_rates:
    for seed in range(c.seeds):
      sweep.train(launch, learning_rate=rate, weight_decay=0.0, seed=seed)


def _optima(runs: dict, name: str) -> dict[int, dict]:
  """Best learning rates by batch size."""
  batches = sorted({r[0]['batch_size'] for r in select(runs, map=name)})
  return {
    b: optimum(*grid_losses(runs, map=name, batch_size=b)) for b in batches
  }


def _numbers(rows: list[Row]) -> dict:
  """What each says over the search, by stage, and the optima of training."""
  runs, stages = by_run(rows), by_stage(rows)
  ratios = lambda rows, name: spread(
    [r[name] / r['measured'] for r in rows if r['batch_size'] >= EXACT]
  )
  return {
    'over_search': {
      name: {str(stage): ratios(rows, name) for stage, rows in stages.items()}
      for name in THEORIES
    },
    'surge_index_of_the_article': {
      str(stage): rows[0]['surge_index'] for stage, rows in stages.items()
    },
    'measured_growth': {
      str(stage): rows[-1]['measured'] / rows[0]['measured']
      for stage, rows in stages.items()
    },
    'searches_at_an_edge': sum(
      bool(r['at_edge']) for r in rows if 'probe' in r
    ),
    'optima': {name: _optima(runs, name) for name in OPTIMIZERS},
  }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  numbers, runs, stages = _numbers(rows), by_run(rows), by_stage(rows)
  first, last = min(stages), max(stages)
  _plot_stage(axes['first'], stages[first])
  _plot_stage(axes['last'], stages[last])
  _plot_ratio(axes['ratio'], stages)
  for name in OPTIMIZERS:
    _plot_map(axes[name], runs, name, numbers['optima'][name])
  _plot_optima(axes['optima'], numbers['optima'])
  over = {n: at[str(last)] for n, at in numbers['over_search'].items()}
  said = '; '.join(
    f'{label} {over[name]["min"]:.2f} to {over[name]["max"]:.2f}'
    for name, (label, *_) in THEORIES.items()
    if name != 'independent'
  )
  axes['first'].figure.suptitle(
    f'best learning rate of a step after {last} steps, over that of a line '
    f'search, for B of {EXACT} or more:\n{said}'
  )
  return numbers


def _plot_stage(ax: Axes, rows: list[Row]) -> None:
  """Search with its interval, probe with its band, theories."""
  batches = [row['batch_size'] for row in rows]
  column = lambda name: np.array([row[name] for row in rows])
  for name, (label, color, style) in THEORIES.items():
    ax.plot(batches, column(name), style, color=color, label=label)
  low, high = column('probe_low'), column('probe_high')
  ax.fill_between(batches, low, high, color='tab:blue', alpha=0.2)
  measured = column('measured')
  bars = [measured - column('measured_low'), column('measured_high') - measured]
  style = dict(fmt='o', color='black', capsize=3, label='line search')
  ax.errorbar(batches, measured, np.maximum(bars, 0), **style)
  row = rows[0]
  double_logarithmic(
    ax,
    xlabel='batch size [images]',
    ylabel='best learning rate of one step of the sign',
    title=f'after {row["stage"]} steps (loss {row["loss_at_stage"]:.2f}); '
    f'P / 2 T = {row["surge_index"]:.0f}',
  )
  ax.legend(fontsize='small')


def _plot_ratio(ax: Axes, stages: dict[int, list[Row]]) -> None:
  """Theories over the search at every stage."""
  for marker, (stage, rows) in zip('os^Dv', stages.items(), strict=False):
    batches = [row['batch_size'] for row in rows]
    for name in ('independent', 'correlated', 'probe'):
      _, color, style = THEORIES[name]
      ratio = [row[name] / row['measured'] for row in rows]
      ax.plot(batches, ratio, style, marker=marker, color=color)
    ax.plot([], [], marker, color='gray', label=f'after {stage} steps')
  ax.axhspan(0.85, 1.15, color='gray', alpha=0.15, label='15 %')
  ax.axhline(1, color='black', linewidth=0.5)
  ax.set_xscale('log', base=2)
  ax.xaxis.set_major_formatter('{x:g}')
  ax.set(
    xlabel='batch size [images]',
    ylabel='best learning rate over that of the search',
    title='what says how much, at every stage (colors as to the left)',
  )
  ax.legend(fontsize='small')


def _plot_map(ax: Axes, runs: dict, name: str, optima: dict) -> None:
  """Loss by learning rate and batch size, the optimum with its interval."""
  batches = sorted(optima)
  grids = [grid_losses(runs, map=name, batch_size=batch) for batch in batches]
  rates = grids[0][0]
  losses = np.array([losses.mean(0) for _, losses in grids]).T
  finite = np.where(np.isfinite(losses), losses, np.nan)
  top = min(np.nanmax(finite), 3.0)
  mesh = ax.pcolormesh(
    range(len(batches)),
    range(len(rates)),
    np.log(np.clip(finite, None, top)),
    cmap='viridis_r',
  )
  ax.figure.colorbar(mesh, ax=ax, label='log of the final loss [nats]')
  place = lambda rate: np.interp(
    np.log(rate), np.log(rates), np.arange(len(rates))
  )
  best = np.array([place(optima[b]['rate']) for b in batches])
  ends = [[place(optima[b][k]) for b in batches] for k in ('low', 'high')]
  bars = np.maximum([best - ends[0], ends[1] - best], 0)
  style = dict(fmt='o', color='tab:red', capsize=3, label='optimum')
  ax.errorbar(range(len(batches)), best, bars, **style)
  ax.set_xticks(range(len(batches)), [str(b) for b in batches])
  ax.set_yticks(range(len(rates)), [f'{rate:g}' for rate in rates])
  ax.set(
    xlabel='batch size [images]',
    ylabel='constant learning rate',
    title=f'{name}: a fixed number of steps',
  )
  ax.legend(fontsize='small')


def _plot_optima(ax: Axes, optima: dict[str, dict]) -> None:
  """Optima of training, with the square root to compare."""
  for name, at in optima.items():
    batches = np.array([*at])
    batches, found = np.array([*at]), [*at.values()]
    draw_optima(ax, batches, found, label=name)
  root = found[0]['rate'] * np.sqrt(batches / batches[0])
  ax.plot(batches, root, ':', color='gray', label='square root')
  double_logarithmic(
    ax,
    xlabel='batch size [images]',
    ylabel='best constant learning rate',
    title='optima of training (hollow: at the edge), bootstrap over seeds',
  )
  ax.legend(fontsize='small')
