"""The best learning rate of one step: searched, probed, and in theory.

At a point of a training run, for an update of the sign of the gradient of B
images. The population is finite, so that its gradient, noise and loss are known
without error; batches are drawn from it with replacement.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..optimizers import scale_by_softsign
from ..scaling import (
  ProbedLearningRate,
  SignLaw,
  hessian_vector_product,
  matrix_free_step,
  optimal_learning_rate,
  probe_learning_rate,
  softsign_moments,
  squared_norms,
)
from ..training.batches import drawn_batches
from .comparison import Row
from .image_model import ImageConfig, ImageTask

GRID = tuple(1.4**i for i in range(-3, 4))  # About the probed rate.
FRESH = 512  # Rows of the probe beside the batch.
REFINED = 2  # Times the probe tries its own result.
CHUNK = 64  # Examples whose gradients exist at a time.


@dataclasses.dataclass
class SearchConfig(ImageConfig):
  """What figures of single steps of the sign have in common.

  Args:
    stage_rate: learning rate of the sign descent on the way to a stage.
    stage_batch: its batch size.
    one_step_batches: batch sizes of single steps, ascending.
    searched: draws of the line search.
    probed: draws of the probe.
    signs: directions along which theories average.
  """

  batch_sizes: tuple[int, ...] = (16, 64, 256)
  learning_rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008)
  steps: int = 40
  seeds: int = 2
  stage_rate: float = 0.002
  stage_batch: int = 64
  one_step_batches: tuple[int, ...] = (16, 64, 512)
  searched: int = 16
  probed: int = 64
  signs: int = 8

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('stage_rate', lambda x: x > 0, 'a positive number')
    for name in ('stage_batch', 'one_step_batches', 'signs'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    for name in ('searched', 'probed'):
      self.require_every(name, lambda x: x >= 4, '4 or more')
    self.require_every(
      'learning_rates', lambda _: len(self.learning_rates) >= 3, '3 or more'
    )


class Moments(NamedTuple):
  """Of the gradient of one image, trees like the parameters.

  Attributes:
    gradient: its mean, that of the population.
    noise_std: its standard deviation, entry by entry.
  """

  gradient: Any
  noise_std: Any


def sign_descent(eps: float) -> optax.GradientTransformation:
  """SoftSign at learning rate 1; its update is to be added."""
  return optax.chain(scale_by_softsign(eps), optax.scale(-1.0))


def exact_moments(task: ImageTask, params: Any) -> Moments:
  """Over all images of the population but an incomplete last chunk."""
  count = len(task.population['label']) // CHUNK
  chunks = jax.tree.map(
    lambda x: x[: count * CHUNK].reshape(count, CHUNK, *x.shape[1:]),
    task.population,
  )
  return _moments(task, params, chunks)


@functools.partial(jax.jit, static_argnums=0)
def _moments(task: ImageTask, params: Any, chunks: Any) -> Moments:
  of_one = lambda example: jax.grad(task.mean_loss)(
    params, jax.tree.map(lambda x: x[None], example)
  )

  def add(sums, chunk):
    gradients = jax.vmap(of_one)(chunk)
    plus = lambda total, g, p: total + jnp.sum(g**p, axis=0)
    return tuple(
      jax.tree.map(functools.partial(plus, p=p), total, gradients)
      for p, total in enumerate(sums, start=1)
    ), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  (first, second), _ = jax.lax.scan(add, (zeros, zeros), chunks)
  total = chunks['label'].size
  mean = jax.tree.map(lambda x: x / total, first)
  deviation = lambda s, m: jnp.sqrt(jnp.maximum(s / total - m**2, 0))
  return Moments(mean, jax.tree.map(deviation, second, mean))


def draws(task: ImageTask, key: jax.Array, count: int, rows: int) -> Any:
  """Batches [count, rows, ...] from the population."""
  return jax.tree.map(
    jnp.asarray,
    drawn_batches(task.images, key=key, step=0, steps=count, batch_size=rows),
  )


@functools.partial(jax.jit, static_argnums=(0, 5))
def _losses(task, population, params, batches, rates, eps) -> jax.Array:
  """Of the population after a step, by draw and learning rate."""
  optimizer = sign_descent(eps)

  def of(batch):
    gradient = jax.grad(task.mean_loss)(params, batch)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = lambda rate: jax.tree.map(lambda x, u: x + rate * u, params, update)
    return jax.lax.map(
      lambda rate: task.mean_loss(moved(rate), population), rates
    )

  return jax.lax.map(of, batches)


@functools.partial(jax.jit, static_argnums=0)
def noise_signs(task: ImageTask, params: Any, pairs: Any) -> Any:
  """Signs [draws, ...] of differences of the gradients of two batches.

  Args:
    task: the model.
    params: where it stands.
    pairs: batches [draws, 2 * B, ...].
  """

  def of(pair):
    half = len(pair['label']) // 2
    first, second = (
      jax.grad(task.mean_loss)(params, jax.tree.map(lambda x, p=p: x[p], pair))
      for p in (slice(half), slice(half, None))
    )
    return jax.tree.map(lambda a, b: jnp.sign(a - b), first, second)

  return jax.lax.map(of, pairs)


def random_signs(key: jax.Array, params: Any, count: int) -> Any:
  """Independent signs [count, ...] like the parameters."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return treedef.unflatten(
    jax.random.rademacher(k, (count, *x.shape), x.dtype)
    for k, x in zip(keys, leaves, strict=True)
  )


