"""Pretrained models that move to other data, for figures about adapters.

What adapts are the matrices of a model, [L, in, out] by name; embedding, head,
gains and biases stay as they were pretrained.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..optimizers.matrices import from_matrices, numbers_by_path
from ..training import TrainState, init_state, make_step, parallelize
from ..training.batches import array_batches
from ..training.checkpoint import Checkpoints
from ..training.data import load
from ..training.loop import fit
from ..training.schedules import schedule
from .language_model import Task
from .session import Session

Matrices = dict[str, jax.Array]
DIGITS_WIDTHS = (64, 128, 128, 10)


class Adaptation(NamedTuple):
  """A pretrained model on its new data.

  Attributes:
    start: its matrices.
    loss: `loss(matrices, batch)`, a scalar.
    gradient: of it in the matrices, compiled.
    batches: `batches(key)` -> `batches(step, count)` for `fit`.
    score: `score(matrices)`, the loss by which contestants are judged.
  """

  start: Matrices
  loss: Callable[[Matrices, Any], jax.Array]
  gradient: Callable[[Matrices, Any], Matrices]
  batches: Callable[[jax.Array], Callable[[int, int], Any]]
  score: Callable[[Matrices], jax.Array]


def pretrain(
  launch: Session,
  name: str,
  loss: Callable[[Any, Any], jax.Array],
  params: Any,
  batches: Callable[[int, int], Any],
  *,
  steps: int,
  learning_rate: float,
  parallel: str,
) -> Any:
  """Trains with AdamW, or restores what an earlier launch trained.

  Args:
    launch: the launch; what is trained stays in its workdir.
    name: of the model, in records and workdir.
    loss: `loss(params, batch)`.
    params: where to begin.
    batches: see `fit`.
    steps: of the run; a cosine to zero after a tenth of warmup.
    learning_rate: its peak.
    parallel: see `parallelize`.

  Returns:
    The trained parameters.
  """
  rate = schedule('cosine', steps=steps, warmup=steps // 10, peak=learning_rate)
  optimizer = optax.adamw(rate, b2=0.95, weight_decay=0.1)
  with_state = lambda params, state, batch, _: (
    loss(params, batch),
    (state, {}),
  )
  label = f'pretrained-{name}'
  state = fit(
    parallelize(make_step(with_state, optimizer), parallel),
    init_state(params, optimizer),
    batches,
    launch.key,
    steps=steps,
    log_every=max(1, steps // 10),
    label=label,
    records=launch.records,
    checkpoints=Checkpoints(pathlib.Path(launch.workdir) / label),
    progress=launch.progress,
    stop=launch.stop,
  )
  return state.params


def text_adaptation(
  launch: Session, source: Task, target: Task, **pretraining: Any
) -> Adaptation:
  """A byte language model that was pretrained on another text.

  Judged by the validation loss on the new text.

  Args:
    launch: the launch.
    source: the model on its first text.
    target: the model on the other.
    **pretraining: of `pretrain`.
  """
  params = pretrain(
    launch,
    'text',
    lambda params, batch: source.loss(params, (), batch, None)[0],
    source.init(launch.key),
    source.batches(launch.key),
    **pretraining,
  )
  numbers = numbers_by_path(target.shapes, target.model.dimension_numbers)

  def put(matrices):
    def leaf(path, x):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      if name not in matrices:
        return x
      return from_matrices(matrices[name], x.shape, numbers[path])

    return jax.tree_util.tree_map_with_path(leaf, params)

  def score(matrices):
    state = TrainState(step=jnp.zeros([], int), params=put(matrices))
    return target.evaluate(state)['val_loss']

  def loss(matrices, batch):
    return target.loss(put(matrices), (), batch, None)[0]

  gradient = jax.jit(jax.grad(loss))
  return Adaptation(
    target.matrices(params), loss, gradient, target.batches, score
  )


def _digits_loss(matrices: Matrices, biases, batch) -> jax.Array:
  """Cross entropy of a network with rectifiers on images flattened."""
  x = batch['image'].reshape(len(batch['image']), -1) / 255
  last = len(matrices) - 1
  for i, (name, w) in enumerate(sorted(matrices.items())):
    x = x @ w[0] + biases[name]
    x = x if i == last else jax.nn.relu(x)
  return jnp.mean(
    optax.softmax_cross_entropy_with_integer_labels(x, batch['label'])
  )


def digits_adaptation(launch: Session, **pretraining: Any) -> Adaptation:
  """A small network on 8x8 digits that are then turned by 90 degrees.

  Judged by the training loss on all of the turned digits.

  Args:
    launch: the launch.
    **pretraining: of `pretrain`.
  """
  upright = load('digits').train
  turned = upright | {'image': np.rot90(upright['image'], axes=(1, 2)).copy()}
  he, widths = jax.nn.initializers.he_normal(), DIGITS_WIDTHS
  shapes = zip(widths, widths[1:], strict=False)
  matrices = {
    f'layer_{i}': he(jax.random.fold_in(launch.key, i), shape)[None]
    for i, shape in enumerate(shapes)
  }
  biases = {name: jnp.zeros(w.shape[-1]) for name, w in matrices.items()}

  def batches(arrays, key):
    return lambda step, count: array_batches(
      arrays, key=key, step=step, steps=count, batch_size=64
    )

  matrices, biases = pretrain(
    launch,
    'digits',
    lambda params, batch: _digits_loss(*params, batch),
    (matrices, biases),
    batches(upright, launch.key),
    **pretraining,
  )
  loss = lambda matrices, batch: _digits_loss(matrices, biases, batch)
  whole = jax.tree.map(jnp.asarray, turned)
  return Adaptation(
    matrices,
    loss,
    jax.jit(jax.grad(loss)),
    lambda key: batches(turned, key),
    jax.jit(lambda matrices: loss(matrices, whole)),
  )
