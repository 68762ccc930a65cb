r"""The noise scale that the learning rate sees, by Hessian-vector products.

For descent along a gradient of `B` examples the best learning rate is
:math:`\eta_{\max} / (1 + B_{\mathrm{noise}} / B)` with
:math:`B_{\mathrm{noise}} = \operatorname{tr}(\Sigma H) / G^T H G` and
:math:`\eta_{\max} = \|G\|^2 / G^T H G`. It is `B_simple` only where the Hessian
is a multiple of the identity.

The Hessian comes from examples that no gradient was computed with: an example
whose features are large has a large gradient and a large Hessian, and both
estimates would count it twice.

References:
  McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
  <https://arxiv.org/abs/1812.06162>`_, 2018, section 2.2;
  Su, `How should the learning rate scale when the batch size grows?
  <https://kexue.fm/archives/10542>`_, 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require, require_one_of
from ..mapped_axes import AxisName, devices_along, mean_over, sum_over
from .gradients import (
  Loss,
  examples_of,
  hessian_vector_product,
  inner_product,
  squared_norms,
)
from .microbatches import scan_gradients, split_batch, zeros_like
from .noise_scale import two_batch_noise_scale

FORMS = ('deviations', 'pairs')


class CurvatureNoiseScale(NamedTuple):
  r"""`B_noise`, :math:`\eta_{\max}`, and the three estimates they are made of.

  `gradient_sq_norm` estimates :math:`\|G\|^2`, `curvature` :math:`G^T H G` and
  `trace` :math:`\operatorname{tr}(\Sigma H)`, each without bias: average those
  over steps, then divide. Where the curvature is not positive the loss falls
  for ever along the gradient, and both quotients are infinite.

  Example:
    >>> steps = jnp.array([1.0, 2.0]), jnp.array([-1.0, 5.0]), jnp.ones(2)
    >>> mean = CurvatureNoiseScale.from_moments(*(jnp.mean(x) for x in steps))
    >>> float(mean.scale), float(mean.lr_max)
    (0.5, 0.75)
  """

  scale: jax.Array
  lr_max: jax.Array
  gradient_sq_norm: jax.Array
  curvature: jax.Array
  trace: jax.Array

  @classmethod
  def from_moments(
    cls, gradient_sq_norm: jax.Array, curvature: jax.Array, trace: jax.Array
  ) -> 'CurvatureNoiseScale':
    """Divides averages; infinite where the curvature is not positive."""
    over_curvature = lambda x: jnp.where(curvature > 0, x / curvature, jnp.inf)
    return cls(
      over_curvature(trace),
      over_curvature(gradient_sq_norm),
      gradient_sq_norm,
      curvature,
      trace,
    )


def split_off_hessian(batch: Any, hessian_batch: Any | None) -> tuple[Any, Any]:
  """Gradients' and Hessian's examples; without the second, halves of one batch.

  >>> gradients, hessian = split_off_hessian(jnp.arange(4), None)
  >>> print(gradients, hessian)
  [0 1] [2 3]
  """
  if hessian_batch is not None:
    examples_of(hessian_batch)
    return batch, hessian_batch
  rows = examples_of(batch)
  require(
    rows % 2 == 0, 'batch', rows, 'an even number of rows, or a hessian_batch'
  )
  halves = split_batch('batch', batch, 2)
  first, second = (jax.tree.map(lambda x, i=i: x[i], halves) for i in (0, 1))
  return first, second


def _signs(key, probes, microbatches, form, axis_name):
  """Rademacher signs [N, probes], others on every device."""
  if axis_name is not None:
    key = jax.random.fold_in(key, lax.axis_index(axis_name))
  if form == 'deviations':
    return jax.random.rademacher(key, (microbatches, probes), jnp.float32)
  half = jax.random.rademacher(key, (microbatches // 2, probes), jnp.float32)
  return jnp.stack([half, -half], axis=1).reshape(microbatches, probes)


def _moments(loss_fn, params, batches, hessian_batch, signs, form, axis_name):
  r"""Estimates of |G|^2, G^T H G and tr(Sigma H) for given signs [N, probes].

  The noise vectors are :math:`u = \sum_k r_k (G_k - \bar G)`; signs that come
  in pairs of opposite ones cancel the mean, which then costs no degree of
  freedom.
  """
  microbatches, probes = signs.shape
  small = examples_of(jax.tree.map(lambda x: x[0], batches))
  count = microbatches * devices_along(axis_name)

  def step(sums, _, gradient, sign):
    total, signed = sums
    total = jax.tree.map(jnp.add, total, gradient)
    signed = jax.tree.map(
      lambda s, g: s + jnp.multiply.outer(sign, g).astype(s.dtype),
      signed,
      gradient,
    )
    return (total, signed), squared_norms(gradient)

  zeros = zeros_like(params)
  rows = jax.tree.map(
    lambda x: jnp.zeros_like(x, shape=(probes, *x.shape)), zeros
  )
  (total, signed), norms = scan_gradients(
    step, (zeros, rows), loss_fn, params, batches, signs
  )
  total, signed, rest = sum_over(
    (total, signed, jnp.sum(signs, axis=0)), axis_name
  )
  mean = jax.tree.map(lambda g: g / count, total)
  noise = jax.tree.map(
    lambda s, g: s - jnp.multiply.outer(rest, g).astype(s.dtype), signed, mean
  )

  def quadratic(vector):
    product = hessian_vector_product(loss_fn, params, hessian_batch, vector)
    return mean_over(inner_product(vector, product), axis_name)

  freedom = count - 1 if form == 'deviations' else count
  trace = small / freedom * jnp.mean(lax.map(quadratic, noise))
  curvature = quadratic(mean) - trace / (small * count)
  norms = jax.tree.map(lambda x: jnp.mean(x, axis=0), norms)
  gradient_sq_norm = two_batch_noise_scale(
    mean_over(norms, axis_name), squared_norms(mean), small, small * count
  ).gradient_sq_norm
  return gradient_sq_norm, curvature, trace


def curvature_noise_scale(
  loss_fn: Loss,
  params: Any,
  batch: Any,
  *,
  key: jax.Array,
  probes: int = 1,
  microbatches: int = 8,
  hessian_batch: Any | None = None,
  form: str = 'pairs',
  axis_name: AxisName | None = None,
) -> CurvatureNoiseScale:
  r"""Estimates :math:`\operatorname{tr}(\Sigma H)` and :math:`G^T H G`.

  With gradients :math:`G_k` of `N` microbatches of `b` examples, their mean
  :math:`\bar G`, and random signs :math:`r_k`,

  .. math::
    u = \sum_k r_k (G_k - \bar G), \qquad
    \widehat{\operatorname{tr}(\Sigma H)} = \frac{b}{N - 1} u^T H u, \qquad
    \widehat{G^T H G} = \bar G^T H \bar G
      - \frac{\widehat{\operatorname{tr}(\Sigma H)}}{b N}.

  The form "pairs" takes opposite signs within pairs of microbatches and
  :math:`\frac{b}{N} u^T H u`, for two of them
  :math:`\frac{b}{2} (G_1 - G_2)^T H (G_1 - G_2)`. It is unbiased for any signs,
  "deviations" over the signs alone. With Gaussian noise one probe of it has the
  variance :math:`2 \operatorname{tr} (\Sigma H)^2` however many microbatches
  there are; of many probes "deviations" makes the better use.

  Deviations: McCandlish et al. fit `B_noise`, or estimate it from many
  gradients; article 10542 takes `B_simple` for it.

  Args:
    loss_fn: see `accumulate_gradients`; twice differentiable.
    params: pytree of real arrays.
    batch: pytree of arrays [rows, ...], this device's examples.
    key: of the signs, the same on all devices, another one for each step.
    probes: vectors `u`, 1 or more; each costs a Hessian-vector product and the
      memory of the parameters.
    microbatches: `N`, 2 or more, on each device; an even number for "pairs".
    hessian_batch: independent examples for the Hessian. `None`: the second half
      of `batch`, of which the gradients then have the first.
    form: "pairs" or "deviations".
    axis_name: mapped axis or axes over which the batches are split; signs
      differ between devices.

  Returns:
    `CurvatureNoiseScale` of scalars, in examples.

  Raises:
    ValueError: for an unknown form, numbers out of range or that do not divide
      the examples.

  Example:
    >>> loss = lambda w, x: jnp.mean(x @ w) + 1.5 * jnp.sum(w**2)
    >>> x = jnp.array([[3.0, 0.0], [1.0, 2.0]])
    >>> found = curvature_noise_scale(
    ...   loss, jnp.zeros(2), x, key=jax.random.key(0), hessian_batch=x,
    ...   microbatches=2)
    >>> print(', '.join(f'{float(v):.3f}' for v in found))
    1.333, 0.333, 3.000, 9.000, 12.000

  References:
    McCandlish, Kaplan and Amodei, `An Empirical Model of Large-Batch Training
    <https://arxiv.org/abs/1812.06162>`_, 2018, section 2.2.
  """
  require_one_of('form', form, FORMS)
  for name, value, least in (
    ('probes', probes, 1),
    ('microbatches', microbatches, 2),
  ):
    good = isinstance(value, int) and value >= least
    require(good, name, value, f'an integer of at least {least}')
  even = form != 'pairs' or microbatches % 2 == 0
  require(even, 'microbatches', microbatches, 'an even number for pairs')
  batch, hessian_batch = split_off_hessian(batch, hessian_batch)
  batches = split_batch('microbatches', batch, microbatches)
  signs = _signs(key, probes, microbatches, form, axis_name)
  return CurvatureNoiseScale.from_moments(
    *_moments(loss_fn, params, batches, hessian_batch, signs, form, axis_name)
  )
