r"""Noise scales along a real training run, as the run itself can know them.

Papers: McCandlish et al., arXiv 1812.06162, figures 4 and 13: the noise scale
grows as the loss falls; Su, article 10542: sign descent surges for P > 2 T;
Gray et al., arXiv 2411.00999: the noise scale of the norms follows the total.

What should be seen: B_simple = tr(Sigma) / |g|^2 grows along the run, and
trackers that see batches of 64 and of 16 sequences of the same run agree within
their intervals, which plain averages of |g|^2 do not.

How: a byte transformer, AdamW. The step is data parallel and jitted, its
gradient comes from `accumulate_gradients`, which leaves squared norms of the
microbatches (or devices) behind; two `noise_scale_tracker`s, of the training
batch and of further sequences that do not train, are part of the state. At
looks, from fresh batches and Hessians: B_simple once more, which the trackers
have to meet; B_noise = tr(Sigma H) / g^T H g, which the learning rate of SGD
sees; the noise scale of the sign, between an estimate that is low and one that
is high; and the surge index, P / 2 T_0 with noise as correlated as it is, and
P / 2 T of the article. All with jackknife intervals of 95 per cent.

Expected: the intervals of the two batch sizes overlap at 97 of 100 looks, the
ratio of their estimates is 1.01 on average. B_simple grows sevenfold after step
60, to 100 sequences. A tracker averages over its decay: at the first look, soon
after a start with gradients many times as large, it says 0.4 to 0.7 of what
fresh batches do at that point, later 0.9 on average and 0.5 to 1.4, because the
gradient comes and goes from one step to the next. B_noise is 0.2 to 0.8 of
B_simple. The surge index of the article is 300 to 18, with correlated noise 1.3
at the first look and 0.6 to 0.9 from then on, so that no surge is due. Norms
have 0.8 of the noise scale of the total, MLPs 1.6.

Not reproduced: a noise scale of the sign of one number; batches of 64 sequences
leave a factor of ten between its bounds.

Cost on two CPU cores: quick 1 minute, full 7 minutes.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..models.transformer import TransformerConfig
from ..scaling import noise_scale_tracker
from ..training import init_state, parallelize
from ..training.batches import token_batches
from ..training.checkpoint import Checkpoints
from ..training.data import load
from ..training.loop import fit
from ..training.schedules import schedule
from . import noise_panels as panels
from .checked import CheckedConfig
from .comparison import Row, by_run, spread
from .language_model import Task
from .noise_panels import column, differences, overlapping, parts_of
from .noise_tracking import (
  PARTS,
  TRACKED,
  moments_of,
  ratios,
  tracked,
  tracked_step,
)
from .session import Session, session

MOSAIC = [['simple', 'agreement', 'scales'], ['parts', 'loss', 'surge']]


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is trained and measured.

  Args:
    dataset: a text of `training.data`.
    width: of the model, a multiple of 32; the head width is 32.
    layers: of the model.
    length: bytes in a sequence.
    batch_size: sequences in a step.
    other_batch: further sequences of a step that are measured only.
    microbatches: of either, on all devices together.
    steps: of a run.
    learning_rate: of AdamW, after a warmup of a twentieth of the steps.
    decay: of the trackers.
    seeds: runs.
    log_points: looks in a run.
    draws: of gradients and Hessians at each look.
    rows: sequences of each, and as many for the Hessian.
  """

  dataset: str = 'kjv'
  width: int = 32
  layers: int = 2
  length: int = 64
  batch_size: int = 64
  other_batch: int = 16
  microbatches: int = 8
  steps: int = 400
  learning_rate: float = 0.01
  decay: float = 0.95
  seeds: int = 1
  log_points: int = 8
  draws: int = 6
  rows: int = 64

  @classmethod
  def full(cls) -> 'Config':
    """A wider model, a longer run, seeds, more looks and draws."""
    return cls(width=64, steps=960, seeds=2, log_points=16, draws=10)

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('steps', 'seeds', 'length', 'log_points'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('learning_rate', lambda x: x > 0, 'a positive number')
    self.require_every('decay', lambda x: 0 <= x < 1, 'a number in [0, 1)')
    self.require_every('draws', lambda x: x >= 3, '3 or more, for an interval')
    whole = f'a multiple of the {self.log_points} log points'
    self.require_every('steps', lambda x: x % self.log_points == 0, whole)
    devices = jax.device_count()
    both = max(devices, self.microbatches)
    self.require_every(
      'microbatches',
      lambda x: x >= 2 and x % 2 == 0 and both % min(devices, x) == 0,
      f'an even number that the {devices} devices divide, or that divides them',
    )
    parts = f'a multiple of the {both} microbatches'
    for name in ('batch_size', 'other_batch'):
      self.require_every(name, lambda x: x >= 1 and x % both == 0, parts)
    good = lambda x: x >= 1 and x % PARTS == 0
    self.require_every('rows', good, f'a multiple of {PARTS}')
    _ = self.sizes
    load(self.dataset, data_dir=data_dir)

  @property
  def sizes(self) -> TransformerConfig:
    """The model: heads of 32."""
    return TransformerConfig(
      layers=self.layers, width=self.width, heads=max(1, self.width // 32)
    )

  def task(self, data_dir: str | None = None) -> Task:
    """The model on its text, with the sequences of both batches in a step."""
    return Task(
      self.sizes,
      load(self.dataset, data_dir=data_dir),
      length=self.length,
      batch_size=self.batch_size + self.other_batch,
      validation_windows=256,
    )

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """AdamW at a constant learning rate after the warmup."""
    warmup = max(1, self.steps // 20)
    shape = schedule('constant', steps=self.steps, warmup=warmup)
    rate = lambda count: self.learning_rate * shape(count)
    return optax.adamw(rate, b2=0.95, weight_decay=0.1)


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Trains every seed and returns the rows."""
  c = config
  task, tracker = c.task(data_dir), noise_scale_tracker(decay=c.decay)
  program = parallelize(
    tracked_step(
      task, c.optimizer, tracker, (c.batch_size, c.other_batch), c.microbatches
    ),
    parallel,
  )
  with session(workdir, key, c.seeds * c.steps) as launch:
    for seed in range(c.seeds):
      _train(c, launch, task, tracker, program, seed, data_dir)
  return launch.records.rows


def _train(c, launch: Session, task, tracker, program, seed, data_dir):
  """One run, unless an earlier launch recorded it."""
  label = f'seed-{seed}'
  rows = launch.records.of(label)
  if rows and rows[-1]['step'] == c.steps:
    return launch.progress.skip(c.steps)
  key = jax.random.fold_in(launch.key, seed)
  params = task.init(key)
  trackers = {name: tracker.init(params) for name in TRACKED}
  text = load(c.dataset, data_dir=data_dir).train
  draw = functools.partial(
    token_batches,
    text,
    key=jax.random.fold_in(key, 1),
    steps=c.draws,
    batch_size=2 * c.rows,
    length=c.length,
  )

  def evaluate(state):
    step = int(state.step)
    params = jax.tree.map(jnp.asarray, jax.device_get(state.params))
    key = jax.random.fold_in(launch.key, step)
    found = moments_of(task, params, jnp.asarray(draw(step=step)), key)
    return task.evaluate(state) | tracked(state.variables) | ratios(found)

  path = pathlib.Path(launch.workdir) / 'checkpoints' / label
  checkpoints = Checkpoints(path)
  fit(
    program,
    init_state(params, c.optimizer, trackers),
    task.batches(key),
    key,
    steps=c.steps,
    log_every=c.steps // c.log_points,
    label=label,
    tags={
      'seed': seed,
      'batch_size': c.batch_size,
      'other_batch': c.other_batch,
      'rows': c.rows,
    },
    evaluate=evaluate,
    records=launch.records,
    checkpoints=checkpoints,
    checkpoint_last=False,
    progress=launch.progress,
    stop=launch.stop,
  )
  checkpoints.delete()


def _runs(rows: list[Row]) -> list[list[Row]]:
  """Rows by seed, ascending."""
  found = [r for r in by_run(rows).values() if 'one_step' in r[-1]]
  require(bool(found), 'records', 'none', 'a run')
  return sorted(found, key=lambda run: run[0]['seed'])


def _numbers(rows: list[Row]) -> dict:
  """Growth, agreement of batch sizes, what other scales are of the simple."""
  runs = _runs(rows)
  ends = [row for run in runs for row in run]
  last = [run[-1] for run in runs]
  ratio = lambda a, b: spread(column(ends, a) / column(ends, b))
  return {
    'growth': spread([r[-1]['simple'] / r[0]['simple'] for r in runs]),
    'tracked_over_fresh': {
      'first': spread([r[0]['training'] / r[0]['simple'] for r in runs]),
      'later': spread(
        [row['training'] / row['simple'] for r in runs for row in r[1:]]
      ),
    },
    'noise_scale_at_the_end': spread(column(last, 'training')),
    'train_loss_at_the_end': spread(column(last, 'loss')),
    'steps_with_overlapping_intervals': float(
      np.mean([overlapping(run).mean() for run in runs])
    ),
    'largest_difference_in_standard_errors': float(
      max(np.abs(differences(run)).max() for run in runs)
    ),
    'other_over_training': ratio('other', 'training'),
    'curvature_scale_over_simple': ratio('curvature_scale', 'simple'),
    'surge_index': spread(column(ends, 'surge')),
    'surge_index_of_the_article': spread(column(ends, 'article_surge')),
    'part_over_total_at_the_end': {
      part: spread(column(last, f'part {part}') / column(last, 'training'))
      for part in parts_of(last[0])
    },
  }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  numbers, runs = _numbers(rows), _runs(rows)
  panels.simple(axes['simple'], runs[0])
  panels.agreement(axes['agreement'], runs, numbers)
  panels.scales(axes['scales'], runs[0])
  panels.parts(axes['parts'], runs[0])
  panels.loss(axes['loss'], runs)
  panels.surge(axes['surge'], runs[0])
  growth, share = numbers['growth'], 'steps_with_overlapping_intervals'
  axes['simple'].figure.suptitle(
    f'the noise scale grows {growth["mean"]:.1f} times after the first look; '
    'two batch sizes agree within their intervals at '
    f'{100 * numbers[share]:.0f} % of the looks'
  )
  return numbers
