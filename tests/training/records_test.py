"""Rows written, cut and read back; half-written files."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from kexue.training.records import Records, read_csv, write_json


def records(path, **options):
  return Records(path, tensorboard=False, **options)


@hypothesis.given(
  st.lists(
    st.dictionaries(
      st.sampled_from(['loss', 'note', 'step']),
      st.one_of(
        st.floats(allow_nan=False),
        st.integers(),
        st.text('abc ",\'\u4e2d', min_size=1).map(lambda s: 'x' + s),
      ),
      min_size=1,
    ),
    max_size=5,
  )
)
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
def test_rows_come_back(tmp_path_factory, rows):
  path = tmp_path_factory.mktemp('records')
  written = records(path)
  for row in rows:
    written.add(row)
  assert read_csv(path / 'metrics.csv') == rows
  assert records(path).rows == rows  # Continued by the next launch.


def test_numpy_and_infinite_numbers(tmp_path):
  written = records(tmp_path)
  written.add({'loss': np.float32(0.1), 'step': np.int64(3)})
  written.add({'loss': float('inf'), 'step': 4})
  first, second = read_csv(tmp_path / 'metrics.csv')
  assert first == {'loss': float(np.float32(0.1)), 'step': 3}
  assert second['loss'] == float('inf')


def test_a_line_cut_by_a_kill_is_dropped_and_overwritten(tmp_path):
  records(tmp_path).add({'run': 'a', 'step': 1})
  with (tmp_path / 'metrics.csv').open('a') as file:
    file.write('a,')
  continued = records(tmp_path)
  continued.add({'run': 'a', 'step': 2})
  assert [row['step'] for row in read_csv(tmp_path / 'metrics.csv')] == [1, 2]


def test_a_line_of_other_length_is_refused(tmp_path):
  (tmp_path / 'metrics.csv').write_text('run,step\na,1\na\n')
  with pytest.raises(ValueError, match="line 3: got '1 cells', expected 2"):
    records(tmp_path)


def test_keep_cuts_the_file_too(tmp_path):
  written = records(tmp_path)
  for step in range(4):
    written.add({'run': 'ab'[step % 2], 'step': step})
  written.keep(lambda row: row['run'] != 'a' or row['step'] < 1)
  assert [row['step'] for row in read_csv(tmp_path / 'metrics.csv')] == [
    0,
    1,
    3,
  ]
  assert [row['step'] for row in written.of('b')] == [1, 3]


def test_a_process_that_does_not_write_leaves_nothing(tmp_path):
  silent = Records(tmp_path / 'none', write=False)
  silent.add({'run': 'a', 'step': 1, 'loss': 0.5})
  silent.keep(lambda row: False)
  assert not (tmp_path / 'none').exists()
  records(tmp_path).add({'run': 'a', 'step': 1})
  assert Records(tmp_path, write=False).rows == [{'run': 'a', 'step': 1}]


def test_rows_can_stay_in_memory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  records(tmp_path).add({'run': 'somebody else', 'step': 1})
  memory = Records(None)
  memory.add({'run': 'a', 'step': 1, 'loss': 0.5})
  assert len(memory.rows) == 1 and len(read_csv('metrics.csv')) == 1


def test_curves_reach_tensorboard(tmp_path, caplog):
  written = Records(tmp_path)
  for run in ('a', 'b'):
    for step in (1, 2):
      row = {'run': run, 'step': step, 'loss': 0.5}
      written.add(row | {'bound': np.inf, 'unknown': np.nan})
  written.close()
  assert not caplog.records
  events = list((tmp_path / 'tensorboard').glob('*/events*'))
  assert {path.parent.name for path in events} == {'a', 'b'}
  assert all(b'loss' in path.read_bytes() for path in events)


def test_json_holds_no_nan_and_replaces_whole_files(tmp_path):
  path = tmp_path / 'result.json'
  write_json(path, {'a': 1})
  write_json(
    path, {'a': float('nan'), 'b': [float('-inf'), 2], 3: np.float32(1)}
  )
  assert json.loads(path.read_text()) == {
    'a': 'nan',
    'b': ['-inf', 2],
    '3': 1.0,
  }
  with pytest.raises(TypeError):
    write_json(path, {'a': object()})
  assert json.loads(path.read_text())['a'] == 'nan'
  assert [p.name for p in tmp_path.iterdir()] == ['result.json']
