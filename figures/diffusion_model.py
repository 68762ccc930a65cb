"""The diffusion model of figures: trained once, or another run's.

`pretrained` gives the model that a configuration asks for: the one of the run
that it names, the one that this run has trained already, or a new one, whose
training goes on where it was stopped.

The recipe comes from runs of 100 CPU seconds on Fashion-MNIST with the network
of 0.40 million parameters, width 32, one seed each; error of the noise, and
bits per dimension of all steps but the decoder's, of 512 held-out images:

| what | error | bits |
|---|---|---|
| Adam 0.005, 64 images a step | 0.0971 | 3.21 |
| the same, 32 images | 0.0924 | 3.10 |
| Muon 0.02, 64 images | 0.0917 | 2.94 |
| the same, 32 images | 0.0879 | 2.86 |
| Muon 0.0125, 32 images | 0.0865 | 2.81 |
| Muon 0.01, 32 images | 0.0862 | 2.81 |
| Muon 0.0075, 32 images | 0.0861 | 2.86 |
| Muon 0.04, 64 images | 0.0967 | 3.14 |
| Muon 0.02, 32 images, "eps" and not "v" | 0.0886 | 2.89 |
| the same, error of the noise weighted by sqrt(1 + 1 / SNR) | 0.0877 | 2.88 |
| Muon 0.02, 64 images, width 48, which costs twice | 0.1022 | 3.31 |
| Muon 0.01, 32 images, a last convolution of all pixels | 0.0867 | 2.84 |

"v" is ahead of "eps" where noise prevails, 0.061 against 0.067 bits in the
steps of SNR below 1, and level elsewhere. Its own unweighted error gave 3.87
bits where that of the noise gave 3.61 (Adam, 50 seconds), but a twelfth fewer
below SNR 1. The linear schedule needed a sixth more bits at SNR 1 to 30, where
codecs work, though fewer in all, 3.92 against 4.06. Left to XLA, convolutions
make a step of 64 images take 1.95 CPU seconds, as `fast_convolutions` 0.19.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..diffusion import Schedule, UNet, UNetConfig, ddpm_loss, kl_per_step
from ..diffusion.process import PREDICTIONS
from ..optimizers import muon, parameter_average, with_parameter_average
from ..training import TrainState, init_state, make_step, parallelize
from ..training.batches import array_batches
from ..training.checkpoint import Checkpoints
from ..training.data import Dataset, best_images, load
from ..training.loop import fit
from ..training.pretrained import (
  PretrainedDiffusion,
  is_saved,
  load_diffusion,
  save_diffusion,
)
from ..training.schedules import schedule as learning_rates
from .checked import CheckedConfig
from .fast_convolutions import fast_convolutions
from .image_model import CLASSES
from .session import Session

SCHEDULES = {'cosine': Schedule.cosine, 'linear': Schedule.linear}
LABEL = 'model'
# What the model of full presets differs in.
FULL = {
  'width': 32,
  'steps': 10_000,
  'decay': 0.999,
  'held_out': 1024,
  'kl_images': 64,
  'log_points': 20,
}
# Gradients above this norm are clipped: single ones at the start.
_MAX_NORM = 1.0
# Learning rate of biases, gains and embeddings over that of matrices.
_OTHERS = 0.5


@dataclasses.dataclass
class DiffusionConfig(CheckedConfig):
  """What figures of such a model have in common; they inherit and add to it.

  Args:
    model: directory of a run whose model is used, or of a model; then nothing
      is trained, and what follows down to `held_out` does not matter.
    dataset: labelled images of `training.data`; "auto": the best that is there.
    width: channels of the first level of the U-Net.
    multipliers: widths of its levels over that.
    blocks: residual blocks in a level, down and up each.
    patch: side of the squares of pixels at its ends.
    heads: of its attention.
    prediction: "eps", "x0" or "v".
    schedule: "cosine" or "linear".
    timesteps: steps of the schedule.
    batch_size: images in a step of training.
    steps: of training.
    learning_rate: peak of the cosine, of Muon.
    decay: of the average of the parameters, which is the model.
    label_dropout: share of images that are trained on without their class.
    images: for training, the first ones.
    held_out: for the validation loss, the first ones.
    kl_images: held-out ones, the first, of which each step's information is
      measured.
    log_points: evaluations in the run, and checkpoints.
  """

  model: str = ''
  dataset: str = 'auto'
  width: int = 16
  multipliers: tuple[int, ...] = (1, 2)
  blocks: int = 1
  patch: int = 2
  heads: int = 4
  prediction: str = 'v'
  schedule: str = 'cosine'
  timesteps: int = 1000
  batch_size: int = 32
  steps: int = 1500
  learning_rate: float = 0.01
  decay: float = 0.99
  label_dropout: float = 0.1
  images: int = 60_000
  held_out: int = 512
  kl_images: int = 16
  log_points: int = 5

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    data = self.data(data_dir)
    require('label' in data.train, 'config.dataset', self.dataset, 'labels')
    shape = data.train['image'].shape[1:]
    if self.model:
      found = load_diffusion(self.model).image_shape
      require(found == shape, 'config.model', found, f'images of {shape}')
      return
    positive = ('timesteps', 'images', 'held_out', 'kl_images', 'log_points')
    for name in positive:
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('learning_rate', lambda x: x > 0, 'a positive number')
    for name in ('decay', 'label_dropout'):
      self.require_every(name, lambda x: 0 <= x < 1, 'a number in [0, 1)')
    known = lambda names: dict(
      good=lambda x: x in names, expected=f'one of {", ".join(names)}'
    )
    self.require_every('prediction', **known(PREDICTIONS))
    self.require_every('schedule', **known([*SCHEDULES]))
    _ = self.noise_schedule
    side = self.network(shape[-1]).side
    divides = all(n % side == 0 for n in shape[:2])
    require(divides, 'images', shape, f'sides that {side} divides')
    self._check_counts(len(data.train['image']))

  def _check_counts(self, images: int) -> None:
    devices, most = jax.device_count(), min(images, self.images)
    split = f'a multiple of the {devices} devices, {most} at most'
    good = lambda x: x >= 1 and x % devices == 0 and x <= most
    self.require_every('batch_size', good, split)
    parts = f'a multiple of the {self.log_points} log points'
    good = lambda x: x >= 1 and x % self.log_points == 0
    self.require_every('steps', good, parts)

  def data(self, data_dir: str | None = None) -> Dataset:
    """The images."""
    return load(self.resolved(data_dir), data_dir=data_dir)

  def resolved(self, data_dir: str | None = None) -> str:
    """The name of the data set, "auto" looked up."""
    return best_images(data_dir) if self.dataset == 'auto' else self.dataset

  def network(self, channels: int) -> UNetConfig:
    """Sizes of the network for images of so many channels."""
    return UNetConfig(
      channels=channels,
      width=self.width,
      multipliers=self.multipliers,
      blocks=self.blocks,
      patch=self.patch,
      heads=self.heads,
      num_classes=CLASSES,
    )

  @property
  def noise_schedule(self) -> Schedule:
    """The schedule by its name."""
    return SCHEDULES[self.schedule](self.timesteps)

  @property
  def training_steps(self) -> int:
    """Of a launch that has no model yet."""
    return 0 if self.model else self.steps


def signed(images: np.ndarray) -> jax.Array:
  """Bytes to numbers in -1..1, as diffusion models see them.

  >>> print(signed(np.array([0, 255], np.uint8)))
  [-1.  1.]
  """
  return jnp.asarray(images, jnp.float32) / 127.5 - 1


def as_bytes(x: jax.Array) -> np.ndarray:
  """Undoes `signed`, rounding to the nearest byte.

  >>> print(as_bytes(np.array([-1.0, 0.0, 2.0])))
  [  0 128 255]
  """
  return np.asarray(jnp.round(jnp.clip(127.5 * (x + 1), 0, 255)), np.uint8)


class DiffusionTask:
  """A class-conditional diffusion model on a set of images.

  Args:
    config: sizes and options.
    data: labelled images.
  """

  def __init__(self, config: DiffusionConfig, data: Dataset):
    self.config, self.schedule = config, config.noise_schedule
    names = ('image', 'label')
    self._train = {name: data.train[name][: config.images] for name in names}
    self.held_out = {
      name: data.validation[name][: config.held_out] for name in names
    }
    self.shape = data.train['image'].shape[1:]
    self.model = UNet(config.network(self.shape[-1]))
    self._start = jax.jit(self.model.init)
    self.score = jax.jit(self._mean_loss)
    self.program = functools.cache(self._program)

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Parameters, and no variables."""
    one = jnp.ones(1, jnp.int32)
    some = jnp.zeros((1, *self.shape))
    return self._start(key, some, one, one)['params'], {}

  def loss(self, params, variables, batch, key):
    """As `make_step` takes losses: classes are left out at times."""
    loss_key, label_key = jax.random.split(key)
    label = batch['label'].astype(jnp.int32)
    left_out = jax.random.bernoulli(
      label_key, self.config.label_dropout, label.shape
    )
    label = jnp.where(left_out, CLASSES, label)
    with fast_convolutions():
      loss = self._mean_loss(params, batch['image'], label, loss_key)
    return loss, (variables, {})

  def _mean_loss(self, params, images, label, key):
    """The error of the noise, whatever the network predicts.

    Positions are spread evenly over the schedule: less noise than by chance.
    """
    position_key, loss_key = jax.random.split(key)
    count, steps = len(images), self.schedule.steps
    shift = jax.random.uniform(position_key)
    spread = (jnp.arange(count) + shift) * (steps / count)
    i = jnp.minimum(spread.astype(jnp.int32) + 1, steps)
    network = lambda x, t: self.model.apply({'params': params}, x, t, label)
    return ddpm_loss(
      network,
      signed(images),
      self.schedule,
      loss_key,
      prediction=self.config.prediction,
      gamma=math.inf,
      i=i,
    )

  def batches(self, key: jax.Array) -> Callable[[int, int], Any]:
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: array_batches(
      self._train,
      key=key,
      step=step,
      steps=count,
      batch_size=self.config.batch_size,
    )

  def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
    """`val_loss` of the averages; the classes are given, the noise is fixed."""
    params = parameter_average(state.opt_state)
    label = jnp.asarray(self.held_out['label'], jnp.int32)
    images = self.held_out['image']
    return {'val_loss': self.score(params, images, label, jax.random.key(0))}

  def optimizer(self) -> optax.GradientTransformation:
    """Muon on a cosine to zero, gradients clipped, parameters averaged."""
    c = self.config
    rate = lambda peak: learning_rates(
      'cosine', steps=c.steps, warmup=c.steps // 20, peak=peak
    )
    inner = muon(
      rate(c.learning_rate),
      adamw_learning_rate=rate(c.learning_rate * _OTHERS),
      adamw_b2=0.99,
      max_norm=_MAX_NORM,
      dimension_numbers=self.model.dimension_numbers,
    )
    return with_parameter_average(inner, decay=c.decay)

  def _program(self, how: str) -> Callable[..., Any]:
    """Of many steps, see `parallelize`."""
    return parallelize(make_step(self.loss, self.optimizer()), how)

  def pretrained(self, state: TrainState) -> PretrainedDiffusion:
    """The averages as a model, each step's information measured."""
    model = PretrainedDiffusion(
      config=self.model.config,
      params=jax.tree.map(jnp.asarray, parameter_average(state.opt_state)),
      schedule=self.schedule,
      prediction=self.config.prediction,
      image_shape=self.shape,
      kl_per_step=np.zeros(self.schedule.steps),
    )
    count = self.config.kl_images
    label = jnp.asarray(self.held_out['label'][:count], jnp.int32)
    x0 = signed(self.held_out['image'][:count])
    measure = jax.jit(
      functools.partial(
        kl_per_step, model.denoise(label), schedule=self.schedule
      )
    )
    kl = np.asarray(measure(x0, key=jax.random.key(0)), np.float64)
    return dataclasses.replace(model, kl_per_step=kl)


