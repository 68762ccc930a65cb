r"""A decoder-only transformer of today: RMSNorm, rotary positions, gated MLP.

Shapes: `B` sequences, `T` tokens, `D` width, `H` heads, `K` head width, `F`
hidden width of the MLP, `V` vocabulary, `L` layers. Each layer adds to the
residual stream

.. math::
  x \leftarrow x + \mathrm{Attention}(\mathrm{norm}(x)), \qquad
  x \leftarrow x + W_{down}(\mathrm{silu}(W_{gate} h) \cdot W_{up} h),
  \quad h = \mathrm{norm}(x).

Kernels of heads stay three-dimensional, [D, H, K] and [H, K, D], so that
optimizers can tell heads apart; `dimension_numbers` says how Muon reads them.

References:
  Su et al., `RoFormer <https://arxiv.org/abs/2104.09864>`_, 2021;
  Shazeer, `GLU Variants <https://arxiv.org/abs/2002.05202>`_, 2020;
  Touvron et al., `LLaMA <https://arxiv.org/abs/2302.13971>`_, 2023.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from optax.contrib import MuonDimensionNumbers

from ..checks import require, require_rank
from ..mapped_axes import AxisName
from .moe import MoE, MoEConfig


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and options of `Transformer`.

  Args:
    vocab_size: V; 256 for bytes.
    layers: L.
    width: D, a multiple of `heads`.
    heads: H; the head width `width // heads` must be even.
    hidden: F; `None`: 8/3 of the width, rounded up to a multiple of eight, so
      that the gated MLP holds as many weights as a plain one of 4 D.
    qk_norm: normalise queries and keys per head.
    tie_embedding: the head is the embedding transposed.
    scan_layers: one compiled layer with parameters stacked [L, ...] instead of
      L layers: compiles L times less, runs a little slower on CPU.
    return_max_logits: also return the largest attention logit of each head.
    moe: options of the mixtures of experts; `None`: all MLPs are dense.
    moe_layers: which layers, counted from 0, have one instead of an MLP;
      `None`: all, which `scan_layers` needs.
    rope_base: base of the rotary frequencies.
    dtype: dtype of the computation; parameters, norms, softmax and logits stay
      float32.
  """

  vocab_size: int = 256
  layers: int = 4
  width: int = 128
  heads: int = 4
  hidden: int | None = None
  qk_norm: bool = True
  tie_embedding: bool = False
  scan_layers: bool = False
  return_max_logits: bool = False
  moe: MoEConfig | None = None
  moe_layers: tuple[int, ...] | None = None
  rope_base: float = 10_000.0
  dtype: Any = jnp.float32

  def __post_init__(self):
    for name in ('vocab_size', 'layers', 'width', 'heads', 'hidden'):
      value = getattr(self, name)
      require(
        (isinstance(value, int) and value >= 1)
        or (value is None and name == 'hidden'),
        name,
        value,
        'an integer of 1 or more',
      )
    require(
      self.width % (2 * self.heads) == 0,
      'width',
      self.width,
      f'a multiple of twice the {self.heads} heads',
    )
    if self.moe_layers is not None:
      require(
        self.moe is not None
        and not self.scan_layers
        and all(i in range(self.layers) for i in self.moe_layers),
        'moe_layers',
        self.moe_layers,
        f'layers in 0..{self.layers - 1}, with moe and without scan_layers',
      )

  @property
  def head_width(self) -> int:
    """K, the width of one head."""
    return self.width // self.heads

  @property
  def hidden_width(self) -> int:
    """F, the width inside the MLP."""
    return self.hidden or -(-8 * self.width // 3 // 8) * 8

  def has_experts(self, layer: int) -> bool:
    """Whether a layer, counted from 0, is a mixture of experts."""
    layers = self.moe_layers
    return self.moe is not None and (layers is None or layer in layers)


def rotary(x: jax.Array, *, base: float = 10_000.0) -> jax.Array:
  r"""Rotates pairs of coordinates by angles that grow with the position.

  :math:`(x_i, x_{i + K/2})` at position `t` turns by
  :math:`t \cdot base^{-2i/K}`, so that inner products depend on distances.

  Args:
    x: [B, T, H, K], K even.
    base: wavelengths run from :math:`2\pi` to :math:`2\pi \cdot base`.

  Returns:
    Array [B, T, H, K] in the dtype of `x`; rotated in float32 or better.

  Example:
    >>> x = jnp.ones((1, 3, 1, 4))
    >>> bool(jnp.allclose(rotary(x)[0, 0], x[0, 0]))  # Position 0 stays.
    True
  """
  require_rank('x', x, 4)
  require(x.shape[3] % 2 == 0, 'x', x.shape, 'an even last axis')
  length, half = x.shape[1], x.shape[3] // 2
  wide = jnp.promote_types(x.dtype, jnp.float32)
  frequency = base ** (-jnp.arange(half, dtype=wide) / half)
  angle = jnp.arange(length, dtype=wide)[:, None] * frequency
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  a, b = jnp.split(x.astype(wide), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
  return turned.astype(x.dtype)


class _Linear(nn.Module):
  """A product with a kernel of any rank, on activations flattened to rows.

  [..., in] @ kernel[*inputs, *outputs] with `inputs` flattened: one plain GEMM
  of [B * T, in] forward and backward, which XLA runs faster than a product over
  several axes (on CPU up to three times).
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  dtype: Any
  depth_scale: float = 1.0

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.variance_scaling(
      self.depth_scale,
      'fan_in',
      'normal',
      in_axis=tuple(range(len(self.inputs))),
      out_axis=tuple(range(len(self.inputs), len(self.inputs + self.outputs))),
    )
    kernel = self.param('kernel', init, self.inputs + self.outputs)
    lead = x.shape[: x.ndim - len(self.inputs)]
    matrix = kernel.astype(self.dtype).reshape(-1, math.prod(self.outputs))
    rows = x.astype(self.dtype).reshape(-1, matrix.shape[0])
    return (rows @ matrix).reshape(*lead, *self.outputs)


class Attention(nn.Module):
  """Causal self-attention: [B, T, D] -> [B, T, D], and max logits [H]."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x):
    """Mixes over the tokens before and at each position."""
    c = self.config
    split = lambda name: _Linear(
      (c.width,), (c.heads, c.head_width), c.dtype, name=name
    )(x)
    q, k, v = split('query'), split('key'), split('value')
    if c.qk_norm:
      q = nn.RMSNorm(dtype=c.dtype, name='query_norm')(q)
      k = nn.RMSNorm(dtype=c.dtype, name='key_norm')(k)
    q, k = rotary(q, base=c.rope_base), rotary(k, base=c.rope_base)
    q *= c.head_width**-0.5
    logits = jnp.einsum(
      'bqhk,bshk->bhqs', q, k, preferred_element_type=jnp.float32
    )
    length = x.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    logits = jnp.where(causal, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(c.dtype)
    mixed = jnp.einsum('bhqs,bshk->bqhk', weights, v)
    out = _Linear(
      (c.heads, c.head_width), (c.width,), c.dtype, 0.5 / c.layers, name='out'
    )
    return out(mixed), logits.max(axis=(0, 2, 3))


class GatedMLP(nn.Module):
  """SwiGLU: [B, T, D] -> [B, T, D]."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x):
    """Acts on each token alone."""
    c = self.config
    wide, narrow = (c.hidden_width,), (c.width,)
    gate = _Linear(narrow, wide, c.dtype, name='gate')(x)
    up = _Linear(narrow, wide, c.dtype, name='up')(x)
    down = _Linear(wide, narrow, c.dtype, 0.5 / c.layers, name='down')
    return down(nn.silu(gate) * up)


class Layer(nn.Module):
  """One pre-norm residual layer: [B, T, D] -> [B, T, D], and max logits [H]."""

  config: TransformerConfig
  experts: bool = False
  train: bool = False
  axis_name: AxisName | None = None

  @nn.compact
  def __call__(self, x, _=None):
    """Attention and MLP, each added to the stream; `_` is for `nn.scan`."""
    c = self.config
    norm = lambda name: nn.RMSNorm(dtype=c.dtype, name=name)
    mixed, max_logits = Attention(c, name='attention')(
      norm('attention_norm')(x)
    )
    x = x + mixed
    h = norm('mlp_norm')(x)
    if not self.experts:
      return x + GatedMLP(c, name='mlp')(h), max_logits
    mixture = MoE(
      c.moe,
      hidden=c.moe.hidden_width(c.hidden_width),
      variance=0.5 / c.layers,
      dtype=c.dtype,
      axis_name=self.axis_name,
      name='moe',
    )
    return x + mixture(h, train=self.train), max_logits


class Transformer(nn.Module):
  """Decoder-only language model over the layers above.

  Args:
    config: sizes and options.
    axis_name: mapped axis or axes over which the batch is split, for what
      mixtures of experts count.

  Example:
    >>> model = Transformer(TransformerConfig(layers=1, width=16, heads=2))
    >>> tokens = jnp.zeros((2, 5), jnp.int32)
    >>> params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
    >>> jax.jit(model.apply)({'params': params}, tokens).shape
    (2, 5, 256)
  """

  config: TransformerConfig
  axis_name: AxisName | None = None

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False):
    """Logits of the next token.

    Args:
      tokens: integers [B, T] in [0, V).
      train: whether mixtures of experts take down their load; see `MoE`.

    Returns:
      Logits [B, T, V] in float32; with `return_max_logits` also the largest
      attention logit of the batch [L, H], for QK-clip.

    Raises:
      ValueError: if `tokens` has not two axes.
    """
    c = self.config
    require_rank('tokens', tokens, 2)
    embedding = nn.Embed(
      c.vocab_size,
      c.width,
      dtype=c.dtype,
      name='embedding',
      embedding_init=nn.initializers.normal(1.0),
    )
    x = embedding(tokens)
    options = {'train': train, 'axis_name': self.axis_name}
    if c.scan_layers:
      stacked = ('params', 'balance', 'losses', 'intermediates')
      stack = nn.scan(
        Layer,
        variable_axes=dict.fromkeys(stacked, 0),
        split_rngs={'params': True},
        length=c.layers,
      )
      options['experts'] = c.has_experts(0)
      x, max_logits = stack(c, **options, name='layers')(x, None)
    else:
      per_layer = []
      for i in range(c.layers):
        options['experts'] = c.has_experts(i)
        x, most = Layer(c, **options, name=f'layers_{i}')(x)
        per_layer.append(most)
      max_logits = jnp.stack(per_layer)
    x = nn.RMSNorm(dtype=c.dtype, name='final_norm')(x)
    if c.tie_embedding:
      # Unit-variance rows: without the factor logits start at sqrt(D).
      logits = embedding.attend(x) * c.width**-0.5
    else:
      logits = _Linear((c.width,), (c.vocab_size,), c.dtype, name='head')(x)
    logits = logits.astype(jnp.float32)
    return (logits, max_logits) if c.return_max_logits else logits

  def dimension_numbers(self, params: Any) -> Any:
    """How Muon reads each kernel; `None` for what AdamW trains.

    Queries, keys and values are matrices [D, H K], the output of attention
    [H K, D]; stacked layers are a batch, and so are experts. Pass it to
    `kexue.optimizers.muon(..., dimension_numbers=model.dimension_numbers)`.

    Args:
      params: the parameters, or any tree of their structure.

    Returns:
      Pytree of `optax.contrib.MuonDimensionNumbers` or `None`.
    """
    lead = int(self.config.scan_layers)
    axes = {
      **dict.fromkeys(['query', 'key', 'value'], ((0,), (1, 2))),
      'out': ((0, 1), (2,)),
      **dict.fromkeys(['gate', 'up', 'down'], ((0,), (1,))),
    }
    for name in ('gate', 'up', 'down'):
      axes['expert_' + name] = axes['shared_' + name] = ((1,), (2,))

    def numbers(path, _):
      names = [None, *(getattr(entry, 'key', None) for entry in path)]
      if names[-1] != 'kernel' or names[-2] not in axes:
        return None
      shift = lambda group: tuple(a + lead for a in group)
      return MuonDimensionNumbers(*map(shift, axes[names[-2]]))

    return jax.tree_util.tree_map_with_path(numbers, params)


def next_token_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Mean cross entropy in nats per token.

  Args:
    logits: [B, T, V].
    targets: integers [B, T].

  Returns:
    Scalar float32.

  Example:
    >>> float(next_token_loss(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int)))
    1.3862943649291992
  """
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)
