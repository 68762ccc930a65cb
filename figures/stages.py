"""Points of a training run at which single steps are looked at."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..training import init_state, make_step, parallelize
from .comparison import Row
from .image_model import ImageTask
from .session import Session


def parameters_at(
  launch: Session,
  task: ImageTask,
  optimizer: optax.GradientTransformation,
  stages: Iterable[int],
  key: jax.Array,
  parallel: str,
) -> Iterator[tuple[int, Any]]:
  """Trains from one stage to the next, which restarts cheaply.

  Args:
    launch: whose progress it is.
    task: the model.
    optimizer: what trains it.
    stages: numbers of steps, ascending.
    key: of the start and of the batches.
    parallel: see `parallelize`.

  Yields:
    Each stage, and the parameters there.
  """
  program = parallelize(make_step(task.loss, optimizer), parallel)
  state = program.place(init_state(task.init(key), optimizer))
  done = 0
  for stage in stages:
    if stage > done:
      batches = task.batches(key)(done, stage - done)
      state, _ = program(state, batches, key)
      launch.progress.advance(stage - done, f'to stage {stage}')
      done = stage
    yield stage, jax.tree.map(jnp.asarray, jax.device_get(state.params))


def by_stage(rows: Iterable[Row]) -> dict[int, list[Row]]:
  """The rows of single steps, stages ascending.

  >>> by_stage([dict(stage=9, probe=1.0), dict(loss=2.0)])
  {9: [{'stage': 9, 'probe': 1.0}]}
  """
  stages: dict[int, list[Row]] = {}
  for row in rows:
    if 'probe' in row:
      stages.setdefault(row['stage'], []).append(row)
  return dict(sorted(stages.items()))
