"""The files that a drawing leaves."""

import json
import types

import pytest

from kexue import figures
from kexue.figures import draw as module
from kexue.training.records import Records


@pytest.fixture
def toy(monkeypatch):
  """A figure of one panel that draws the loss and returns the last one."""

  def plot(rows, axes):
    axes['only'].plot([r['step'] for r in rows], [r['loss'] for r in rows])
    return {'last': rows[-1]['loss']}

  figure = types.SimpleNamespace(MOSAIC=[['only']], plot=plot)
  monkeypatch.setitem(
    figures.FIGURES, 'toy', figures.Figure('p', 'c', '1', '2')
  )
  monkeypatch.setattr(module, 'load', lambda name: figure)


def test_picture_and_result_come_from_the_records_alone(toy, tmp_path):
  records = Records(tmp_path, tensorboard=False)
  for step in (1, 2):
    for run in 'ab':
      records.add({'run': run, 'step': step, 'loss': 1 / step, 'seconds': step})
  module.draw('toy', tmp_path, {'figure': 'toy', 'seed': 3})
  assert (tmp_path / 'figure.png').read_bytes()[:4] == b'\x89PNG'
  result = json.loads((tmp_path / 'result.json').read_text())
  assert result['numbers'] == {'last': 0.5} and result['seed'] == 3
  assert result['training_seconds'] == 4  # Two seconds of each run.
  assert result['ran_on'] is None
  module.draw('toy', tmp_path, {'figure': 'toy'}, {'commit': 'abc'})
  # Drawn again elsewhere, it still says where it ran.
  assert module.draw('toy', tmp_path, {})['ran_on'] == {'commit': 'abc'}
  assert not list(tmp_path.glob('*partial*'))


def test_without_records_nothing_is_drawn(toy, tmp_path):
  with pytest.raises(ValueError, match='no metrics.csv'):
    module.draw('toy', tmp_path, {})
  assert not list(tmp_path.iterdir())
