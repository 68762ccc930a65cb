r"""Weight decay by the spectral norm and by the Schatten norms.

Shapes: matrices [..., m, n] with singular values :math:`\sigma_i`. The gradient
of half the squared norm takes the place of `w` in decoupled weight decay:

.. math::
  \nabla \tfrac12 \|W\|_2^2 = \sigma_1 u_1 v_1^T, \qquad
  \nabla \tfrac12 \|W\|_{2k}^2 =
  \frac{W (W^T W)^{k-1}}{\mathrm{tr}((W^T W)^k)^{(k-1)/k}}.

The first takes from the largest singular value alone; the second, the Schatten
2k-norm, is plain weight decay for `k = 1` and tends to the first.

References:
  Su, `From the gradient of the spectral norm to a new weight decay
  <https://kexue.fm/archives/10648>`_, 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..checks import require, require_rank
from .matrices import (
  DimensionNumbers,
  from_matrices,
  numbers_of_leaves,
  split_fused,
  to_matrices,
)

_START = 16  # Power iterations from a random vector; afterwards it is warm.


def _require_order(order: int | None) -> None:
  require(
    order is None or (isinstance(order, int) and order >= 1),
    'order',
    order,
    'an integer of 1 or more, or None',
  )


def unit(v: jax.Array) -> jax.Array:
  """Divides vectors [..., n] by their norm, at any scale; zero stays zero."""
  largest = jnp.max(jnp.abs(v), axis=-1, keepdims=True)
  v = v / jnp.where(largest > 0, largest, 1)
  norm = jnp.linalg.norm(v, axis=-1, keepdims=True)
  return v / jnp.where(norm > 0, norm, 1)


def power_iteration(w: jax.Array, v: jax.Array, iterations: int) -> jax.Array:
  """Turns unit vectors v [..., n] towards the top right singular ones of w."""

  def turn(_, v):
    u = unit(jnp.einsum('...mn,...n->...m', w, v))
    new = unit(jnp.einsum('...mn,...m->...n', w, u))
    # A zero matrix has no direction; the old one is as good as any.
    return jnp.where(jnp.any(new != 0, axis=-1, keepdims=True), new, v)

  return jax.lax.fori_loop(0, iterations, turn, v)


def _top_vector(w: jax.Array, key: jax.Array, iterations: int) -> jax.Array:
  """Top right singular vectors [..., n], from a random start."""
  v = unit(jax.random.normal(key, w.shape[:-2] + w.shape[-1:], w.dtype))
  return power_iteration(w, v, iterations)


def top_vectors(matrices: list[jax.Array], key: jax.Array) -> list[jax.Array]:
  """Top right singular vectors [batch, n] of each entry, to go on from."""
  return [
    _top_vector(w, jax.random.fold_in(key, i), _START)
    for i, w in enumerate(matrices)
  ]


def _rank_one(w: jax.Array, v: jax.Array) -> jax.Array:
  """W v v^T, which is sigma_1 u_1 v_1^T at the top vector."""
  return jnp.einsum('...mn,...n->...m', w, v)[..., None] * v[..., None, :]


def wide(w: ArrayLike) -> jax.Array:
  """Converts to float32 or better."""
  w = jnp.asarray(w)
  return w.astype(jnp.promote_types(w.dtype, jnp.float32))


def spectral_norm(
  w: ArrayLike, *, iterations: int = 16, key: jax.Array
) -> jax.Array:
  r"""Largest singular value by power iteration, from below.

  The error falls as :math:`(\sigma_2 / \sigma_1)^{4 t}`; the direction, which
  is not returned, needs a gap in the spectrum.

  Args:
    w: matrices [..., m, n], real.
    iterations: `t`, 1 or more; two products with a vector each.
    key: of the random start.

  Returns:
    [...], float32 or better.

  Raises:
    ValueError: if `w` has fewer than two axes or `iterations` is below one.

  Example:
    >>> w = jnp.diag(jnp.array([3.0, -5.0, 1.0]))
    >>> round(float(spectral_norm(w, key=jax.random.key(0))), 4)
    5.0
  """
  w = wide(w)
  require_rank('w', w, 2, at_least=True)
  require(iterations >= 1, 'iterations', iterations, '1 or more')
  v = _top_vector(w, key, iterations)
  size = jnp.max(jnp.abs(w), axis=(-2, -1))  # Squares must not overflow.
  size = jnp.where(size > 0, size, 1)
  stretched = jnp.einsum('...mn,...n->...m', w / size[..., None, None], v)
  return size * jnp.linalg.norm(stretched, axis=-1)


def _trace(x: jax.Array) -> jax.Array:
  return jnp.trace(x, axis1=-2, axis2=-1)[..., None, None]


def _power(m: jax.Array, exponent: int) -> tuple[jax.Array, jax.Array]:
  """m^exponent as (unit-trace matrix, log of its trace), for m of trace one.

  By repeated squaring, each factor rescaled: eigenvalues below one would
  underflow float32 from the eighth power or so on.
  """

  def rescaled(x, log):
    trace = _trace(x)
    return x / trace, log + jnp.log(trace)

  result, log_result = None, jnp.zeros_like(_trace(m))
  base, log_base = m, jnp.zeros_like(log_result)
  while exponent:
    if exponent % 2:
      if result is None:
        result, log_result = base, log_base
      else:
        result, log_result = rescaled(result @ base, log_result + log_base)
    exponent //= 2
    if exponent:
      base, log_base = rescaled(base @ base, 2 * log_base)
  return result, log_result


def schatten_gradient(w: ArrayLike, order: int | None) -> jax.Array:
  r"""Gradient of half the squared Schatten norm, :math:`\|W\|_{S,2k}^2 / 2`.

  .. math:: \sigma_i \mapsto \sigma_i (\sigma_i / \|\sigma\|_{2k})^{2k - 2},

  computed as :math:`W M^{k-1} / \mathrm{tr}(M^k)^{(k-1)/k}` with the trace of
  :math:`M = W^T W` scaled out, on the smaller side of the matrix.

  Deviations: article 10648 gives the spectral norm; the generalisation to 2k is
  derived here.

  Args:
    w: matrices [..., m, n], real, of any scale.
    order: `k`, 1 or more: 1 gives `w`. `None`: the limit, the spectral norm's
      :math:`\sigma_1 u_1 v_1^T`, by SVD.

  Returns:
    [..., m, n], float32 or better; zero for zero.

  Raises:
    ValueError: if `w` has fewer than two axes or `order` is below one.

  Example:
    >>> w = jnp.diag(jnp.array([2.0, 1.0]))
    >>> jnp.diag(schatten_gradient(w, None)).tolist()
    [2.0, 0.0]
    >>> gradient = schatten_gradient(w, 2)
    >>> print(f'{gradient[0, 0]:.3f} {gradient[1, 1]:.3f}')
    1.940 0.243
  """
  w = wide(w)
  require_rank('w', w, 2, at_least=True)
  _require_order(order)
  if order == 1:
    return w
  size = jnp.max(jnp.abs(w), axis=(-2, -1), keepdims=True)
  size = jnp.where(size > 0, size, 1)
  x = w / size
  if order is None:
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    top = s[..., :1, None] * u[..., :, :1] * vh[..., :1, :]
    return size * top
  tall = x.shape[-2] > x.shape[-1]
  x = x if tall else x.mT
  gram = x.mT @ x
  trace = _trace(gram)
  zero = trace == 0
  m = gram / jnp.where(zero, 1, trace)
  # A zero matrix would divide by its trace again and again.
  m = jnp.where(zero, jnp.eye(m.shape[-1], dtype=m.dtype) / m.shape[-1], m)
  power, log_power = _power(m, order - 1)
  # log tr(M^k), and D = W M^(k-1) / tr(M^k)^((k-1)/k) in logarithms.
  log_trace = jnp.log(jnp.sum(power * m, axis=(-2, -1), keepdims=True))
  log_trace += log_power
  scale = jnp.exp(log_power - (order - 1) / order * log_trace)
  result = size * (x @ power) * scale
  return result if tall else result.mT


class SpectralDecayState(NamedTuple):
  """Steps taken, and top right singular vectors [batch, n] of all matrices."""

  count: jax.Array
  v: list[jax.Array]


def add_spectral_decay(
  weight_decay: float,
  *,
  order: int | None = None,
  power_iterations: int = 1,
  mask: Any | None = None,
  dimension_numbers: DimensionNumbers | None = None,
  key: jax.Array | None = None,
) -> optax.GradientTransformation:
  r"""Adds the gradient of half a squared spectral norm to the update.

  :math:`\lambda \nabla \tfrac12 \|W\|^2` stands where
  `optax.add_decayed_weights` stands, before the learning rate.
  With `order=None` the norm is the spectral one and the decay
  :math:`\lambda W v v^T`, `v` from a power iteration that goes on from the last
  step's. For any unit `v` and :math:`\eta \lambda \le 1` this never increases
  the spectral norm, so a `v` that lags behind does no harm.

  Deviations: article 10648 starts ten iterations from all ones every step; all
  ones is orthogonal to `v` for weights whose rows sum to zero, and a warm start
  needs one.

  Args:
    weight_decay: :math:`\lambda`, 0 or more.
    order: `None`, or `k` for the Schatten norm of order 2k; 1 is
      `optax.add_decayed_weights`.
    power_iterations: per step, 1 or more; only for `order=None`.
    mask: pytree of booleans or function of the parameters: what decays.
    dimension_numbers: see `scale_by_muon`; `None`: every decayed leaf must be a
      matrix.
    key: of the random start, the same on all devices; `None`: a fixed one.

  Returns:
    `optax.GradientTransformation` with state `SpectralDecayState`, inside
    `optax.masked`'s if there is a mask.

  Raises:
    ValueError: for an argument outside its range, a leaf that is no matrix, or
      an update without parameters.

  Example:
    >>> params = {'w': jnp.diag(jnp.array([2.0, 1.0]))}
    >>> tx = add_spectral_decay(0.1)
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> decay, _ = tx.update(zeros, tx.init(params), params)
    >>> print(jnp.diag(decay['w']).round(3))
    [0.2 0. ]

  References:
    Su, `article 10648 <https://kexue.fm/archives/10648>`_, 2024.
  """
  if isinstance(weight_decay, int | float):
    require(weight_decay >= 0, 'weight_decay', weight_decay, '0 or more')
  _require_order(order)
  if isinstance(power_iterations, int):
    require(
      power_iterations >= 1, 'power_iterations', power_iterations, '1 or more'
    )
  key = jax.random.key(0) if key is None else key

  def matrices_of(params):
    """For each leaf the matrices [batch, m, n] side by side in it."""
    numbers = numbers_of_leaves(params, dimension_numbers)
    leaves = zip(jax.tree.leaves(params), numbers, strict=True)
    return [split_fused(wide(to_matrices(x, n)), n) for x, n in leaves], numbers

  def init(params):
    parts, _ = matrices_of(params)
    v = top_vectors(sum(parts, []), key) if order is None else []
    return SpectralDecayState(jnp.zeros([], jnp.int32), v)

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('params: got None, expected the parameters that decay')
    parts, numbers = matrices_of(params)
    flat = sum(parts, [])
    v = state.v
    if order is None:
      v = [
        power_iteration(w, old, power_iterations)
        for w, old in zip(flat, v, strict=True)
      ]
      flat = map(_rank_one, flat, v)
    else:
      flat = [schatten_gradient(w, order) for w in flat]
    flat = iter(flat)
    leaves, treedef = jax.tree.flatten(params)
    decay = treedef.unflatten(
      from_matrices(
        jnp.concatenate([next(flat) for _ in part], axis=2), x.shape, n
      )
      for part, x, n in zip(parts, leaves, numbers, strict=True)
    )
    updates = jax.tree.map(
      lambda u, d: (u + weight_decay * d).astype(u.dtype), updates, decay
    )
    return updates, SpectralDecayState(optax.safe_increment(state.count), v)

  transform = optax.GradientTransformation(init, update)
  return transform if mask is None else optax.masked(transform, mask)