def curvatures(task: ImageTask, params: Any, directions: Any) -> jax.Array:
  """v^T H v [count] along directions [count, ...], H of the population."""
  return _curvatures(task, task.population, params, directions)


@functools.partial(jax.jit, static_argnums=0)
def _curvatures(task, population, params, directions) -> jax.Array:
  product = _product(task, population, params)
  along = lambda v: optax.tree.vdot(v, product(v))
  return jax.lax.map(along, directions)


def _product(task: ImageTask, population: Any, params: Any):
  loss = task.mean_loss
  return functools.partial(hessian_vector_product, loss, params, population)


def theory(
  task: ImageTask,
  params: Any,
  moments: Moments,
  signs: Any,
  batch_size: float,
  eps: float,
) -> float:
  """Learning rate of `matrix_free_step`, exact moments of each entry."""
  numbers = jnp.float32(batch_size), jnp.float32(eps)
  population = task.population
  return float(_theory(task, population, params, moments, signs, *numbers))


@functools.partial(jax.jit, static_argnums=0)
def _theory(
  task, population, params, moments, signs, batch_size, eps
) -> jax.Array:
  both = jax.tree.map(
    lambda g, s: softsign_moments(g, s, eps, batch_size), *moments
  )
  mean, second = (
    jax.tree.map(lambda _, m, i=i: m[i], moments.gradient, both) for i in (0, 1)
  )
  return matrix_free_step(
    mean,
    second,
    gradient=moments.gradient,
    product=_product(task, population, params),
    signs=signs,
  ).learning_rate


def article_law(
  task: ImageTask, params: Any, moments: Moments, signs: Any
) -> SignLaw:
  """The mean field of article 10542, its trace from independent signs."""
  direction = jax.tree.map(jnp.sign, moments.gradient)
  of_sign = jax.tree.map(lambda x: x[None], direction)
  trace = float(jnp.mean(curvatures(task, params, signs)))
  total = lambda tree: float(optax.tree.sum(squared_norms(tree)))
  noise_scale = total(moments.noise_std) / total(moments.gradient)
  l1 = float(optax.tree.vdot(direction, moments.gradient))
  aligned = float(curvatures(task, params, of_sign)[0])
  return SignLaw(l1 / trace, aligned / trace, jnp.pi / 2 * noise_scale, l1)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _probe(task, params, batches, optimizer, batch_size, trial=None):
  return probe_learning_rate(
    task.mean_loss,
    params,
    batches,
    optimizer,
    batch_size=batch_size,
    trial=trial,
  )


def probes(
  task: ImageTask,
  params: Any,
  batches: Any,
  optimizer: optax.GradientTransformation,
  batch_size: int,
) -> tuple[ProbedLearningRate, ProbedLearningRate]:
  """With the curvature where the step starts, and with that along it."""
  probe = functools.partial(
    _probe, task, params, batches, optimizer, batch_size
  )
  quadratic = refined = probe()
  for _ in range(REFINED):
    refined = probe(refined.learning_rate)
  return quadratic, refined


def search(
  task: ImageTask,
  params: Any,
  batch_size: int,
  key: jax.Array,
  *,
  searched: int,
  probed: int,
  eps: float = 0.0,
) -> Row:
  """Probes the best learning rate, then searches about it.

  Args:
    task: the model.
    params: where it stands.
    batch_size: B.
    key: of the draws, which probe and search do not share.
    searched: draws of the search.
    probed: draws of the probe.
    eps: of SoftSign.

  Returns:
    `probe`, `measured`, and both intervals; `quadratic`, the probe that takes
    the loss for one.
  """
  first, second = jax.random.split(key)
  batches = draws(task, first, probed, batch_size + FRESH)
  quadratic, probe = probes(
    task, params, batches, sign_descent(eps), batch_size
  )
  rates = probe.learning_rate * jnp.array(GRID)
  batches = draws(task, second, searched, batch_size)
  losses = _losses(task, task.population, params, batches, rates, eps)
  best = optimal_learning_rate(rates, losses)
  return {
    'quadratic': float(quadratic.learning_rate),
    'probe': float(probe.learning_rate),
    'probe_low': float(probe.low),
    'probe_high': float(probe.high),
    'measured': float(best.learning_rate),
    'measured_low': float(best.low),
    'measured_high': float(best.high),
    'at_edge': int(best.at_edge),
  }
