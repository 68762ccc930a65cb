r"""Which terms of a sum to keep, drawn by their sizes.

:math:`\sum_i v_i` is estimated from `rank` of its `l` terms, each with a
weight. The sizes are :math:`\|v_i\|`, or what stands for them; a weight is one
over how often its term is expected to be drawn, so that the estimate is
unbiased whatever the sizes, as long as no term that counts has size zero.

References:
  Drineas et al., `Fast Monte Carlo algorithms for matrices, I
  <https://doi.org/10.1137/S0097539704442684>`_, 2006 (independent draws);
  Tillé, *Sampling Algorithms*, Springer, 2006 (sampling without replacement).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Choice = tuple[jax.Array, jax.Array]


def inclusion_probabilities(sizes: jax.Array, rank: int) -> jax.Array:
  r"""Probabilities proportional to the sizes, at most one, of sum `rank`.

  .. math:: q_i = \min(1, c s_i), \qquad \sum_i q_i = r

  Among all with this sum they minimise :math:`\sum_i (1 - q_i) s_i^2 / q_i`,
  the variance of independent inclusion. Where fewer than `rank` sizes are
  positive, these have probability one and zeros share what is left.

  Args:
    sizes: [l], 0 or more.
    rank: 1 to l.

  Returns:
    [l], in [0, 1].

  Example:
    >>> q = inclusion_probabilities(jnp.array([1.0, 6.0, 1.0, 2.0]), 2)
    >>> print(*(f'{x:.2f}' for x in q))
    0.25 1.00 0.25 0.50
  """
  descending = jnp.flip(jnp.sort(sizes))
  rest = jnp.flip(jnp.cumsum(jnp.flip(descending)))  # Of this and smaller ones.
  left = rank - jnp.arange(rank)
  # Terms are certain until the next one fits under one with those that remain.
  fits = descending[:rank] * left <= rest[:rank]
  certain = jnp.argmax(fits)
  # The last one always fits; rounding must not make it the first.
  certain = jnp.where(jnp.any(fits), certain, rank - 1)
  mean = rest[certain] / left[certain]
  q = jnp.minimum(sizes / jnp.where(mean > 0, mean, 1), 1)
  share = left[certain] / (len(sizes) - certain)
  return jnp.where(mean > 0, q, jnp.where(sizes > 0, 1, share))


def _inverse(probabilities: jax.Array) -> jax.Array:
  """One over them, zero for zero: what is never drawn has no weight."""
  drawn = probabilities > 0
  return jnp.where(drawn, 1 / jnp.where(drawn, probabilities, 1), 0)


def draw_iid(sizes: jax.Array, rank: int, key: jax.Array) -> Choice:
  """Independent draws by size, with replacement."""
  total = jnp.sum(sizes)
  p = jnp.where(total > 0, sizes / jnp.where(total > 0, total, 1), 1)
  p = p / jnp.sum(p)
  indices = jax.random.choice(key, len(sizes), (rank,), p=p)
  return indices, _inverse(p[indices]) / rank


def draw_systematic(sizes: jax.Array, rank: int, key: jax.Array) -> Choice:
  """Distinct terms by size: every one point apart on the line of the sums.

  Of the running sums of the inclusion probabilities, in random order, those
  that step over u, u + 1, u + 2, ... for one uniform u are drawn.
  """
  q = inclusion_probabilities(sizes, rank)
  key_order, key_start = jax.random.split(key)
  order = jax.random.permutation(key_order, len(sizes))
  # In units of 2^-32 the sums wrap around where they step over an integer. In
  # float32 they would be too coarse for the probabilities of a long sum.
  steps = jnp.where(q < 1, q * 2.0**32, 0).astype(jnp.uint32)[order]
  start = jax.random.bits(key_start, dtype=jnp.uint32)
  sums = start + jnp.cumsum(steps, dtype=jnp.uint32)
  drawn = (sums < steps) | (q[order] >= 1)
  # Rounding of their sum may make it one less, or one more, than `rank`.
  (places,) = jnp.nonzero(drawn, size=rank, fill_value=0)
  indices = order[places]
  there = jnp.arange(rank) < jnp.sum(drawn)
  return indices, jnp.where(there, _inverse(q[indices]), 0)


def draw_uniform(sizes: jax.Array, rank: int, key: jax.Array) -> Choice:
  """Distinct terms, all alike."""
  indices = jax.random.permutation(key, len(sizes))[:rank]
  weights = jnp.full_like(sizes, len(sizes) / rank, shape=rank)
  return indices, weights


def draw_bernoulli(sizes: jax.Array, rank: int, key: jax.Array) -> Choice:
  """Every term on its own, `rank` of them on average; zero weight if not."""
  q = inclusion_probabilities(sizes, rank)
  drawn = jax.random.uniform(key, sizes.shape, sizes.dtype) < q
  return jnp.arange(len(sizes)), jnp.where(drawn, _inverse(q), 0)


def take_largest(sizes: jax.Array, rank: int, key: jax.Array | None) -> Choice:
  """The terms of largest size, weight one; no key is needed."""
  del key
  _, indices = jax.lax.top_k(sizes, rank)
  return indices, jnp.ones_like(sizes, shape=rank)


UNBIASED: dict[str, Callable[..., Choice]] = {
  'norm_iid': draw_iid,
  'norm_systematic': draw_systematic,
  'uniform': draw_uniform,
  'bernoulli': draw_bernoulli,
}
