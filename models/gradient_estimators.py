r"""Gradients through quantisation: straight through, rotated, and their family.

A quantiser replaces a vector `z` by a code `q` and has no derivative. All
estimators here are of one form (article 10489),

.. math:: z_q = \operatorname{sg}[G] z + \operatorname{sg}[q - G z],

whose value is `q` whatever the matrix `G(z, q)` and whose derivative with
respect to `z` is `G`; what reaches the encoder is :math:`G^T g`. With
:math:`\hat z, \hat q` the unit vectors, `R` the rotation in their plane that
takes :math:`\hat z` to :math:`\hat q`, and `s = |q| / |z|`:

=====================  ==================================================
kind                   G
=====================  ==================================================
"ste"                  I
"rotation"             s R
"rotation_no_rescale"  R
"reflection"           s (I - 2 a a^T), a the unit vector along
                       :math:`\hat z - \hat q`
"scaled_rotation"      R / (8 |q - z|^2)
"diveq"                no constant: the value is written
                       :math:`z + |q - z| \operatorname{sg}[u]`, `u` the unit
                       vector along `q - z`, which trains `q` too
=====================  ==================================================

A rotation keeps the angle between gradient and code, :math:`\angle(g, q) =
\angle(G^T g, z)`. Far from the origin it is the straight-through estimator: the
rotation trick, unlike the quantiser, knows where the origin is.

References:
  Su, `The rotation trick of VQ <https://kexue.fm/archives/10489>`_, 2024;
  Fifty et al., `Restructuring Vector Quantization with the Rotation Trick
  <https://arxiv.org/abs/2410.06424>`_, 2024;
  Vali et al., `DiVeQ <https://arxiv.org/abs/2509.26469>`_, 2025.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ..checks import require, require_one_of, require_rank, require_shape
from ..mapped_axes import vary_together

KINDS = (
  'ste',
  'rotation',
  'rotation_no_rescale',
  'reflection',
  'scaled_rotation',
  'diveq',
)
_TINY = 1e-6  # Shorter vectors have no direction worth following.
_ANTIPODAL = 1e-3  # 1 + cos below which float32 has no plane to rotate in.


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.sum(a * b, axis=-1, keepdims=True)


def _unit(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Direction, length, and whether the length is of use at all."""
  length = jnp.sqrt(_dot(x, x))
  usable = (length >= _TINY) & (length < jnp.inf)
  return x / jnp.where(usable, length, 1), length, usable


def _reflected(g: jax.Array, difference: jax.Array) -> jax.Array:
  """(I - 2 a a^T) g; nothing is left to reflect where `difference` is 0."""
  square = _dot(difference, difference)
  factor = 2 * _dot(difference, g) / jnp.where(square > 0, square, 1)
  return g - factor * difference


