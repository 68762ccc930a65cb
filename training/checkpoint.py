"""Checkpoints by orbax: asynchronous, atomic, the last few kept, checked.

A checkpoint is the whole `TrainState`, and beside it the run's key, the shapes
and a SHA-256 of every array. The data position needs no place of its own:
batches are a function of key and step. Orbax writes to a temporary name and
renames, so that a killed run leaves whole checkpoints only; the checksum
refuses what rotted since.
"""

import hashlib
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ..checks import require


class CorruptCheckpoint(ValueError):  # noqa: N818  (a state, not a mistake)
  """The files on disk are not what was saved."""


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(tree: Any) -> Any:
  """Typed keys as their integers, which every file format can hold."""
  unwrap = lambda x: jax.random.key_data(x) if _is_key(x) else x
  return jax.tree.map(lambda x: unwrap(jnp.asarray(x)), tree)


def _typed(tree: Any, like: Any) -> Any:
  """Undoes `_plain`."""

  def wrap(x, old):
    if not _is_key(old):
      return x
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old))

  return jax.tree.map(wrap, tree, like)


def _shapes(tree: Any) -> dict[str, str]:
  """Dtype and shape of each array by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  name = jax.tree_util.keystr
  return {name(path): f'{x.dtype}{list(x.shape)}' for path, x in leaves}


def _digest(tree: Any) -> str:
  """SHA-256 over the shapes and the bytes of every replicated array."""
  digest = hashlib.sha256(repr(_shapes(tree)).encode())
  for x in jax.tree.leaves(tree):
    if x.is_fully_replicated:
      digest.update(np.asarray(x).tobytes())
  return digest.hexdigest()


class Checkpoints:
  """The checkpoints of one run in one directory.

  Args:
    directory: made when the first checkpoint is saved; with several processes
      one that all of them see.
    keep: how many of the newest stay.

  Example:
    >>> import tempfile
    >>> from kexue.training import TrainState
    >>> state = TrainState(step=jnp.array(7), params=jnp.arange(3.0))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   checkpoints = Checkpoints(directory)
    ...   checkpoints.save(state, jax.random.key(0))
    ...   restored = checkpoints.restore(state, jax.random.key(0))
    ...   checkpoints.close()
    >>> int(restored.step), restored.params.tolist()
    (7, [0.0, 1.0, 2.0])
  """

  def __init__(self, directory: os.PathLike[str] | str, *, keep: int = 2):
    self.directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._manager: ocp.CheckpointManager | None = None

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=self._keep, create=True, enable_async_checkpointing=True
      )
      self._manager = ocp.CheckpointManager(self.directory, options=options)
    return self._manager

  @property
  def latest(self) -> int | None:
    """The newest step saved, or `None`."""
    if self._manager is None and not self.directory.exists():
      return None
    return self._open().latest_step()

  def save(self, state: Any, key: jax.Array) -> None:
    """Starts saving; returns once the arrays are copied off the devices."""
    tree = _plain(state)
    about = {
      'key': np.asarray(jax.random.key_data(key)).tolist(),
      'shapes': _shapes(tree),
      'sha256': _digest(tree),
    }
    items = {
      'tree': ocp.args.StandardSave(tree),
      'about': ocp.args.JsonSave(about),
    }
    self._open().save(int(state.step), args=ocp.args.Composite(**items))

  def wait(self) -> None:
    """Returns when everything is on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def _read(self, step: int, name: str, args: Any) -> Any:
    """One item of a checkpoint, whatever orbax or tensorstore raise."""
    try:
      return self._open().restore(
        step, args=ocp.args.Composite(**{name: args})
      )[name]
    except Exception as error:
      reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
      raise self._corrupt(step, f'cannot be read ({reason})') from error

  def _corrupt(self, step: int, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
      f'{self.directory / str(step)}: {what}; delete it to resume from an '
      'earlier one'
    )

  def restore(self, like: Any, key: jax.Array) -> Any:
    """The newest state.

    Args:
      like: a state with the structure, shapes and dtypes that were saved, on
        the devices where the new one is wanted.
      key: the run's key, which must be the one it was saved with.

    Returns:
      The state, or `None` if nothing was saved.

    Raises:
      CorruptCheckpoint: if a file is damaged.
      ValueError: if the run had another key or other arrays.
    """
    step = self.latest
    if step is None:
      return None
    about = self._read(step, 'about', ocp.args.JsonRestore())
    wanted = _plain(like)
    found, shapes = about['shapes'], _shapes(wanted)
    differ = [n for n in {**shapes, **found} if shapes.get(n) != found.get(n)]
    for name in differ[:1]:
      require(
        False,
        f'state{name}',
        shapes.get(name),
        f'{found.get(name)} as in {self.directory / str(step)}',
      )
    require(
      about['key'] == np.asarray(jax.random.key_data(key)).tolist(),
      'key',
      jax.random.key_data(key),
      f'{about["key"]} as in {self.directory / str(step)}',
    )
    tree = self._read(step, 'tree', ocp.args.StandardRestore(wanted))
    if _digest(tree) != about['sha256']:
      raise self._corrupt(step, 'the checksum is not that of what was saved')
    return _typed(tree, like)

  def delete(self) -> None:
    """Removes the directory: the run is complete and recorded."""
    self.close()
    if jax.process_index() == 0:
      shutil.rmtree(self.directory, ignore_errors=True)

  def close(self) -> None:
    """Waits for what is being saved."""
    if self._manager is not None:
      self._manager.wait_until_finished()
      self._manager.close()
      self._manager = None
