"""How often the experts of a transformer are chosen, on text held out.

Shapes: `N` windows of text, `L` layers with experts, `E` experts.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..models import (
  Routing,
  Transformer,
  code_counts,
  max_violation,
  next_token_loss,
)
from ..training import TrainState
from ..training.batches import permutation
from ..training.records import Row

_TOGETHER = 128  # Windows in one pass.


def of_layers(tree: Any, kind: type) -> list[Any]:
  """The tuples of a kind in a collection of variables, layer by layer.

  >>> of_layers({'a': 1, 'b': Routing(2, 3, 4)}, Routing)
  [Routing(indices=2, gates=3, load=4)]
  """
  is_one = lambda x: isinstance(x, kind)
  return [x for x in jax.tree.leaves(tree, is_leaf=is_one) if is_one(x)]


@functools.partial(jax.jit, static_argnums=0)
def _scores(model, variables, windows):
  """Losses [n, m] and loads [n, m, L, E] of windows [n, m, T + 1]."""

  def of_some(batch):
    batch = batch.astype(jnp.int32)
    logits, sown = model.apply(
      variables, batch[:, :-1], mutable=['intermediates']
    )
    losses = jax.vmap(next_token_loss)(logits[:, None], batch[:, None, 1:])
    chosen = [routing.indices for routing in of_layers(sown, Routing)]
    if not chosen:
      return losses, jnp.zeros((len(batch), 0, 0), jnp.int32)
    count = lambda indices: code_counts(indices, model.config.moe.experts)
    return losses, jax.vmap(jax.vmap(count))(jnp.stack(chosen, axis=1))

  return lax.map(of_some, windows)


def score_windows(
  model: Transformer, state: TrainState, windows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Reads text, biases as they are.

  Args:
    model: dense or with experts, all of them on every device.
    state: of training.
    windows: bytes [N, T + 1].

  Returns:
    Losses [N], nats a byte, and loads int32 [N, L, E], how often each expert
    was chosen; [N, 0, 0] of a dense model.
  """
  count, length = windows.shape
  together = min(_TOGETHER, count)
  filled = np.pad(windows, ((0, -count % together), (0, 0)))
  variables = {'params': state.params, **state.variables}
  losses, loads = jax.device_get(
    _scores(model, variables, filled.reshape(-1, together, length))
  )
  loads = loads.reshape(losses.size, *loads.shape[2:])
  return losses.ravel()[:count], loads[:count]


def loads_by_batch(
  loads: np.ndarray, sizes: Sequence[int], length: int
) -> list[Row]:
  """Violations of batches of windows, and how the load is shared.

  Args:
    loads: [N, L, E] of `score_windows`.
    sizes: windows of a batch; those of N or more are left out, and N added.
      Windows are shuffled, as in training; the last may not fill a batch.
    length: tokens of a window.

  Returns:
    A row for each size: `windows`, `tokens` and `violation`, the mean of
    `max_violation` over batches and layers. The last one has `loads` too, the
    shares of all choices as text, layers apart by ";".

  Example:
    >>> loads = np.array([[[2, 0]], [[0, 2]]])
    >>> [row['violation'] for row in loads_by_batch(loads, [1], 2)]
    [1.0, 0.0]
  """
  shuffled = loads[permutation(0, 0, len(loads))]

  def of_size(size):
    whole = shuffled[: len(loads) // size * size]
    batches = whole.reshape(-1, size, *loads.shape[1:]).sum(1, dtype=np.int32)
    violation = float(jnp.mean(max_violation(batches)))
    return {'windows': size, 'tokens': size * length, 'violation': violation}

  smaller = [size for size in sizes if size < len(loads)]
  rows = [of_size(size) for size in [*smaller, len(loads)]]
  total = loads.sum(0)
  share = total / total.sum(-1, keepdims=True)
  text = ';'.join(' '.join(f'{x:.5f}' for x in layer) for layer in share)
  return [*rows[:-1], rows[-1] | {'loads': text}]
