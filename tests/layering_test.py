"""The floors of the house: imports run downward, science knows no files."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import kexue

ROOT = pathlib.Path(kexue.__file__).parent
FLOORS = {
  'checks': 0,
  'mapped_axes': 0,
  'lowrank': 1,
  'optimizers': 2,
  'scaling': 3,
  'models': 3,
  'diffusion': 3,
  'training': 4,
  'figures': 5,
}
SCIENCE = ('lowrank', 'optimizers', 'scaling', 'models', 'diffusion')
FOREIGN = ('matplotlib', 'orbax', 'tensorstore', 'ml_collections', 'tqdm')


def modules(room):
  return sorted((ROOT / room).glob('*.py'))


def imported_rooms(path):
  """Rooms that a file's relative imports reach."""
  room = path.parent.relative_to(ROOT).as_posix()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.level == 2:
      for name in (
        [node.module] if node.module else [a.name for a in node.names]
      ):
        yield name.split('.')[0]
    elif isinstance(node, ast.ImportFrom) and node.level == 1:
      yield room


@pytest.mark.parametrize('room', [r for r in FLOORS if (ROOT / r).is_dir()])
def test_imports_run_downward(room):
  for path in modules(room):
    for target in imported_rooms(path):
      assert target == room or FLOORS[target] < FLOORS[room], (path, target)


@pytest.mark.parametrize('room', [*SCIENCE, 'training', 'figures'])
def test_no_private_api(room):
  for path in modules(room):
    assert '_src' not in path.read_text(), path


def test_science_imports_no_flags_files_or_plots():
  names = [
    f'kexue.{room}.{path.stem}'
    for room in SCIENCE
    for path in modules(room)
    if path.stem != '__init__'
  ]
  assert names
  script = f"""
import importlib, sys
from absl import flags
import chex, flax, optax
before = set(flags.FLAGS)
for name in {names!r}:
  importlib.import_module(name)
print(sorted(set(sys.modules) & set({FOREIGN!r})), set(flags.FLAGS) - before)
"""
  result = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert result.stdout.strip() == '[] set()', result.stdout


@pytest.mark.parametrize(
  'room', ['lowrank', 'optimizers', 'scaling', 'models', 'training']
)
def test_public_names_exist_and_are_sorted(room):
  package = __import__(f'kexue.{room}', fromlist=['__all__'])
  assert package.__all__ == sorted(
    package.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)
  )
  for name in package.__all__:
    assert getattr(package, name) is not None


def test_every_module_has_its_test_file():
  for room in (*SCIENCE, 'training', 'figures'):
    for path in modules(room):
      if path.stem != '__init__':
        test = ROOT / 'tests' / room / f'{path.stem}_test.py'
        assert test.exists(), test
