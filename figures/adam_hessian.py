r"""Is Adam a Newton method? Its sqrt(v) against diagonal and rows of Hessians.

Paper: Su, article 10588: around a minimum g = H (theta - theta*), and if theta
scatters alike in all directions, E[g g^T]^(1/2) is proportional to |H|: Adam
divides by the diagonal of the Hessian, sqrt(v) goes with |H_ii| to the power 1.

What should be seen: the power is 1/2. Two steps of the argument do not hold.
The root of the matrix is |H|, but the root of its diagonal is not the diagonal
of its root: sqrt(E g_i^2) is the norm of *row* i, with the power 1 for row
norms (1.00 in the regression, 1.01 in the network) and 0.8 for |H_ii|, which is
the same only in the eigenbasis (1.00). And what Adam averages are gradients of
minibatches, mostly noise; over labels that the model draws, their mean square
is the Fisher information, which is the diagonal of the Hessian: the power 1/2
(0.49 in the eigenbasis of the regression, 0.51 for its pixels; in the network,
whose labels are not drawn by it, 0.5 to 0.9). Adam's own v begins lower, 0.25
after 16 steps: it remembers units that are all but dead by then. At the end it
is 0.56 for batches of 16 and 0.44 for 256, with wide ranges over seeds. Who
estimates |H_ii| from 16 products finds less, 0.48 and 0.18: row norms are 100
times the diagonal and drown it.

How: least squares of log y against log x over all entries. Linear regression of
the first class of images on 196 averages of pixels, where Hessian, noise and
the covariance of descent are exact. Then a classifier of 101,770 parameters
that Adam trains, at 1, 1/4, 1/16 ... of its steps: gradients of the population
at weights with Gaussian noise, less the gradient without it ("centred") or not;
the exact second moment of a minibatch, with and without its mean; and Adam's v
itself. Rectifiers are linear in any one weight, so that the diagonal of the
Hessian is exact, see `hessian_network`; row norms are estimated from products.
Rectifiers have no Hessian where they bend: noise on the weights has to be so
small that hardly any unit bends for any image, 3e-7. At 1e-3 the power for row
norms is 0.92; a few entries off the line are of units that did bend.

Expected: theories over measurements 0.98 to 1.18 for every pixel; the power
1.00 to 1.04 for row norms in the network. Cost on two CPU cores: quick 1
minute, full 4 minutes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from ..training import init_state, make_step, parallelize
from ..training.loop import fit
from . import hessian_network, hessian_panels, hessian_regression
from .checked import CheckedConfig
from .comparison import Row, by_run, spread
from .hessian_network import CHUNK
from .hessian_panels import AGAINST, CONTROLS, MEASURES
from .image_model import ImageConfig
from .session import Session, session

MOSAIC = [
  ['full', 'minibatch', 'slopes'],
  ['network_full', 'network_minibatch', 'stages'],
]
B2 = 0.95


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is measured.

  Args:
    dataset: labelled images of `training.data`; "auto": the best that is there.
    width: of the layer of rectifiers.
    population: training images, the first ones; of the regression too.
    batch_sizes: of Adam's runs, ascending; the first is the regression's.
    learning_rate: of Adam.
    steps: of its runs, a multiple of 4^(looks - 1).
    looks: at 1, 1/4, 1/16 ... of the steps.
    seeds: runs of each batch size.
    probes: Hessian-vector products.
    perturbations: draws of noise on the weights.
    size: deviation of that noise.
    entries: of the network that are drawn.
    control_steps: of descent and Adam on the regression.
    control_draws: of isotropic weights there.
  """

  dataset: str = 'auto'
  width: int = 128
  population: int = 2048
  batch_sizes: tuple[int, ...] = (64,)
  learning_rate: float = 0.001
  steps: int = 512
  looks: int = 3
  seeds: int = 2
  probes: int = 16
  perturbations: int = 32
  size: float = 3e-7
  entries: int = 300
  control_steps: int = 20_000
  control_draws: int = 1000

  @classmethod
  def full(cls) -> 'Config':
    """A larger population, longer runs, two batch sizes, more of all."""
    return cls(
      population=4096,
      batch_sizes=(16, 256),
      steps=4096,
      looks=5,
      seeds=3,
      probes=32,
      perturbations=64,
      entries=500,
      control_steps=100_000,
      control_draws=10_000,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('learning_rate', 'size'):
      self.require_every(name, lambda x: x > 0, 'a positive number')
    for name in ('looks', 'probes', 'perturbations', 'entries'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    for name in ('control_steps', 'control_draws'):
      self.require_every(name, lambda x: x >= 2, '2 or more')
    part = 4 ** (self.looks - 1)
    good = lambda x: x >= part and x % part == 0
    self.require_every('steps', good, f'a multiple of {part}')
    good = lambda x: x >= CHUNK and x % CHUNK == 0
    self.require_every('population', good, f'a multiple of {CHUNK}')
    self.images.check(data_dir)

  @property
  def images(self) -> ImageConfig:
    """The part of it that says what is trained."""
    return ImageConfig(
      dataset=self.dataset,
      width=self.width,
      batch_sizes=self.batch_sizes,
      seeds=self.seeds,
      population=self.population,
    )


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Looks at the regression and along runs of Adam, and returns the rows."""
  c = config
  stages = [c.steps // 4**i for i in reversed(range(c.looks))]
  total = len(c.batch_sizes) * c.seeds * sum(stages)
  with session(workdir, key, total) as launch:
    task = c.images.task(c.batch_sizes[0], data_dir)
    x, y = hessian_regression.regression(task.images)
    control = functools.partial(
      hessian_regression.look,
      x,
      y,
      key,
      batch_size=task.batch_size,
      steps=c.control_steps,
      draws=c.control_draws,
      learning_rate=c.learning_rate,
    )
    launch.record('regression', x.shape[1], control)
    for batch_size in c.batch_sizes:
      task = c.images.task(batch_size, data_dir)
      _look_along(c, launch, task, stages, parallel)
  return launch.records.rows


def _look_along(c: Config, launch: Session, task, stages, parallel) -> None:
  """Looks at every seed of a batch size, trained anew up to each stage."""
  optimizer = optax.adam(c.learning_rate, b2=B2)
  program = parallelize(make_step(task.loss, optimizer), parallel)

  def rows(key, stage, entries):
    state = fit(
      program,
      init_state(task.init(key), optimizer),
      task.batches(key),
      key,
      steps=stage,
      log_every=stages[0],
      label=f'Adam, batch size {task.batch_size}',
      progress=launch.progress,
      stop=launch.stop,
    )
    nu = optax.tree.get(state.opt_state, 'nu')
    params, nu = jax.tree.map(jnp.asarray, jax.device_get((state.params, nu)))
    return hessian_network.look(
      task,
      params,
      optax.tree.scale(1 / (1 - B2**stage), nu),
      key,
      probes=c.probes,
      perturbations=c.perturbations,
      size=c.size,
      entries=entries,
    )

  for seed in range(c.seeds):
    key = jax.random.fold_in(launch.key, seed)
    for stage in stages:
      tags = {'batch_size': task.batch_size, 'seed': seed, 'trained': stage}
      # Entries of one run are enough for a scatter.
      entries = c.entries if seed == 0 and stage == c.steps else 0
      label = f'B{task.batch_size}-s{seed}-step{stage}'
      if len(launch.records.of(label)) == 1 + entries:
        launch.progress.skip(stage)
      launch.record(
        label,
        1 + entries,
        lambda tags=tags, a=(key, stage, entries): (
          tags | row for row in rows(*a)
        ),
      )


def _last_looks(looks: list[Row]) -> dict[int, list[Row]]:
  """Those after all steps, by batch size."""
  last = max(row['trained'] for row in looks)
  batches = sorted({row['batch_size'] for row in looks})
  return {
    b: [r for r in looks if (r['batch_size'], r['trained']) == (b, last)]
    for b in batches
  }


def _numbers(control: list[Row], looks: list[Row]) -> dict:
  """Slopes, and how far theories are from what was measured."""
  ratio = lambda x, y: spread([row[x] / row[y] for row in control])
  return {
    'regression': {
      name: {x: hessian_panels.fit(control, x, name).slope for x in AGAINST}
      for name in CONTROLS
    },
    'regression_in_eigenbasis': {
      name: hessian_panels.fit(control, 'eigenvalue', f'{name}_eigen').slope
      for name in ('isotropic', 'noise')
    },
    'regression_over_theory': {
      'isotropic weights over row norm': ratio('isotropic', 'row'),
      'descent over its covariance': ratio('descent', 'descent_theory'),
      "Adam's v over noise": ratio('adam', 'noise'),
    },
    'network': {
      str(batch): _of_network(rows)
      for batch, rows in _last_looks(looks).items()
    },
  }


def _of_network(looks: list[Row]) -> dict:
  """Means and ranges over seeds."""
  of = lambda column: spread([row[column] for row in looks])
  every = lambda kind: {
    name: {x: of(f'{name}_{x}_{kind}') for x in AGAINST} for name in MEASURES
  }
  columns = 'loss', 'noise_share', 'centred_over_row', 'adam_estimated_slope'
  return {
    **{name: of(name) for name in columns},
    'slopes': every('slope'),
    'correlations': every('correlation'),
  }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  control = by_run(rows)['regression']
  looks = [row for row in rows if 'loss' in row]
  batch = min(row['batch_size'] for row in looks)
  entries = [
    row for row in rows if row.get('batch_size') == batch and 'diagonal' in row
  ]
  numbers = _numbers(control, looks)
  hessian_panels.plot_full(axes['full'], control)
  hessian_panels.plot_minibatch(axes['minibatch'], control)
  hessian_panels.plot_slopes(axes['slopes'], numbers)
  hessian_panels.plot_entries(axes['network_full'], entries, 'centred', 1.0)
  hessian_panels.plot_entries(axes['network_minibatch'], entries, 'adam', 0.5)
  hessian_panels.plot_stages(axes['stages'], looks)
  found = numbers['network'][str(batch)]['slopes']
  mean = lambda name, x: found[name][x]['mean']
  axes['full'].figure.suptitle(
    'slopes in the network (batches of '
    f'{batch}): full-batch gradients {mean("centred", "row"):.2f} against row '
    f'norms (theory 1), {mean("centred", "diagonal"):.2f} against |H_ii| '
    f"(article 1); Adam's sqrt(v) {mean('adam', 'diagonal'):.2f} against "
    '|H_ii| (article 1, noise of labels 1/2)'
  )
  return numbers
