"""A field is refused by its name, a tuple if any entry is bad, or none."""

import dataclasses

import pytest

from kexue.figures.checked import CheckedConfig


@dataclasses.dataclass
class Config(CheckedConfig):
  steps: int = 0
  rates: tuple[float, ...] = (0.5, 0.0)
  none: tuple[float, ...] = ()


@pytest.mark.parametrize('name', ['steps', 'rates', 'none'])
def test_what_is_not_good_is_refused(name):
  with pytest.raises(ValueError, match=f'config.{name}: got .*, expected more'):
    Config().require_every(name, lambda x: x > 0, 'more')


def test_what_is_good_is_not():
  Config().require_every('steps', lambda x: x == 0, '0')
  Config().require_every('rates', lambda x: x < 1, 'below 1')
