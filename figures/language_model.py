"""Sweeps of optimizers over a byte-level language model, for several figures.

A `Task` is a model, its loss and its text; a `Sweep` is one optimizer on it,
compiled once: learning rate, weight decay, length of the schedule and key are
inputs of the program, so that a grid costs no compilation.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..models.transformer import (
  Transformer,
  TransformerConfig,
  next_token_loss,
)
from ..optimizers.matrices import numbers_by_path, to_matrices
from ..training import init_state, make_step, parallelize
from ..training.batches import token_batches, token_windows
from ..training.checkpoint import Checkpoints
from ..training.data import Dataset
from ..training.loop import NonFiniteLoss, StopSignal, fit
from ..training.progress import Progress
from ..training.records import Records, Row
from ..training.schedules import schedule


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

  @property
  def step_flops(self) -> int:
    """Forward and backward of a step: six per weight and token, attention."""
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    weights = count(self.shapes) - count(self.shapes['embedding'])
    attention = 12 * self.sizes.layers * self.sizes.width * self.length
    return (6 * weights + attention) * self.batch_size * self.length

  def newton_schulz_flops(self, iterations: int = 5) -> int:
    """Products of one Muon step: 4 m^2 n + 2 m^3 a matrix and iteration."""
    numbers = numbers_by_path(self.shapes, self.model.dimension_numbers)
    total = 0
    for path, x in jax.tree_util.tree_leaves_with_path(self.shapes):
      if numbers[path] is not None:
        shape = jax.eval_shape(lambda x, n=numbers[path]: to_matrices(x, n), x)
        count, *sides = shape.shape
        m, n = sorted(sides)
        total += count * iterations * (4 * m * m * n + 2 * m**3)
    return total


class Sweep:
  """One optimizer on a task, over learning rates, decays, seeds and lengths.

  The schedule is a cosine to zero after a tenth of warmup.

  Args:
    task: what is trained.
    make: `make(schedule, weight_decay)` -> an optax transformation.
    name: of the optimizer, in the records.
    steps: steps of a run with the whole budget.
    log_every: steps between two records.
    parallel: see `parallelize`.
    tags: further columns of every row.
  """

  def __init__(
    self,
    task: Task,
    make: Callable[[optax.Schedule, Any], optax.GradientTransformation],
    name: str,
    *,
    steps: int,
    log_every: int,
    parallel: str,
    tags: dict[str, Any] | None = None,
  ):
    self._task, self._name, self._tags = task, name, tags or {}
    self._steps, self._log_every = steps, log_every
    shape = schedule('cosine', steps=steps, warmup=steps // 10)

    @optax.inject_hyperparams
    def optimizer(learning_rate, weight_decay, budget):
      inner = make(lambda count: shape(count / budget), weight_decay)
      return optax.chain(inner, optax.scale(learning_rate))

    self._optimizer = optimizer
    step = make_step(task.loss, optimizer(1.0, 0.0, 1.0))
    self._program = parallelize(step, parallel)

  def train(
    self,
    records: Records,
    progress: Progress,
    stop: StopSignal,
    workdir: str,
    key: jax.Array,
    *,
    learning_rate: float,
    weight_decay: float,
    seed: int = 0,
    budget: float = 1.0,
  ) -> Row:
    """One run, or what an earlier launch recorded of it.

    Args:
      records: where its rows go; a run that is complete there is not repeated.
      progress: counts its steps.
      stop: whether a signal asked the figure to stop.
      workdir: where it is checkpointed when a signal stops it.
      key: key of the figure. Runs with the same seed share their start and
        batches, whatever the optimizer.
      learning_rate: peak of the schedule.
      weight_decay: decoupled weight decay.
      seed: number of the repetition.
      budget: fraction of the steps, with the schedule shrunk to it.

    Returns:
      Its last row; `val_loss` is infinite if it diverged.
    """
    task, steps = self._task, round(self._steps * budget)
    width = task.sizes.width
    label = (
      f'{self._name}-d{width}-lr{learning_rate:g}-wd{weight_decay:g}'
      f'-b{budget:g}-s{seed}'
    )
    rows = records.of(label)
    if rows and rows[-1]['step'] == steps:
      progress.skip(steps)
      return rows[-1]
    key = jax.random.fold_in(jax.random.fold_in(key, width), seed)
    tags = {
      'optimizer': self._name,
      'width': width,
      'learning_rate': learning_rate,
      'weight_decay': weight_decay,
      'seed': seed,
      'budget': budget,
      'step_flops': task.step_flops,
      **self._tags,
    }
    checkpoints = Checkpoints(pathlib.Path(workdir) / 'checkpoints' / label)
    optimizer = self._optimizer(learning_rate, weight_decay, budget)
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
        evaluate=task.evaluate,
        records=records,
        checkpoints=checkpoints,
        checkpoint_last=False,
        progress=progress,
        stop=stop,
      )
    except NonFiniteLoss as error:  # A result, at large learning rates.
      progress.note(f'{label}: {error}')
      done = records.of(label)[-1] if records.of(label) else {'step': 0}
      progress.skip(steps - done['step'])
      lost = {'val_loss': float('inf'), 'seconds': done.get('seconds', 0.0)}
      records.add({'run': label, 'step': steps, **tags, **lost})
    checkpoints.delete()
    return records.of(label)[-1]