def pretrained(
  config: DiffusionConfig,
  launch: Session,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> PretrainedDiffusion:
  """The model that a figure asks for.

  Args:
    config: `model` names one that is there; otherwise it is trained, with
      checkpoints, and saved as `model` in the workdir, unless that was done.
    launch: the launch; training takes `config.steps` of its progress.
    parallel: see `parallelize`.
    data_dir: see `training.data.load`.

  Returns:
    `PretrainedDiffusion`.
  """
  if config.model:
    return load_diffusion(config.model)
  workdir = pathlib.Path(launch.workdir)
  if is_saved(workdir / 'model'):
    launch.progress.skip(config.steps)
    return load_diffusion(workdir / 'model')
  task = DiffusionTask(config, config.data(data_dir))
  checkpoints = Checkpoints(workdir / 'checkpoints' / LABEL)
  model = task.pretrained(_train(task, launch, checkpoints, parallel))
  save_diffusion(workdir / 'model', model)
  checkpoints.delete()
  return model


def _train(
  task: DiffusionTask, launch: Session, checkpoints: Checkpoints, parallel: str
) -> TrainState:
  c = task.config
  every = c.steps // c.log_points
  params, variables = task.init(launch.key)
  return fit(
    task.program(parallel),
    init_state(params, task.optimizer(), variables),
    task.batches(launch.key),
    launch.key,
    steps=c.steps,
    log_every=every,
    label=LABEL,
    evaluate=task.evaluate,
    records=launch.records,
    checkpoints=checkpoints,
    checkpoint_every=every,
    progress=launch.progress,
    stop=launch.stop,
  )
