r"""Greedy choice of the terms of a matrix product.

With the matrix `H` of inner products of the terms and :math:`\gamma` the
weights that are missing, the squared error is :math:`\gamma^H H \gamma`. To
minimise it over :math:`\gamma` of zeros and ones is NP-hard (article 10427);
here one term follows the other.

Shapes: `l` terms, `r` of them chosen.

References:
  Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024;
  Chen et al., *Orthogonal least squares methods*, Int. J. Control 50, 1989.
"""

import jax
import jax.numpy as jnp

from .outer_products import Terms, inner_products


def greedy_indices(terms: Terms, rank: int, *, refit: bool) -> jax.Array:
  """Terms whose sum, or best combination, is close to that of all.

  It takes l^2 (m + n) products for `H`, then l^2 more (l r^2 if refitted).

  Args:
    terms: of the product.
    rank: how many, 1 to l.
    refit: whether the weights are the best ones: the next term is that which
      leaves least with the best weights on all so far, by a partial Cholesky
      factor of `H`. With weights of one, either the next term to be kept is
      that which leaves least, or the next to be left out is; the better end.

  Returns:
    int32 [r], distinct.
  """
  gram = inner_products(terms, terms)
  if refit:
    return _refitted(gram, terms.sizes, rank)
  return _subtracted(gram, terms.sizes, rank)


def _next(scores: jax.Array, taken: jax.Array) -> jax.Array:
  return jnp.argmax(jnp.where(taken, -jnp.inf, scores)).astype(jnp.int32)


def _taken(gram, sizes, overlap, steps) -> jax.Array:
  """Terms that, taken off a vector one by one, leave the least of it.

  Of the vector only the inner products `overlap` with the unit terms count.
  """
  squares = sizes**2 * jnp.real(jnp.diagonal(gram))

  def step(_, carry):
    taken, overlap = carry
    i = _next(2 * sizes * jnp.real(overlap) - squares, taken)
    return taken.at[i].set(True), overlap - gram[:, i] * sizes[i]

  none = jnp.zeros_like(sizes, dtype=bool)
  return jax.lax.fori_loop(0, steps, step, (none, overlap))[0]


def _subtracted(gram, sizes, rank) -> jax.Array:
  """The better of adding to none and of leaving out of all."""
  whole = gram @ sizes
  added = _taken(gram, sizes, whole, rank)
  # What is left out is taken off zero, whose size is the error in the end.
  kept = ~_taken(gram, sizes, jnp.zeros_like(whole), len(sizes) - rank)
  missing = sizes * ~jnp.stack([added, kept])
  errors = jnp.sum(jnp.real(missing @ gram) * missing, axis=1)
  (indices,) = jnp.nonzero(
    jnp.where(errors[0] < errors[1], added, kept), size=rank
  )
  return indices.astype(jnp.int32)


def _refitted(gram, sizes, rank) -> jax.Array:
  """Of residuals orthogonal to all that is chosen, the smallest."""
  rounding = 10 * len(sizes) * jnp.finfo(sizes.dtype).eps

  def step(k, carry):
    indices, taken, overlap, heights, factor = carry
    # `heights`: squared distances of unit terms from the span of the chosen.
    high = heights > rounding
    scores = jnp.abs(overlap) ** 2 / jnp.where(high, heights, 1)
    i = _next(jnp.where(high, scores, 0), taken)
    height = jnp.sqrt(jnp.where(high[i], heights[i], 1))
    column = (gram[:, i] - factor @ factor[i].conj()) / height
    column = jnp.where(high[i], column, 0)
    overlap = overlap - column * overlap[i] / height
    heights = heights - jnp.abs(column) ** 2
    factor = factor.at[:, k].set(column)
    return indices.at[k].set(i), taken.at[i].set(True), overlap, heights, factor

  carry = (
    jnp.zeros_like(sizes, shape=rank, dtype=jnp.int32),
    jnp.zeros_like(sizes, dtype=bool),
    gram @ sizes,
    jnp.real(jnp.diagonal(gram)),
    jnp.zeros_like(gram, shape=(len(sizes), rank)),
  )
  return jax.lax.fori_loop(0, rank, step, carry)[0]
