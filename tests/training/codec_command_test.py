"""The codec's command line, with a small network: what it says and returns."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kexue.diffusion import Schedule, UNet, UNetConfig
from kexue.training.codec_command import run
from kexue.training.pretrained import PretrainedDiffusion, save_diffusion

CONFIG = UNetConfig(width=4, multipliers=(1,), heads=1, num_classes=0)
FLAGS = ['--model=run', '--rate=1.5']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run's directory with a model, and three pictures beside it."""
  folder = tmp_path_factory.mktemp('codec')
  x, t = jnp.zeros((1, 8, 8, 1)), jnp.ones(1, int)
  shapes = jax.eval_shape(UNet(CONFIG).init, jax.random.key(0), x, t)['params']
  rng = np.random.default_rng(0)
  weights = lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32)
  save_diffusion(
    folder / 'run' / 'model',
    PretrainedDiffusion(
      CONFIG,
      jax.tree.map(weights, shapes),
      Schedule.cosine(30),
      'v',
      (8, 8, 1),
      np.ones(30),
    ),
  )
  for name, size in (('a', (8, 8)), ('b', (16, 24)), ('c', (8, 8))):
    picture = rng.integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(picture).save(folder / f'{name}.png')
  (folder / 'bad.png').write_text('no picture')
  return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
  monkeypatch.chdir(folder)


def listing():
  return sorted(p.name for p in pathlib.Path('.').iterdir())


def test_there_and_back_in_another_process(folder, capsys):
  names = ['a.png', 'b.png', 'c.png']
  assert run(['encode', *names, *FLAGS, '--strict', '--output=there']) == 0
  shown = capsys.readouterr().out
  assert all(f'there/{n[0]}.kxd: 1.37' in shown for n in 'abc')
  assert shown.count(' dB') == 3 and shown.count('\n') == 3
  streams = [f'there/{name}.kxd' for name in 'abc']
  assert run(['decode', *streams, '--model=run/model', '--output=back']) == 0
  # One alone, elsewhere, with the flags first.
  command = [sys.executable, '-m', 'kexue.launch', 'codec', 'decode']
  result = subprocess.run(
    [*command, '--model=run', '--output=apart', 'there/b.kxd'],
    capture_output=True,
    text=True,
    env=os.environ,
  )
  assert result.returncode == 0, result.stderr
  assert 'there/b.kxd -> apart/b.png: 24x16 pixels' in result.stdout
  apart = pathlib.Path('apart/b.png').read_bytes()
  assert apart == pathlib.Path('back/b.png').read_bytes()
  capsys.readouterr()
  assert run(['info', *streams]) == 0
  assert capsys.readouterr().out.count('model     ') == 3


def test_bad_files_are_named_and_make_it_2(capsys):
  before = listing()
  found = run(['encode', 'bad.png', 'a.png', 'none.png', *FLAGS, '--output=o'])
  assert found == 2 and sorted([*before, 'o']) == listing()
  error = capsys.readouterr().err.splitlines()
  assert error[0] == 'kexue: bad.png: is no PNG file'
  assert error[1] == 'kexue: none.png: No such file or directory'
  assert error[2] == 'kexue: 2 of 3 files failed'
  assert run(['encode', 'a.png', *FLAGS, '--output=o']) == 2
  assert 'o/a.kxd is there already; --overwrite' in capsys.readouterr().err
  assert run(['info', 'a.png', 'none.kxd']) == 2
  assert run(['encode', 'a.png', '--model=run', '--rate=99', '--output=p']) == 2
  assert 'a.png: rate: got 99 bits a pixel' in capsys.readouterr().err


@pytest.mark.parametrize(
  'args, message',
  [
    ([], "codec: got '', expected one of 'encode', 'decode', 'info'"),
    (['compress', 'a.png'], "codec: got 'compress'"),
    (['encode'], "files: got 'none', expected files to encode"),
    (['encode', 'a.png'], '--model: got None, expected a directory'),
    (['decode', 'a.kxd', '--model=none'], "model: got 'none', expected the"),
    (['encode', 'a.png', '--rate=x'], 'rate'),
    (['encode', 'a.png', '--rate=-1'], 'rate'),
    (['encode', 'a.png', '--packing=zip'], 'packing'),
    (['decode', 'a.png', '--steps=-1'], 'steps'),
    (['encode', 'a.png', '--quality=9'], "Unknown command line flag 'quality'"),
  ],
)
def test_mistakes_touch_nothing(args, message):
  before = listing()
  with pytest.raises(Exception, match=message) as caught:
    run(args)
  assert isinstance(caught.value, ValueError) or 'absl' in str(caught.type)
  assert listing() == before


def test_help_names_every_flag(capsys):
  assert run(['--help']) == 0
  shown = capsys.readouterr().out
  for part in ('codec encode IMAGE', '--rate', 'strict', '--steps', 'lenient'):
    assert part in shown


def test_stopping_leaves_whole_files(monkeypatch, capsys):
  from kexue.training import codec_files

  def stop(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(codec_files, 'describe_files', stop)
  assert run(['info', 'a.kxd']) == 130
  assert 'files that are there are whole' in capsys.readouterr().err
