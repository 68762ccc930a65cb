r"""Epsilon: whether the surge of the learning rate disappears when it grows.

Paper: Su, article 10563: of SoftSign, g / sqrt(g^2 + eps^2), the best learning
rate of a step has a surge, a peak in the batch size past which it falls, if the
Hessian adds up to more along softsign(g) than along independent entries,
P > 2 T. A large epsilon makes P small and the surge disappear; SoftSign is then
gradient descent, whose best learning rate only grows.

What should be seen: what the article computes, with its independent noise, has
the surge at epsilon 0, P / 2 T above a thousand, and has it gone at the size of
the noise. Measured, a single step has none at any epsilon: with noise as
correlated as it is the learning rate grows with the batch, from 8 to 2,048
images by 1.4 at epsilon 0 and by 2.3 at ten times the noise. A run of a fixed
number of steps does have a surge at epsilon 0: at 1,024 images it wants two
thirds of what it wants at 16. At a tenth of the noise that is gone, and from a
third on it wants two to three times as much instead. So epsilon does remove a
surge, but not that of the article, which is one of single steps.

How: `surge` at one stage, for every epsilon, given in units of the root mean
square of the noise of the gradient of one image there. The learning rates of
training are a grid times sqrt(1 + (eps / g)^2) with g the root mean square of
the gradient of a batch, so that they follow the expected optimum; the article's
mean field is that of the surge figure with softsign(g, eps) for the sign and
Tr Sigma / (|g|^2 + N eps^2) for its noise.

Expected: over the line search, B >= 32: probe 1.01 to 1.08, theory with
correlated noise 0.87 to 0.98, with independent noise up to 1.4. The theory of
correlated noise takes the noise of SoftSign to go together as its signs do,
which is exact at epsilon 0. Cost on two CPU cores: quick 1 minute, full 11
minutes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..optimizers import softsign, softsign_sgd
from ..scaling import SignLaw, SoftsignLaw
from . import epsilon_panels
from .comparison import Row, by_run, spread
from .epsilon_panels import THEORIES
from .image_model import ImageTask
from .language_model import Sweep
from .one_step_search import (
  Moments,
  SearchConfig,
  article_law,
  curvatures,
  draws,
  exact_moments,
  noise_signs,
  random_signs,
  search,
  theory,
)
from .optima import grid_losses, optimum
from .session import Session, session
from .stages import parameters_at

MOSAIC = [
  ['article', 'measured', 'trained'],
  ['growth', 'bowls', 'optima'],
]
EXACT = 32  # Batch size from which theories are compared with the search.


@dataclasses.dataclass
class Config(SearchConfig):
  """What is measured; see `SearchConfig`.

  Args:
    eps: of SoftSign, in units of the root mean square of the noise of one
      image's gradient; ascending, 0 (the sign) first.
    stage: steps of sign descent after which single steps are looked at, and
      where the unit of epsilon is measured.
  """

  eps: tuple[float, ...] = (0.0, 1.0, 10.0)
  stage: int = 60

  @classmethod
  def full(cls) -> 'Config':
    """A larger population, more draws, batches, seeds and epsilons."""
    return cls(
      population=8192,
      batch_sizes=(16, 64, 256, 1024),
      learning_rates=tuple(0.00025 * 2**i for i in range(7)),
      seeds=4,
      eps=(0.0, 0.1, 0.3, 1.0, 3.0, 10.0),
      one_step_batches=(8, 32, 128, 512, 2048),
      searched=32,
      probed=200,
      signs=16,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    rising = self.eps[:1] == (0.0,) and list(self.eps) == sorted({*self.eps})
    require(rising, 'config.eps', self.eps, '0 and ascending numbers')
    self.require_every('stage', lambda x: x >= 0, '0 or more')


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Looks at single steps, trains the grids and returns the rows."""
  c = config
  trained = len(c.eps) * len(c.learning_rates) * c.seeds * c.steps
  with session(workdir, key, trained * len(c.batch_sizes) + c.stage) as launch:
    _single_steps(c, launch, c.task(c.stage_batch, data_dir), parallel)
    for batch_size in c.batch_sizes:
      _train(c, launch, c.task(batch_size, data_dir), parallel)
  return launch.records.rows


