r"""A transformer prior on the tokens of images, and samples from it.

A sequence is a token for the class and then those of the image, row by row:
codes are 0..K-1, the class is K + label. The model is that of `kexue.models`;
samples come from the same parameters one token at a time, with keys and values
of the tokens before kept, so that an image costs one pass and not one for each
of its tokens.

Shapes: `B` sequences, `T` tokens of an image, `V` vocabulary, `D` width, `L`
layers, `H` heads, `K` head width.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..models import Transformer, next_token_loss, rotary
from ..models.transformer import GatedMLP
from ..training import TrainState
from ..training.batches import array_batches

Caches = list[list[jax.Array]]


def sequences(
  tokens: np.ndarray, labels: np.ndarray, num_codes: int
) -> np.ndarray:
  """Classes and tokens as the prior reads them.

  Args:
    tokens: [N, ...] in 0..num_codes - 1.
    labels: [N].
    num_codes: the first class is the token after the codes.

  Returns:
    int32 [N, 1 + T].

  Example:
    >>> sequences(np.array([[[3, 0], [1, 2]]]), np.array([5]), 4).tolist()
    [[9, 3, 0, 1, 2]]
  """
  first = num_codes + np.asarray(labels)[:, None]
  flat = np.reshape(tokens, (len(tokens), -1))
  return np.concatenate([first, flat], axis=1).astype(np.int32)


class PriorTask:
  """A prior on the tokens of one tokenizer.

  Two tasks with the same model share all that is compiled.

  Args:
    model: the transformer.
    train: sequences [N, 1 + T].
    held_out: sequences of the validation loss.
    batch_size: sequences in a step.
  """

  def __init__(
    self,
    model: Transformer,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    batch_size: int,
  ):
    self.model, self.batch_size = model, batch_size
    self._train, self.held_out = train, held_out

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Parameters, and no variables."""
    return _start(self.model, key, self._train[:1, :-1]), {}

  def loss(self, model, params, variables, batch, key):
    """Cross entropy of the tokens in nats, given the class."""
    del key
    return _loss(model, params, batch['sequence']), (variables, {})

  def batches(self, key: jax.Array) -> Callable[[int, int], Any]:
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: array_batches(
      {'sequence': self._train},
      key=key,
      step=step,
      steps=count,
      batch_size=self.batch_size,
    )

  def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
    """`val_loss` in nats per token."""
    return {'val_loss': _score(self.model, state.params, self.held_out)}


def _loss(model, params, batch):
  logits = model.apply({'params': params}, batch[:, :-1])
  return next_token_loss(logits, batch[:, 1:])


_score = jax.jit(_loss, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _start(model, key, some):
  return model.init(key, some)['params']


@functools.partial(jax.jit, static_argnames=('model', 'length'))
def sample(
  model: Transformer,
  params: Any,
  first: jax.Array,
  key: jax.Array,
  *,
  length: int,
  num_codes: int,
) -> jax.Array:
  """Draws tokens at temperature 1.

  Args:
    model: of unstacked layers that normalise queries and keys.
    params: its parameters.
    first: int32 [B], the tokens of the classes.
    key: of the draws.
    length: T.
    num_codes: nothing from this token on is drawn.

  Returns:
    int32 [B, T].
  """
  codes = jnp.arange(model.config.vocab_size) < num_codes

  def step(carry, position):
    caches, token = carry
    logits, caches = next_logits(model, params, caches, token, position)
    logits = jnp.where(codes, logits, -jnp.inf)
    token = jax.random.categorical(jax.random.fold_in(key, position), logits)
    return (caches, token.astype(jnp.int32)), token

  caches = no_cache(model, len(first), length)
  start = (caches, jnp.asarray(first, jnp.int32))
  return lax.scan(step, start, jnp.arange(length))[1].T


def no_cache(model: Transformer, count: int, length: int) -> Caches:
  """Keys and values [B, H, T, K] of each layer, of `B` sequences of zeros."""
  c = model.config
  zeros = jnp.zeros((count, c.heads, length, c.head_width))
  return [[zeros, zeros] for _ in range(c.layers)]


def next_logits(
  model: Transformer,
  params: Any,
  caches: Caches,
  token: jax.Array,
  position: jax.Array,
) -> tuple[jax.Array, Caches]:
  """The row of the model's logits at one position.

  Args:
    model: of unstacked layers that normalise queries and keys.
    params: its parameters.
    caches: of `no_cache`, with keys and values of the positions before.
    token: int32 [B], the one at the position.
    position: int32 scalar.

  Returns:
    Logits [B, V], and the caches with the position in them.
  """
  c = model.config
  norm = lambda p, x: nn.RMSNorm().apply({'params': p}, x)
  caches, length = [*caches], caches[0][0].shape[2]
  seen = jnp.arange(length) <= position
  x = params['embedding']['embedding'][token]
  for i in range(c.layers):
    p = params[f'layers_{i}']
    a, h = p['attention'], norm(p['attention_norm'], x)
    of = lambda name, a=a, h=h: jnp.tensordot(h, a[name]['kernel'], 1)
    q, k = (
      _rotated(norm(a[f'{name}_norm'], of(name)), position, length, c)
      for name in ('query', 'key')
    )
    keys, values = caches[i] = [
      lax.dynamic_update_index_in_dim(old, new, position, 2)
      for old, new in zip(caches[i], (k, of('value')), strict=True)
    ]
    logits = jnp.einsum('bhk,bhtk->bht', q, keys) * c.head_width**-0.5
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
    mixed = jnp.einsum('bht,bhtk->bhk', weights, values)
    x = x + jnp.tensordot(mixed, a['out']['kernel'], 2)
    x = x + GatedMLP(c).apply({'params': p['mlp']}, norm(p['mlp_norm'], x))
  return norm(params['final_norm'], x) @ params['head']['kernel'], caches


def _rotated(x, position, length, config):
  """`rotary` of x [B, H, K] at one position; of (1, 0) it is (cos, sin)."""
  unit = jnp.repeat(jnp.array([1.0, 0.0]), x.shape[-1] // 2)
  every = jnp.broadcast_to(unit, (1, length, 1, x.shape[-1]))
  angles = rotary(every, base=config.rope_base)[0, position, 0]
  (cos, sin), (a, b) = jnp.split(angles, 2), jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
