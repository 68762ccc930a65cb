"""Sweeps of optimizers over a byte-level language model, for several figures.

A `Task` is a model, its loss and its text; a `Sweep` is one optimizer on it,
compiled once: learning rate, weight decay, one more number, length of the
schedule and key are inputs of the program, so that a grid costs no compilation.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..checks import require
from ..models.transformer import (
  Transformer,
  TransformerConfig,
  next_token_loss,
)
from ..optimizers.matrices import numbers_by_path, to_matrices
from ..training import init_state, make_step, parallelize
from ..training.batches import token_batches, token_windows
from ..training.checkpoint import Checkpoints
from ..training.data import Dataset, load
from ..training.loop import NonFiniteLoss, fit
from ..training.records import Row
from ..training.schedules import schedule
from .checked import CheckedConfig
from .session import Session


@dataclasses.dataclass
class TaskConfig(CheckedConfig):
  """What figures of one model have in common; they inherit and add to it.

  Args:
    dataset: a text of `training.data`.
    width: of the model, a multiple of 32; the head width is 32.
    layers: of the model.
    length: tokens in a sequence.
    batch_size: sequences in a step.
    steps: training steps of a run.
    learning_rates: the grid over which every contestant is tuned.
    weight_decay: decoupled, where the figure does not vary it.
    seeds: runs at each optimum.
    log_points: evaluations in a run.
    validation_windows: sequences of the validation loss.
  """

  dataset: str = 'kjv'
  width: int = 32
  layers: int = 2
  length: int = 64
  batch_size: int = 32
  steps: int = 200
  learning_rates: tuple[float, ...] = (0.016, 0.032, 0.064, 0.128)
  weight_decay: float = 0.1
  seeds: int = 1
  log_points: int = 20
  validation_windows: int = 256

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    self.require_every('learning_rates', lambda x: x > 0, 'positive numbers')
    self.require_every('weight_decay', lambda x: x >= 0, '0 or more')
    self.require_every('log_points', lambda x: x >= 2, '2 or more')
    enough = f'at least the {self.log_points} log points'
    self.require_every('steps', lambda x: x >= self.log_points, enough)
    for name in ('seeds', 'length', 'validation_windows', 'batch_size'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    devices = jax.device_count()
    split = f'a multiple of the {devices} devices'
    self.require_every('batch_size', lambda x: x % devices == 0, split)
    _ = self.sizes
    load(self.dataset, data_dir=data_dir)

  @property
  def sizes(self) -> TransformerConfig:
    """The model: heads of 32."""
    return TransformerConfig(
      layers=self.layers,
      width=self.width,
      heads=max(1, self.width // 32),
      scan_layers=False,
    )

  def task(self, data_dir: str | None = None) -> 'Task':
    """The model on its text."""
    return Task(
      self.sizes,
      load(self.dataset, data_dir=data_dir),
      length=self.length,
      batch_size=self.batch_size,
      validation_windows=self.validation_windows,
    )

  def sweep(
    self, task: 'Task', make: Callable, name: str, **options: Any
  ) -> 'Sweep':
    """One optimizer on the task, over as many steps and log points."""
    log_every = max(1, self.steps // self.log_points)
    return Sweep(
      task, make, name, steps=self.steps, log_every=log_every, **options
    )


class Task:
  """A transformer of one size on one text.

  Args:
    sizes: the model.
    text: bytes, split in train and validation.
    length: tokens in a sequence.
    batch_size: sequences in a step.
    validation_windows: sequences of the validation loss.
  """

  def __init__(
    self,
    sizes: TransformerConfig,
    text: Dataset,
    *,
    length: int,
    batch_size: int,
    validation_windows: int,
  ):
    self.sizes, self.model = sizes, Transformer(sizes)
    self.length, self.batch_size = length, batch_size
    self._train = text.train
    held_out = jnp.asarray(
      token_windows(text.validation, count=validation_windows, length=length)
    )
    score = jax.jit(lambda params: self.loss(params, (), held_out, None)[0])
    self.evaluate = lambda state: {'val_loss': score(state.params)}
    some = jnp.zeros((1, length), jnp.int32)
    self.init = jax.jit(lambda key: self.model.init(key, some)['params'])
    self.shapes = jax.eval_shape(self.init, jax.random.key(0))

  def loss(self, params, variables, batch, key):
    """Cross entropy of the next byte in nats, for windows [B, T + 1]."""
    del key
    batch = batch.astype(jnp.int32)
    logits = self.model.apply({'params': params}, batch[:, :-1])
    return next_token_loss(logits, batch[:, 1:]), (variables, {})

  def batches(self, key: jax.Array) -> Callable[[int, int], jax.Array]:
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: token_batches(
      self._train,
      key=key,
      step=step,
      steps=count,
      batch_size=self.batch_size,
      length=self.length,
    )

  def matrices(self, tree: Any) -> dict[str, jax.Array]:
    """What Muon trains, as [batch, in, out] by path, of any tree of leaves."""
    numbers = numbers_by_path(self.shapes, self.model.dimension_numbers)
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): to_matrices(
        x, numbers[path]
      )
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
      if numbers[path] is not None
    }

  @property
  def step_flops(self) -> int:
    """Forward and backward of a step: six per weight and token, attention."""
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    weights = count(self.shapes) - count(self.shapes['embedding'])
    attention = 12 * self.sizes.layers * self.sizes.width * self.length
    return (6 * weights + attention) * self.batch_size * self.length

  def newton_schulz_flops(self, iterations: int = 5) -> int:
    """Products of one Muon step: 4 m^2 n + 2 m^3 a matrix and iteration."""
    total = 0
    for shape in jax.eval_shape(self.matrices, self.shapes).values():
      count, *sides = shape.shape
      m, n = sorted(sides)
      total += count * iterations * (4 * m * m * n + 2 * m**3)
    return total


class Sweep:
  """One optimizer on a task, over learning rates, decays, seeds and lengths.

  The schedule is a cosine to zero after the warmup.

  Args:
    task: what is trained.
    make: `make(schedule, weight_decay)` -> an optax transformation, or
      `make(schedule, weight_decay, setting)` if something varies.
    name: of the optimizer, in the records.
    steps: steps of a run with the whole budget.
    log_every: steps between two records.
    parallel: see `parallelize`.
    varies: name of a further number of the optimizer that runs may set, such as
      its momentum; a column of the rows.
    kind: of the schedule, see `training.schedules`.
    warmup: fraction of the steps.
    measure: `measure(state)` -> scalars, further columns of every row.
    tags: further columns of every row.
  """

  def __init__(
    self,
    task: Task,
    make: Callable[..., optax.GradientTransformation],
    name: str,
    *,
    steps: int,
    log_every: int,
    parallel: str,
    varies: str | None = None,
    kind: str = 'cosine',
    warmup: float = 0.1,
    measure: Callable[[Any], dict[str, jax.Array]] | None = None,
    tags: dict[str, Any] | None = None,
  ):
    self._task, self._name, self._tags = task, name, tags or {}
    self._steps, self._log_every = steps, log_every
    self._varies = varies
    self._measure = jax.jit(measure or (lambda state: {}))
    shape = schedule(kind, steps=steps, warmup=round(steps * warmup))

    @optax.inject_hyperparams
    def optimizer(learning_rate, weight_decay, budget, setting):
      rate = lambda count: shape(count / budget)
      inner = make(rate, weight_decay, *([setting] if varies else []))
      return optax.chain(inner, optax.scale(learning_rate))

    self._optimizer = optimizer
    step = make_step(task.loss, optimizer(1.0, 0.0, 1.0, 0.0))
    self._program = parallelize(step, parallel)

  def train(
    self,
    session: Session,
    *,
    learning_rate: float,
    weight_decay: float,
    seed: int = 0,
    budget: float = 1.0,
    setting: float | None = None,
  ) -> Row:
    """One run, or what an earlier launch recorded of it.

    Args:
      session: the launch. Runs with the same seed share their start and
        batches, whatever the optimizer.
      learning_rate: peak of the schedule.
      weight_decay: decoupled weight decay.
      seed: number of the repetition.
      budget: fraction of the steps, with the schedule shrunk to it.
      setting: of what the sweep `varies`.

    Returns:
      Its last row; `val_loss` is infinite if it diverged.
    """
    require(
      (setting is None) == (self._varies is None),
      'setting',
      setting,
      f'a number if and only if something varies, here {self._varies}',
    )
    task, steps = self._task, round(self._steps * budget)
    label, tags = self._name_run(
      learning_rate, weight_decay, seed, budget, setting
    )
    records, progress = session.records, session.progress
    rows = records.of(label)
    if rows and rows[-1]['step'] == steps:
      progress.skip(steps)
      return rows[-1]
    key = jax.random.fold_in(
      jax.random.fold_in(session.key, task.sizes.width), seed
    )
    checkpoints = Checkpoints(
      pathlib.Path(session.workdir) / 'checkpoints' / label
    )
    optimizer = self._optimizer(
      learning_rate, weight_decay, budget, setting or 0.0
    )
    try:
      fit(
        self._program,
        init_state(task.init(key), optimizer),
        task.batches(key),
        key,
        steps=steps,
        log_every=self._log_every,
        label=label,
        tags=tags,
        evaluate=lambda state: task.evaluate(state) | self._measure(state),
        records=records,
        checkpoints=checkpoints,
        checkpoint_last=False,
        progress=progress,
        stop=session.stop,
      )
    except NonFiniteLoss as error:  # A result, at large learning rates.
      progress.note(f'{label}: {error}')
      done = records.of(label)[-1] if records.of(label) else {'step': 0}
      progress.skip(steps - done['step'])
      lost = {'val_loss': float('inf'), 'seconds': done.get('seconds', 0.0)}
      records.add({'run': label, 'step': steps, **tags, **lost})
    checkpoints.delete()
    return records.of(label)[-1]

  def _name_run(
    self, learning_rate, weight_decay, seed, budget, setting
  ) -> tuple[str, Row]:
    """The label of a run, and the columns that say what it is."""
    task = self._task
    label = (
      f'{self._name}-d{task.sizes.width}-lr{learning_rate:g}'
      f'-wd{weight_decay:g}-b{budget:g}-s{seed}'
    )
    tags = {
      'optimizer': self._name,
      'width': task.sizes.width,
      'learning_rate': learning_rate,
      'weight_decay': weight_decay,
      'seed': seed,
      'budget': budget,
      'step_flops': task.step_flops,
      **self._tags,
    }
    if self._varies:
      label += f'-{self._varies}{setting:g}'
      tags[self._varies] = setting
    return label, tags

  def tune(
    self,
    session: Session,
    learning_rates: Sequence[float],
    *,
    seeds: int = 1,
    **settings: Any,
  ) -> Row:
    """Every learning rate with the first seed, the others at the best.

    Args:
      session: the launch.
      learning_rates: the grid.
      seeds: runs at the optimum.
      **settings: of `train`.

    Returns:
      The last row of the best run of the first seed.
    """
    runs = [
      self.train(session, learning_rate=rate, **settings)
      for rate in learning_rates
    ]
    best = min(runs, key=lambda row: row['val_loss'])
    for seed in range(1, seeds):
      rate = best['learning_rate']
      self.train(session, learning_rate=rate, seed=seed, **settings)
    return best
