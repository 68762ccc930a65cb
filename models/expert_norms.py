r"""The geometry behind a mixture of experts: a sum of vectors, of which k stay.

Shapes: `...` tokens, `D` width, `H` hidden width, `n` experts, `k` kept.

A dense feed-forward layer is the sum of `n` vectors, each the output of a slice
of its hidden units, and a mixture of experts keeps `k` of them (article 10699).
Of orthogonal vectors the `k` longest are the best; computing all lengths to
choose would save nothing, which is why a router predicts them. The functions
here measure what the choice costs: by length, by any other rule, at random, and
at best.

References:
  Su, `A tour of mixtures of experts, 1: from the geometry
  <https://kexue.fm/archives/10699>`_, 2025.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..checks import require, require_rank, require_shape
from ..lowrank.arrays import precise, unit, wide

_SUBSETS = 20_000  # More are too many to try.


class ExpertSubset(NamedTuple):
  """Which vectors are kept, [..., k], and the relative error of their sum.

  Example:
    >>> vectors = jnp.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    >>> subset = norm_top_k(vectors, 1)
    >>> print(subset.indices, f'{subset.relative_error:.2f}')
    [1] 0.60
  """

  indices: jax.Array
  relative_error: jax.Array


def _checked(vectors: ArrayLike, k: int) -> jax.Array:
  """Vectors [..., n, D] at a scale whose squares are finite."""
  require_rank('vectors', vectors, 2, at_least=True)
  shape = jnp.shape(vectors)
  require(min(shape[-2:]) >= 1, 'vectors', shape, 'one vector or more')
  good = isinstance(k, int) and 1 <= k <= shape[-2]
  require(good, 'k', k, f'an integer in 1..{shape[-2]}')
  return unit(wide(vectors))[0]


def _relative(error: jax.Array, total: jax.Array) -> jax.Array:
  """|error| / |total|; without an error 0, also of a total of zero."""
  size = jnp.linalg.norm(error, axis=-1)
  return jnp.where(size > 0, size / jnp.linalg.norm(total, axis=-1), 0)


def expert_vectors(
  x: ArrayLike,
  w_in: ArrayLike,
  w_out: ArrayLike,
  n: int,
  *,
  activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> jax.Array:
  r"""Splits a dense feed-forward layer into the vectors that it adds up.

  .. math::
    f(x W^{(A)}) W^{(B)} = \sum_{i=1}^n v_i, \qquad
    v_i = f(x W^{(A)}_i) W^{(B)}_i,

  with `H / n` columns of the first and rows of the second matrix each.

  Args:
    x: [..., D].
    w_in: [D, H].
    w_out: [H, D'].
    n: a divisor of H.
    activation: f, which acts on every hidden unit alone.

  Returns:
    Vectors [..., n, D'].

  Raises:
    ValueError: if shapes do not fit, or n does not divide H.

  Example:
    >>> x, w_in, w_out = jnp.ones(3), jnp.ones((3, 4)), jnp.ones((4, 2))
    >>> print(expert_vectors(x, w_in, w_out, 2))
    [[6. 6.]
     [6. 6.]]

  References:
    Su, `article 10699 <https://kexue.fm/archives/10699>`_, 2025, equation 2.
  """
  require_rank('x', x, 1, at_least=True)
  require_rank('w_out', w_out, 2)
  hidden, out = jnp.shape(w_out)
  require_shape('w_in', w_in, (jnp.shape(x)[-1], hidden))
  good = isinstance(n, int) and n >= 1 and hidden % n == 0
  require(good, 'n', n, f'a divisor of the {hidden} hidden units')
  units = activation(jnp.asarray(x) @ jnp.asarray(w_in))
  units = units.reshape(*units.shape[:-1], n, hidden // n)
  slices = jnp.asarray(w_out).reshape(n, hidden // n, out)
  return jnp.einsum('...nh,nhd->...nd', units, slices)


@precise
def subset_error(vectors: ArrayLike, indices: ArrayLike) -> jax.Array:
  r"""Measures how much of the sum is lost where only some vectors are kept.

  .. math:: |\textstyle\sum_{i \notin S} v_i| / |\sum_i v_i|

  Args:
    vectors: [..., n, D], of any scale.
    indices: the vectors kept, [..., k], each once.

  Returns:
    [...], float32 or better; infinite if the sum is zero and the rest is not.

  Raises:
    ValueError: if shapes do not fit.

  Example:
    >>> vectors = jnp.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    >>> print(f'{subset_error(vectors, jnp.array([0, 2])):.2f}')
    0.80
  """
  require_rank('indices', indices, 1, at_least=True)
  kept = jnp.shape(indices)[-1]
  vectors = _checked(vectors, kept)
  require_shape('indices', indices, (*vectors.shape[:-2], kept))
  left = jnp.ones_like(vectors[..., 0])
  left = jnp.put_along_axis(left, jnp.asarray(indices), 0, -1, inplace=False)
  rest = jnp.sum(left[..., None] * vectors, axis=-2)
  return _relative(rest, jnp.sum(vectors, axis=-2))


def norm_top_k(vectors: ArrayLike, k: int) -> ExpertSubset:
  r"""Keeps the k longest vectors.

  .. math::
    \operatorname{argtop}_k |v_i|, \qquad
    |\textstyle\sum_{i \notin S} v_i| / |\sum_i v_i|,

  which is the best choice if the vectors are orthogonal, as the squared error
  is then the sum of the squared lengths left out, and an approximation if they
  are not.

  Args:
    vectors: [..., n, D], of any scale.
    k: 1 to n.

  Returns:
    `ExpertSubset`: indices [..., k], int32, the longest first, the first one of
    equals; and the relative error [...] of their sum, see `subset_error`.

  Raises:
    ValueError: if there are no vectors, or k is outside 1..n.

  Example:
    >>> vectors = jnp.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    >>> print(norm_top_k(vectors, 2).indices)
    [1 2]

  References:
    Su, `article 10699 <https://kexue.fm/archives/10699>`_, 2025, equation 5.
  """
  vectors = _checked(vectors, k)
  indices = jax.lax.top_k(jnp.linalg.norm(vectors, axis=-1), k)[1]
  return ExpertSubset(indices, subset_error(vectors, indices))


@precise
def best_subset(vectors: ArrayLike, k: int) -> ExpertSubset:
  r"""Keeps the k vectors of the smallest error, by trying all subsets.

  .. math:: \operatorname{argmin}_{|S| = k} |\textstyle\sum_{i \notin S} v_i|^2
    = \operatorname{argmin}_\gamma \gamma^T V V^T \gamma, \quad
    \gamma_i = [i \notin S]

  Forms one number for each of the n over k subsets and each token.

  Args:
    vectors: see `norm_top_k`.
    k: see `norm_top_k`; n over k is at most 20,000.

  Returns:
    `ExpertSubset`: indices ascending.

  Raises:
    ValueError: as `norm_top_k`, or for too many subsets.

  Example:
    >>> vectors = jnp.array([[4.0, 0.0], [-4.0, 0.0], [0.0, 3.0]])
    >>> print(best_subset(vectors, 1).indices, norm_top_k(vectors, 1).indices)
    [2] [0]
  """
  vectors = _checked(vectors, k)
  n = vectors.shape[-2]
  number = math.comb(n, k)
  require(number <= _SUBSETS, 'k', k, f'at most {_SUBSETS} subsets of {n}')
  subsets = np.array(list(itertools.combinations(range(n), k)), np.int32)
  left = np.ones((number, n), vectors.dtype)
  np.put_along_axis(left, subsets, 0, -1)
  gram = vectors @ vectors.mT
  squares = jnp.sum((left @ gram) * left, axis=-1)
  indices = jnp.asarray(subsets)[jnp.argmin(squares, axis=-1)]
  return ExpertSubset(indices, subset_error(vectors, indices))


def random_subset_error(vectors: ArrayLike, k: int) -> jax.Array:
  r"""Computes the error of k random vectors, the root of its mean square.

  .. math:: E |\textstyle\sum_{i \notin S} v_i|^2 = \frac{q}{n} \left[
    \frac{n - q}{n - 1} \sum_i |v_i|^2 + \frac{q - 1}{n - 1} |\sum_i v_i|^2
    \right], \quad q = n - k,

  over all subsets of size k, as a pair is left out with probability
  :math:`q (q - 1) / (n (n - 1))`.

  Args:
    vectors: see `norm_top_k`.
    k: see `norm_top_k`.

  Returns:
    [...], relative to the length of the sum, as `subset_error`.

  Raises:
    ValueError: as `norm_top_k`.

  Example:
    >>> print(f'{random_subset_error(jnp.eye(4), 1):.3f}')
    0.866
  """
  vectors = _checked(vectors, k)
  n = vectors.shape[-2]
  out, others = n - k, max(n - 1, 1)
  total = jnp.linalg.norm(jnp.sum(vectors, axis=-2), axis=-1)
  alone = jnp.linalg.norm(vectors, axis=(-2, -1))
  parts = jnp.stack(
    [alone * (k / others) ** 0.5, total * (max(out - 1, 0) / others) ** 0.5],
    axis=-1,
  )
  return _relative((out / n) ** 0.5 * parts, total[..., None])
