"""Tokenizers of images for figures: data, quantisers by name, training runs.

A `TokenizerTask` is a `VQVAE` on a set of images; a `Tokenizer` trains it over
learning rates, commitment weights, starts and seeds with one program: all of
these are numbers in its state.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require, require_one_of
from ..models import (
  FSQ_LEVELS,
  VQVAE,
  FiniteScalarQuantizer,
  VectorQuantizer,
  VQVAEConfig,
)
from ..training import TrainState, init_state, make_step, parallelize
from ..training.batches import array_batches
from ..training.checkpoint import Checkpoints
from ..training.data import Dataset, best_images, load
from ..training.loop import NonFiniteLoss, fit
from ..training.records import Row
from ..training.schedules import schedule
from .checked import CheckedConfig
from .fast_convolutions import fast_convolutions
from .session import Session

# A weight of 1 leaves it to the task. Means over 20 steps, not 100: runs are
# short, and it uses more codes and loses less, whatever the estimator.
_COMMON = dict(commitment_weight=1.0, decay=0.95)
# Further options of `VectorQuantizer` by name.
QUANTIZERS = {
  'ste': dict(estimator='ste'),
  'rotation': dict(estimator='rotation'),
  'rotation_no_rescale': dict(estimator='rotation_no_rescale'),
  'reflection': dict(estimator='reflection'),
  'diveq': dict(estimator='diveq', codebook='learned'),
  'simvq': dict(codebook='linear'),
  # In vectors a batch: a thirtieth of them is rare in any codebook here.
  'revival': dict(revival_threshold=0.03),
  # Rates tried by factors of 3, at 256 and 4096 codes.
  'balanced': dict(bias_rate=0.03, bias_rule='rms'),
  'balanced_sign': dict(bias_rate=0.01, bias_rule='sign'),
  'fsq': None,
}
# Best learning rates over that of the others; see `rotation_trick`.
FASTER = {'diveq': 2.0, 'fsq': 4.0}
# Besides those of the paper: levels for 64, 128, 512 and 2048 codes.
LEVELS = {
  2**6: (4, 4, 4),
  2**7: (8, 4, 4),
  2**9: (8, 8, 8),
  2**11: (8, 8, 8, 4),
} | FSQ_LEVELS

# For what runs once: random numbers take seconds to compile otherwise.
_QUICKLY = {'xla_backend_optimization_level': 0}


@functools.cache
def make_quantizer(name: str, num_codes: int, **options: Any) -> nn.Module:
  """A quantiser by name.

  Args:
    name: of `QUANTIZERS`; all are "ste" on an EMA codebook started by k-means,
      but for what is said there.
    num_codes: of the codebook; finite scalar quantisation comes near it, with
      the levels of `LEVELS`.
    **options: of `VectorQuantizer`, over those of the name.

  Returns:
    A module, the same one for the same arguments.

  Example:
    >>> make_quantizer('simvq', 64).codebook, make_quantizer('fsq', 256).levels
    ('linear', (8, 6, 5))
  """
  require_one_of('name', name, [*QUANTIZERS])
  if name == 'fsq':
    require_one_of('num_codes', num_codes, sorted(LEVELS))
    require(not options, 'options', options, 'none for "fsq"')
    return FiniteScalarQuantizer(LEVELS[num_codes])
  return VectorQuantizer(num_codes, **_COMMON | QUANTIZERS[name] | options)


@dataclasses.dataclass
class TokenizerConfig(CheckedConfig):
  """What figures of such models have in common; they inherit and add to it.

  Args:
    dataset: labelled images of `training.data`; "auto": the best that is there.
    width: channels inside encoder and decoder.
    latent: width of what is quantised, but for finite scalar quantisation.
    blocks: residual blocks in encoder and decoder each.
    batch_size: images in a step.
    steps: of a run.
    learning_rate: peak of the cosine.
    seeds: runs of each setting.
    images: for training, the first ones.
    held_out: for validation, the first ones.
    log_points: evaluations in a run.
  """

  dataset: str = 'auto'
  width: int = 16
  latent: int = 8
  blocks: int = 1
  batch_size: int = 32
  steps: int = 400
  learning_rate: float = 0.003
  seeds: int = 3
  images: int = 60_000
  held_out: int = 512
  log_points: int = 4

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    positive = ('width', 'latent', 'seeds', 'images', 'held_out', 'log_points')
    for name in positive:
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('blocks', lambda x: x >= 0, '0 or more')
    self.require_every('learning_rate', lambda x: x > 0, 'a positive number')
    devices = jax.device_count()
    split = f'a multiple of the {devices} devices, {self.images} at most'
    good = lambda x: x >= 1 and x % devices == 0 and x <= self.images
    self.require_every('batch_size', good, split)
    parts = f'a multiple of the {self.log_points} log points'
    good = lambda x: x >= 1 and x % self.log_points == 0
    self.require_every('steps', good, parts)
    self.data(data_dir)

  def data(self, data_dir: str | None = None) -> Dataset:
    """The images."""
    return load(self.resolved(data_dir), data_dir=data_dir)

  def resolved(self, data_dir: str | None = None) -> str:
    """The name of the data set, "auto" looked up."""
    return best_images(data_dir) if self.dataset == 'auto' else self.dataset

  def task(self, data: Dataset, quantizer: nn.Module) -> 'TokenizerTask':
    """The autoencoder with a quantiser on these images."""
    sizes = VQVAEConfig(
      channels=data.train['image'].shape[-1],
      width=self.width,
      latent=len(getattr(quantizer, 'levels', (0,) * self.latent)),
      blocks=self.blocks,
    )
    return TokenizerTask(
      data,
      VQVAE(quantizer, sizes),
      batch_size=self.batch_size,
      images=self.images,
      held_out=self.held_out,
    )

  def tokenizer(self, task: 'TokenizerTask', parallel: str) -> 'Tokenizer':
    """What trains it for as many steps."""
    return Tokenizer(
      task,
      steps=self.steps,
      log_every=self.steps // self.log_points,
      parallel=parallel,
    )


def pixels(images: np.ndarray) -> jax.Array:
  """Bytes [..., H, W, C] to numbers in 0..1, as models see them."""
  return jnp.asarray(images, jnp.float32) / 255


class TokenizerTask:
  """An autoencoder with quantised latents on a set of images.

  Args:
    data: labelled images.
    model: the autoencoder.
    batch_size: images in a step.
    images: how many are trained on, the first ones.
    held_out: how many of the validation images are scored, the first ones.
  """

  def __init__(
    self,
    data: Dataset,
    model: VQVAE,
    *,
    batch_size: int,
    images: int = 60_000,
    held_out: int = 512,
  ):
    self.model, self.batch_size = model, batch_size
    self.images = {'image': data.train['image'][:images]}
    self.held_out = data.validation['image'][:held_out]
    of = lambda method: jax.jit(functools.partial(self._apply, method))
    self._reconstruct, self._encode = of(_reconstruct), of('encode')
    self._decode, self._score = of('decode_indices'), of(_score)
    self._start = jax.jit(self.model.init, compiler_options=_QUICKLY)

  @property
  def positions(self) -> tuple[int, int]:
    """Rows and columns of tokens in an image."""
    _, height, width, _ = self.held_out.shape
    factor = self.model.config.factor
    return height // factor, width // factor

  @property
  def num_codes(self) -> int:
    """The size of the vocabulary."""
    return self.model.quantizer.num_codes

  def init(
    self, key: jax.Array, commitment_weight: float = 0.25
  ) -> tuple[Any, Any]:
    """Parameters and variables, the codes from a batch of images.

    Args:
      key: of the start; parts that two models share start alike.
      commitment_weight: of the quantiser's commitment loss, if it has one.

    Returns:
      Parameters, and the collections of the quantiser beside `weights`, the
      factors of losses by name.
    """
    rows, columns = self.positions
    enough = -(-self.num_codes // (rows * columns))
    some = self.images['image'][: max(self.batch_size, enough)]
    variables = dict(self._start(key, pixels(some)))
    params = variables.pop('params')
    weights = {'commitment': jnp.float32(commitment_weight)}
    return params, variables | {'weights': weights}

  def loss(self, model, params, variables, batch, key):
    """As `make_step` takes losses with a model."""
    del key
    with fast_convolutions():
      out, changed = model.apply(
        {'params': params, **variables},
        pixels(batch['image']),
        train=True,
        mutable=['codebook'],
      )
    weights = variables['weights']
    total = sum(weights.get(k, 1.0) * x for k, x in out.losses.items())
    return total, (variables | changed, {})

  def batches(self, key: jax.Array) -> Callable[[int, int], Any]:
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: array_batches(
      self.images, key=key, step=step, steps=count, batch_size=self.batch_size
    )

  def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
    """Scores of the held-out images, all at once.

    Args:
      state: of training.

    Returns:
      `val_loss`, the mean square of the error of a pixel in 0..1; `usage`, the
      share of codes that occur; `perplexity`; `latent_square`, the mean square
      of an entry before quantisation; and for codebooks `quantization_error`,
      that of its difference to the code.
    """
    return self._score(state, pixels(self.held_out))

  def reconstruct(self, state: TrainState, images: np.ndarray) -> np.ndarray:
    """Bytes [B, H, W, C] to bytes, through the tokens."""
    return _bytes(self._reconstruct(state, pixels(images)))

  def tokens(self, state: TrainState, images: np.ndarray) -> np.ndarray:
    """Bytes [B, H, W, C] to int32 [B, h, w]."""
    return np.asarray(self._encode(state, pixels(images)))

  def images_of(self, state: TrainState, tokens: np.ndarray) -> np.ndarray:
    """Tokens [B, h, w] to bytes [B, H, W, C]."""
    return _bytes(self._decode(state, jnp.asarray(tokens)))

  def _apply(self, method, state, x):
    variables = {'params': state.params, **state.variables}
    return self.model.apply(variables, x, method=method)


def _reconstruct(model: VQVAE, x: jax.Array) -> jax.Array:
  return model(x).reconstruction


def _score(model: VQVAE, x: jax.Array) -> dict[str, jax.Array]:
  out = model(x)
  square = jnp.mean(jnp.square(model.encoder(x)))  # Compiled into one pass.
  loss = out.losses['reconstruction']
  return {'val_loss': loss, 'latent_square': square, **out.metrics}


def _bytes(x: jax.Array) -> np.ndarray:
  """Numbers in 0..1 to bytes."""
  return np.asarray(jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8))


class Tokenizer:
  """Training runs of one task; learning rate, weights and start may differ.

  Adam on a cosine to zero after a warmup of a twentieth.

  Args:
    task: what is trained.
    steps: of a run.
    log_every: steps between two evaluations.
    parallel: see `parallelize`.
  """

  def __init__(
    self, task: TokenizerTask, *, steps: int, log_every: int, parallel: str
  ):
    self.task, self.steps, self.log_every = task, steps, log_every
    shape = schedule('cosine', steps=steps, warmup=steps // 20)

    @optax.inject_hyperparams
    def optimizer(learning_rate):
      adam = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(shape))
      return optax.chain(adam, optax.scale(-learning_rate))

    self._optimizer = optimizer
    step = make_step(task.loss, optimizer(1.0), model=task.model)
    self.program = parallelize(step, parallel)

  def start(
    self, key: jax.Array, *, learning_rate: float, **settings: float
  ) -> TrainState:
    """The state before the first step; `settings` are of the task's `init`."""
    params, variables = self.task.init(key, **settings)
    return init_state(params, self._optimizer(learning_rate), variables)

  def train(
    self,
    launch: Session,
    label: str,
    tags: Row,
    *,
    seed: int,
    change: Callable[[TrainState], TrainState] = lambda state: state,
    keep: bool = False,
    **settings: float,
  ) -> TrainState | None:
    """One run, or what an earlier launch recorded of it.

    A run that diverges is recorded with an infinite `val_loss`.

    Args:
      launch: the launch; runs with the same seed share their start and batches.
      label: of the run.
      tags: columns of its rows.
      seed: number of the repetition, a column as well.
      change: of the state before the first step.
      keep: whether the last state stays in the workdir.
      **settings: of `start`, columns as well.

    Returns:
      The last state if it is kept and did not diverge, else `None`.
    """
    rows = launch.records.of(label)
    whole = bool(rows) and rows[-1]['step'] == self.steps
    if whole and not (keep and np.isfinite(rows[-1]['val_loss'])):
      launch.progress.skip(self.steps)
      return None
    tags = {**tags, **settings, 'seed': seed}
    key = jax.random.fold_in(launch.key, seed)
    folder = pathlib.Path(launch.workdir) / 'checkpoints' / label
    checkpoints = Checkpoints(folder)
    state = None
    try:
      state = fit(
        self.program,
        change(self.start(key, **settings)),
        self.task.batches(key),
        key,
        steps=self.steps,
        log_every=self.log_every,
        label=label,
        tags=tags,
        evaluate=self.task.evaluate,
        records=launch.records,
        checkpoints=checkpoints,
        checkpoint_last=keep,
        progress=launch.progress,
        stop=launch.stop,
      )
    except NonFiniteLoss as error:  # A result, for unfit starts.
      launch.progress.note(f'{label}: {error}')
      done = launch.records.of(label)
      launch.progress.skip(self.steps - (done[-1]['step'] if done else 0))
      lost = {'run': label, 'step': self.steps, **tags, 'val_loss': np.inf}
      launch.records.add(lost)
    if not keep or state is None:
      checkpoints.delete()
      return None
    return state
