"""What a command line means: flags over config file over preset."""

import json

import pytest

from kexue.figures import default_config
from kexue.figures.command_line import Refused, parse, refusing


def test_defaults_are_those_of_the_preset():
  values, config = parse(['launch.py', '--preset=full'])
  assert (values.figure, values.seed, values.parallel) == (
    'muon_vs_adamw',
    0,
    'pmap',
  )
  assert config == default_config('muon_vs_adamw', 'full')


def test_flags_change_fields_of_every_kind():
  _, config = parse(
    [
      'launch.py',
      '--config.widths=16,32',
      '--config.learning_rates=1,0.5',
      '--config.seeds=3',
      '--config.budgets=0.5',
    ]
  )
  assert config.widths == (16, 32) and config.learning_rates == (1.0, 0.5)
  assert config.seeds == 3 and config.budgets == (0.5,)
  # Nothing stays behind for the next command line.
  assert parse(['launch.py'])[1] == default_config('muon_vs_adamw')


def test_a_config_file_stands_between_preset_and_flags(tmp_path):
  path = tmp_path / 'config.json'
  saved = {
    'figure': 'muon_vs_adamw',
    'preset': 'full',
    'seed': 7,
    'parallel': 'jit',
    'config': {'widths': [16], 'steps': [50], 'seeds': 4},
  }
  path.write_text(json.dumps(saved))
  file = f'--config_file={path}'
  values, config = parse(['launch.py', file, '--config.seeds=2', '--seed=1'])
  assert (values.preset, values.seed, values.parallel) == ('full', 1, 'jit')
  assert (config.widths, config.steps, config.seeds) == ((16,), (50,), 2)


def test_refusing_keeps_the_message_of_any_mistake():
  for error in (KeyError('no such'), ValueError('wrong'), OSError(2, 'gone')):
    with pytest.raises(Refused, match='no such|wrong|gone'), refusing():
      raise error
  with pytest.raises(ZeroDivisionError), refusing():
    raise ZeroDivisionError
