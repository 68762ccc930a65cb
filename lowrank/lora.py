r"""Low-rank adapters: how they start, act, and are put back into the weight.

Shapes: `...` batch, `in out` the weight, `r` rank. A layer computes `y = x @ w`
with :math:`W = W_0 + s A B`: `w` and the frozen `base` [..., in, out], `a`
[..., in, r], `b` [..., r, out]. The conversion from papers and PyTorch, which
write :math:`W^T = W_0^T + s B A` for weights [out, in]:

| here | papers, PyTorch, peft |
|---|---|
| `w`, `gradient` | transposed |
| `a` [in, r], `b` [r, out] | `A` [r, in] and `B` [out, r], transposed |
| left singular vectors of the gradient, to `a` | its right ones, to `A` |
| `w.shape[-1]` | :math:`d_{out}` |

References:
  Su, `Aligning with full fine-tuning, I
  <https://kexue.fm/archives/10226>`_, 2024;
  Hu et al., `LoRA <https://arxiv.org/abs/2106.09685>`_, 2021.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from ..checks import require, require_one_of, require_rank, require_shape
from .arrays import precise, require_decomposition_rank, wide
from .randomized_svd import randomized_svd
from .svd import SVD, svd

METHODS = ('kaiming', 'pissa', 'lora_ga')
SCALINGS = ('rslora', 'lora')
GA_SCALES = ('stable', 'gd', 'unit')
_EXACT_UP_TO = 512  # Beyond, an SVD takes seconds, and more by the cube.


class LoRA(NamedTuple):
  """A weight as a frozen part and an adapter, base + scale * a @ b.

  Only `a` and `b` are trained. `lora_apply` and `lora_merge` pass no gradient
  to the rest, but an optimizer with weight decay would still shrink it, so give
  it the pair alone, by the names that `kexue.optimizers.lora_pro` looks for:

  >>> lora = lora_init(jax.random.key(0), jnp.eye(4), 2, method='pissa')
  >>> pair = {'a': lora.a, 'b': lora.b}
  >>> loss = lambda pair, x: lora_apply(x, lora._replace(**pair)).sum()
  >>> jax.tree.map(jnp.shape, jax.grad(loss)(pair, jnp.ones((3, 4))))
  {'a': (4, 2), 'b': (2, 4)}

  Attributes:
    a: [..., in, r].
    b: [..., r, out].
    base: [..., in, out].
    scale: float32 or better, of the batch shape [...], so that `jax.vmap` and
      `jax.lax.scan` run over stacked layers.
  """

  a: jax.Array
  b: jax.Array
  base: jax.Array
  scale: jax.Array


def lora_scale(
  rank: int,
  *,
  alpha: float | jax.Array | None = None,
  scaling: str = 'rslora',
) -> float | jax.Array:
  r"""The factor `s` of the adapter.

  .. math:: s = \alpha / \sqrt r \quad \text{or} \quad s = \alpha / r

  Args:
    rank: `r`, 1 or more.
    alpha: above 0; `None`: such that `s` is one, for every rank. LoRA-GA's and
      LoRA-Pro's experiments have 16.
    scaling: "rslora", which keeps outputs and gradients of one size for every
      rank, or "lora", with which they shrink as the rank grows.

  Returns:
    `s`, a float if `alpha` is one.

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> lora_scale(64, alpha=16.0), lora_scale(64, alpha=16.0, scaling='lora')
    (2.0, 0.25)

  References:
    Kalajdzievski, `rsLoRA <https://arxiv.org/abs/2312.03732>`_, 2023.
  """
  require(isinstance(rank, int) and rank >= 1, 'rank', rank, '1 or more')
  require_one_of('scaling', scaling, SCALINGS)
  if alpha is None:
    return 1.0
  if isinstance(alpha, int | float):
    require(alpha > 0, 'alpha', alpha, 'a number above 0')
  return alpha / (math.sqrt(rank) if scaling == 'rslora' else rank)


def lora_init(
  key: jax.Array,
  w: ArrayLike,
  rank: int,
  *,
  method: str,
  gradient: ArrayLike | None = None,
  alpha: float | jax.Array | None = None,
  scaling: str = 'rslora',
  ga_scale: str = 'stable',
  gamma: float | jax.Array = 16.0,
  exact: bool | None = None,
  dtype: DTypeLike | None = None,
) -> LoRA:
  r"""Splits a weight into an adapter and a frozen rest; their sum stays `w`.

  "kaiming", LoRA's own: `a` is uniform within :math:`\pm 1 / \sqrt{in}`, `b`
  zero. "pissa": the first `r` triplets of :math:`W = U S V^T`,

  .. math::
    A = U_{:, :r} \sqrt{S_r / s}, \quad B = \sqrt{S_r / s} V_{:, :r}^T.

  "lora_ga": from the gradient :math:`G = U S V^T`, its first `r` pairs for one
  factor and the next `r` for the other,

  .. math:: A = c\, U_{:, :r}, \quad B = c\, V_{:, r:2r}^T.

  A step of gradient descent moves the weight by :math:`-\eta s^2 (A A^T G + G
  B^T B)`. With :math:`s c = 1` this misses :math:`-\eta G`, that of full
  fine-tuning, by :math:`\eta \sqrt{\sum_{i > 2r} s_i^2}`, the least that any
  factors miss. Any other split of the first `2 r` pairs into halves would do;
  this is the authors' default. Where the weight has fewer than `2 r` pairs, the
  last rows of `b` are zero and nothing is missed.

  Whatever the method, `base` is `w` less what the factors really are in their
  own type, computed in float32 or better, so :math:`W_0 + s A B` is `w` but for
  the rounding of `base`.

  Deviations: `alpha` is such that `s = 1` unless given, the codes' is 8 or 16.
  peft multiplies `b` by the singular values, so that small gradients leave it
  near zero and half of the pairs unused; here, as in the paper, it does not.

  Args:
    key: typed; of Kaiming's draw and of the randomized SVD.
    w: the weight, a floating type.
    rank: `r`, in 1..min(in, out).
    method: "kaiming", "pissa" or "lora_ga".
    gradient: of the loss in `w`, [..., in, out], with "lora_ga" and only there;
      the mean over a few batches. Only its singular vectors matter.
    alpha: see `lora_scale`.
    scaling: see `lora_scale`.
    ga_scale: `c`. "stable" :math:`out^{1/4} / \sqrt\gamma`, the paper's, keeps
      outputs and gradients of one size as widths grow; "gd" :math:`1 / s`, with
      which the learning rate of full fine-tuning is that of the adapter;
      "unit" 1.
    gamma: above 0; the larger, the smaller is the adapter.
    exact: whether by a full SVD or by `randomized_svd` with as many further
      directions as are wanted and four power iterations; `None`: exact for up
      to 512 rows or columns, whichever are fewer.
    dtype: of `a` and `b`; `None`: that of `w`, which `base` has anyway.

  Returns:
    `LoRA`.

  Raises:
    ValueError: for an argument outside its range, a gradient that is missing,
      of another shape than `w` or of no use.

  Example:
    >>> w, g = jnp.ones((4, 3)), jnp.diag(jnp.arange(4.0))[:, 1:]
    >>> lora = lora_init(
    ...   jax.random.key(0), w, 1, method='lora_ga', gradient=g, ga_scale='gd'
    ... )
    >>> abs(lora.a[:, 0]).tolist(), abs(lora.b[0]).tolist()
    ([0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    >>> bool(jnp.allclose(lora_merge(lora), w))
    True

  References:
    Wang et al., `LoRA-GA <https://arxiv.org/abs/2407.05000>`_, 2024.
    Meng et al., `PiSSA <https://arxiv.org/abs/2404.02948>`_, 2024.
    Su, `article 10226 <https://kexue.fm/archives/10226>`_, 2024.
  """
  w = jnp.asarray(w)
  require_rank('w', w, 2, at_least=True)
  floating = jnp.issubdtype(w.dtype, jnp.floating)
  require(floating, 'w', w.dtype, 'a floating type')
  require_decomposition_rank(rank, w.shape)
  require_one_of('method', method, METHODS)
  require_one_of('ga_scale', ga_scale, GA_SCALES)
  needed = method == 'lora_ga'
  given = 'none' if gradient is None else 'one'
  expected = f'{"one" if needed else "none"} with method {method!r}'
  require((gradient is not None) == needed, 'gradient', given, expected)
  if needed:
    require_shape('gradient', gradient, w.shape)
  if isinstance(gamma, int | float):
    require(gamma > 0, 'gamma', gamma, 'a number above 0')
  scale = lora_scale(rank, alpha=alpha, scaling=scaling)
  if exact is None:
    exact = min(w.shape[-2:]) <= _EXACT_UP_TO
  if ga_scale == 'stable':
    size = w.shape[-1] ** 0.25 / gamma**0.5
  else:
    size = 1 / scale if ga_scale == 'gd' else 1.0
  dtype = jnp.dtype(w.dtype if dtype is None else dtype)
  return _init(key, w, gradient, scale, size, rank, method, bool(exact), dtype)


@functools.partial(
  jax.jit, static_argnames=('rank', 'method', 'exact', 'dtype')
)
@precise
def _init(key, w, gradient, scale, size, rank, method, exact, dtype) -> LoRA:
  """The factors in their own type, and what these leave of the weight."""
  scale = jnp.asarray(scale, wide(w).dtype)
  if method == 'kaiming':
    a = kaiming_uniform(key, (*w.shape[:-1], rank), scale.dtype)
    b = jnp.zeros_like(a, shape=(*w.shape[:-2], rank, w.shape[-1]))
  elif method == 'pissa':
    u, s, vh = _leading(key, wide(w), rank, exact)
    root = jnp.sqrt(s / scale)
    a, b = u * root[..., None, :], root[..., :, None] * vh
  else:
    a, b = _gradient_pairs(key, wide(gradient), rank, exact)
    a, b = size * a, size * b
  a, b = a.astype(dtype), b.astype(dtype)
  base = wide(w) - scale * (wide(a) @ wide(b))
  # One scale for each matrix, for `vmap` and `scan`.
  scales = jnp.full_like(w[..., 0, 0], scale, scale.dtype)
  return LoRA(a, b, base.astype(w.dtype), scales)


def kaiming_uniform(
  key: jax.Array,
  shape: tuple[int, ...],
  dtype: DTypeLike = jnp.float32,
) -> jax.Array:
  """Uniform within 1 / sqrt(in), for the factor [..., in, r] of LoRA."""
  limit = 1 / math.sqrt(shape[-2])
  return jax.random.uniform(key, shape, dtype, -limit, limit)


def _gradient_pairs(key, g, rank, exact) -> tuple[jax.Array, jax.Array]:
  """The first `rank` left singular vectors, the next right ones."""
  pairs = min(2 * rank, *g.shape[-2:])
  u, _, vh = _leading(key, g, pairs, exact)
  missing = [(0, 0)] * (g.ndim - 2) + [(0, 2 * rank - pairs), (0, 0)]
  return u[..., :rank], jnp.pad(vh[..., rank:, :], missing)


def _leading(key, x, count, exact) -> SVD:
  """The first singular triplets, exact or nearly."""
  if exact:
    return svd(x, count)
  return randomized_svd(
    x, count, key=key, oversampling=count, power_iterations=4
  )


def lora_apply(x: ArrayLike, lora: LoRA) -> jax.Array:
  r"""The layer, without putting the adapter into the weight.

  .. math:: y = x W_0 + s (x A) B

  On rows, one plain product each: XLA on CPU is up to three times slower with
  products over several leading axes. Gradients go to `x`, `a` and `b` only.

  Args:
    x: [..., in].
    lora: of one matrix. Stacked layers are for `jax.vmap` or `jax.lax.scan`.

  Returns:
    [..., out], of the type of `x @ base` however wide the adapter is.

  Raises:
    ValueError: for a stacked `lora` or a last axis that is not `in`.

  Example:
    >>> lora = lora_init(jax.random.key(0), jnp.eye(4), 2, method='kaiming')
    >>> lora_apply(jnp.ones((5, 7, 4)), lora).shape
    (5, 7, 4)
  """
  x = jnp.asarray(x)
  require_rank('lora.base', lora.base, 2)
  fan_in, fan_out = lora.base.shape
  require_shape('x', x, (*x.shape[:-1], fan_in))
  base, scale = jax.lax.stop_gradient((lora.base, lora.scale))
  rows = x.reshape(-1, fan_in)
  y = rows @ base
  low = (rows @ lora.a) @ lora.b
  y = y + (scale.astype(low.dtype) * low).astype(y.dtype)
  return y.reshape(*x.shape[:-1], fan_out)


@precise
def lora_merge(lora: LoRA) -> jax.Array:
  """The weight, base + scale * a @ b.

  Args:
    lora: of any batch shape.

  Returns:
    [..., in, out] in the type of `base`; computed in float32 or better.

  Example:
    >>> lora = lora_init(jax.random.key(0), jnp.eye(4), 2, method='kaiming')
    >>> bool((lora_merge(lora) == jnp.eye(4)).all())
    True
  """
  base, scale = jax.lax.stop_gradient((lora.base, lora.scale))
  low = scale[..., None, None] * (wide(lora.a) @ wide(lora.b))
  return (wide(base) + low).astype(base.dtype)


def lora_delta(lora: LoRA, start: LoRA) -> LoRA:
  r"""A trained adapter as one of twice the rank on the original weight.

  PiSSA and LoRA-GA change the frozen weight. What they learned goes with the
  original one, so that nobody needs to store or ship another:

  .. math:: s (A_T B_T - A_0 B_0)
    = s \begin{pmatrix} A_T & -A_0 \end{pmatrix}
    \begin{pmatrix} B_T \\ B_0 \end{pmatrix}

  Args:
    lora: after training.
    start: what `lora_init` returned.

  Returns:
    `LoRA` of rank `2 r`: save `a` and `b`, and put them with `_replace` on the
    weight that the start was made of, which `base` is but for rounding.

  Raises:
    ValueError: if the two are of different shapes.

  Example:
    >>> start = lora_init(jax.random.key(0), jnp.eye(4), 1, method='pissa')
    >>> delta = lora_delta(start._replace(b=3 * start.b), start)
    >>> delta.a.shape, delta.b.shape, float(jnp.trace(lora_merge(delta)))
    ((4, 2), (2, 4), 6.0)

  References:
    Su, `article 10226 <https://kexue.fm/archives/10226>`_, 2024.
  """
  require_shape('start.a', start.a, jnp.shape(lora.a))
  require_shape('start.b', start.b, jnp.shape(lora.b))
  a = jnp.concatenate([lora.a, -start.a], axis=-1)
  b = jnp.concatenate([lora.b, start.b], axis=-2)
  return LoRA(a, b, lora_merge(start), lora.scale)
