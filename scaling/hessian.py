r"""The Hessian's diagonal and row norms, and what Adam knows of them.

Articles like 10588 read Adam's second moment as a Hessian: if gradients come
from :math:`g \approx H (\theta - \theta^*)` with isotropic :math:`\theta`, then
:math:`E[g g^T]^{1/2} \propto |H|` as a matrix. Entry by entry that is the norm
of a *row*, :math:`\sqrt{E g_i^2} \propto (\sum_j H_{ij}^2)^{1/2}`, and
:math:`|H_{ii}|` for a diagonal Hessian alone. What Adam averages are gradients
of minibatches, mostly noise; where the noise has the covariance
:math:`\Sigma \propto H` of a well-specified likelihood, the root of the second
moment goes with :math:`H_{ii}^{1/2}`.

References:
  Su, `Viewing adaptive learning-rate optimizers from Hessian approximation
  <https://kexue.fm/archives/10588>`_, 2024;
  Bekas, Kokiopoulou and Saad, `An estimator for the diagonal of a matrix
  <https://doi.org/10.1016/j.apnum.2007.01.003>`_, 2007.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ..checks import require
from ..lowrank.arrays import wide
from ..mapped_axes import AxisName, mean_over, vary_together
from .gradients import (
  Loss,
  examples_of,
  hessian_vector_product,
)
from .microbatches import zeros_like


def _mean_over_probes(
  measure: Callable[[jax.Array, jax.Array], jax.Array],
  loss_fn: Loss,
  params: Any,
  batch: Any,
  key: jax.Array,
  probes: int,
  axis_name: AxisName | None,
) -> Any:
  """The mean of `measure(v, H v)` over signs v and devices, leaf by leaf.

  `H` is that of one device's batch, `v` the same on all.
  """
  good = isinstance(probes, int) and probes >= 1
  require(good, 'probes', probes, 'an integer of at least 1')
  examples_of(batch)

  def body(total, key):
    v = optax.tree.random_like(key, params, jax.random.rademacher)
    hv = hessian_vector_product(loss_fn, params, batch, v)
    add = lambda t, a, b: t + measure(wide(a), wide(b))
    return jax.tree.map(add, total, v, hv), None

  start, *_ = vary_together(zeros_like(params), params, batch)
  total, _ = lax.scan(body, start, jax.random.split(key, probes))
  return mean_over(jax.tree.map(lambda x: x / probes, total), axis_name)


def hessian_diagonal(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  key: jax.Array,
  probes: int,
  axis_name: AxisName | None = None,
) -> Any:
  r"""Estimates the diagonal of the Hessian, :math:`E[v \odot H v]`.

  Over signs `v` it is unbiased, with the variance :math:`\sum_{j \neq i}
  H_{ij}^2` of entry `i` over the number of probes, none for a diagonal Hessian.
  The sum of all entries is Hutchinson's trace, of variance
  :math:`2 (\|H\|_F^2 - \sum_i H_{ii}^2)`.

  Args:
    loss_fn: see `accumulate_gradients`; twice differentiable.
    params: pytree of real arrays.
    batch: pytree of arrays with a common leading axis.
    key: of the signs, the same on all devices.
    probes: 1 or more, one Hessian-vector product each, one after the other.
    axis_name: mapped axis or axes over which the batch is split.

  Returns:
    Pytree like `params`, float32 or better.

  Raises:
    ValueError: if `probes` is not 1 or more.

  Example:
    >>> loss = lambda w, x: jnp.mean(x) * jnp.sum(jnp.array([1.0, 3.0]) * w**2)
    >>> w, x, key = jnp.ones(2), jnp.ones(4), jax.random.key(0)
    >>> print(hessian_diagonal(loss, w, x, key=key, probes=2))
    [2. 6.]

  References:
    Bekas, Kokiopoulou and Saad, `An estimator for the diagonal of a matrix
    <https://doi.org/10.1016/j.apnum.2007.01.003>`_, 2007.
  """
  product = lambda v, hv: v * hv
  return _mean_over_probes(
    product, loss_fn, params, batch, key, probes, axis_name
  )


def hessian_row_norms(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  key: jax.Array,
  probes: int,
  axis_name: AxisName | None = None,
) -> Any:
  r"""Estimates :math:`(\sum_j H_{ij}^2)^{1/2} = \sqrt{E (H v)_i^2}`.

  Its square is unbiased over signs `v`. By article 10588 it is what the root
  mean square of a full-batch gradient is proportional to around a minimum.

  Args:
    loss_fn: see `hessian_diagonal`, like the others.
    params: pytree of real arrays.
    batch: pytree of arrays with a common leading axis.
    key: of the signs, the same on all devices.
    probes: 1 or more; the relative error is about :math:`(2 t)^{-1/2}`.
    axis_name: mapped axis or axes over which the batch is split; each product
      is then averaged over them.

  Returns:
    Pytree like `params`, float32 or better, 0 or more.

  Raises:
    ValueError: if `probes` is not 1 or more.

  Example:
    >>> loss = lambda w, x: jnp.mean(x) * w[0] * w[1]
    >>> w, x, key = jnp.ones(2), jnp.ones(4), jax.random.key(0)
    >>> print(hessian_row_norms(loss, w, x, key=key, probes=2))
    [1. 1.]

  References:
    Su, `article 10588 <https://kexue.fm/archives/10588>`_, 2024.
  """
  square = lambda _, hv: jnp.square(mean_over(hv, axis_name))
  squares = _mean_over_probes(
    square, loss_fn, params, batch, key, probes, axis_name
  )
  return jax.tree.map(jnp.sqrt, squares)


class LogLogFit(NamedTuple):
  """Slope of log y against log x by least squares, and their correlation.

  Example:
    >>> LogLogFit(0.5, 1.0).slope
    0.5
  """

  slope: jax.Array
  correlation: jax.Array


class AdamHessianAlignment(NamedTuple):
  """The root of Adam's second moment against diagonal and row norms.

  Example:
    >>> fit = LogLogFit(0.5, 1.0)
    >>> AdamHessianAlignment(fit, fit).diagonal.slope
    0.5
  """

  diagonal: LogLogFit
  row_norm: LogLogFit


@jax.jit
def _log_log_fit(x: jax.Array, y: jax.Array) -> LogLogFit:
  """Fits where both are positive and finite."""
  used = (x > 0) & (y > 0) & jnp.isfinite(x) & jnp.isfinite(y)

  def centred(z):
    z = jnp.log(jnp.where(used, z, 1.0))
    return jnp.where(used, z - jnp.sum(z) / jnp.sum(used), 0.0)

  x, y = centred(x), centred(y)
  xx, xy, yy = jnp.sum(x * x), jnp.sum(x * y), jnp.sum(y * y)
  return LogLogFit(xy / xx, xy / jnp.sqrt(xx * yy))


def adam_hessian_alignment(
  second_moment: Any, hessian_diagonal: Any, hessian_row_norms: Any
) -> AdamHessianAlignment:
  r"""How Adam's :math:`\sqrt v` goes with the Hessian, on a log-log scale.

  The slope `p` of :math:`\sqrt{v_i} \propto x_i^p` over all entries, by least
  squares, and the correlation of the logarithms, for :math:`x_i = |H_{ii}|` and
  for the norm of row `i`. A slope of 1 is Adam as Newton's method; 1/2 is what
  minibatch noise of covariance proportional to the Hessian makes of it.

  Args:
    second_moment: Adam's `v` (`nu` in optax), pytree; its scale, so its bias
      correction, does not matter.
    hessian_diagonal: pytree like it; the sign is ignored.
    hessian_row_norms: pytree like it.

  Returns:
    `AdamHessianAlignment(diagonal, row_norm)`, each a `LogLogFit(slope,
    correlation)` of scalars. Entries where either side is zero, such as those
    of dead units, are left out; nan if fewer than two different ones are left.

  Raises:
    ValueError: if the trees hold different numbers of entries.

  Example:
    >>> h = {'w': jnp.array([1.0, -2.0, 4.0, 0.0])}
    >>> v = jax.tree.map(jnp.abs, h)
    >>> print(f'{adam_hessian_alignment(v, h, v).diagonal.slope:.2f}')
    0.50

  References:
    Su, `article 10588 <https://kexue.fm/archives/10588>`_, 2024.
  """
  flat = lambda tree: jnp.concatenate(
    [jnp.ravel(wide(x)) for x in jax.tree.leaves(tree)]
  )
  root = jnp.sqrt(flat(second_moment))
  diagonal, rows = jnp.abs(flat(hessian_diagonal)), flat(hessian_row_norms)
  for name, x in (('diagonal', diagonal), ('row_norms', rows)):
    require(x.shape == root.shape, f'hessian_{name}', x.shape, f'{root.shape}')
  return AdamHessianAlignment(
    _log_log_fit(diagonal, root), _log_log_fit(rows, root)
  )
