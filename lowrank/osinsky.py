r"""Columns by Osinsky's single-SVD selection.

Shapes: `n` columns of the matrix, `r` rank, `p` rows of the residual.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_rank, require_shape
from .arrays import precise, unit, wide


def osinsky_columns(v: ArrayLike, residual: ArrayLike) -> jax.Array:
  r"""Chooses `r` columns that are nearly as good as `r` singular vectors.

  Of a matrix `A` and the orthonormal columns of `V` let :math:`E = A - A V V^H`
  and :math:`W = V`. Each step takes the column

  .. math:: j = \arg\min_l \|E_{:l}\|^2 / \|W_{l:}\|^2,

  subtracts from all others what :math:`x = W_{j:}` explains of them,
  :math:`E \leftarrow E - E_{:j} \, x W^H / x x^H`, and keeps of `W` what is
  orthogonal to `x`. The numerators of all columns add up to
  :math:`\|E\|_F^2` and the denominators to what is left of the rank, so that
  the best quotient is no more than theirs. Hence for the chosen `J`

  .. math::
    \|A - A_{:J} V_J^{-H} V^H\|_F \le \sqrt{r + 1} \, \|A - A V V^H\|_F,

  the best constant there is for `r` columns (Osinsky, theorem 1), and the least
  squares coefficients do no worse. With the singular vectors as `V` this is
  :math:`\sqrt{r + 1}` times the optimum of rank `r`. `O(r n (r + p))`.

  Deviations: the residual may be a sketch `S E` of a few rows, which preserves
  the norms of its columns nearly; the bound then holds nearly, too. Numerators
  within rounding of the largest count as that, so that of a zero residual the
  column of largest :math:`\|W_{l:}\|` is next.

  Args:
    v: [n, r] with orthonormal columns, such as right singular vectors.
    residual: [p, n], what they leave of the matrix, or a sketch of it.

  Returns:
    [r] int32, distinct.

  Raises:
    ValueError: if shapes do not fit, or `r` is more than `n`.

  Example:
    >>> v = jnp.eye(3)[:, :2]
    >>> osinsky_columns(v, jnp.array([[1.0, 2.0, 3.0]])).tolist()
    [0, 1]

  References:
    Osinsky, `Close to optimal column approximations with a single SVD
    <https://arxiv.org/abs/2308.09068>`_, 2023.
  """
  require_rank('v', v, 2)
  n, rank = jnp.shape(v)
  require(1 <= rank <= n, 'v', (n, rank), 'no more columns than rows')
  require_shape('residual', residual, (None, n))
  return _select(wide(v), unit(wide(residual))[0])


@jax.jit
@precise
def _select(v: jax.Array, residual: jax.Array) -> jax.Array:
  """`osinsky_columns`: one elimination of V^H and the residual below it."""
  n, rank = v.shape
  dtype = jnp.result_type(v, residual)
  both = jnp.concatenate([v.conj().T.astype(dtype), residual.astype(dtype)])
  tiny = jnp.finfo(dtype).tiny
  eps = jnp.finfo(dtype).eps

  def step(i, state):
    both, used, indices = state
    squares = jnp.real(both * both.conj())
    weight = jnp.sum(squares[:rank], axis=0)
    cost = jnp.sum(squares[rank:], axis=0)
    quality = weight / (cost + eps * jnp.max(cost) + tiny)
    j = jnp.argmax(jnp.where(used, -1, quality))
    column = both[:, j]
    size = jnp.where(weight[j] > 0, weight[j], 1)
    explained = column[:rank].conj() @ both[:rank] / size
    both = both - jnp.outer(column, explained)
    return both, used.at[j].set(True), indices.at[i].set(j.astype(jnp.int32))

  used = jnp.zeros_like(v, shape=(n,), dtype=bool)
  indices = jnp.zeros_like(v, shape=(rank,), dtype=jnp.int32)
  return jax.lax.fori_loop(0, rank, step, (both, used, indices))[-1]
