"""The command line: what it runs, refuses, resumes; mostly in this process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from kexue import launch

TINY = [
  '--config.widths=16',
  '--config.steps=8',
  '--config.layers=1',
  '--config.length=16',
  '--config.batch_size=8',
  '--config.learning_rates=0.01,0.02',
  '--config.log_points=4',
  '--config.validation_windows=8',
  '--config.seeds=1',
]


def run(*args):
  return launch.main(['launch.py', *map(str, args)])


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
  """A text of our own under the name of the default one, and a place to run."""
  data = tmp_path / 'data'
  data.mkdir()
  (data / 'kjv.txt').write_text('In the beginning was the word. ' * 200)
  monkeypatch.chdir(tmp_path)
  handler = signal.getsignal(signal.SIGTERM)
  yield data
  signal.signal(signal.SIGTERM, handler)


def test_a_run_is_complete_repeatable_and_redrawn(text, capsys):
  args = [*TINY, f'--data_dir={text}', '--workdir=w']
  assert run(*args) == 0
  workdir = pathlib.Path('w')
  names = {p.name for p in workdir.iterdir()}
  assert {'config.json', 'metrics.csv', 'result.json', 'figure.png'} <= names
  result = json.loads((workdir / 'result.json').read_text())
  assert result['numbers']['steps_to_target_ratio']['mean'] > 0
  assert result['config']['widths'] == [16]
  rows = (workdir / 'metrics.csv').read_bytes()
  assert run(*args) == 0  # Nothing is left to do.
  assert (workdir / 'metrics.csv').read_bytes() == rows

  (workdir / 'figure.png').unlink()
  assert run('--workdir=w', '--plot_only') == 0
  assert (workdir / 'figure.png').exists()

  assert run(*args, '--seed=1') == 2  # Another run.
  assert 'seed 0, not 1' in capsys.readouterr().err
  assert (workdir / 'metrics.csv').read_bytes() == rows

  # A config file repeats the run.
  again = ['--config_file=w/config.json', f'--data_dir={text}']
  assert run(*again, '--workdir=v', '--parallel=shard_map') == 0
  other = json.loads(pathlib.Path('v/config.json').read_text())
  assert other['parallel'] == 'shard_map'
  assert other['config'] == result['config']


@pytest.mark.parametrize(
  'args, message',
  [
    (['--figure=surg'], '--figure=surg: value should be one of <muon_vs_adamw'),
    (['--preset=fast'], 'value should be one of <quick|full>'),
    (['--parallel=tpu'], 'value should be one of <pmap|shard_map|jit>'),
    (['--config.width=3'], 'the fields are dataset, widths, steps'),
    (['--config.layers=x'], 'config.layers'),
    (['--config.widths=8,x'], "config.widths: got '8,x'"),
    (['--config.widths=8'], 'config.steps'),
    (['--config.dataset=zz'], "name: got 'zz', expected one of"),
    (['--seed=x'], 'seed'),
    (['--seed=-1'], 'seed'),
    (['--nonsense=1'], "Unknown command line flag 'nonsense'"),
    (['nonsense'], "arguments: got 'nonsense', expected flags only"),
    (['--workdir=file/run'], 'file/run: cannot be written'),
    (['--workdir=data'], 'data: is not empty and holds no run'),
    (['--workdir=none', '--plot_only'], 'none/config.json: there is no run'),
    (['--config_file=none.json'], 'none.json: there is no run'),
    (['--config_file=data/kjv.txt'], 'kjv.txt: cannot be read'),
    (['--config_file=list.json'], 'list.json: is not the config.json of a run'),
    (['--config_file=extra.json'], "config: got 'extra', expected one of"),
    (['--config_file=full.json', '--preset=quick'], "preset: got 'quick'"),
    (['--config.widths.x=1'], 'the fields are dataset'),
    (['--config.widths[0]=1'], 'widths[0]'),
    (['--config.batch_size=12'], 'a multiple of the 8 devices'),
    (
      ['--figure=moe_balancing', '--config.expert_devices=8'],
      "parallel: got 'pmap', expected shard_map for experts over 8 devices",
    ),
    (['--seed=99999999999999999999999'], 'seed'),
    (['--simulated_devices=0'], 'simulated_devices'),
    (['--num_processes=2', '--process_id=0'], 'expected all three'),
    (['--data_dir=none'], "data_dir: got 'none', expected a folder"),
    (['codec'], "codec: got '', expected one of 'encode', 'decode', 'info'"),
    (['codec', 'encode', 'a.png'], '--model: got None, expected a directory'),
    (['codec', 'decode', 'a.kxd', '--model=data'], "model: got 'data'"),
    (['codec', 'info', 'a.kxd'], 'kexue: a.kxd: No such file or directory'),
    (['codec', 'info', 'a.kxd', '--rate=x'], 'rate'),
  ],
)
def test_mistakes_are_one_line_code_2_and_touch_nothing(args, message, capsys):
  pathlib.Path('file').write_text('x')
  pathlib.Path('list.json').write_text('[1]')
  about = {'figure': 'muon_vs_adamw', 'preset': 'full', 'parallel': 'jit'}
  for name, config in (('extra', {'extra': 1}), ('full', {})):
    whole = about | {'seed': 0, 'config': config}
    pathlib.Path(f'{name}.json').write_text(json.dumps(whole))
  before = sorted(p.as_posix() for p in pathlib.Path('.').rglob('*'))
  assert run(*args) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
  assert before == sorted(p.as_posix() for p in pathlib.Path('.').rglob('*'))


def test_list_and_help(capsys):
  assert run('--list') == 0
  listed = capsys.readouterr().out
  assert 'muon_vs_adamw' in listed and '2502.16982' in listed
  assert run('--figure=muon_vs_adamw', '--preset=full', '--help') == 0
  shown = capsys.readouterr().out
  assert '--workdir' in shown and '--config.widths=32,64,128' in shown
  assert run('--figure=all', '--help') == 0


def test_all_figures_run_in_their_own_directories(monkeypatch):
  seen = []
  monkeypatch.setattr(
    launch, 'reproduce', lambda v, c: seen.append((v.figure, v.workdir))
  )
  assert run('--figure=all', '--workdir=many') == 0
  assert ('muon_vs_adamw', 'many/muon_vs_adamw-quick') in seen


def test_sigterm_saves_exits_0_and_says_how_to_resume(text):
  long = {'steps': 4000, 'log_points': 1000}
  tiny = [f for f in TINY if f.split('=')[0].split('.')[1] not in long]
  command = [
    sys.executable,
    '-m',
    'kexue.launch',
    *tiny,
    *(f'--config.{k}={v}' for k, v in long.items()),
    f'--data_dir={text}',
    '--workdir=w',
  ]
  process = subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, env=os.environ
  )
  metrics = pathlib.Path('w/metrics.csv')
  for _ in range(600):
    if metrics.exists() and metrics.read_text().count('\n') > 3:
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 0, error
  assert 'stopped at step' in error and '--workdir=w' in error
  assert len(list(pathlib.Path('w/checkpoints').glob('*/*'))) == 1
