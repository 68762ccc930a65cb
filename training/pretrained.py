"""Trained diffusion models on disk: what a codec and figures begin with.

A directory of its own with `model.json`, which says everything but the weights,
and `weights`, which orbax wrote. The json is written last and by renaming, so
that a directory that has one is whole; it holds a SHA-256 over itself and the
weights, and what has rotted is refused.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_shape
from ..diffusion import Schedule, UNet, UNetConfig, denoiser
from ..diffusion.process import PREDICTIONS
from ..diffusion.sampler import Denoise
from .checkpoint import CorruptCheckpoint
from .records import write_json

FORMAT = 1
_ABOUT, _WEIGHTS = 'model.json', 'weights'


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedDiffusion:
  """A trained network with all that it takes to use it.

  Args:
    config: sizes of the network.
    params: its parameters, averages where there were some.
    schedule: the one it was trained with, not respaced, of `S` steps.
    prediction: what it gives, "eps", "x0" or "v".
    image_shape: (H, W, C) of an image.
    kl_per_step: nats that each step tells about a held-out image [S], see
      `kexue.diffusion.kl_per_step`.

  Raises:
    ValueError: if one does not fit another.
  """

  config: UNetConfig
  params: Any
  schedule: Schedule
  prediction: str
  image_shape: tuple[int, int, int]
  kl_per_step: np.ndarray

  def __post_init__(self):
    require_one_of('prediction', self.prediction, PREDICTIONS)
    original = not self.schedule.is_respaced
    require(original, 'schedule', self.schedule, 'the original one')
    require_shape('kl_per_step', self.kl_per_step, (self.schedule.steps,))
    *sides, channels = self.image_shape
    fits = len(sides) == 2 and all(n % self.config.side == 0 for n in sides)
    fits = fits and channels == self.config.channels
    require(fits, 'image_shape', self.image_shape, f'one of {self.config}')

  def network(
    self, label: ArrayLike | None = None
  ) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The network as a function of noisy images and timesteps.

    Args:
      label: class of all images, or int32 [B]; `None` or the number of classes:
        none.

    Returns:
      `network(x [B, H, W, C], t int32 [B])`.
    """

    def apply(x, t):
      given = label is not None
      classes = jnp.broadcast_to(jnp.int32(label), t.shape) if given else None
      return UNet(self.config).apply({'params': self.params}, x, t, classes)

    return apply

  def denoise(self, label: ArrayLike | None = None) -> Denoise:
    """What samplers and codecs take, see `kexue.diffusion.denoiser`."""
    return denoiser(
      self.network(label), self.schedule, prediction=self.prediction
    )

  @property
  def digest(self) -> str:
    """SHA-256 over everything, the weights as float32 by their names."""
    about = json.dumps(self._about(), sort_keys=True)
    digest = hashlib.sha256(about.encode())
    leaves = jax.tree_util.tree_leaves_with_path(self.params)
    named = {jax.tree_util.keystr(path): x for path, x in leaves}
    for name, x in sorted(named.items()):
      digest.update(f'{name}{list(x.shape)}'.encode())
      digest.update(np.asarray(x, '<f4').tobytes())
    return digest.hexdigest()

  @property
  def fingerprint(self) -> bytes:
    """Eight bytes by which a stream knows the model it was made with."""
    return bytes.fromhex(self.digest)[:8]

  def _about(self) -> dict[str, Any]:
    """Everything but the weights, for json; float64 survives it."""
    return {
      'format': FORMAT,
      'config': json.loads(json.dumps(dataclasses.asdict(self.config))),
      'alpha_bar': self.schedule.alpha_bar.tolist(),
      'prediction': self.prediction,
      'image_shape': [*self.image_shape],
      'kl_per_step': np.asarray(self.kl_per_step, np.float64).tolist(),
    }


