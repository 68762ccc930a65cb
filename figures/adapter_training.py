"""Training of low-rank adapters on any model that is a function of matrices.

The model does not change: its matrices are put together from frozen part and
adapter before each evaluation, so that one backward pass gives the gradient of
the matrices, that of the adapters, and how a step of the one lies to the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..lowrank import LoRA, lora_init, lora_merge
from ..training import TrainState, init_state, parallelize
from ..training.loop import NonFiniteLoss, fit
from ..training.parallel import AxisName, value_and_grad
from ..training.records import Row
from .adaptation import Adaptation, Matrices
from .session import Session

Pairs = dict[str, dict[str, jax.Array]]
Adapters = dict[str, LoRA]


def make_adapters(
  task: Adaptation, gradient: Matrices | None, rank: int, key, **options: Any
) -> Adapters:
  """An adapter for each matrix; `gradient` where the method needs it."""
  return {
    name: lora_init(
      jax.random.fold_in(key, i),
      w,
      rank,
      gradient=gradient and gradient[name],
      **options,
    )
    for i, (name, w) in enumerate(sorted(task.start.items()))
  }


def pairs_of(adapters: Adapters) -> Pairs:
  """What of adapters is trained."""
  return {name: {'a': x.a, 'b': x.b} for name, x in adapters.items()}


def weights_of(params: Pairs | Matrices, adapters: Adapters) -> Matrices:
  """The matrices that pairs stand for, or are, if there are no adapters."""
  if not adapters:
    return params
  return {n: lora_merge(x._replace(**params[n])) for n, x in adapters.items()}


def pulled_back(params, gradient: Matrices, adapters: Adapters):
  """The gradient of the pairs, from that of the matrices."""
  weights = functools.partial(weights_of, adapters=adapters)
  return jax.vjp(weights, params)[1](gradient)[0]


def pushed_forward(params, step, adapters: Adapters) -> Matrices:
  """What a step of the pairs does to the matrices, to first order.

  `lora_equivalent_gradient` of every pair.
  """
  weights = functools.partial(weights_of, adapters=adapters)
  return jax.jvp(weights, (params,), (step,))[1]


def cosine(x: Matrices, y: Matrices) -> jax.Array:
  """Of the angle between two trees of matrices; 0 if one is zero."""
  product = optax.tree.norm(x) * optax.tree.norm(y)
  return optax.tree.vdot(x, y) / jnp.where(product > 0, product, 1)


def mean_gradient(task: Adaptation, key: jax.Array, batches: int) -> Matrices:
  """Of the matrices at the start, over some batches."""
  some = task.batches(key)(0, batches)
  return task.gradient(
    task.start, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), some)
  )


class AdapterTraining:
  """One optimizer on a task, for any adapters, learning rates and seeds.

  Compiled once for adapters and once for the matrices themselves.

  Args:
    task: what adapts.
    direction: an optax transformation without learning rate.
    shape: of the schedule, a function of the step.
    steps: of a run.
    log_every: steps between two records.
    parallel: see `parallelize`.
  """

  def __init__(
    self,
    task: Adaptation,
    direction: optax.GradientTransformation,
    shape: optax.Schedule,
    *,
    steps: int,
    log_every: int,
    parallel: str,
  ):
    self._task, self._direction, self._shape = task, direction, shape
    self._steps, self._log_every = steps, log_every
    self._program = parallelize(self._step, parallel)

  def _step(
    self,
    state: TrainState,
    batch: Any,
    key: jax.Array,
    *,
    axis_name: AxisName | None = None,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """`cosine` is that of the step and the gradient of the matrices."""
    del key
    params, (adapters, rate) = state.params, state.variables
    loss = lambda weights, batch: (self._task.loss(weights, batch), ((), {}))
    weights = weights_of(params, adapters)
    (value, _), gradient = value_and_grad(loss, axis_name)(weights, batch)
    step, opt_state = self._direction.update(
      pulled_back(params, gradient, adapters), state.opt_state, params
    )
    metrics = {
      'loss': value,
      'grad_norm': optax.tree.norm(gradient),
      'cosine': cosine(pushed_forward(params, step, adapters), gradient),
    }
    rate = rate * self._shape(state.step)
    params = jax.tree.map(lambda x, u: x - rate * u, params, step)
    state = state._replace(
      step=state.step + 1, params=params, opt_state=opt_state
    )
    return state, metrics

  def _score(self, state: TrainState) -> dict[str, jax.Array]:
    score = self._task.score(weights_of(state.params, state.variables[0]))
    return {'score': jnp.where(jnp.isfinite(score), score, jnp.inf)}

  def train(
    self,
    session: Session,
    label: str,
    *,
    learning_rate: float,
    key: jax.Array,
    adapters: Callable[[], Adapters] | None,
    tags: Row,
  ) -> Row:
    """One run, or what an earlier launch recorded of it.

    Args:
      session: the launch.
      label: of the run in the records.
      learning_rate: peak of the schedule.
      key: of the batches.
      adapters: makes them; `None`: the matrices themselves are trained.
      tags: further columns of every row.

    Returns:
      Its last row; `score` is infinite if it diverged.
    """
    records, progress = session.records, session.progress
    rows = records.of(label)
    if rows and rows[-1]['step'] == self._steps:
      progress.skip(self._steps)
      return rows[-1]
    frozen = adapters() if adapters else {}
    params = pairs_of(frozen) if adapters else self._task.start
    variables = (frozen, jnp.asarray(learning_rate))
    try:
      fit(
        self._program,
        init_state(params, self._direction, variables),
        self._task.batches(key),
        key,
        steps=self._steps,
        log_every=self._log_every,
        label=label,
        tags=tags,
        evaluate=self._score,
        records=records,
        progress=progress,
        stop=session.stop,
      )
    except NonFiniteLoss as error:  # A result, at large learning rates.
      progress.note(f'{label}: {error}')
      done = records.of(label)[-1]['step'] if records.of(label) else 0
      progress.skip(self._steps - done)
      lost = {'score': float('inf')}
      records.add({'run': label, 'step': self._steps, **tags, **lost})
    return records.of(label)[-1]
