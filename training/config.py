"""Config dataclasses: checked against their annotations, and described.

`ml_collections.config_flags` checks scalars and lets anything into tuples, so
each field is looked at again before a run starts.
"""

import dataclasses
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..checks import require


def _checked(name: str, value: Any, kind: Any) -> Any:
  """The value as its annotation has it, or `ValueError`."""
  origin, args = get_origin(kind), get_args(kind)
  if origin is tuple:
    require(isinstance(value, tuple | list), name, value, 'values with commas')
    kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
    require(len(kinds) == len(value), name, value, f'{len(kinds)} values')
    return tuple(
      _checked(name, v, k) for v, k in zip(value, kinds, strict=True)
    )
  if origin in (types.UnionType, Union):
    (kind,) = (k for k in args if k is not types.NoneType)
    return value if value is None else _checked(name, value, kind)
  if dataclasses.is_dataclass(kind):
    return checked_config(value, f'{name}.')
  if kind is float and type(value) is int:
    return float(value)
  require(type(value) is kind, name, value, f'a value of type {kind.__name__}')
  return value


def checked_config(config: Any, prefix: str = 'config.') -> Any:
  """A copy of a config dataclass with every field of its annotated type.

  Args:
    config: instance of a dataclass whose fields are numbers, strings, booleans,
      tuples of them, optional ones, or such dataclasses.
    prefix: how the fields are called in messages.

  Returns:
    A new instance; whole numbers became floats and lists tuples where the
    annotation says so.

  Raises:
    ValueError: names the field, what came and what was expected.

  Example:
    >>> @dataclasses.dataclass
    ... class Config:
    ...   rates: tuple[float, ...] = (0.1,)
    >>> checked_config(Config(rates=(1, 0.5)))
    Config(rates=(1.0, 0.5))
    >>> checked_config(Config(rates=('x',)))
    Traceback (most recent call last):
    ValueError: config.rates: got 'x', expected a value of type float
  """
  kinds = get_type_hints(type(config))
  return type(config)(
    **{
      f.name: _checked(prefix + f.name, getattr(config, f.name), kinds[f.name])
      for f in dataclasses.fields(config)
    }
  )


def with_values(config: Any, values: dict[str, Any]) -> Any:
  """A copy of a config with the fields that a `config.json` names.

  Args:
    config: a dataclass instance.
    values: by field, as json has them.

  Returns:
    A new instance, every field of its annotated type.

  Raises:
    ValueError: for a name that is no field, or a value of the wrong type.
  """
  fields = [f.name for f in dataclasses.fields(config)]
  require(isinstance(values, dict), 'config', values, 'fields and values')
  for name in values:
    require(name in fields, 'config', name, f'one of {", ".join(fields)}')
  return checked_config(dataclasses.replace(config, **values))


def describe(config: Any) -> str:
  """A line for each field, `--config.NAME=DEFAULT`, under the docstring."""
  shown = lambda v: ','.join(map(str, v)) if isinstance(v, tuple) else str(v)
  lines = [
    f'  --config.{f.name}={shown(getattr(config, f.name))}'
    for f in dataclasses.fields(config)
  ]
  return '\n'.join([type(config).__doc__.strip(), '', *lines])
