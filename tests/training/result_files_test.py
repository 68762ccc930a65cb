"""Where results go, and that nothing is lost on the way."""

import pathlib

import pytest

from kexue.training.result_files import ResultFiles


def test_targets_are_beside_their_source_or_in_the_output(tmp_path):
  source = tmp_path / 'a.b.png'
  assert ResultFiles().target(source, '.kxd') == tmp_path / 'a.b.kxd'
  there = ResultFiles(tmp_path / 'there')
  assert there.target(source, '.kxd') == tmp_path / 'there' / 'a.b.kxd'
  assert not (tmp_path / 'there').exists()


def test_what_is_there_is_refused_unless_it_may_be_replaced(tmp_path):
  (tmp_path / 'a.kxd').write_text('old')
  with pytest.raises(ValueError, match='a.kxd is there already; --overwrite'):
    ResultFiles().target(tmp_path / 'a.png', '.kxd')
  files = ResultFiles(overwrite=True)
  files.write(files.target(tmp_path / 'a.png', '.kxd'), b'new')
  assert (tmp_path / 'a.kxd').read_bytes() == b'new'


def test_two_sources_of_one_target():
  files = ResultFiles(pathlib.Path('there'), overwrite=True)
  files.target(pathlib.Path('a/x.png'), '.kxd')
  with pytest.raises(ValueError, match='is the result of another file'):
    files.target(pathlib.Path('b/x.png'), '.kxd')


def test_files_are_whole_or_as_they_were(tmp_path, monkeypatch):
  target = tmp_path / 'deep' / 'a.kxd'
  files = ResultFiles()
  files.write(target, b'old')

  def full(self, data):
    with self.open('wb') as file:
      file.write(data[:1])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  with pytest.raises(OSError, match='No space left'):
    files.write(target, b'new')
  assert target.read_bytes() == b'old'
  assert [p.name for p in target.parent.iterdir()] == ['a.kxd']


def test_failures_are_named_and_the_rest_goes_on():
  said = []
  files = ResultFiles(warn=said.append)

  def fail(error):
    raise error

  assert files.attempt('a', lambda: 3) == 3
  assert files.attempt('b', lambda: fail(ValueError('bad'))) is None
  assert files.attempt('c', lambda: fail(FileNotFoundError(2, 'gone'))) is None
  assert files.failed == ['b', 'c']
  assert said == ['kexue: b: bad', 'kexue: c: gone']
  with pytest.raises(ZeroDivisionError):
    files.attempt('d', lambda: 1 / 0)
