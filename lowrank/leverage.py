r"""Rows by their leverage on a subspace.

Shapes: `...` batch, `n k` an orthonormal basis, `c` chosen rows.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .deim import as_basis


def leverage_scores(v: ArrayLike) -> jax.Array:
  r"""Squared norms of the rows of an orthonormal basis.

  .. math:: l_j = \|V_{j:}\|^2 = (V V^H)_{jj}

  lies in 0..1, is the same for every basis of the subspace, and adds up to
  `k`. With the right singular vectors of a matrix as `V` it says how much the
  best approximation of rank `k` depends on a column (article 10662).

  Args:
    v: [..., n, k], k <= n, with orthonormal columns.

  Returns:
    [..., n], real.

  Raises:
    ValueError: for less than two axes, or more columns than rows.

  Example:
    >>> v = jnp.array([[0.0, 1.0], [0.0, 0.0], [-1.0, 0.0]])
    >>> leverage_scores(v).tolist()
    [1.0, 0.0, 1.0]

  References:
    Mahoney, Drineas, `CUR matrix decompositions for improved data analysis
    <https://doi.org/10.1073/pnas.0803205106>`_, 2009.
    Su, `article 10662 <https://kexue.fm/archives/10662>`_, 2025.
  """
  v = as_basis('v', v)
  return jnp.sum(jnp.real(v * v.conj()), axis=-1)


def leverage_rows(
  v: ArrayLike, count: int, *, key: jax.Array | None = None
) -> jax.Array:
  r"""Rows of large leverage: the largest, or at random in proportion to it.

  Of :math:`O(k \log k / \epsilon^2)` sampled columns `C` and rows `R` the error
  :math:`\|M - C U R\|_F` is at most :math:`2 + \epsilon` times the optimum of
  rank `k` with high probability (Mahoney and Drineas). The largest scores have
  no such guarantee: copies of one column are all as large.

  Deviation: sampled without replacement, one after the other in proportion to
  the scores, by the `count` largest :math:`\log l_j + \mathrm{Gumbel}`; the
  paper draws with replacement, and rescales, which changes no projection.

  Args:
    v: [..., n, k], k <= n, with orthonormal columns.
    count: `c`, in 1..n.
    key: to sample with, the same draws for every matrix of a batch; without
      it the largest.

  Returns:
    [..., c] int32, distinct.

  Raises:
    ValueError: for less than two axes, more columns than rows, and a count out
      of range.

  Example:
    >>> v = jnp.array([[0.6], [0.0], [0.8]])
    >>> leverage_rows(v, 2).tolist()
    [2, 0]

  References:
    Mahoney, Drineas, `CUR matrix decompositions for improved data analysis
    <https://doi.org/10.1073/pnas.0803205106>`_, 2009.
  """
  scores = leverage_scores(v)
  n = scores.shape[-1]
  good = isinstance(count, int) and 1 <= count <= n
  require(good, 'count', count, f'an integer in 1..{n}')
  if key is not None:
    scores = jnp.log(scores) + jax.random.gumbel(key, (n,), scores.dtype)
  return jax.lax.top_k(scores, count)[1].astype(jnp.int32)
