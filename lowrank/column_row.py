r"""Matrix products from some columns and rows.

Shapes: `...` batch, `m l n` of a product [m, l] @ [l, n], `r` rank.

Of the `l` outer products that make a matrix product, `r` are kept, each with a
weight: :math:`X Y = \sum_i x_i y_i^T \approx \sum_{j=1}^r w_j x_{i_j}
y_{i_j}^T`. Multiplication then takes r / l of its time. How good that is
depends on the terms: where they point every which way, as in random matrices,
the relative error is that of :math:`1 / \sqrt r` and large.

References:
  Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024;
  Drineas et al., `Fast Monte Carlo algorithms for matrices, I
  <https://doi.org/10.1137/S0097539704442684>`_, 2006.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_shape
from .arrays import as_matrix, over_batch, precise
from .column_row_greedy import greedy_indices
from .outer_products import best_weights, outer_products
from .term_sampling import UNBIASED, take_largest

METHODS = (*UNBIASED, 'top_norm', 'greedy')
WEIGHTS = ('unbiased', 'optimal')


class ColumnRow(NamedTuple):
  """A product approximated: `x @ y ~= (x[:, indices] * weights) @ y[indices]`.

  Attributes:
    indices: int32 [..., r], of columns of `x` and rows of `y`; [..., l] for
      "bernoulli". They repeat only for "norm_iid".
    weights: of the same shape; real unless they are the best ones for complex
      matrices.

  Example:
    >>> column_row(jnp.eye(3), jnp.eye(3), 2, method='top_norm').weights.shape
    (2,)
  """

  indices: jax.Array
  weights: jax.Array


def require_product(x: ArrayLike, y: ArrayLike, rank: Any) -> None:
  """Checks [..., m, l], [..., l, n] and a rank of 1 to l."""
  *batch, _, length = as_matrix('x', x).shape
  as_matrix('y', y)
  require_shape('y', y, (*batch, length, None))
  good = isinstance(rank, int) and 1 <= rank <= length
  expected = f'an integer in 1..{length}, the columns of x'
  require(good, 'rank', rank, expected)


@functools.partial(jax.jit, static_argnames=('rank', 'method', 'weights'))
@precise
def _choose(x, y, key, rank, method, weights) -> ColumnRow:
  """Indices and weights for one product, which are constants to gradients."""
  terms = outer_products(*jax.lax.stop_gradient((x, y)))
  if method == 'greedy':
    indices = greedy_indices(terms, rank, refit=weights == 'optimal')
    found = jnp.ones_like(terms.sizes, shape=rank)
  else:
    draw = UNBIASED.get(method, take_largest)
    indices, found = draw(terms.sizes, rank, key)
  if weights == 'optimal':
    found = best_weights(terms, indices, found != 0)
  return ColumnRow(indices.astype(jnp.int32), found)


def column_row(
  x: ArrayLike,
  y: ArrayLike,
  rank: int,
  *,
  method: str,
  key: jax.Array | None = None,
  weights: str = 'unbiased',
) -> ColumnRow:
  r"""Chooses columns of `x`, the same rows of `y`, and their weights.

  .. math::
    X Y = \sum_{i=1}^l x_i y_i^T \approx \sum_{j=1}^r w_j x_{i_j} y_{i_j}^T

  By the sizes :math:`s_i = \|x_i\| \|y_i\|`:

  - "norm_iid": `rank` independent draws with :math:`p_i = s_i / \sum_k s_k`,
    the best of independent draws, and weights :math:`1 / (r p_i)` (Drineas et
    al.).
  - "norm_systematic": `rank` distinct ones. Terms are included with
    :math:`q_i = \min(1, c s_i)`, of sum `rank`, and weights :math:`1 / q_i`:
    large ones always and with weight one. As a rule the least error of the
    unbiased kinds.
  - "uniform": `rank` distinct ones, all alike, weights :math:`l / r`.
  - "bernoulli": each on its own, with the probabilities of "norm_systematic":
    `rank` of them on average. Worse than others where terms are alike, as their
    number varies. All `l` indices are returned, those not drawn with weight
    zero, so that shapes are static; this saves no time.

  Without chance, with weights of one, and biased:

  - "top_norm": the `rank` of largest size, best if the terms are orthogonal,
    bad if they are alike, as what the others add up to is missing.
  - "greedy": one after the other, so that the smallest residual is left by the
    weights asked for: ones, where the better of adding to none and leaving out
    of all is returned; or the best for all chosen so far, as in orthogonal
    least squares. It takes :math:`l^2 (m + n)` products, often more than the
    matrix product itself: for finding what matters, or for choosing once.

  Deviations: none for "norm_iid" and "top_norm". The article's greedy
  elimination looks at the sum of the k terms that it leaves out next alone;
  "greedy" looks at the sum of all that are left out.

  Args:
    x: [..., m, l], real or complex, of any scale.
    y: [..., l, n], of the same batch axes.
    rank: how many terms, 1 to l.
    method: as above.
    key: for all but "top_norm" and "greedy", which ignore it; the same draws
      serve every batch entry.
    weights: "unbiased", so that the mean of the estimate is the product (one
      for the methods without chance, where nothing is unbiased); "optimal",
      those of least error for the terms that were chosen, biased in turn. They
      take :math:`r l (m + n)` products on top, by inner products of the terms,
      and no m x n matrix.

  Returns:
    `ColumnRow` of indices and weights. Gradients take both for constants.

  Raises:
    ValueError: if shapes do not fit, for a rank outside 1..l, an unknown name,
      or a random method without key.

  Example:
    >>> x = jnp.array([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    >>> found = column_row(x, x.T, 2, method='top_norm')
    >>> print(found.indices, found.weights)
    [0 1] [1. 1.]
    >>> better = column_row(x, x.T, 2, method='top_norm', weights='optimal')
    >>> print(*(f'{w:.3f}' for w in better.weights))  # 1 + 1/9, 1 + 1/4
    1.111 1.250

  References:
    Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024.
    Drineas et al., `Fast Monte Carlo algorithms for matrices, I
    <https://doi.org/10.1137/S0097539704442684>`_, 2006.
  """
  require_product(x, y, rank)
  require_one_of('method', method, METHODS)
  require_one_of('weights', weights, WEIGHTS)
  random = method in UNBIASED
  require(key is not None or not random, 'key', key, f'one for {method!r}')
  choose = functools.partial(
    _choose,
    key=key if random else None,
    rank=rank,
    method=method,
    weights=weights,
  )
  return over_batch(choose, as_matrix('x', x), as_matrix('y', y))


@jax.jit
def _multiply(x, y, indices, weights) -> jax.Array:
  return (x[:, indices] * weights) @ y[indices]


def column_row_matmul(
  x: ArrayLike,
  y: ArrayLike,
  rank: int,
  *,
  method: str,
  key: jax.Array | None = None,
  weights: str = 'unbiased',
) -> jax.Array:
  r"""Approximates `x @ y` by `rank` of its columns and rows.

  The choice is that of `column_row`, whose formulas these are. It is a constant
  to gradients, which are those of the smaller product: with unbiased weights,
  unbiased estimates of the gradients of :math:`\langle G, X Y \rangle` for any
  `G`. The product is computed in the precision that is set for products, as its
  own error is larger.

  Args:
    x: [..., m, l].
    y: [..., l, n], of the same batch axes.
    rank: how many terms, 1 to l; the time goes with it, but for "bernoulli".
    method: "norm_iid", "norm_systematic", "uniform", "bernoulli", "top_norm" or
      "greedy".
    key: for the random ones.
    weights: "unbiased" or "optimal".

  Returns:
    [..., m, n], float32 or better.

  Raises:
    ValueError: as `column_row`.

  Example:
    >>> x, y = jnp.ones((4, 1000)), jnp.ones((1000, 3))
    >>> key = jax.random.key(0)
    >>> z = column_row_matmul(x, y, 10, method='norm_systematic', key=key)
    >>> z.shape, f'{z[0, 0]:.1f}'  # Terms that are all alike: no error.
    ((4, 3), '1000.0')

  References:
    Su, `article 10427 <https://kexue.fm/archives/10427>`_, 2024.
  """
  choice = column_row(x, y, rank, method=method, key=key, weights=weights)
  return over_batch(_multiply, jnp.asarray(x), jnp.asarray(y), *choice)
