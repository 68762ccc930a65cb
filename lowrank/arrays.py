"""What every decomposition takes: matrices of a wide type, at any scale.

Shapes: `...` batch, `m n` matrix, `r` rank.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_rank

# TF32 and bfloat16 products lose the digits that these algorithms live on.
precise = jax.default_matmul_precision('highest')


def wide(x: ArrayLike) -> jax.Array:
  """Converts to float32 or better; float64 and complex stay.

  >>> wide(jnp.ones(2, jnp.bfloat16)).dtype
  dtype('float32')
  """
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_matrix(name: str, a: ArrayLike) -> jax.Array:
  """Checks for [..., m, n] with m, n >= 1, and converts to a wide type."""
  require_rank(name, a, 2, at_least=True)
  shape = jnp.shape(a)
  require(min(shape[-2:]) >= 1, name, shape, 'one row and column or more')
  return wide(a)


def require_decomposition_rank(rank: Any, shape: tuple[int, ...]) -> None:
  """Checks for an integer in 1..min(m, n).

  >>> require_decomposition_rank(4, (5, 3))
  Traceback (most recent call last):
  ValueError: rank: got 4, expected an integer in 1..3 for shape (5, 3)
  """
  largest = min(shape[-2:])
  good = isinstance(rank, int) and 1 <= rank <= largest
  expected = f'an integer in 1..{largest} for shape {tuple(shape)}'
  require(good, 'rank', rank, expected)


def unit(a: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Matrices over a power of two near their largest entry, and this power.

  The division is exact, and squares neither overflow nor vanish. Zero stays
  zero. The power [..., 1, 1] is real and takes no part in gradients.
  """
  largest = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
  largest = jax.lax.stop_gradient(largest)
  info = jnp.finfo(largest.dtype)
  power_of_two = lambda x: jax.lax.reduce_precision(x, info.nexp, 0)
  finite = (largest > 0) & jnp.isfinite(largest)
  # Within bounds whose inverses are neither subnormal nor infinite.
  size = jnp.clip(jnp.where(finite, largest, 1), info.tiny, 1 / info.tiny)
  power = power_of_two(size)
  return a * power_of_two(1 / power), power


def over_batch(function: Callable[..., Any], *arrays: jax.Array) -> Any:
  """Maps a function of matrices over the leading axes, which must agree.

  >>> over_batch(jnp.trace, jnp.ones((2, 3, 4, 4))).shape
  (2, 3)
  """
  batch = arrays[0].ndim - 2
  return functools.reduce(lambda f, _: jax.vmap(f), range(batch), function)(
    *arrays
  )
