r"""A trained dense layer taken apart into experts, for a figure.

Shapes: `T` tokens, `D` width, `H` hidden units, `n` experts, `k` kept.

The layer adds up the vectors :math:`v_i` of `n` groups of `H / n` hidden units,
neighbours as they are or units that are active together. What is lost where `k`
are kept is measured over all tokens, :math:`\sqrt{\sum_t |\sum_{i \notin S_t}
v_{ti}|^2 / \sum_t |\sum_i v_{ti}|^2}`.

References:
  Su, `article 10699 <https://kexue.fm/archives/10699>`_, 2025;
  Zhang et al., `MoEfication <https://arxiv.org/abs/2110.01786>`_, 2022, on
  units that are active together.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..models import (
  Transformer,
  balanced_assignment,
  best_subset,
  k_means,
  k_means_start,
  norm_top_k,
  random_subset_error,
  subset_error,
)
from ..training.records import Row

GROUPS = ('neighbours', 'clusters')
_SUBSETS = 20_000  # As many as `best_subset` tries.
_ITERATIONS = 10  # Of balanced k-means.
_STEPS, _RATE = 600, 0.03  # Of Adam, for the router.
_BINS = 40


class DenseLayer(NamedTuple):
  """Inputs [T, D], hidden units [T, H], and what each unit writes [H, D]."""

  inputs: jax.Array
  units: jax.Array
  down: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def dense_layers(
  model: Transformer, params: Any, tokens: jax.Array
) -> list[DenseLayer]:
  """The gated layers of a transformer on some text.

  Args:
    model: of unstacked, dense layers.
    params: its parameters.
    tokens: integers [B, length].

  Returns:
    One for each layer, T = B length.
  """
  _, seen = model.apply(
    {'params': params},
    tokens,
    capture_intermediates=lambda module, _: module.name == 'mlp_norm',
    mutable=['intermediates'],
  )
  layers = []
  for i in range(model.config.layers):
    name = f'layers_{i}'
    (h,) = seen['intermediates'][name]['mlp_norm']['__call__']
    h = h.reshape(-1, h.shape[-1])
    kernel = {k: x['kernel'] for k, x in params[name]['mlp'].items()}
    units = nn.silu(h @ kernel['gate']) * (h @ kernel['up'])
    layers.append(DenseLayer(h, units, kernel['down']))
  return layers


def clusters(layer: DenseLayer, n: int, key: jax.Array) -> jax.Array:
  """An order of hidden units in which those active together are neighbours.

  Balanced k-means: units are points, their lengths of what they write for each
  token over the root of the sum of squares; from the centres of k-means, units
  are assigned to centres, H / n each, at the least sum of squared distances,
  and centres are moved to the means of their units, in turns.

  Args:
    layer: on the tokens of training.
    n: clusters, a divisor of H.
    key: of the start of k-means.

  Returns:
    Units [H], the first H / n of them the first cluster.
  """
  hidden = layer.units.shape[1]
  size = hidden // n
  points = jnp.abs(layer.units.T)
  points /= jnp.linalg.norm(points, axis=1, keepdims=True) + 1e-30

  def assigned(centres):
    squares = jnp.sum(jnp.square(centres), axis=1) / 2
    cost = jnp.repeat(squares - points @ centres.T, size, axis=1)
    return jnp.argsort(balanced_assignment(cost, steps=8))

  def iterate(_, order):
    return assigned(points[order].reshape(n, size, -1).mean(axis=1))

  centres, _ = k_means(points, k_means_start(points, n, key=key))
  return jax.lax.fori_loop(0, _ITERATIONS, iterate, assigned(centres))


def vectors_of(layer: DenseLayer, order: jax.Array, n: int) -> jax.Array:
  """What the groups of units write, [T, n, D].

  Args:
    layer: on any tokens.
    order: of the units [H], as `clusters` gives it.
    n: groups.
  """
  units = layer.units[:, order].reshape(len(layer.units), n, -1)
  down = layer.down[order].reshape(n, -1, layer.down.shape[1])
  return jnp.einsum('tnh,nhd->tnd', units, down)


def fit_router(
  inputs: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A router that predicts lengths: softplus of a linear map, by Adam.

  Args:
    inputs: [T, D] of training.
    lengths: [T, n], of the vectors.

  Returns:
    Kernel [D, n] and bias [n] of least mean squared error of the lengths, over
    their mean.
  """
  target = lengths / jnp.mean(lengths)
  optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))

  def loss(router):
    kernel, bias = router
    return jnp.mean(
      jnp.square(jax.nn.softplus(inputs @ kernel + bias) - target)
    )

  def step(carry, _):
    router, state = carry
    updates, state = optimizer.update(jax.grad(loss)(router), state)
    return (optax.apply_updates(router, updates), state), None

  zero = jnp.zeros((inputs.shape[1], target.shape[1]))
  router = (zero, zero[0])
  start = (router, optimizer.init(router))
  (router, _), _ = jax.lax.scan(step, start, length=_STEPS)
  return router


