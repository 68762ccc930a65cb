"""Entry checks: chex's assertions as `ValueError`s that name the argument."""

from collections.abc import Sequence
from typing import Any

import chex
import jax.numpy as jnp


def require(condition: bool, name: str, got: Any, expected: str) -> None:
  """Raises `ValueError` that says what came and what was expected.

  >>> require(2 > 0, 'rank', 2, 'at least 1')
  >>> require(0 > 0, 'rank', 0, 'at least 1')
  Traceback (most recent call last):
  ValueError: rank: got 0, expected at least 1
  """
  if not condition:
    raise ValueError(f'{name}: got {got!r}, expected {expected}')


def require_rank(name: str, x: Any, rank: int, *, at_least=False) -> None:
  """Checks the number of axes of `x`, exactly or as a lower bound."""
  try:
    chex.assert_rank(x, {*range(rank, 33)} if at_least else rank)
  except AssertionError:
    bound = f'{rank} or more axes' if at_least else f'{rank} axes'
    raise ValueError(
      f'{name}: got shape {jnp.shape(x)}, expected {bound}'
    ) from None


def require_shape(name: str, x: Any, shape: Sequence[int | None]) -> None:
  """Checks the shape of `x`; `None` stands for any size."""
  try:
    chex.assert_shape(x, tuple(shape))
  except AssertionError:
    raise ValueError(
      f'{name}: got shape {jnp.shape(x)}, expected {tuple(shape)}'
    ) from None


def require_one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
  """Checks that `value` is one of `allowed`."""
  listing = ', '.join(map(repr, allowed))
  require(value in allowed, name, value, f'one of {listing}')