def _single_steps(c: Config, launch: Session, task: ImageTask, parallel):
  """Trains up to the stage, which restarts cheaply, and looks there."""
  key = jax.random.fold_in(launch.key, 1)
  optimizer = softsign_sgd(c.stage_rate, eps=0.0)
  ((_, params),) = parameters_at(
    launch, task, optimizer, (c.stage,), key, parallel
  )
  moments = exact_moments(task, params)
  independent = random_signs(key, params, c.signs)
  law = article_law(task, params, moments, independent)
  launch.record('unit', 1, lambda: [root_mean_squares(moments)])
  for batch_size in c.one_step_batches:
    look = lambda b=batch_size: _look(
      c, task, params, moments, law, independent, b, jax.random.fold_in(key, b)
    )
    launch.record(f'one-step-B{batch_size}', len(c.eps), look)


def root_mean_squares(moments: Moments) -> dict[str, float]:
  """Of the entries of the gradient, and of the noise of one image's."""
  size = sum(x.size for x in jax.tree.leaves(moments.gradient))
  rms = lambda tree: float(optax.tree.norm(tree)) / size**0.5
  return {
    'gradient_rms': rms(moments.gradient),
    'noise_rms': rms(moments.noise_std),
  }


def growth(eps: float, batch_size: int, unit: dict[str, float]) -> float:
  """By how much epsilon should raise the learning rate.

  That is sqrt(1 + (eps / g)^2), g the root mean square of what the entries of
  the gradient of a batch are.

  >>> unit = {'gradient_rms': 0.0, 'noise_rms': 2.0}
  >>> round(growth(1.0, 4, unit) ** 2, 6)  # Noise 1 in a batch of 4, eps 2.
  5.0
  """
  noise, gradient = unit['noise_rms'], unit['gradient_rms']
  of_batch = np.hypot(gradient, noise / batch_size**0.5)
  return float(np.hypot(1, eps * noise / of_batch))


def softened(
  law: SignLaw, task: ImageTask, params, moments: Moments, eps: float
) -> SoftsignLaw:
  """The mean field of article 10563, from that of the sign."""
  nu = jax.tree.map(lambda g: softsign(g, eps), moments.gradient)
  descent = float(optax.tree.vdot(nu, moments.gradient))
  along = jax.tree.map(lambda x: x[None], nu)
  trace = law.gradient_l1 / law.rate
  square = float(optax.tree.norm(moments.gradient)) ** 2
  size = sum(x.size for x in jax.tree.leaves(nu))
  return SoftsignLaw(
    rate=descent / trace,
    curvature_ratio=float(curvatures(task, params, along)[0]) / trace,
    noise_scale=law.noise_scale * square / (square + size * eps**2),
    gradient_l1=descent,
    eps=eps,
  )


def _look(c, task, params, moments, law, independent, batch_size, key):
  """A row for each epsilon: search, probe, theories."""
  unit = root_mean_squares(moments)['noise_rms']
  together = noise_signs(
    task, params, draws(task, key, c.signs, 2 * batch_size)
  )
  for i, eps in enumerate(c.eps):
    size = jnp.float32(batch_size), jnp.float32(eps * unit)
    of = lambda signs, size=size: float(
      theory(task, params, moments, signs, *size)
    )
    soft = softened(law, task, params, moments, eps * unit)
    found = search(
      task,
      params,
      batch_size,
      jax.random.fold_in(key, i),
      searched=c.searched,
      probed=c.probed,
      eps=eps * unit,
    )
    yield {
      'batch_size': batch_size,
      'eps': eps,
      'surge_index': float(soft.surge_index),
      'article': float(soft.optimal_lr(batch_size)),
      'independent': of(independent),
      'correlated': of(together),
      **found,
    }


