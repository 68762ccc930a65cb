"""Vector quantisation as a layer: codebook, estimator, revival, balance."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require, require_one_of
from ..mapped_axes import AxisName
from .balancing import RULES, update_bias
from .code_statistics import (
  code_counts,
  codebook_metrics,
  require_count,
)
from .codebook import METHODS, init_codebook, revive_codes, update_codebook
from .codebook_losses import codebook_loss, commitment_loss
from .gradient_estimators import KINDS, gradient_estimator
from .nearest_code import DISTANCES, nearest_code
from .quantized import Quantized, checked_vectors, global_mean

CODEBOOKS = ('ema', 'learned', 'linear')


class VectorQuantizer(nn.Module):
  r"""The nearest of K vectors.

  Args:
    num_codes: K.
    codebook: "ema": running means of the vectors that chose each code, in the
      collection "codebook"; "learned": a parameter, trained by the codebook
      loss; "linear": SimVQ, frozen vectors times a learned matrix that starts
      as the identity, so that one used code moves all of them.
    estimator: kind of `gradient_estimator`. With "diveq" the reconstruction
      trains a learned codebook, and both weights may be zero.
    max_scale: see `gradient_estimator`.
    distance: "euclidean", or "cosine", for which vectors and codes are put on
      the unit sphere first.
    init_method: "kmeans" or "data", of the batch that `init` sees, which then
      has to hold K vectors or more, or "normal" or "uniform"; see
      `init_codebook`.
    init_scale: factor of the first codes, for experiments with unfit ones.
    decay: of the running means.
    commitment_weight: factor of the commitment loss.
    codebook_weight: factor of the codebook loss; nothing to "ema".
    revival_threshold: codes of "ema" whose running count, in vectors a batch
      over all devices, is below it are put where a random vector of the batch
      is; 0: never. The random key stands in the state, so that all devices
      choose alike and `rngs` are not needed.
    bias_rate: rate of the bias that makes all codes chosen equally often, per
      step, as a fraction of the mean squared distance to the chosen code (of
      the cosine itself for "cosine"); 0: no bias. It takes part wherever codes
      are chosen, and moves in training. A code chosen by it is not the nearest:
      see `gradient_estimator` on `max_scale`.
    bias_rule: "sign" or "rms"; see `update_bias`.
    axis_name: mapped axis or axes over which the batch is split.

  Example:
    >>> x = jax.random.normal(jax.random.key(0), (4, 16, 8))
    >>> layer = VectorQuantizer(num_codes=32, estimator='rotation')
    >>> variables = jax.jit(layer.init)(jax.random.key(1), x)
    >>> out, variables = layer.apply(
    ...   variables, x, train=True, mutable=['codebook'])
    >>> out.quantized.shape, out.indices.shape, sorted(out.losses)
    ((4, 16, 8), (4, 16), ['commitment'])

  References:
    van den Oord et al., `Neural Discrete Representation Learning
    <https://arxiv.org/abs/1711.00937>`_, 2017;
    Zhu et al., `SimVQ <https://arxiv.org/abs/2411.02038>`_, 2024;
    Su, `article 10519 <https://kexue.fm/archives/10519>`_, 2024, on SimVQ, and
    `article 10757 <https://kexue.fm/archives/10757>`_, 2025, on the bias.
  """

  num_codes: int
  codebook: str = 'ema'
  estimator: str = 'ste'
  max_scale: float | None = None
  distance: str = 'euclidean'
  init_method: str = 'kmeans'
  init_scale: float = 1.0
  decay: float = 0.99
  commitment_weight: float = 0.25
  codebook_weight: float = 1.0
  revival_threshold: float = 0.0
  bias_rate: float = 0.0
  bias_rule: str = 'sign'
  axis_name: AxisName | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
  ) -> Quantized:
    """Quantises, and in training updates the state afterwards.

    Args:
      x: vectors [..., d].
      train: whether the state is updated.
      mask: [...], true where a vector counts in losses, metrics and state; all
        are quantised.

    Returns:
      `Quantized`; codes in float32 or better.

    Raises:
      ValueError: for options that do not exist or exclude each other, shapes
        that do not fit, or too few vectors to start from.
    """
    self._check_options()
    z = self._on_domain(checked_vectors(x, mask))
    if self.is_initializing():
      self._create(z, mask)
    axis_name = None if self.is_initializing() else self.axis_name
    codes, bias = self._codes(), self.get_variable('codebook', 'bias')
    indices = nearest_code(z, codes, distance=self.distance, bias=bias)
    q = codes[indices]
    error = commitment_loss(z, q, mask=mask)
    losses = {'commitment': self.commitment_weight * error}
    if self.codebook != 'ema':
      loss = codebook_loss(z, q, mask=mask)
      losses['codebook'] = self.codebook_weight * loss
    losses = {k: global_mean(v, mask, axis_name) for k, v in losses.items()}
    error = global_mean(lax.stop_gradient(error), mask, axis_name)
    metrics = codebook_metrics(
      indices, self.num_codes, mask=mask, axis_name=axis_name
    )._asdict()
    if train and not self.is_initializing():
      if self.codebook == 'ema':
        self._update_codebook(z, indices, mask)
      if self.bias_rate:
        self._update_bias(bias, indices, error * z.shape[-1], mask)
    return Quantized(
      gradient_estimator(z, q, kind=self.estimator, max_scale=self.max_scale),
      indices,
      losses,
      {**metrics, 'quantization_error': error},
    )

  def encode(self, x: jax.Array) -> jax.Array:
    """The indices [...] of vectors [..., d]."""
    return self(x).indices

  def decode_indices(self, indices: jax.Array) -> jax.Array:
    """The codes [..., d] of indices [...] in 0..K-1."""
    return self._codes()[indices]

  def _check_options(self):
    require_count('num_codes', self.num_codes)
    for name, allowed in (
      ('codebook', CODEBOOKS),
      ('estimator', KINDS),
      ('distance', DISTANCES),
      ('init_method', METHODS),
      ('bias_rule', RULES),
    ):
      require_one_of(name, getattr(self, name), allowed)
    for name in ('revival_threshold', 'bias_rate'):
      value = getattr(self, name)
      require(value >= 0, name, value, '0 or more')
    good = self.codebook == 'ema' or not self.revival_threshold
    expected = '0 for a codebook that is not "ema"'
    require(good, 'revival_threshold', self.revival_threshold, expected)

  def _on_domain(self, x):
    """The unit sphere for cosines; its gradient is finite at zero."""
    if self.distance != 'cosine':
      return x
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-12))

  def _codes(self):
    """[K, d] of today; gradients go to parameters alone."""
    state = lambda name: lax.stop_gradient(self.get_variable('codebook', name))
    if self.codebook == 'ema':
      codes = state('state').codebook
    elif self.codebook == 'learned':
      codes = self.get_variable('params', 'codebook')
    else:
      kernel = self.get_variable('params', 'kernel')
      codes = jnp.matmul(state('frozen'), kernel, precision='highest')
    return self._on_domain(codes)

  def _create(self, z, mask):
    """Parameters and state, from the batch that `init` sees."""
    rows = math.prod(z.shape[:-1])
    require(
      rows >= self.num_codes or self.init_method not in ('kmeans', 'data'),
      'x',
      f'{rows} vectors',
      f'a batch of the data with {self.num_codes} or more, one for each code',
    )
    make = lambda key: init_codebook(
      z,
      self.num_codes,
      key=key,
      method=self.init_method,
      distance=self.distance,
      scale=self.init_scale,
      mask=mask,
    )
    key = self.make_rng('params')
    if self.codebook == 'ema':
      self.put_variable('codebook', 'state', make(key))
    elif self.codebook == 'learned':
      self.param('codebook', lambda key: make(key).codebook)
    else:
      self.put_variable('codebook', 'frozen', make(key).codebook)
      self.param('kernel', lambda _: jnp.eye(z.shape[-1], dtype=z.dtype))
    if self.revival_threshold:
      data = jax.random.key_data(jax.random.fold_in(key, 1))
      self.put_variable('codebook', 'key', data)
    if self.bias_rate:
      self.put_variable('codebook', 'bias', jnp.zeros(self.num_codes, z.dtype))

  def _update_codebook(self, z, indices, mask):
    """Running means, then revival, of the vectors of all devices."""
    state = self.get_variable('codebook', 'state')
    where = {
      'distance': self.distance,
      'mask': mask,
      'axis_name': self.axis_name,
    }
    state = update_codebook(state, z, indices, decay=self.decay, **where)
    if self.revival_threshold:
      key = jax.random.wrap_key_data(self.get_variable('codebook', 'key'))
      key, now = jax.random.split(key)
      state = revive_codes(
        state, z, key=now, threshold=self.revival_threshold, **where
      )
      self.put_variable('codebook', 'key', jax.random.key_data(key))
    self.put_variable('codebook', 'state', state)

  def _update_bias(self, bias, indices, square, mask):
    """`square` is the mean squared distance of this device."""
    load = code_counts(
      indices, self.num_codes, mask=mask, axis_name=self.axis_name
    )
    rate = self.bias_rate
    if self.distance == 'euclidean':
      several = self.axis_name is not None
      rate *= lax.pmean(square, self.axis_name) if several else square
    bias = update_bias(bias, load, rate=rate, rule=self.bias_rule)
    self.put_variable('codebook', 'bias', bias)
