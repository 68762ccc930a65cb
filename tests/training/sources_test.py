import bz2
import gzip
import pathlib

import numpy as np
import pytest

from kexue.training import sources


def test_package_file_takes_wildcards():
  path = sources.package_file('numpy', 'linalg/_lin*.py')
  assert path == pathlib.Path(np.__file__).parent / 'linalg/_linalg.py'


@pytest.mark.parametrize(
  'package, name',
  [('numpy', 'nothing.*'), ('no_such_package', 'x'), ('bz2', 'x')],
)
def test_missing_package_file_is_named(package, name):
  with pytest.raises(FileNotFoundError) as caught:
    sources.package_file(package, name)
  assert str(caught.value) == f'{name} of the Python package {package}'


def test_package_version():
  assert sources.package_version('numpy') == f'numpy {np.__version__}'
  assert sources.package_version('no-such-package') == 'no-such-package'


def test_debian_folder(tmp_path):
  assert sources.debian_folder(str(tmp_path), 'base') == tmp_path
  with pytest.raises(FileNotFoundError, match='x of the Debian package base'):
    sources.debian_folder(str(tmp_path / 'x'), 'base')


@pytest.mark.parametrize('codec', [gzip, bz2])
def test_inflate(tmp_path, codec):
  path = tmp_path / 'x'
  good = codec.compress(b'abc' * 100)
  path.write_bytes(good)
  assert sources.inflate(path, codec.decompress) == b'abc' * 100
  for bad in (good[:-5], b'abc'):
    path.write_bytes(bad)
    with pytest.raises(ValueError, match='x is corrupt'):
      sources.inflate(path, codec.decompress)
