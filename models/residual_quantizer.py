"""Residual quantisation over any quantisers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require, require_one_of
from ..mapped_axes import AxisName
from .codebook_losses import commitment_loss
from .gradient_estimators import KINDS, gradient_estimator
from .quantized import Quantized, checked_vectors, global_mean


class ResidualQuantizer(nn.Module):
  r"""Quantisers one after the other, each of what the ones before it left.

  .. math::
    r_1 = x, \quad q_i = Q_i(r_i), \quad r_{i+1} = r_i - \mathrm{sg}[q_i], \quad
    q = \sum_i q_i.

  The gradient of the sum `q` goes to `x` by one estimator. Adding up those of
  the stages would multiply it by their number; what a stage adds is its losses.

  Args:
    stages: S quantisers, of any kind.
    estimator: kind of `gradient_estimator`, from `x` to the sum, all but
      "diveq"; those of the stages have no effect.
    max_scale: see `gradient_estimator`.
    axis_name: mapped axis or axes over which the batch is split; handed to the
      stages.

  Example:
    >>> from kexue.models import VectorQuantizer
    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> layer = ResidualQuantizer((VectorQuantizer(16), VectorQuantizer(16)))
    >>> start = jax.jit(layer.init_with_output)
    >>> out, variables = start(jax.random.key(1), x)
    >>> out.indices.shape
    (64, 2)

  References:
    Lee et al., `Autoregressive Image Generation using Residual Quantization
    <https://arxiv.org/abs/2203.01941>`_, 2022, equation 3.
  """

  stages: tuple[nn.Module, ...]
  estimator: str = 'ste'
  max_scale: float | None = None
  axis_name: AxisName | None = None

  def setup(self):
    """Gives the axis to the stages."""
    require(len(self.stages) >= 1, 'stages', self.stages, 'one or more')
    kinds = [kind for kind in KINDS if kind != 'diveq']
    require_one_of('estimator', self.estimator, kinds)
    self.stage = [s.clone(axis_name=self.axis_name) for s in self.stages]

  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> Quantized:
    """Quantises vectors [..., d]; see `VectorQuantizer.__call__`.

    Returns:
      `Quantized` with indices [..., S] and losses summed over the stages;
      perplexity and usage are averaged, the quantisation error is that of the
      sum.
    """
    x = checked_vectors(x, mask)
    rest, outs = x, []
    for stage in self.stage:
      outs.append(stage(rest, train=train, mask=mask))
      rest = rest - lax.stop_gradient(outs[-1].quantized)
    total = sum(lax.stop_gradient(out.quantized) for out in outs)
    losses = _by_name([out.losses for out in outs])
    metrics = _by_name([out.metrics for out in outs])
    metrics = {name: sum(v) / len(v) for name, v in metrics.items()}
    axis_name = None if self.is_initializing() else self.axis_name
    error = lax.stop_gradient(commitment_loss(x, total, mask=mask))
    metrics['quantization_error'] = global_mean(error, mask, axis_name)
    kind, max_scale = self.estimator, self.max_scale
    return Quantized(
      gradient_estimator(x, total, kind=kind, max_scale=max_scale),
      jnp.stack([out.indices for out in outs], axis=-1),
      {name: sum(values) for name, values in losses.items()},
      metrics,
    )

  def encode(self, x: jax.Array) -> jax.Array:
    """The indices [..., S] of vectors [..., d]."""
    return self(x).indices

  def decode_indices(self, indices: jax.Array) -> jax.Array:
    """The sums [..., d] of codes of indices [..., S]; the first few go too."""
    count, most = indices.shape[-1], len(self.stage)
    require(1 <= count <= most, 'indices', indices.shape, f'1 to {most} stages')
    return sum(
      self.stage[i].decode_indices(indices[..., i]) for i in range(count)
    )


def _by_name(dicts: list[dict[str, Any]]) -> dict[str, list[Any]]:
  """All values of each name."""
  names = dict.fromkeys(name for d in dicts for name in d)
  return {name: [d[name] for d in dicts if name in d] for name in names}
