"""Checkpoints by orbax: asynchronous, atomic, the last few kept, checked.

A checkpoint is the whole `TrainState` and the run's key. The data position
needs no place of its own: batches are a function of key and step. Orbax writes
to a temporary name and renames, so that a killed run leaves whole checkpoints
only; a SHA-256 of every array, kept beside them, refuses what rotted since.
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


class CorruptCheckpoint(ValueError):
  """The files on disk are not what was saved."""


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(tree: Any) -> Any:
  """Typed keys as their integers, which every file format can hold."""
  unwrap = lambda x: jax.random.key_data(x) if _is_key(x) else x
  return jax.tree.map(unwrap, jax.tree.map(jnp.asarray, tree))


def _typed(tree: Any, like: Any) -> Any:
  """Undoes `_plain`."""
  wrap = lambda x, old: (
    jax.random.wrap_key_data(x, impl=jax.random.key_impl(old))
    if _is_key(old)
    else x
  )
  return jax.tree.map(wrap, tree, like)


def _digest(tree: Any) -> str:
  """SHA-256 over paths, dtypes, shapes and bytes of every replicated array."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    if x.is_fully_replicated:
      digest.update(np.asarray(x).tobytes())
  return digest.hexdigest()


class Checkpoints:
  """The checkpoints of one run in one directory.

  Args:
    directory: made when the first checkpoint is saved.
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
    tree = _plain({'state': state, 'key': key})
    meta = {'sha256': _digest(tree)}
    self._open().save(
      int(state.step),
      args=ocp.args.Composite(
        tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
      ),
    )

  def restore(self, like: Any, key: jax.Array) -> Any:
    """The newest state.

    Args:
      like: a state with the structure, shapes and dtypes that were saved.
      key: the run's key, which must be the one it was saved with.

    Returns:
      The state, or `None` if nothing was saved.

    Raises:
      CorruptCheckpoint: if a file is damaged or of another shape.
      ValueError: if the run had another key.
    """
    step = self.latest
    if step is None:
      return None
    wanted = {'state': like, 'key': key}
    where = self.directory / str(step)
    try:
      found = self._open().restore(
        step,
        args=ocp.args.Composite(
          tree=ocp.args.StandardRestore(_plain(wanted)),
          meta=ocp.args.JsonRestore(),
        ),
      )
      intact = _digest(found.tree) == found.meta['sha256']
    except Exception as error:  # Orbax and tensorstore raise what they like.
      raise CorruptCheckpoint(
        f'{where}: cannot be read ({type(error).__name__}: '
        f'{str(error).splitlines()[0]}); delete it to resume from an earlier '
        'one'
      ) from error
    if not intact:
      raise CorruptCheckpoint(
        f'{where}: the checksum differs from what was saved; delete it to '
        'resume from an earlier one'
      )
    restored = _typed(found.tree, wanted)
    if not np.array_equal(*map(jax.random.key_data, (restored['key'], key))):
      raise ValueError(f'key: {where} was saved by a run with another key')
    return restored['state']

  def delete(self) -> None:
    """Removes the directory: the run is complete and recorded."""
    self.close()
    shutil.rmtree(self.directory, ignore_errors=True)

  def close(self) -> None:
    """Waits for what is being saved."""
    if self._manager is not None:
      self._manager.wait_until_finished()
      self._manager.close()
      self._manager = None
