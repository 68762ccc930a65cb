"""Files made of files: where each goes, and which came to nothing.

Nothing is written before it is whole, nothing that is there is replaced unless
that was asked for, and a file that is bad is named while the others go on.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class ResultFiles:
  """Where results go, and which files failed.

  Args:
    output: directory, made when it is needed; `None`: beside the sources.
    overwrite: whether files that are there may be replaced.
    say: gets a line for each file that is done.
    warn: gets a line for each that is not.

  Attributes:
    failed: files that failed so far.

  Example:
    >>> files = ResultFiles(pathlib.Path('there'), warn=print)
    >>> files.target(pathlib.Path('a/b.png'), '.kxd').as_posix()
    'there/b.kxd'
    >>> files.attempt('a/c.png', lambda: pathlib.Path('a/c.png').read_bytes())
    kexue: a/c.png: No such file or directory
    >>> files.failed
    ['a/c.png']
  """

  output: pathlib.Path | None = None
  overwrite: bool = False
  say: Callable[[str], Any] = print
  warn: Callable[[str], Any] = lambda line: print(line, file=sys.stderr)
  failed: list[Any] = dataclasses.field(default_factory=list)
  _taken: set[pathlib.Path] = dataclasses.field(default_factory=set)

  def target(self, source: pathlib.Path, suffix: str) -> pathlib.Path:
    """Where the result of a file goes.

    Raises:
      ValueError: if something is there, or another file's result will be.
    """
    target = (self.output or source.parent) / (source.stem + suffix)
    if target in self._taken:
      raise ValueError(f'{target} is the result of another file')
    if target.exists() and not self.overwrite:
      raise ValueError(f'{target} is there already; --overwrite replaces it')
    self._taken.add(target)
    return target

  def write(self, target: pathlib.Path, data: bytes) -> None:
    """Whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'{target.name}.{os.getpid()}.partial')
    try:
      partial.write_bytes(data)
      partial.replace(target)
    finally:
      partial.unlink(missing_ok=True)

  def note(self, source: Any, text: Any) -> None:
    """One line about a file that is worth a warning."""
    self.warn(f'kexue: {source}: {text}')

  def attempt(self, source: Any, do: Callable[[], Any]) -> Any:
    """What `do` returns; if it fails, `None`, and a line that says of what."""
    try:
      return do()
    except (OSError, ValueError) as error:
      self.failed.append(source)
      self.note(source, getattr(error, 'strerror', None) or error)
      return None
