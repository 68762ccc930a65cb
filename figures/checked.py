"""Configurations that refuse what could not run."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ..checks import require


@dataclasses.dataclass
class CheckedConfig:
  """Base of configurations; theirs is a method `check`, before any work."""

  def check_parallel(self, how: str) -> None:
    """Refuses a way of `parallelize` that a figure could not run by."""

  def require_every(
    self, name: str, good: Callable[[Any], bool], expected: str
  ) -> None:
    """Refuses a field, or a tuple of which one entry is not good.

    >>> @dataclasses.dataclass
    ... class Config(CheckedConfig):
    ...   rates: tuple = (0.1, -1.0)
    >>> Config().require_every('rates', lambda x: x > 0, 'positive numbers')
    Traceback (most recent call last):
    ValueError: config.rates: got (0.1, -1.0), expected positive numbers
    """
    value = getattr(self, name)
    values = value if isinstance(value, tuple) else (value,)
    fine = len(values) > 0 and all(map(good, values))
    require(fine, f'config.{name}', value, expected)

  def require_half(self, name: str, held_out: int) -> None:
    """Refuses a number of held-out images that has no second set beside it.

    >>> @dataclasses.dataclass
    ... class Config(CheckedConfig):
    ...   judged: int = 60
    >>> Config().require_half('judged', 100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: config.judged: got 60, expected two or more, at most half of ...
    """
    half = f'two or more, at most half of the {held_out} held-out images'
    self.require_every(name, lambda x: 2 <= x <= held_out // 2, half)