def _linear_pullback(
  kind: str, max_scale: float | None, z: jax.Array, q: jax.Array, g: jax.Array
) -> jax.Array:
  """G^T g for the kinds with a rotation or a reflection, in O(d)."""
  (z_hat, z_length, z_usable), (q_hat, q_length, q_usable) = _unit(z), _unit(q)
  usable = z_usable & q_usable
  if kind == 'reflection':
    turned = _reflected(g, z_hat - q_hat)
  else:
    half = z_hat + q_hat
    square = _dot(half, half)  # 2 (1 + cos)
    usable &= square >= 2 * _ANTIPODAL
    turned = (
      g
      - 2 * _dot(half, g) / jnp.where(usable, square, 1) * half
      + 2 * _dot(q_hat, g) * z_hat
    )
  if kind == 'rotation_no_rescale':
    scale = jnp.ones_like(z_length)
  elif kind == 'scaled_rotation':
    square = _dot(q - z, q - z)
    usable &= square >= _TINY**2
    scale = 0.125 / jnp.where(usable, square, 1)
  else:
    scale = q_length / jnp.where(usable, z_length, 1)
  if max_scale is not None:
    scale = jnp.minimum(scale, max_scale)
  return jnp.where(usable, scale * turned, g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _estimator(kind, max_scale, z, q):
  del kind, max_scale, z
  return q


def _forward(kind, max_scale, z, q):
  # Not `q` itself: a second derivative differentiates this rule.
  return _estimator(kind, max_scale, z, q), (z, q)


def _backward(kind, max_scale, residuals, g):
  """G^T g for z, and for q zero (None) but for "diveq"."""
  z, q = residuals
  if kind == 'ste':
    return g.astype(z.dtype), None
  wide = jnp.promote_types(jnp.promote_types(z.dtype, q.dtype), jnp.float32)
  # G is a constant in second derivatives as well.
  z_wide, q_wide = (lax.stop_gradient(x).astype(wide) for x in (z, q))
  g_wide = g.astype(wide)
  if kind == 'diveq':
    u, _, usable = _unit(q_wide - z_wide)
    along = jnp.where(usable, _dot(u, g_wide) * u, 0)
    return (g_wide - along).astype(z.dtype), along.astype(q.dtype)
  pulled = _linear_pullback(kind, max_scale, z_wide, q_wide, g_wide)
  return pulled.astype(z.dtype), None


_estimator.defvjp(_forward, _backward)


def gradient_estimator(
  z: ArrayLike, q: ArrayLike, *, kind: str, max_scale: float | None = None
) -> jax.Array:
  r"""The code `q`, bit for bit, with a gradient to the vector `z`.

  The cotangent of `z` is :math:`G^T g` with `G` of the table above, in O(d)
  from inner products: for a rotation, with
  :math:`r = (\hat z + \hat q) / |\hat z + \hat q|`,

  .. math:: R^T g = g - 2 r (r \cdot g) + 2 \hat z (\hat q \cdot g).

  `q` gets none, but for "diveq", where :math:`u u^T g` goes to `q` and the rest
  to `z`.

  Deviations: rows in which a length is below 1e-6 or not finite take `G = I`,
  where the formulas divide by zero and published implementations return
  something else than `q`; so do rotations of nearly opposite vectors,
  :math:`\cos < -1 + 10^{-3}`, which have no plane, and "scaled_rotation" where
  `z` and `q` coincide. The reflection of a vector to itself is the identity.

  Second derivatives take `G` for a constant, as the formula says: the gradient
  of a gradient (reverse mode twice) is :math:`G^T H G`. Forward mode
  (`jax.jvp`, `jax.hessian`) is not defined, as for all of `jax.custom_vjp`.

  The nearest code keeps the angle small. A code that was sampled, or chosen
  with a bias, may stand anywhere: give a `max_scale`, or use "ste".

  Args:
    z: vectors [..., d]; half precision is computed in float32.
    q: their codes [..., d].
    kind: "ste", "rotation", "rotation_no_rescale", "reflection",
      "scaled_rotation" or "diveq".
    max_scale: bound above 0 on the factor before the rotation or reflection,
      so that :math:`|G^T g| \le \max(1, max\_scale) |g|`; it does nothing to
      kinds without one. `None`: no bound.

  Returns:
    `q` [..., d].

  Raises:
    ValueError: for an unknown kind, shapes that differ or have no axis, dtypes
      that are not floating, or a `max_scale` that is not positive.

  Example:
    >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
    >>> gradient = lambda kind: jax.grad(
    ...   lambda z: gradient_estimator(z, q, kind=kind) @ jnp.array([0.0, 3.0])
    ... )(z)
    >>> print(gradient('ste'), gradient('rotation_no_rescale'))
    [0. 3.] [3. 0.]
    >>> print(gradient('rotation'))  # Scaled by |q| / |z|.
    [1.5 0. ]

  References:
    Su, `article 10489 <https://kexue.fm/archives/10489>`_, 2024;
    Fifty et al., `arXiv 2410.06424 <https://arxiv.org/abs/2410.06424>`_, 2024,
    section 4 and appendix A.9.
  """
  z, q = jnp.asarray(z), jnp.asarray(q)
  require_one_of('kind', kind, KINDS)
  require_rank('z', z, 1, at_least=True)
  require_shape('q', q, z.shape)
  for name, x in (('z', z), ('q', q)):
    good = jnp.issubdtype(x.dtype, jnp.floating)
    require(good, name, x.dtype.name, 'a floating dtype')
  if max_scale is not None:
    require(max_scale > 0, 'max_scale', max_scale, 'a number above 0')
  return _estimator(kind, max_scale, *vary_together(z, q))


def straight_through(z: ArrayLike, q: ArrayLike) -> jax.Array:
  r"""The code `q` with the gradient passed to `z` as it is.

  :math:`z + \operatorname{sg}[q - z]` without its rounding error.

  Args:
    z: vectors [..., d].
    q: their codes [..., d].

  Returns:
    `q` [..., d].

  Raises:
    ValueError: see `gradient_estimator`.

  Example:
    >>> z = jnp.array([0.3, 1.2])
    >>> print(straight_through(z, jnp.round(z)))
    [0. 1.]
    >>> print(jax.grad(lambda z: straight_through(z, jnp.round(z))[0])(z))
    [1. 0.]

  References:
    Bengio, Leonard and Courville, `arXiv 1308.3432
    <https://arxiv.org/abs/1308.3432>`_, 2013.
  """
  return gradient_estimator(z, q, kind='ste')


def rotation_trick(
  z: ArrayLike, q: ArrayLike, *, max_scale: float | None = None
) -> jax.Array:
  r"""The code `q`, and to `z` the gradient rotated and rescaled with it.

  `gradient_estimator` of kind "rotation", :math:`G = \frac{|q|}{|z|} R`.

  Args:
    z: vectors [..., d].
    q: their codes [..., d].
    max_scale: bound on :math:`|q| / |z|`; `None`: none.

  Returns:
    `q` [..., d].

  Raises:
    ValueError: see `gradient_estimator`.

  Example:
    >>> z, q = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
    >>> print(jax.grad(lambda z: rotation_trick(z, q) @ q)(z))
    [0.5 0. ]

  References:
    Fifty et al., `Restructuring Vector Quantization with the Rotation Trick
    <https://arxiv.org/abs/2410.06424>`_, 2024.
  """
  return gradient_estimator(z, q, kind='rotation', max_scale=max_scale)
