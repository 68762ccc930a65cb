"""Transformers with mixtures of experts on a text: task, training, loads.

A `MixtureTask` is a model, dense or with experts, on the bytes of a text; a
`Mixture` trains it over learning rates, weights of the auxiliary loss, rates of
the bias and seeds with one program: all of these are numbers in its state. Its
experts may be split over devices.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType

from ..checks import require
from ..models import (
  BalanceState,
  MoEConfig,
  Transformer,
  TransformerConfig,
  expert_specs,
  max_violation,
  next_token_loss,
  update_balance,
)
from ..training import TrainState, init_state, make_step, parallelize
from ..training.batches import token_batches, token_windows
from ..training.checkpoint import Checkpoints
from ..training.data import Dataset, load
from ..training.loop import NonFiniteLoss, fit
from ..training.records import Row
from ..training.schedules import schedule
from .checked import CheckedConfig
from .expert_loads import loads_by_batch, of_layers, score_windows
from .session import Session

# For what runs once: random numbers take seconds to compile otherwise.
_QUICKLY = {'xla_backend_optimization_level': 0}


@dataclasses.dataclass
class MixtureConfig(CheckedConfig):
  """What figures of such models have in common; they inherit and add to it.

  Args:
    dataset: a text of `training.data`.
    width: of the model, a multiple of 32; the head width is 32.
    layers: of the model, all with experts.
    experts: of a layer.
    chosen: experts of a token, fewer.
    length: tokens in a sequence.
    batch_size: sequences in a step.
    steps: of a run.
    learning_rate: peak of the cosine.
    weight_decay: decoupled.
    seeds: runs of each setting.
    log_points: records in a run.
    validation_windows: sequences of held-out text, evenly spaced; 0: all of it.
    expert_devices: over how many devices the experts of a layer are split; the
      others have copies of them, and the batch is split over all.
  """

  dataset: str = 'kjv'
  width: int = 64
  layers: int = 2
  experts: int = 8
  chosen: int = 2
  length: int = 64
  batch_size: int = 32
  steps: int = 200
  learning_rate: float = 0.016
  weight_decay: float = 0.1
  seeds: int = 1
  log_points: int = 20
  validation_windows: int = 1024
  expert_devices: int = 1

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('length', 'seeds', 'log_points', 'expert_devices'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    for name in ('weight_decay', 'validation_windows'):
      self.require_every(name, lambda x: x >= 0, '0 or more')
    self.require_every('learning_rate', lambda x: x > 0, 'a positive number')
    parts = f'a multiple of the {self.log_points} log points'
    good = lambda x: x >= 1 and x % self.log_points == 0
    self.require_every('steps', good, parts)
    fewer = f'1 or more, fewer than the {self.experts} experts'
    self.require_every('chosen', lambda x: 1 <= x < self.experts, fewer)
    self._check_devices()
    _ = self.sizes()
    load(self.dataset, data_dir=data_dir)

  def check_parallel(self, how: str) -> None:
    """Refuses pmap for experts over several devices: it splits data alone."""
    good = self.expert_devices == 1 or how == 'shard_map'
    expected = f'shard_map for experts over {self.expert_devices} devices'
    require(good, 'parallel', how, expected)

  def _check_devices(self) -> None:
    devices = jax.device_count()
    split = f'a multiple of the {devices} devices'
    good = lambda x: x >= 1 and x % devices == 0
    self.require_every('batch_size', good, split)
    both = f'a divisor of the {devices} devices and {self.experts} experts'
    good = lambda x: devices % x == 0 and self.experts % x == 0
    self.require_every('expert_devices', good, both)

  def sizes(self, **options: Any) -> TransformerConfig:
    """The model; options are those of `MoEConfig`, over the sizes here."""
    sizes = dict(experts=self.experts, chosen=self.chosen)
    return TransformerConfig(
      layers=self.layers,
      width=self.width,
      heads=max(1, self.width // 32),
      moe=MoEConfig(**sizes | options),
    )

  def mixture(
    self, text: Dataset, sizes: TransformerConfig, parallel: str
  ) -> 'Mixture':
    """A model on the text, and what trains it."""
    self.check_parallel(parallel)
    task = MixtureTask(
      sizes,
      text,
      length=self.length,
      batch_size=self.batch_size,
      validation_windows=self.validation_windows,
    )
    return Mixture(
      task,
      steps=self.steps,
      log_every=self.steps // self.log_points,
      weight_decay=self.weight_decay,
      parallel=parallel,
      expert_devices=self.expert_devices,
    )


class MixtureTask:
  """A transformer on a text.

  Args:
    sizes: the model; without `moe` it is dense.
    text: bytes, split in train and validation.
    length: tokens in a sequence.
    batch_size: sequences in a step.
    validation_windows: sequences of held-out text; 0: all of it.
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
    count = validation_windows or len(text.validation) // length
    self.held_out = token_windows(text.validation, count=count, length=length)
    some = jnp.zeros((1, length), jnp.int32)
    self._start = jax.jit(
      lambda key: self.model.init(key, some), compiler_options=_QUICKLY
    )
    self._score = lambda state: score_windows(self.model, state, self.held_out)

  def init(
    self, key: jax.Array, *, balance_weight: float = 0.0, bias_rate: float = 0.0
  ) -> tuple[Any, Any]:
    """Parameters and variables.

    Args:
      key: of the start, the same for all rules of balance.
      balance_weight: factor of the auxiliary loss of the model.
      bias_rate: of its rule.

    Returns:
      Parameters, and the balance of layers beside `settings`.
    """
    variables = dict(self._start(key))
    params = variables.pop('params')
    settings = {'balance_weight': balance_weight, 'bias_rate': bias_rate}
    variables['settings'] = jax.tree.map(jnp.float32, settings)
    return params, variables

  def loss(self, model, params, variables, batch, key):
    """As `make_step` takes losses with a model.

    The value is the cross entropy of the next byte in nats. Auxiliary losses
    add their gradient alone: no other part of them says anything.
    """
    del key
    batch = batch.astype(jnp.int32)
    logits, changed = model.apply(
      {'params': params, **variables},
      batch[:, :-1],
      train=True,
      mutable=['balance', 'losses'],
    )
    sown = sum(jax.tree.leaves(changed.pop('losses', {})), start=0.0)
    weighted = variables['settings']['balance_weight'] * sown
    loss = next_token_loss(logits, batch[:, 1:])
    loss += weighted - lax.stop_gradient(weighted)
    states = of_layers(changed, BalanceState)
    found = [max_violation(state.load) for state in states]
    metrics = {'violation': sum(found) / len(found)} if found else {}
    return loss, (variables | changed, metrics)

  def after(self, variables: Any) -> Any:
    """Moves the biases, once a step."""
    if self.sizes.moe is None:
      return variables
    balance = update_balance(
      variables['balance'],
      rule=self.sizes.moe.rule,
      rate=variables['settings']['bias_rate'],
    )
    return variables | {'balance': balance}

  def batches(self, key: jax.Array):
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: token_batches(
      self._train,
      key=key,
      step=step,
      steps=count,
      batch_size=self.batch_size,
      length=self.length,
    )

  def read_held_out(
    self, state: TrainState, sizes: Sequence[int] = ()
  ) -> list[Row]:
    """What the model does with held-out text; biases do not move.

    Args:
      state: of training.
      sizes: windows of batches, besides all of them.

    Returns:
      Rows of `loads_by_batch`, if there are experts, the last one with the
      `val_loss` in nats a byte.
    """
    losses, loads = self._score(state)
    size = {'windows': len(losses), 'tokens': len(losses) * self.length}
    rows = loads_by_batch(loads, sizes, self.length) if loads.size else [size]
    return [*rows[:-1], rows[-1] | {'val_loss': float(np.mean(losses))}]


