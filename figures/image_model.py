"""Classifiers of images for figures about batch sizes and learning rates.

An `ImageTask` goes where a `language_model.Task` goes: a `Sweep` trains it over
learning rates and seeds. Batches are drawn with replacement, so that the set is
the population of which theories of gradient noise speak.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..training.batches import drawn_batches
from ..training.data import Dataset, best_images, load
from .checked import CheckedConfig

CLASSES = 10


@dataclasses.dataclass
class ImageConfig(CheckedConfig):
  """What figures of such a model have in common; they inherit and add to it.

  Args:
    dataset: labelled images of `training.data`; "auto": the best that is there.
    width: of the layers.
    layers: how many of rectifiers.
    batch_sizes: images in a step, ascending.
    learning_rates: the grid at the smallest batch.
    steps: of a run.
    seeds: runs of each learning rate.
    population: training images, the first ones; batches are drawn from them,
      and the training loss is that of all.
  """

  dataset: str = 'auto'
  width: int = 128
  layers: int = 1
  batch_sizes: tuple[int, ...] = (16, 64, 256, 1024)
  learning_rates: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08)
  steps: int = 60
  seeds: int = 3
  population: int = 4096

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    self.require_every('learning_rates', lambda x: x > 0, 'positive numbers')
    for name in ('width', 'layers', 'steps', 'seeds', 'population'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    devices = jax.device_count()
    split = f'multiples of the {devices} devices'
    good = lambda x: x >= 1 and x % devices == 0
    self.require_every('batch_sizes', good, split)
    rising = list(self.batch_sizes) == sorted({*self.batch_sizes})
    require(rising, 'config.batch_sizes', self.batch_sizes, 'ascending')
    load(self.resolved(data_dir), data_dir=data_dir)

  def resolved(self, data_dir: str | None = None) -> str:
    """The name of the data set, "auto" looked up."""
    return best_images(data_dir) if self.dataset == 'auto' else self.dataset

  def task(self, batch_size: int, data_dir: str | None = None) -> 'ImageTask':
    """The model on its images, at one batch size."""
    return ImageTask(
      load(self.resolved(data_dir), data_dir=data_dir),
      Sizes(self.width, self.layers),
      batch_size=batch_size,
      population=self.population,
    )


class Sizes(NamedTuple):
  """Layers of rectifiers of one width."""

  width: int
  layers: int = 1


class Rectifiers(nn.Module):
  """Images [B, ...] of bytes to logits [B, 10]."""

  sizes: Sizes

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """Applies the layers to centred pixels."""
    x = image.reshape(len(image), -1) / 127.5 - 1.0
    for _ in range(self.sizes.layers):
      x = nn.relu(nn.Dense(self.sizes.width)(x))
    return nn.Dense(CLASSES)(x)


class ImageTask:
  """A classifier on one set of images.

  Args:
    data: labelled images.
    sizes: of the model.
    batch_size: images in a step.
    population: how many of the training images there are, the first ones.
  """

  def __init__(
    self,
    data: Dataset,
    sizes: Sizes,
    *,
    batch_size: int,
    population: int = 4096,
  ):
    self.sizes, self.batch_size = sizes, batch_size
    self.model = Rectifiers(sizes)
    self.images = {k: x[:population] for k, x in data.train.items()}
    self.population = jax.tree.map(jnp.asarray, self.images)
    held_out = jax.tree.map(jnp.asarray, data.validation)
    score = jax.jit(self.mean_loss)
    self.evaluate = lambda state: {
      'train_loss': score(state.params, self.population),
      'val_loss': score(state.params, held_out),
    }
    some = self.population['image'][:1]
    self.init = jax.jit(lambda key: self.model.init(key, some)['params'])

  def mean_loss(self, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Cross entropy in nats, as `kexue.scaling` takes losses."""
    logits = self.model.apply({'params': params}, batch['image'])
    loss = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(loss(logits, batch['label'].astype(jnp.int32)))

  def loss(self, params, variables, batch, key):
    """The same, as `kexue.training` takes losses."""
    del key
    return self.mean_loss(params, batch), (variables, {})

  def batches(
    self, key: jax.Array
  ) -> Callable[[int, int], dict[str, np.ndarray]]:
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: drawn_batches(
      self.images, key=key, step=step, steps=count, batch_size=self.batch_size
    )

  @property
  def parameters(self) -> int:
    """How many numbers are trained."""
    shapes = jax.eval_shape(self.init, jax.random.key(0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))

  @property
  def step_flops(self) -> int:
    """Forward and backward of a step: six per parameter and image."""
    return 6 * self.parameters * self.batch_size
