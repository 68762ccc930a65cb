r"""A dense layer whose weight gradient is estimated from some of the tokens.

Shapes: `...` batch and time, of `t` tokens in all; `in out` the weight, `r`
rank, the tokens kept.

The gradient of `w` in `y = x @ w` is a sum over tokens,
:math:`X^T G = \sum_t x_t g_t^T`, and :math:`X` is what the backward pass has to
be kept for. `r` of its rows are enough for an unbiased estimate.

References:
  Adelman et al., `Faster neural network training with approximate tensor
  operations <https://arxiv.org/abs/1805.08079>`_, 2021;
  Liu et al., `Winner-take-all column row sampling
  <https://arxiv.org/abs/2305.15265>`_, 2023.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from .column_row import ColumnRow, column_row

METHODS = ('norm_systematic', 'norm_iid', 'uniform')
PASSES = ('forward', 'backward')


def _choose(x, partner, key, rank, method) -> ColumnRow:
  """Tokens by the norms of their [t, in] times those of their [t, n]."""
  return column_row(x.mT, partner, rank, method=method, key=key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _dense(x, w, key, rank, method, choose) -> jax.Array:
  return x @ w


def _forward(x, w, key, rank, method, choose):
  if choose == 'backward':
    return x @ w, (x, w, key)
  indices, weights = _choose(x, jnp.ones_like(x[:, :1]), key, rank, method)
  return x @ w, (x[indices], w, (indices, weights))


def _backward(rank, method, choose, residuals, gradient):
  rows, w, choice = residuals
  if choose == 'backward':
    choice = _choose(rows, gradient, choice, rank, method)
    rows = rows[choice[0]]
  indices, weights = choice
  kept = (gradient[indices] * weights[:, None]).astype(gradient.dtype)
  sums = jnp.promote_types(w.dtype, jnp.float32)
  gradient_w = jnp.matmul(rows.mT, kept, preferred_element_type=sums)
  return gradient @ w.mT, gradient_w.astype(w.dtype), None


_dense.defvjp(_forward, _backward)


def _vary_alike(x: jax.Array, w: jax.Array) -> list[jax.Array]:
  """Marks both as different on the devices that tell one of them apart.

  Within `shard_map` a rule of one's own must return gradients that vary like
  what they belong to; sums over devices are left to what is done here.
  """
  varying = [set(jax.typeof(a).mat.varying) for a in (x, w)]
  missing = [tuple(set.union(*varying) - axes) for axes in varying]
  return [
    jax.lax.pcast(a, axes, to='varying') if axes else a
    for a, axes in zip((x, w), missing, strict=True)
  ]


def column_row_dense(
  x: ArrayLike,
  w: ArrayLike,
  rank: int,
  *,
  key: jax.Array,
  method: str = 'norm_systematic',
  choose: str = 'forward',
) -> jax.Array:
  r"""Computes `x @ w`, exactly, with a cheaper and unbiased gradient of `w`.

  .. math::
    X^T G = \sum_{i=1}^t x_i g_i^T \approx \sum_{j=1}^r \omega_j x_{i_j}
    g_{i_j}^T

  Output and gradient of `x` are exact, so that errors do not add up from layer
  to layer: the gradient of every weight is unbiased. Its product takes r / t of
  its time, that is, a step of the layer takes (2 + r / t) / 3 of its time.

  Chosen in the forward pass by :math:`\|x_i\|`, only `r` rows of `x` are kept
  for the backward pass instead of `t`: r / t of the memory, unless something
  else keeps `x`. Chosen in the backward pass by :math:`\|x_i\| \|g_i\|` all of
  `x` is kept, but the error is less, by a lot where gradients are of very
  different sizes, as late in the training of a classifier.

  Deviations: the papers take the k largest terms (Adelman et al.), or these and
  draws with replacement by norms of gradients of the step before (Liu et al.,
  who need a state for that). "norm_systematic" is like the latter, without
  replacement and with as many certain terms as minimise the variance.

  Args:
    x: [..., in], one leading axis or more.
    w: [in, out].
    rank: tokens kept, 1 to their number t.
    key: another for every layer, step and device.
    method: "norm_systematic", "norm_iid" or "uniform", of `column_row`: those
      that are unbiased and keep to the rank.
    choose: "forward" saves memory, "backward" has less variance.

  Returns:
    [..., out], of the type of `x @ w`. Has no forward-mode derivative.

  Raises:
    ValueError: if shapes do not fit, for a rank outside 1..t or an unknown
      name.

  Example:
    >>> x, w = jnp.ones((8, 4, 3)), jnp.eye(3)
    >>> layer = functools.partial(column_row_dense, key=jax.random.key(0))
    >>> layer(x, w, 5).shape
    (8, 4, 3)
    >>> gradient = jax.grad(lambda w: jnp.sum(layer(x, w, 5)))(w)
    >>> f'{gradient[0, 0]:.2f}'  # 32 tokens that are alike, from 5 of them.
    '32.00'

  References:
    Adelman et al., `Faster neural network training with approximate tensor
    operations <https://arxiv.org/abs/1805.08079>`_, 2021.
    Liu et al., `Winner-take-all column row sampling
    <https://arxiv.org/abs/2305.15265>`_, 2023.
  """
  require_rank('x', x, 2, at_least=True)
  require_shape('w', w, (jnp.shape(x)[-1], None))
  require_one_of('method', method, METHODS)
  require_one_of('choose', choose, PASSES)
  *batch, width = jnp.shape(x)
  tokens = math.prod(batch)
  good = isinstance(rank, int) and 1 <= rank <= tokens
  require(good, 'rank', rank, f'an integer in 1..{tokens}, the rows of x')
  rows, w = _vary_alike(jnp.reshape(x, (tokens, width)), jnp.asarray(w))
  y = _dense(rows, w, key, rank, method, choose)
  return jnp.reshape(y, (*batch, w.shape[1]))
