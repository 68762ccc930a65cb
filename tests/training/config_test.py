"""Every kind of field, right and wrong."""

import dataclasses

import pytest

from kexue.training.config import checked_config, describe


@dataclasses.dataclass
class Inner:
  """Inner.

  Args:
    a: number.
  """

  a: int = 1


@dataclasses.dataclass
class Config:
  """What it does.

  Args:
    n: number.
  """

  n: int = 3
  rate: float = 0.5
  name: str = 'x'
  flag: bool = False
  maybe: int | None = None
  many: tuple[float, ...] = (1.0,)
  pair: tuple[int, str] = (1, 'a')
  inner: Inner = dataclasses.field(default_factory=Inner)


def test_values_become_what_the_annotations_say():
  config = checked_config(Config(rate=1, many=[1, 2.5], pair=[2, 'b'], maybe=4))
  assert config == Config(rate=1.0, many=(1.0, 2.5), pair=(2, 'b'), maybe=4)
  assert type(config.rate) is float and type(config.many[0]) is float


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('n', 'x', "config.n: got 'x', expected a value of type int"),
    ('n', 1.5, 'config.n: got 1.5'),
    ('n', True, 'config.n: got True'),
    ('rate', 'x', 'config.rate'),
    ('flag', 1, 'config.flag: got 1, expected a value of type bool'),
    ('maybe', 'x', 'config.maybe'),
    ('many', 1.0, 'config.many: got 1.0, expected values with commas'),
    ('many', (1.0, 'x'), "config.many: got 'x'"),
    ('pair', (1,), r'config.pair: got \(1,\), expected 2 values'),
    ('inner', Inner('x'), "config.inner.a: got 'x'"),
  ],
)
def test_wrong_values_are_named(field, value, message):
  with pytest.raises(ValueError, match=message):
    checked_config(Config(**{field: value}))


def test_description_has_the_docstring_and_every_field():
  text = describe(Config(many=(1.0, 2.0)))
  assert text.startswith('What it does.') and '--config.many=1.0,2.0' in text
  assert text.count('--config.') == len(dataclasses.fields(Config))