@functools.partial(jax.jit, static_argnames='k')
def kept_errors(
  vectors: jax.Array, scores: jax.Array, k: int
) -> dict[str, jax.Array]:
  """What is lost where k vectors are kept, by how they are chosen.

  Args:
    vectors: [T, n, D].
    scores: [T, n], of a router.
    k: how many are kept.

  Returns:
    Numbers: "norm", the longest; "router", of the largest scores; "random";
    "best", if there are 20,000 subsets at most; and "orthogonal", what the
    longest would lose if no two vectors had anything in common.
  """
  total = jnp.sum(jnp.square(jnp.sum(vectors, axis=1)), axis=1)
  over_all = lambda error: jnp.sqrt(jnp.mean(error**2 * total) / total.mean())
  router = jax.lax.top_k(scores, k)[1]
  squares = jnp.sort(jnp.sum(jnp.square(vectors), axis=2), axis=1)
  left = squares[:, : squares.shape[1] - k].sum() / squares.sum()
  found = {
    'norm': over_all(norm_top_k(vectors, k).relative_error),
    'router': over_all(subset_error(vectors, router)),
    'random': over_all(random_subset_error(vectors, k)),
    'orthogonal': jnp.sqrt(left),
  }
  if math.comb(vectors.shape[1], k) <= _SUBSETS:
    best = lambda one: best_subset(one, k).relative_error
    found['best'] = over_all(jax.lax.map(best, vectors, batch_size=32))
  return found


def numbers_kept(n: int) -> list[int]:
  """Powers of two to n / 2, and 3 n / 4.

  >>> numbers_kept(8)
  [1, 2, 4, 6]
  """
  return [2**i for i in range(n.bit_length() - 1)] + [3 * n // 4]


@jax.jit
def cosines(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Those of all pairs of vectors of a token: counts over (-1, 1), their RMS.

  Args:
    vectors: [T, n, D].

  Returns:
    Counts [40] and a number.
  """
  unit = vectors / jnp.linalg.norm(vectors, axis=2, keepdims=True)
  n = vectors.shape[1]
  above = jnp.triu_indices(n, 1)
  pairs = jnp.einsum('tid,tjd->tij', unit, unit)[:, *above]
  counts = jnp.histogram(pairs, bins=_BINS, range=(-1.0, 1.0))[0]
  return counts, jnp.sqrt(jnp.mean(jnp.square(pairs)))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _taken_apart(train, held_out, n, group, key):
  """Vectors of held-out text [T, n, D], and what a router says of them."""
  order = jnp.arange(train.units.shape[1])
  if group == 'clusters':
    order = clusters(train, n, key)
  lengths = jnp.linalg.norm(vectors_of(train, order, n), axis=2)
  kernel, bias = fit_router(train.inputs, lengths)
  scores = jax.nn.softplus(held_out.inputs @ kernel + bias)
  scores *= jnp.mean(lengths)
  vectors = vectors_of(held_out, order, n)
  lengths = jnp.linalg.norm(vectors, axis=2)
  rest = jnp.sum(jnp.square(scores - lengths))
  explained = 1 - rest / jnp.sum(jnp.square(lengths - lengths.mean(axis=0)))
  return vectors, scores, explained


def geometry(
  train: DenseLayer, held_out: DenseLayer, n: int, group: str, key: jax.Array
) -> Iterator[Row]:
  """A row for each number of experts kept, and one for the cosines.

  Args:
    train: the layer on the text of which clusters and router are made.
    held_out: on the text of which errors are.
    n: experts.
    group: of `GROUPS`.
    key: of the clusters' start.
  """
  vectors, scores, explained = _taken_apart(train, held_out, n, group, key)
  about = {'group': group, 'n': n, 'explained': float(explained)}
  for k in numbers_kept(n):
    errors = jax.device_get(kept_errors(vectors, scores, k))
    yield {**about, 'k': k, **{name: float(x) for name, x in errors.items()}}
  counts, size = jax.device_get(cosines(vectors))
  density = counts / counts.sum() * _BINS / 2
  yield {
    **about,
    'cosine': float(size),
    'width': vectors.shape[2],
    'density': ' '.join(f'{x:.4g}' for x in np.asarray(density)),
  }
