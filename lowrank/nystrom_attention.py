r"""Softmax attention by landmarks: Nystrom's approximation of its matrix.

Shapes: `...` batch and heads, `T` tokens, `K` width of queries and keys, `D`
width of values, `m` landmarks.

References:
  Xiong et al., `Nystromformer <https://arxiv.org/abs/2102.03902>`_, 2021.
  Su, `article 8180 <https://kexue.fm/archives/8180>`_, 2021.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from .arrays import precise, wide
from .pinv import pinv

INVERSES = ('iterative', 'exact')


def segment_weights(mask: jax.Array, landmarks: int) -> jax.Array:
  """Rows that average the live tokens by segments, as even as can be.

  Args:
    mask: bool [..., T].
    landmarks: m, at least 1.

  Returns:
    Float32 [..., m, T]; a row sums to one, or is zero if its segment is empty,
    which happens where fewer than `landmarks` tokens are live.

  Example:
    >>> mask = jnp.array([True, False, True, True])
    >>> segment_weights(mask, 2).tolist()
    [[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]
  """
  place = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1  # Among live tokens.
  live = jnp.maximum(place[..., -1:] + 1, 1)
  segment = jnp.where(mask, place * landmarks // live, -1)[..., None, :]
  member = segment == jnp.arange(landmarks)[:, None]
  size = jnp.sum(member, axis=-1, keepdims=True)
  return member / jnp.maximum(size, 1).astype(jnp.float32)


def _masked_softmax(logits: jax.Array, alive: jax.Array) -> jax.Array:
  """Over the last axis, with weight 0, exactly, where nothing is alive."""
  lowest = jnp.finfo(logits.dtype).min
  weights = jax.nn.softmax(jnp.where(alive, logits, lowest), axis=-1)
  return jnp.where(alive, weights, 0)


def iterative_pinv(a: jax.Array, iterations: int) -> jax.Array:
  r"""The pseudo-inverse by matrix products alone, from the paper's start.

  .. math::
    Z_0 = \frac{A^T}{\|A\|_1 \|A\|_\infty}, \qquad
    Z \leftarrow \tfrac14 Z (13 I - A Z (15 I - A Z (7 I - A Z)))

  For the rows of a softmax every matrix has :math:`\|I - A Z_0\| < 1` on its
  range, and the error is cubed in the end. At first an eigenvalue of `A Z`
  grows by 13/4 a step, so that singular values below about
  :math:`(4/13)^{k/2}` of the norm are not inverted yet after k steps, 3 % for
  six: the iteration regularises.

  Args:
    a: real matrices [..., m, m]; zero rows and columns stay zero.
    iterations: number of steps.

  Returns:
    [..., m, m].

  Example:
    >>> inverse = iterative_pinv(jnp.diag(jnp.array([2.0, 1.0, 0.0])), 4)
    >>> [round(x, 3) for x in jnp.diagonal(inverse).tolist()]
    [0.5, 1.0, 0.0]
  """
  columns, rows = (jnp.abs(a).sum(i, keepdims=True) for i in (-2, -1))
  size = columns.max(-1, keepdims=True) * rows.max(-2, keepdims=True)
  z = a.mT / jnp.where(size > 0, size, 1)

  def step(_, z):
    az = a @ z
    return (13 * z - z @ (15 * az - az @ (7 * az - az @ az))) / 4

  return jax.lax.fori_loop(0, iterations, step, z)


def nystrom_attention(
  q: ArrayLike,
  k: ArrayLike,
  v: ArrayLike,
  *,
  landmarks: int,
  mask: ArrayLike | None = None,
  scale: float | None = None,
  inverse: str = 'iterative',
  iterations: int = 6,
) -> jax.Array:
  r"""Softmax self-attention through landmarks, linear in the tokens.

  .. math::
    \operatorname{softmax}(Q K^T) V \approx
    \operatorname{softmax}(Q \tilde K^T) \,
    \operatorname{softmax}(\tilde Q \tilde K^T)^+ \,
    (\operatorname{softmax}(\tilde Q K^T) V)

  with the scale :math:`1 / \sqrt K` in every product and landmarks
  :math:`\tilde Q, \tilde K` [..., m, K] that are means over segments of
  consecutive tokens (equations 13 and 14 of the paper). Article 8180: the
  middle is chosen so that all is exact for as many landmarks as tokens. Time
  and memory are O(T m): no matrix of T x T is formed. As the means blend past
  and future there is no causal form.

  Deviations: the segments divide the live tokens as evenly as can be for any
  length, where the paper pads with zeros, which draws its last means towards
  zero; and padding changes nothing, wherever it is. The start of the iteration
  is scaled for each matrix, not by the largest of a batch as in the authors'
  code. The convolution of the values that the paper adds belongs to its layer.

  Args:
    q: queries [..., T, K].
    k: keys, of the shape of `q`.
    v: values [..., T, D].
    landmarks: m, 1 to T; the paper's is 64.
    mask: bool [..., T], true for live tokens; its leading axes broadcast to
      those of `q`. What is not live is no key, and no query of a landmark; its
      own output is finite and of no use. Without any live token all is zero.
    scale: factor of inner products. `None`: :math:`1 / \sqrt K`.
    inverse: "iterative", the paper's matrix products, of which a few steps
      regularise; "exact", the pseudo-inverse by SVD, exact for m = T and often
      worse for m < T, as the means are no tokens.
    iterations: of "iterative", 1 or more. The paper's is 6.

  Returns:
    [..., T, D], float32 or better.

  Raises:
    ValueError: if shapes do not fit, for `landmarks` or `iterations` out of
      range, an unknown `inverse` or a mask that is not boolean.

  Example:
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 10, 4))
    >>> nystrom_attention(q, k, v, landmarks=3).shape
    (2, 10, 4)

  References:
    Xiong et al., `Nystromformer <https://arxiv.org/abs/2102.03902>`_, 2021.
    Su, `article 8180 <https://kexue.fm/archives/8180>`_, 2021.
  """
  require_rank('q', q, 2, at_least=True)
  *batch, tokens, width = jnp.shape(q)
  require(min(tokens, width) >= 1, 'q', jnp.shape(q), 'no empty axis')
  require_shape('k', k, jnp.shape(q))
  require_shape('v', v, (*batch, tokens, None))
  good = isinstance(landmarks, int) and 1 <= landmarks <= tokens
  require(good, 'landmarks', landmarks, f'an integer in 1..{tokens}')
  require_one_of('inverse', inverse, INVERSES)
  good = isinstance(iterations, int) and iterations >= 1
  require(good, 'iterations', iterations, 'an integer of at least 1')
  mask = _full_mask(mask, (*batch, tokens))
  scale = 1 / math.sqrt(width) if scale is None else scale
  return _attention(
    *map(wide, (q, k, v)),
    mask,
    scale,
    landmarks=landmarks,
    inverse=inverse,
    iterations=iterations,
  )


def _full_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
  if mask is None:
    return jnp.ones(shape, bool)
  mask = jnp.asarray(mask)
  require(mask.dtype == bool, 'mask', mask.dtype, 'bool')
  try:
    return jnp.broadcast_to(mask, shape)
  except ValueError:
    raise ValueError(
      f'mask: got shape {mask.shape}, expected one that broadcasts to {shape}'
    ) from None


@functools.partial(
  jax.jit, static_argnames=('landmarks', 'inverse', 'iterations')
)
@precise
def _attention(q, k, v, mask, scale, *, landmarks, inverse, iterations):
  average = segment_weights(mask, landmarks).astype(q.dtype)
  filled = jnp.any(average > 0, axis=-1)  # Which landmarks stand for tokens.
  q = q * scale
  # A padded key may hold anything; zero times infinity is not zero.
  clean = lambda x: jnp.where(mask[..., None], x, 0)
  k, v = clean(k), clean(v)
  q_mean, k_mean = average @ clean(q), average @ k
  left = _masked_softmax(q @ k_mean.mT, filled[..., None, :])
  rows = filled[..., None]
  middle = _masked_softmax(q_mean @ k_mean.mT, rows & filled[..., None, :])
  right = _masked_softmax(q_mean @ k.mT, rows & mask[..., None, :])
  if inverse == 'exact':
    core = pinv(middle)
  else:
    core = iterative_pinv(middle, iterations)
  return left @ (core @ (right @ v))
