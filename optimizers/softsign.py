r"""SoftSign: between the sign and the gradient, and Adam's epsilon as one.

.. math:: \mathrm{softsign}(x, \epsilon) = \frac{x}{\sqrt{x^2 + \epsilon^2}}

is the sign of `x` for small epsilon and :math:`x / \epsilon` for a large one.
Article 10563 writes Adam's epsilon in this form: what stands under the root
has the unit of a squared gradient, so it is `eps**2`. Setting optax's
`eps_root=eps` instead compares a gradient with the root of epsilon: 1e-8 would
act as 1e-4.

References:
  Su, `How Adam's epsilon affects the scaling law of the learning rate
  <https://kexue.fm/archives/10563>`_, 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ..checks import require


def _require_eps(eps: Any) -> None:
  if isinstance(eps, int | float):
    require(eps >= 0, 'eps', eps, '0 or more')


@jax.custom_jvp
def _softsign(x: jax.Array, eps: jax.Array) -> jax.Array:
  size = jnp.hypot(x, eps)
  ratio = x / jnp.where(size > 0, size, 1)
  return jnp.where(jnp.isinf(x), jnp.sign(x), ratio)


@_softsign.defjvp
def _softsign_jvp(primals, tangents):
  """d/dx = eps^2 / r^3 and d/deps = -x eps / r^3 with r the hypotenuse."""
  x, eps = primals
  r = jnp.hypot(x, eps)
  r = jnp.where((r > 0) & jnp.isfinite(r), r, jnp.inf)
  value = _softsign(x, eps)
  by_x = (eps / r) * (eps / r) / r
  by_eps = -value * (eps / r) / r
  return value, by_x * tangents[0] + by_eps * tangents[1]


def softsign(x: ArrayLike, eps: ArrayLike) -> jax.Array:
  r"""Computes :math:`x / \sqrt{x^2 + \epsilon^2}`, finite everywhere, 0 at 0.

  Deviations: none; at `x = eps = 0`, where the formula is 0 / 0, value and
  derivative are zero, infinities give plus or minus one, and neither squares
  that overflow nor ones that underflow are formed.

  Args:
    x: array of any shape.
    eps: scalar or array that broadcasts with `x`, 0 or more, in the unit of
      `x`.

  Returns:
    Array of the broadcast shape, in [-1, 1].

  Raises:
    ValueError: if `eps` is a negative number.

  Example:
    >>> print(softsign(jnp.array([-3.0, 0.0, 4e30]), 4.0))
    [-0.6  0.   1. ]

  References:
    Su, `article 10563 <https://kexue.fm/archives/10563>`_, 2024.
  """
  _require_eps(eps)
  x = jnp.asarray(x)
  return _softsign(*jnp.broadcast_arrays(x, jnp.asarray(eps, x.dtype)))


def scale_by_softsign(eps: float) -> optax.GradientTransformation:
  r"""Replaces each gradient entry by :math:`g / \sqrt{g^2 + \epsilon^2}`.

  Args:
    eps: 0 or more, in the unit of the gradient; 0 is SignSGD.

  Returns:
    A stateless `optax.GradientTransformation`.

  Raises:
    ValueError: if `eps` is negative.

  Example:
    >>> tx = scale_by_softsign(4.0)
    >>> print(tx.update(jnp.array([3.0]), tx.init(None))[0])
    [0.6]
  """
  _require_eps(eps)

  def update(updates, state, params=None):
    del params
    return jax.tree.map(lambda g: softsign(g, eps), updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class SoftsignAdamState(NamedTuple):
  """Steps taken, averages of gradient and squared gradient."""

  count: jax.Array
  mu: optax.Updates
  nu: optax.Updates


def scale_by_softsign_adam(
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  r"""Adam with epsilon under the root, :math:`\hat m/\sqrt{\hat v+\epsilon^2}`.

  The form of article 10563, in which `b1 = b2 = 0` is `scale_by_softsign`
  exactly and the first step is it whatever the betas. It equals
  `optax.scale_by_adam(b1, b2, eps=0, eps_root=eps**2)`, and Adam's own
  :math:`\hat m / (\sqrt{\hat v} + \epsilon)` up to a factor in [1, sqrt 2].

  Args:
    b1: decay of the mean, in [0, 1).
    b2: decay of the square, in [0, 1).
    eps: 0 or more, in the unit of the gradient.
    mu_dtype: dtype of the mean; `None` that of the parameter.

  Returns:
    `optax.GradientTransformation` with state `SoftsignAdamState`.

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> tx = scale_by_softsign_adam(eps=4.0)
    >>> g = jnp.array([3.0])
    >>> updates, _ = tx.update(g, tx.init(g))
    >>> print(f'{updates[0]:.3f}')
    0.600
  """
  _require_eps(eps)
  for name, value in (('b1', b1), ('b2', b2)):
    if isinstance(value, int | float):
      require(0 <= value < 1, name, value, 'a number in [0, 1)')

  def init(params):
    return SoftsignAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=optax.tree.zeros_like(params, dtype=mu_dtype),
      nu=optax.tree.zeros_like(params),
    )

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    mean = optax.tree.bias_correction(mu, b1, count)
    square = optax.tree.bias_correction(nu, b2, count)

    def direction(m, v, g):
      root = jnp.sqrt(v + eps**2)
      return (m / jnp.where(root > 0, root, 1)).astype(g.dtype)

    updates = jax.tree.map(direction, mean, square, updates)
    mu = optax.tree.cast(mu, mu_dtype)
    return updates, SoftsignAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


class SoftsignMomentumState(NamedTuple):
  """Steps taken, and the average of the gradient."""

  count: jax.Array
  mu: optax.Updates


def scale_by_softsign_momentum(
  b1: float = 0.9,
  eps: float = 1e-8,
  *,
  normalize: bool = False,
  mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  r"""SoftSign of the averaged gradient.

  :math:`\mathrm{softsign}(\hat m, \epsilon)` with the mean bias corrected.
  Signum for `eps = 0`; for a large epsilon gradient descent with momentum and
  a learning rate divided by epsilon.

  Args:
    b1: decay of the mean, in [0, 1).
    eps: 0 or more, in the unit of the gradient.
    normalize: multiplies by `eps`, so that a large epsilon gives the momentum
      itself.
    mu_dtype: dtype of the mean; `None` that of the parameter.

  Returns:
    `optax.GradientTransformation` with state `SoftsignMomentumState`.

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> tx = scale_by_softsign_momentum(eps=4.0)
    >>> g = jnp.array([3.0])
    >>> updates, _ = tx.update(g, tx.init(g))
    >>> print(f'{updates[0]:.3f}')
    0.600
  """
  _require_eps(eps)
  if isinstance(b1, int | float):
    require(0 <= b1 < 1, 'b1', b1, 'a number in [0, 1)')

  def init(params):
    mu = optax.tree.zeros_like(params, dtype=mu_dtype)
    return SoftsignMomentumState(jnp.zeros([], jnp.int32), mu)

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    mean = optax.tree.bias_correction(mu, b1, count)
    size = eps if normalize else 1.0
    updates = jax.tree.map(
      lambda m, g: (size * softsign(m, eps)).astype(g.dtype), mean, updates
    )
    return updates, SoftsignMomentumState(count, optax.tree.cast(mu, mu_dtype))

  return optax.GradientTransformation(init, update)


def softsign_adam(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  mask: Any | None = None,
  mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
  """AdamW with epsilon under the root, see `scale_by_softsign_adam`.

  Args:
    learning_rate: float or schedule.
    b1: see `scale_by_softsign_adam`, like `b2`, `eps` and `mu_dtype`.
    b2: see `scale_by_softsign_adam`.
    eps: see `scale_by_softsign_adam`.
    weight_decay: decoupled weight decay.
    mask: what decays: pytree of booleans or function of the parameters.
    mu_dtype: see `scale_by_softsign_adam`.

  Returns:
    `optax.GradientTransformation`.

  Example:
    >>> params = {'w': jnp.ones(2)}
    >>> tx = softsign_adam(0.1)
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> print(f'{updates["w"][0]:.3f}')
    -0.100
  """
  return optax.chain(
    scale_by_softsign_adam(b1, b2, eps, mu_dtype=mu_dtype),
    optax.add_decayed_weights(weight_decay, mask),
    optax.scale_by_learning_rate(learning_rate),
  )


def softsign_sgd(
  learning_rate: optax.ScalarOrSchedule, *, eps: float
) -> optax.GradientTransformation:
  """Descent along the SoftSign of the gradient, see `scale_by_softsign`.

  Args:
    learning_rate: float or schedule.
    eps: 0 or more, in the unit of the gradient.

  Returns:
    `optax.GradientTransformation`.

  Example:
    >>> tx = softsign_sgd(0.1, eps=0.0)
    >>> print(tx.update(jnp.array([3.0, -2.0]), tx.init(None))[0])
    [-0.1  0.1]
  """
  return optax.chain(
    scale_by_softsign(eps), optax.scale_by_learning_rate(learning_rate)
  )
