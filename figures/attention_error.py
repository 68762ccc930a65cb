"""How far Nystrom's attention is from softmax attention, for a figure.

Shapes: `H` heads of all layers and sequences, `T` tokens, `K` head width.
"""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from ..lowrank import nystrom_attention
from ..lowrank.nystrom_attention import segment_weights
from ..models.transformer import TransformerConfig, rotary
from ..training import init_state, make_step, parallelize
from ..training.batches import token_windows
from ..training.data import Dataset
from ..training.loop import fit
from ..training.records import Row
from .language_model import Task
from .session import Session

BATCH = 8  # Sequences in a training step, and those attended to.
METHODS = {  # Label, colour.
  'pooled': ('attention to means of segments', 'tab:gray'),
  'iterative': ('Nystrom, six iterations (the paper)', 'tab:blue'),
  'exact': ('Nystrom, exact pseudo-inverse', 'tab:orange'),
  'best': ('best matrix of this rank', 'black'),
}


def trained_heads(
  text: Dataset, launch: Session, parallel: str, *, tokens: int, steps: int
) -> list[jax.Array]:
  """Queries, keys and values [H, T, K] of a transformer, on held out text.

  Args:
    text: bytes, split in train and validation.
    launch: progress, stop and key.
    parallel: how the training runs.
    tokens: T.
    steps: of the training.

  Returns:
    Three arrays; queries and keys are normalised and turned by their position.
  """
  task = Task(
    TransformerConfig(layers=2, width=64, heads=2),
    text,
    length=tokens,
    batch_size=BATCH,
    validation_windows=BATCH,
  )
  optimizer = optax.adamw(3e-3, b2=0.95)
  state = fit(
    parallelize(make_step(task.loss, optimizer), parallel),
    init_state(task.init(launch.key), optimizer),
    task.batches(launch.key),
    launch.key,
    steps=steps,
    log_every=steps,
    label='transformer',
    progress=launch.progress,
    stop=launch.stop,
  )
  windows = token_windows(text.validation, count=BATCH, length=tokens)
  names = ('query_norm', 'key_norm', 'value')
  _, captured = task.model.apply(
    {'params': state.params},
    jnp.asarray(windows[:, :-1], jnp.int32),
    capture_intermediates=lambda module, _: module.name in names,
    mutable=['intermediates'],
  )
  layers = [x['attention'] for x in captured['intermediates'].values()]
  of = lambda name: jnp.concatenate([x[name]['__call__'][0] for x in layers])
  by_head = lambda x: x.swapaxes(1, 2).reshape(-1, tokens, x.shape[-1])
  q, k, v = map(of, names)
  return [by_head(x) for x in (rotary(q), rotary(k), v)]


def errors(
  q: jax.Array, k: jax.Array, v: jax.Array, landmarks: Sequence[int]
) -> Iterable[Row]:
  """A row for each number of landmarks and method: errors of the output.

  Args:
    q: queries [H, T, K].
    k: keys [H, T, K].
    v: values [H, T, K].
    landmarks: numbers of them, which are also the ranks of the best matrix.

  Yields:
    Median and outer deciles over heads of the error in Frobenius norm, relative
    to the output of softmax attention.
  """
  weights = jax.nn.softmax(q @ k.mT / q.shape[-1] ** 0.5)
  exact = weights @ v
  u, s, vh = jnp.linalg.svd(weights, full_matrices=False)
  norm = functools.partial(jnp.linalg.norm, axis=(-2, -1))
  for m in landmarks:
    near = functools.partial(nystrom_attention, q, k, v, landmarks=m)
    outputs = {
      'pooled': _pooled(q, k, v, m),
      'iterative': near(),
      'exact': near(inverse='exact'),
      'best': (u * s[:, None])[..., :m] @ (vh[:, :m] @ v),
    }
    for method, output in outputs.items():
      low, median, high = jnp.quantile(
        norm(output - exact) / norm(exact), jnp.array([0.1, 0.5, 0.9])
      )
      yield {
        'method': method,
        'landmarks': m,
        'error': median,
        'error_low': low,
        'error_high': high,
      }


def _pooled(q, k, v, landmarks: int) -> jax.Array:
  """Attention to means of keys and values over segments of the tokens."""
  average = segment_weights(jnp.ones(q.shape[:-1], bool), landmarks)
  logits = q @ (average @ k).mT / q.shape[-1] ** 0.5
  return jax.nn.softmax(logits) @ (average @ v)


def plot_errors(rows: Sequence[Row], ax: Axes) -> None:
  """Median over heads against landmarks, 10 to 90 % of them as a band.

  Args:
    rows: of `errors`.
    ax: where.
  """
  for name, (label, color) in METHODS.items():
    of = [row for row in rows if row['method'] == name]
    x = [row['landmarks'] for row in of]
    median, low, high = (
      np.maximum([row[key] for row in of], 1e-7)  # Zero has no logarithm.
      for key in ('error', 'error_low', 'error_high')
    )
    ax.plot(x, median, '.-', color=color, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
  ax.set_xscale('log', base=2)
  ax.set(
    yscale='log',
    xlabel='landmarks, or rank',
    ylabel='relative error of the output',
    title='attention of a trained transformer; median, 10 to 90 % of heads',
  )
  ax.legend(fontsize='small', loc='lower left')