def _train(c: Config, launch: Session, task: ImageTask, parallel):
  """Every epsilon, learning rate and seed at one batch size."""
  unit = launch.records.of('unit')[0]
  sweep = Sweep(
    task,
    lambda rate, decay, eps: softsign_sgd(rate, eps=eps * unit['noise_rms']),
    f'softsign-B{task.batch_size}',
    steps=c.steps,
    log_every=c.steps,
    parallel=parallel,
    varies='eps',
    kind='constant',
    warmup=0,
    tags={'batch_size': task.batch_size},
  )
  for eps in c.eps:
    for rate in c.learning_rates:
      for seed in range(c.seeds):
        sweep.train(
          launch,
          learning_rate=rate * growth(eps, task.batch_size, unit),
          weight_decay=0.0,
          seed=seed,
          setting=eps,
        )


def _numbers(rows: list[Row]) -> dict:
  """By epsilon: how rates grow with the batch, errors of theories, optima."""
  runs = by_run(rows)
  unit = runs['unit'][0]
  single = _by_eps(rows)
  batches = sorted({r['batch_size'] for r in rows if 'seed' in r})
  optima = {
    eps: {
      b: optimum(*grid_losses(runs, eps=eps, batch_size=b)) for b in batches
    }
    for eps in single
  }
  rates = {
    name: {eps: [r[name] for r in of] for eps, of in single.items()}
    for name in ('measured', *THEORIES)
  }
  rates['trained'] = {
    eps: [best['rate'] for best in at.values()] for eps, at in optima.items()
  }
  return {
    'by_batch': {
      name: {eps: _shape(x) for eps, x in of.items()}
      for name, of in rates.items()
    },
    'over_search': {
      name: {
        eps: spread(
          [r[name] / r['measured'] for r in of if r['batch_size'] >= EXACT]
        )
        for eps, of in single.items()
      }
      for name in THEORIES
    },
    'surge_index_of_the_article': {
      eps: of[0]['surge_index'] for eps, of in single.items()
    },
    'searches_at_an_edge': sum(
      bool(r['at_edge']) for of in single.values() for r in of
    ),
    'noise_rms': unit['noise_rms'],
    'gradient_rms': unit['gradient_rms'],
    'growth': {
      eps: {batch: growth(eps, batch, unit) for batch in batches}
      for eps in single
    },
    'optima': optima,
  }


def _by_eps(rows: list[Row]) -> dict[float, list[Row]]:
  """The rows of single steps."""
  single: dict[float, list[Row]] = {}
  for row in rows:
    if 'probe' in row:
      single.setdefault(row['eps'], []).append(row)
  return single


def _shape(rates: list[float]) -> dict[str, float]:
  """What a larger batch allows, and by how much less than the peak."""
  return {
    'largest_over_smallest': rates[-1] / rates[0],
    'overshoot': max(rates) / rates[-1] - 1,
  }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  numbers, runs, single = _numbers(rows), by_run(rows), _by_eps(rows)
  epsilon_panels.plot_article(axes['article'], single)
  epsilon_panels.plot_measured(axes['measured'], single)
  epsilon_panels.plot_trained(axes['trained'], numbers['optima'])
  epsilon_panels.plot_growth(axes['growth'], numbers['by_batch'])
  epsilon_panels.plot_bowls(axes['bowls'], runs, numbers)
  epsilon_panels.plot_optima(axes['optima'], runs, numbers)
  grew = [
    f'{of["largest_over_smallest"]:.2f} times at epsilon {eps:g}'
    for eps, of in numbers['by_batch']['measured'].items()
  ]
  said = [
    f'{THEORIES[name][0]} {min(x["min"] for x in of.values()):.2f} to '
    f'{max(x["max"] for x in of.values()):.2f}'
    for name, of in numbers['over_search'].items()
  ]
  axes['article'].figure.suptitle(
    'the best learning rate of a step, at the largest batch over the smallest: '
    f'{grew[0]}, {grew[-1]}\nover that of a line search, B of {EXACT} or more '
    f'and every epsilon: {"; ".join(said)}'
  )
  return numbers