def save_diffusion(
  directory: os.PathLike[str] | str, model: PretrainedDiffusion
) -> None:
  """Writes a model to a directory of its own.

  With several processes all of them call it.

  Args:
    directory: made, with those above it; holds no model yet.
    model: what `load_diffusion` will return.

  Raises:
    ValueError: if there is a model, or something else. Nothing was touched.
  """
  path = pathlib.Path(directory).absolute()
  others = {p.name for p in path.iterdir()} if path.exists() else set()
  # What a killed process left may go.
  others = {n for n in others if not n.startswith(_WEIGHTS)}
  require(not others, 'directory', str(path), 'one that holds nothing')
  first = jax.process_index() == 0
  if first:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
  multihost_utils.sync_global_devices(f'{path} is empty')
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path / _WEIGHTS, jax.tree.map(jnp.asarray, model.params))
  if first:
    write_json(path / _ABOUT, {**model._about(), 'sha256': model.digest})
  multihost_utils.sync_global_devices(f'{path} is whole')


def is_saved(directory: os.PathLike[str] | str) -> bool:
  """Whether there is a whole model in a directory, or in its `model`."""
  return (_model_directory(directory) / _ABOUT).exists()


def _model_directory(directory) -> pathlib.Path:
  """The directory itself or, if it is that of a run, the model's in it."""
  path = pathlib.Path(directory).expanduser().absolute()
  return path if (path / _ABOUT).exists() else path / 'model'


def load_diffusion(directory: os.PathLike[str] | str) -> PretrainedDiffusion:
  """Reads a model that `save_diffusion` wrote, and checks it.

  Args:
    directory: the model's, or that of a run which has it in `model`.

  Returns:
    `PretrainedDiffusion`.

  Raises:
    CorruptCheckpoint: if a file cannot be read, or is not what was saved.
    ValueError: if there is no model, or one of a newer format.

  Example:
    >>> import tempfile
    >>> config = UNetConfig(width=4, multipliers=(1,), heads=1)
    >>> images, steps = jnp.zeros((1, 4, 4, 1)), jnp.ones(1, int)
    >>> init = jax.jit(UNet(config).init)
    >>> params = init(jax.random.key(0), images, steps)['params']
    >>> model = PretrainedDiffusion(
    ...   config, params, Schedule.cosine(9), 'v', (4, 4, 1), np.ones(9))
    >>> with tempfile.TemporaryDirectory() as run:
    ...   save_diffusion(f'{run}/model', model)
    ...   again = load_diffusion(run)
    >>> again.fingerprint == model.fingerprint
    True
    >>> again.denoise(label=3)(images, 9).shape
    (1, 4, 4, 1)
  """
  path = _model_directory(directory)
  wanted = 'the directory of a model, or of a run that has one'
  require((path / _ABOUT).exists(), 'model', str(directory), wanted)
  try:
    about = json.loads((path / _ABOUT).read_text(encoding='utf-8'))
    known = about['format']
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _corrupt(path, 'cannot be read', error) from error
  require(known == FORMAT, f'{path / _ABOUT}: format', known, f'{FORMAT}')
  try:
    model = _read(path, about)
  except Exception as error:  # Whatever orbax or tensorstore raise.
    raise _corrupt(path, 'cannot be read', error) from error
  if model.digest != about.get('sha256'):
    raise _corrupt(path, 'the checksum is not that of what was saved')
  return model


def _read(path: pathlib.Path, about: dict[str, Any]) -> PretrainedDiffusion:
  sizes = dict(about['config'])
  config = UNetConfig(**sizes | {'multipliers': tuple(sizes['multipliers'])})
  shape = tuple(about['image_shape'])
  some = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  one = jax.ShapeDtypeStruct((1,), jnp.int32)
  like = jax.eval_shape(UNet(config).init, jax.random.key(0), some, one)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    like['params'],
  )
  with ocp.StandardCheckpointer() as checkpointer:
    params = checkpointer.restore(path / _WEIGHTS, like)
  return PretrainedDiffusion(
    config,
    params,
    Schedule(np.array(about['alpha_bar'])),
    about['prediction'],
    shape,
    np.array(about['kl_per_step']),
  )


def _corrupt(path, what: str, error: Exception | None = None):
  reason = f' ({error})'.partition('\n')[0] if error else ''
  return CorruptCheckpoint(f'{path}: {what}{reason}')
