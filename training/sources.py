"""What the readers of data sets share: what they return, where files are.

Every `read_<name>` of `text_sources`, `image_sources` and `weight_sources`
returns a `Raw` and finds its package without importing it; some look first in
`data_dir`, the folder of files that a user brought. Nothing is downloaded and
nothing is written.

A source that is not there is a `FileNotFoundError`; one that is there but is
malformed is a `ValueError`. Hashes are checked by `data.load`, not here.
"""

import gzip
import importlib.metadata
import importlib.util
import pathlib
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Raw(NamedTuple):
  """What a reader returns.

  Attributes:
    data: uint8 [N] bytes of a text, or a dict of arrays with N examples.
    source: which package or file it came from.
    test: the official test split, like `data`, or None where there is none.
    hashed: whether a hash of these arrays is known; if not, the reader has
      checked shapes, labels and counts instead.
  """

  data: np.ndarray | Arrays
  source: str
  test: np.ndarray | Arrays | None = None
  hashed: bool = True


def package_file(package: str, name: str) -> pathlib.Path:
  """Path of the file `name` (a glob) in a package, without importing it.

  Args:
    package: top-level import name, such as 'sklearn'.
    name: path inside the package; wildcards are allowed.

  Returns:
    The path of the first match.

  Raises:
    FileNotFoundError: the package is not installed or has no such file.
  """
  spec = importlib.util.find_spec(package)
  for folder in (spec and spec.submodule_search_locations) or ():
    for path in sorted(pathlib.Path(folder).glob(name)):
      return path
  raise FileNotFoundError(f'{name} of the Python package {package}')


def package_version(distribution: str) -> str:
  """'gensim 4.4.0', or the name alone where the version is not recorded."""
  try:
    return f'{distribution} {importlib.metadata.version(distribution)}'
  except importlib.metadata.PackageNotFoundError:
    return distribution


def debian_folder(path: str, package: str) -> pathlib.Path:
  """The folder `path`, which a Debian package installs.

  Raises:
    FileNotFoundError: it is not there; names the package.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} of the Debian package {package}')
  return folder


def inflate(
  path: pathlib.Path, decompress: Callable[[bytes], bytes] = gzip.decompress
) -> bytes:
  """Decompressed bytes of a file.

  Raises:
    ValueError: the file is corrupt.
  """
  try:
    return decompress(path.read_bytes())
  except (EOFError, OSError, ValueError, zlib.error) as error:
    raise ValueError(f'{path} is corrupt: {error}') from error
