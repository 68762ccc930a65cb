"""Whose directory it is, and that refusing touches nothing."""

import json
import os

import pytest

from kexue.training.workdir import (
  WorkdirRefused,
  environment,
  prepare,
  read_identity,
)

RUN = {
  'figure': 'a',
  'preset': 'quick',
  'seed': 0,
  'parallel': 'pmap',
  'config': {'widths': (1, 2)},
}


def listing(path):
  return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def test_a_run_finds_its_own_directory_again(tmp_path):
  path = tmp_path / 'deep' / 'run'
  prepare(path, RUN)
  (path / 'metrics.csv').write_text('run\n')
  prepare(path, RUN)
  assert (path / 'metrics.csv').exists()
  assert read_identity(path / 'config.json')['config'] == {'widths': [1, 2]}


def test_another_run_is_refused_and_says_how_they_differ(tmp_path):
  prepare(tmp_path, RUN)
  before = listing(tmp_path)
  with pytest.raises(WorkdirRefused, match='seed 0, not 1.*--overwrite'):
    prepare(tmp_path, RUN | {'seed': 1})
  assert listing(tmp_path) == before


def test_overwrite_removes_what_runs_write_and_nothing_else(tmp_path):
  prepare(tmp_path, RUN)
  for name in ('metrics.csv', 'notes.txt'):
    (tmp_path / name).write_text('x')
  (tmp_path / 'checkpoints' / 'a').mkdir(parents=True)
  prepare(tmp_path, RUN | {'seed': 1}, overwrite=True)
  assert set(os.listdir(tmp_path)) == {'config.json', 'notes.txt'}
  assert read_identity(tmp_path / 'config.json')['seed'] == 1


def test_a_directory_of_something_else_is_refused_even_to_overwrite(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(WorkdirRefused, match='not empty and holds no run'):
    prepare(tmp_path, RUN, overwrite=True)
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_what_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(WorkdirRefused, match='cannot be written'):
    prepare(tmp_path / 'file' / 'run', RUN)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(WorkdirRefused, match='cannot be read'):
    prepare(tmp_path, RUN)
  for foreign in ('[1]', '{"model_type": "bert"}'):
    (tmp_path / 'config.json').write_text(foreign)
    with pytest.raises(WorkdirRefused, match='is not the config.json of a run'):
      prepare(tmp_path, RUN, overwrite=True)


def test_environment_is_plain_json():
  found = json.loads(json.dumps(environment()))
  assert found['versions']['jax'] and sum(found['devices'].values()) == 8
