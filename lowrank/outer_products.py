r"""A matrix product as a sum of outer products, at any scale.

Shapes: `m l n` of a product [m, l] @ [l, n], `r` terms chosen.

.. math:: X Y = \sum_i x_i y_i^T = 2^e \sum_i s_i \hat x_i \hat y_i^T

with the columns :math:`x_i` of `X`, the rows :math:`y_i^T` of `Y` and unit
vectors :math:`\hat x_i, \hat y_i`. As vectors of length m n the outer products
have inner products of a Hadamard product of two Gram matrices, whence norms of
their sums and the best weights on some of them without an m x n matrix.

References:
  Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Terms(NamedTuple):
  """The terms of a product.

  Attributes:
    x: [m, l], columns of norm one, or zero.
    y: [l, n], rows of norm one, or zero.
    sizes: real [l], Frobenius norms of the terms over two to `exponent`; the
      largest is of the order of one, unless all are zero.
    exponent: int32, the common power of two.
  """

  x: jax.Array
  y: jax.Array
  sizes: jax.Array
  exponent: jax.Array


def _directions(vectors: jax.Array, axis: int) -> tuple[jax.Array, ...]:
  """Unit vectors, and their norms over a power of two with its exponents."""
  largest = jnp.max(jnp.abs(vectors), axis=axis, keepdims=True)
  largest = jax.lax.stop_gradient(largest)
  some = largest > 0
  scaled = vectors / jnp.where(some, largest, 1)
  squares = jnp.real(scaled * scaled.conj())
  squares = jnp.sum(squares, axis=axis, keepdims=True)
  norms = jnp.sqrt(jnp.where(some, squares, 1))
  directions = scaled / norms
  mantissas, exponents = jnp.frexp(largest)  # Of zero: zero.
  drop = lambda x: jnp.squeeze(x, axis)
  return directions, drop(norms * mantissas), drop(exponents)


def outer_products(x: jax.Array, y: jax.Array) -> Terms:
  """The terms of [m, l] @ [l, n]; no norm overflows, none but zero vanishes.

  >>> terms = outer_products(jnp.array([[3e30, 0.0]]), jnp.ones((2, 4)) * 1e30)
  >>> print(*(f'{s:.3f}' for s in terms.sizes), int(terms.exponent))
  0.933 0.000 202
  """
  x, norms_x, exponents_x = _directions(x, axis=0)
  y, norms_y, exponents_y = _directions(y, axis=1)
  sizes, exponents = norms_x * norms_y, exponents_x + exponents_y
  lowest = jnp.iinfo(exponents.dtype).min // 2
  largest = jnp.max(jnp.where(sizes > 0, exponents, lowest))
  largest = jnp.where(largest > lowest, largest, 0)
  return Terms(x, y, jnp.ldexp(sizes, exponents - largest), largest)


def inner_products(a: Terms, b: Terms) -> jax.Array:
  r"""Of the unit terms of two products, [l_a, l_b].

  .. math::
    \langle \hat x_i \hat y_i^T, \hat x_j \hat y_j^T \rangle
    = (\hat x_i^H \hat x_j) (\hat y_i^H \hat y_j)
  """
  return (a.x.conj().mT @ b.x) * (a.y.conj() @ b.y.mT)


def squared_norm(terms: Terms) -> jax.Array:
  r"""Squared Frobenius norm of the sum over :math:`4^e`.

  By inner products where these are cheaper than the product itself.
  """
  (m, l), n = terms.x.shape, terms.y.shape[1]
  if l * (m + n) > m * n:
    return jnp.sum(jnp.abs((terms.x * terms.sizes) @ terms.y) ** 2)
  gram = inner_products(terms, terms)
  return jnp.maximum(jnp.real(terms.sizes @ gram @ terms.sizes), 0)


def best_weights(
  terms: Terms, indices: jax.Array, there: jax.Array
) -> jax.Array:
  r"""Weights of least error on some of the terms.

  .. math::
    \min_\lambda \Big\| \sum_{j=1}^r \lambda_j s_{i_j} \hat x_{i_j}
    \hat y_{i_j}^T - \sum_i s_i \hat x_i \hat y_i^T \Big\|_F^2,
    \qquad H_{SS} \mu = H_{S,:} s, \quad \mu_j = \lambda_j s_{i_j}

  with the matrix `H` of inner products, at :math:`r l (m + n)` products
  (article 10427, "Extended discussion"). Terms that repeat, that depend on each
  other or vanish make the system singular: it is solved by Tikhonov's method,
  iterated, which finds the solution of least norm, of the unit terms, in the
  directions that rounding leaves.

  Args:
    terms: of the product.
    indices: int [r], with repetitions or without.
    there: bool [r]; the others count as zero.

  Returns:
    [r], complex for complex terms; zero for terms that vanish.
  """
  x, y, sizes, exponent = terms
  sizes = sizes[indices]
  chosen = Terms(x[:, indices] * there, y[indices], sizes, exponent)
  gram = inner_products(chosen, chosen)
  target = inner_products(chosen, terms) @ terms.sizes
  limits = jnp.finfo(sizes.dtype)
  damping = 4 * len(indices) * limits.eps  # Above the rounding of `gram`.
  identity = jnp.eye(len(indices), dtype=gram.dtype)
  factor = jnp.linalg.cholesky(gram + damping * identity)
  solve = lambda b: jax.scipy.linalg.cho_solve((factor, True), b)
  solution = solve(target)
  for _ in range(3):
    solution = solution + solve(target - gram @ solution)
  # A term at the edge of what the type holds would need an infinite weight.
  large = sizes > limits.tiny / limits.eps
  return jnp.where(large, solution / jnp.where(large, sizes, 1), 0)