class Mixture:
  """Training runs of one task; rates, weights and starts may differ.

  AdamW on a cosine to zero after a warmup of a twentieth.

  Args:
    task: what is trained.
    steps: of a run.
    log_every: steps between two records.
    weight_decay: decoupled.
    parallel: see `parallelize`; for experts over several devices not looked at.
    expert_devices: over how many devices experts are split.

  """

  def __init__(
    self,
    task: MixtureTask,
    *,
    steps: int,
    log_every: int,
    weight_decay: float,
    parallel: str,
    expert_devices: int = 1,
  ):
    self.task, self.steps, self.log_every = task, steps, log_every
    shape = schedule('cosine', steps=steps, warmup=steps // 20)

    @optax.inject_hyperparams
    def optimizer(learning_rate):
      adam = optax.scale_by_adam(b2=0.99)
      decay = optax.add_decayed_weights(weight_decay)
      rate = optax.scale_by_schedule(shape)
      return optax.chain(adam, decay, rate, optax.scale(-learning_rate))

    self._optimizer = optimizer
    self.step = self._step(task.model)
    whole = expert_devices == 1 or task.sizes.moe is None
    self.program = (
      parallelize(self.step, parallel) if whole else self._split(expert_devices)
    )

  def _step(self, model: Transformer):
    task = self.task
    optimizer = self._optimizer(1.0)
    return make_step(task.loss, optimizer, model=model, after=task.after)

  def _split(self, devices: int):
    """The program for experts over so many devices, copied over the others."""
    sizes = self.task.sizes
    moe = dataclasses.replace(sizes.moe, expert_axis='expert')
    model = Transformer(dataclasses.replace(sizes, moe=moe))
    mesh = jax.make_mesh(
      (jax.device_count() // devices, devices),
      ('data', 'expert'),
      axis_types=(AxisType.Auto,) * 2,
    )
    specs = expert_specs(self.start(jax.random.key(0)), 'expert')
    step = self._step(model)
    return parallelize(step, 'shard_map', mesh, state_spec=specs)

  def start(
    self, key: jax.Array, *, learning_rate: float = 1.0, **settings: float
  ) -> TrainState:
    """The state before the first step; `settings` are of the task's `init`."""
    params, variables = self.task.init(key, **settings)
    return init_state(params, self._optimizer(learning_rate), variables)

  def train(
    self,
    launch: Session,
    label: str,
    tags: Row,
    *,
    seed: int,
    sizes: Sequence[int] = (),
    **settings: float,
  ) -> Row:
    """One run and its held-out text, or what an earlier launch recorded.

    Rows of the run go to `label`, those of held-out text to `label` and
    "-held-out", see `MixtureTask.read_held_out`; a run that diverges has one of
    them, with an infinite `val_loss`.

    Args:
      launch: the launch; runs with the same seed share their start and batches.
      label: of the run.
      tags: columns of its rows.
      seed: number of the repetition, a column as well.
      sizes: windows of batches of held-out text, besides all of them.
      **settings: of `start`, columns as well.

    Returns:
      The last row of the held-out text.
    """
    records, held_out = launch.records, f'{label}-held-out'
    done = records.of(held_out)
    if done and 'val_loss' in done[-1]:
      launch.progress.skip(self.steps)
      return done[-1]
    tags = {**tags, **settings, 'seed': seed}
    key = jax.random.fold_in(launch.key, seed)
    folder = pathlib.Path(launch.workdir) / 'checkpoints' / label
    checkpoints = Checkpoints(folder)
    try:
      state = fit(
        self.program,
        self.start(key, **settings),
        self.task.batches(key),
        key,
        steps=self.steps,
        log_every=self.log_every,
        label=label,
        tags=tags,
        records=records,
        checkpoints=checkpoints,
        checkpoint_last=False,
        progress=launch.progress,
        stop=launch.stop,
      )
      rows = self.task.read_held_out(state, sizes)
    except NonFiniteLoss as error:  # A result, at large rates.
      launch.progress.note(f'{label}: {error}')
      done = records.of(label)
      launch.progress.skip(self.steps - (done[-1]['step'] if done else 0))
      rows = [{'val_loss': np.inf}]
    launch.record(held_out, len(rows), lambda: [{**tags, **r} for r in rows])
    checkpoints.delete()
    return records.of(held_out)[-1]
