r"""How far a matrix product from some columns and rows is off, exactly.

Shapes: `...` batch, `m l n` of a product [m, l] @ [l, n].

References:
  Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024;
  Drineas et al., `Fast Monte Carlo algorithms for matrices, I
  <https://doi.org/10.1137/S0097539704442684>`_, 2006.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of
from .arrays import as_matrix, over_batch, precise
from .column_row import METHODS, column_row, require_product
from .outer_products import Terms, outer_products, squared_norm
from .term_sampling import inclusion_probabilities


def _iid(terms: Terms, rank: int) -> jax.Array:
  return (jnp.sum(terms.sizes) ** 2 - squared_norm(terms)) / rank


def _uniform(terms: Terms, rank: int) -> jax.Array:
  length = len(terms.sizes)
  spread = jnp.sum(terms.sizes**2) - squared_norm(terms) / length
  return spread * length * (length - rank) / (rank * max(length - 1, 1))


def _bernoulli(terms: Terms, rank: int) -> jax.Array:
  q = inclusion_probabilities(terms.sizes, rank)
  odds = (1 - q) / jnp.where(q > 0, q, 1)
  return jnp.sum(odds * terms.sizes**2)


CLOSED_FORMS = {'norm_iid': _iid, 'uniform': _uniform, 'bernoulli': _bernoulli}
EXACT = tuple(name for name in METHODS if name != 'norm_systematic')


@functools.partial(jax.jit, static_argnames=('rank', 'method'))
@precise
def _expected_error(x, y, rank, method) -> jax.Array:
  terms = outer_products(x, y)
  if method in CLOSED_FORMS:
    error = jnp.maximum(CLOSED_FORMS[method](terms, rank), 0)
  else:
    chosen = column_row(x, y, rank, method=method).indices
    error = squared_norm(terms._replace(sizes=terms.sizes.at[chosen].set(0)))
  # Twice, as the exponent of the square may be more than the type has.
  return jnp.ldexp(jnp.ldexp(error, terms.exponent), terms.exponent)


def column_row_expected_error(
  x: ArrayLike, y: ArrayLike, rank: int, *, method: str
) -> jax.Array:
  r"""Expected squared Frobenius error of `column_row`, in closed form.

  With :math:`s_i = \|x_i\| \|y_i\|` and :math:`M = X Y`,

  .. math::
    \text{norm\_iid:} &\quad \frac{1}{r} \Big[ \Big( \sum_i s_i \Big)^2
      - \|M\|_F^2 \Big] \\
    \text{uniform:} &\quad \frac{l (l - r)}{r (l - 1)} \Big[ \sum_i s_i^2
      - \frac{\|M\|_F^2}{l} \Big] \\
    \text{bernoulli:} &\quad \sum_i \frac{1 - q_i}{q_i} s_i^2, \qquad
      q_i = \min(1, c s_i), \quad \sum_i q_i = r

  with unbiased weights (the first is article 10427's and Drineas et al.'s). For
  "top_norm" and "greedy", weights of one, there is no chance and it is the
  error itself, :math:`\| \sum_{i \notin S} x_i y_i^T \|_F^2`. That of
  "norm_systematic" has no closed form, as inclusions are not independent; it
  is about that of "bernoulli" where terms are nearly orthogonal, and well below
  where they are alike, as their number does not vary.

  Norms of sums are taken from inner products of the terms where
  :math:`l (m + n) \le m n`, and from the product itself otherwise; "bernoulli"
  needs neither and costs the norms alone.

  Args:
    x: [..., m, l], real or complex.
    y: [..., l, n], of the same batch axes.
    rank: 1 to l.
    method: "norm_iid", "uniform", "bernoulli", "top_norm" or "greedy".

  Returns:
    [...], 0 or more. It is infinite where the square of an entry of the product
    is too large for its type.

  Raises:
    ValueError: if shapes do not fit, for a rank outside 1..l, and for a method
      that is unknown or has no closed form.

  Example:
    >>> x = jnp.eye(4)
    >>> for method in ('norm_iid', 'uniform', 'bernoulli', 'top_norm'):
    ...   print(float(column_row_expected_error(x, x, 2, method=method)))
    6.0
    4.0
    4.0
    2.0

  References:
    Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024.
    Drineas et al., `Fast Monte Carlo algorithms for matrices, I
    <https://doi.org/10.1137/S0097539704442684>`_, 2006, lemma 4.
  """
  require_product(x, y, rank)
  require_one_of('method', method, METHODS)
  closed = f'one with a closed form: {", ".join(EXACT)}'
  require(method in EXACT, 'method', method, closed)
  error = functools.partial(_expected_error, rank=rank, method=method)
  return over_batch(error, as_matrix('x', x), as_matrix('y', y))
