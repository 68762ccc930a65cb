"""A run's directory: which run it belongs to, and what it may overwrite."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import Any

import jax

from .records import write_json

# All that a run writes; `--overwrite` removes these and nothing else.
_OURS = (
  'config.json',
  'metrics.csv',
  'result.json',
  'figure.png',
  'tensorboard',
  'checkpoints',
  'model',
)
# What every config.json of ours has.
_IDENTITY = {'figure', 'preset', 'seed', 'parallel', 'config'}
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'chex',
  'numpy',
  'orbax-checkpoint',
)


class WorkdirRefused(ValueError):
  """The directory cannot be used for this run; nothing was touched."""


def read_identity(path: os.PathLike[str] | str) -> dict[str, Any]:
  """What `prepare` wrote to a `config.json`."""
  path = pathlib.Path(path)
  if not path.exists():
    raise WorkdirRefused(f'{path}: there is no run')
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise WorkdirRefused(f'{path}: cannot be read ({error})') from None
  if not isinstance(found, dict) or not _IDENTITY <= set(found):
    raise WorkdirRefused(f'{path}: is not the config.json of a run')
  return found


def prepare(
  workdir: os.PathLike[str] | str,
  identity: dict[str, Any],
  *,
  overwrite: bool = False,
) -> None:
  """Makes the directory of a run, or checks that it is this run's.

  Args:
    workdir: the directory.
    identity: what makes the run what it is, for json: `figure`, `preset`,
      `seed`, `parallel` and `config`; written to `config.json`.
    overwrite: remove what another run left. Files that no run writes are never
      removed.

  Raises:
    WorkdirRefused: if it belongs to another run, holds other files, or cannot
      be written. Nothing was touched.
  """
  path = pathlib.Path(workdir)
  identity = json.loads(json.dumps(identity))  # Tuples as lists, as read back.
  existing = path
  while not existing.exists():
    existing = existing.parent
  if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
    raise WorkdirRefused(f'{path}: cannot be written')
  found = None
  if (path / 'config.json').exists():
    found = read_identity(path / 'config.json')
  elif path.exists() and any(path.iterdir()):
    raise WorkdirRefused(f'{path}: is not empty and holds no run')
  if found is not None and found != identity and not overwrite:
    raise WorkdirRefused(
      f'{path}: holds another run ({_difference(found, identity)}); choose '
      'another --workdir, or --overwrite it'
    )
  if found is not None and overwrite:
    for name in _OURS:
      target = path / name
      if target.is_dir():
        shutil.rmtree(target)
      else:
        target.unlink(missing_ok=True)
  try:
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / 'config.json', identity)
  except OSError as error:
    raise WorkdirRefused(
      f'{path}: cannot be written ({error.strerror})'
    ) from None


def _difference(found: Any, wanted: Any) -> str:
  """The first few fields in which two identities differ."""

  def flat(tree, prefix=''):
    if not isinstance(tree, dict):
      return {prefix[:-1]: tree}
    parts = [flat(v, f'{prefix}{k}.') for k, v in tree.items()]
    return {k: v for part in parts for k, v in part.items()}

  old, new = flat(found), flat(wanted)
  fields = [k for k in {**old, **new} if old.get(k) != new.get(k)]
  shown = [f'{k} {old.get(k)!r}, not {new.get(k)!r}' for k in fields[:3]]
  return ', '.join(shown) + (', ...' if len(fields) > 3 else '')


def environment() -> dict[str, Any]:
  """Versions, devices and commit, for `result.json`.

  >>> sorted(environment())
  ['commit', 'devices', 'processes', 'python', 'versions']
  """
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  kinds = [d.device_kind for d in jax.devices()]
  return {
    'commit': _commit(),
    'devices': {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    'processes': jax.process_count(),
    'python': f'{platform.python_version()} on {sys.platform}',
    'versions': versions,
  }


def _commit() -> str | None:
  """The commit of the source tree, marked if it was changed since."""
  root = pathlib.Path(__file__).parent.parent
  git = lambda *args: subprocess.run(
    ['git', '-C', str(root), *args],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()
  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')) != root.resolve():
      return None  # Installed inside somebody else's repository.
    changed = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + (' with changes' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return None
