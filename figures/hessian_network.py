"""The Hessian of a network, and second moments of its gradients.

Rectifiers are linear in any one weight. A weight then enters the loss by the
Gauss-Newton part alone, and the diagonal of the Hessian is that of the Fisher
information: the mean of squared gradients over labels that the model draws.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..scaling import (
  LogLogFit,
  adam_hessian_alignment,
  hessian_diagonal,
  hessian_row_norms,
)
from .comparison import Row
from .image_model import CLASSES, ImageTask

CHUNK = 8  # Images whose gradients for all labels exist at a time.


@functools.partial(jax.jit, static_argnums=0)
def squared_gradients(task: ImageTask, params: Any, images: Any) -> tuple:
  """Means over images of squared gradients, trees like the parameters.

  Returns:
    With the labels of the images, and with labels that the model draws: the
    second moment of a gradient, and the Hessian's diagonal.
  """

  def of_one(example):
    image, label = example['image'][None], example['label']
    loss = lambda p, y: task.mean_loss(p, {'image': image, 'label': y[None]})
    every = jax.vmap(jax.grad(loss), (None, 0))(params, jnp.arange(CLASSES))
    logits = task.model.apply({'params': params}, image)[0]
    weights = jax.nn.one_hot(label, CLASSES), jax.nn.softmax(logits)
    return [
      jax.tree.map(lambda g, w=w: jnp.tensordot(w, g**2, 1), every)
      for w in weights
    ]

  chunks = jax.tree.map(lambda x: x.reshape(-1, CHUNK, *x.shape[1:]), images)

  def add(total, chunk):
    found = jax.tree.map(lambda x: x.mean(0), jax.vmap(of_one)(chunk))
    return jax.tree.map(jnp.add, total, found), None

  zeros = jax.tree.map(jnp.zeros_like, [params, params])
  total, _ = jax.lax.scan(add, zeros, chunks)
  count = len(chunks['label'])
  return tuple(jax.tree.map(lambda x: x / count, total))


@functools.partial(jax.jit, static_argnums=(0, 5))
def perturbed_gradients(task, params, images, key, size, count: int) -> tuple:
  """Gradient; mean square of those at noisy weights, less it and as it is."""
  gradient = functools.partial(jax.grad(task.mean_loss), batch=images)
  centre = gradient(params)

  def add(sums, key):
    noise = optax.tree.random_like(key, params)
    found = gradient(optax.tree.add_scale(params, size, noise))
    squares = [optax.tree.sub(found, centre), found]
    plus = lambda s, g: s + g**2 / count
    return jax.tree.map(plus, sums, squares), None

  zeros = jax.tree.map(jnp.zeros_like, [params, params])
  sums, _ = jax.lax.scan(add, zeros, jax.random.split(key, count))
  return centre, *sums


@functools.partial(jax.jit, static_argnums=(0, 4))
def _estimates(task, params, images, key, probes: int) -> list:
  """The Hessian's diagonal and row norms, each from its own probes."""
  estimators = hessian_diagonal, hessian_row_norms
  return [
    f(task.mean_loss, params, images, key=k, probes=probes)
    for f, k in zip(estimators, jax.random.split(key), strict=True)
  ]


def look(
  task: ImageTask,
  params: Any,
  second_moment: Any,
  key: jax.Array,
  *,
  probes: int,
  perturbations: int,
  size: float,
  entries: int,
) -> Iterator[Row]:
  """Slopes of all measures over all entries, then some of the entries.

  Args:
    task: the model, its population and its batch size.
    params: where it stands.
    second_moment: Adam's v there, free of the bias of its start.
    key: of probes, perturbations and entries.
    probes: Hessian-vector products for row norms, and for a diagonal that is
      estimated from them.
    perturbations: draws of noise on the weights.
    size: deviation of that noise.
    entries: how many rows of entries, 0 or more.

  Yields:
    A row of fits, then for each entry `diagonal`, `row` and the roots of what
    was measured.
  """
  images = task.population
  keys = jax.random.split(key, 3)
  estimated, rows = _estimates(task, params, images, keys[0], probes)
  moment, diagonal = squared_gradients(task, params, images)
  gradient, centred, raw = perturbed_gradients(
    task, params, images, keys[1], size, perturbations
  )
  noise = jax.tree.map(
    lambda m, g: jnp.maximum(m - g**2, 0) / task.batch_size, moment, gradient
  )
  measures = {
    'centred': centred,
    'raw': raw,
    'moment': jax.tree.map(lambda n, g: n + g**2, noise, gradient),
    'noise': noise,
    'adam': second_moment,
  }
  over = jax.tree.map(lambda s, r: jnp.sqrt(s) / r / size, centred, rows)
  share = optax.tree.sum(noise) / optax.tree.sum(measures['moment'])
  found = {
    'loss': float(task.mean_loss(params, images)),
    'noise_share': float(share),
    'centred_over_row': float(jnp.nanmedian(_flat(over))),
  }
  for name, squares in measures.items():
    fits = adam_hessian_alignment(squares, diagonal, rows)
    found |= _columns(f'{name}_diagonal', fits.diagonal)
    found |= _columns(f'{name}_row', fits.row_norm)
  fits = adam_hessian_alignment(second_moment, estimated, rows)
  yield found | _columns('adam_estimated', fits.diagonal)
  every = dict(measures, diagonal=diagonal, row=rows)
  flat = {name: np.asarray(_flat(tree)) for name, tree in every.items()}
  seed = int(jax.random.bits(keys[2]))
  alive = np.flatnonzero(flat['diagonal'] > 0)
  for i in np.random.default_rng(seed).choice(alive, entries):
    roots = {name: float(np.sqrt(flat[name][i])) for name in measures}
    yield roots | {x: float(flat[x][i]) for x in ('diagonal', 'row')}


def _flat(tree: Any) -> jax.Array:
  return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def _columns(name: str, fit: LogLogFit) -> Row:
  """A fit as two columns of a row."""
  return {
    f'{name}_slope': float(fit.slope),
    f'{name}_correlation': float(fit.correlation),
  }
