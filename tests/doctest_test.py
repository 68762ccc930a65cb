"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pathlib

import pytest

import kexue

ROOT = pathlib.Path(kexue.__file__).parent
MODULES = sorted(
  'kexue.' + path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
  for room in (
    '',
    'lowrank',
    'optimizers',
    'scaling',
    'models',
    'diffusion',
    'training',
    'figures',
  )
  for path in (ROOT / room).glob('*.py')
  if path.stem != '__init__'
)


@pytest.mark.parametrize('name', MODULES)
def test_doctests(name):
  assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_functions_have_an_example():
  missing = []
  for room in (
    'lowrank',
    'optimizers',
    'scaling',
    'models',
    'diffusion',
    'training',
  ):
    package = importlib.import_module(f'kexue.{room}')
    for name in package.__all__:
      thing = getattr(package, name)
      if callable(thing) and '>>>' not in (thing.__doc__ or ''):
        missing.append(f'{room}.{name}')
  # States and configs are shown by what makes them.
  shown_elsewhere = ('State', 'Config', 'data_mesh')
  assert all(name.endswith(shown_elsewhere) for name in missing), missing
