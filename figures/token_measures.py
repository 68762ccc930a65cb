"""What tokens hold, what they lose, and images of both as rows of records."""

import math
from typing import Any

import numpy as np

from ..training import TrainState
from ..training.records import Row
from .tokenizer import TokenizerTask

# Images that are encoded at once.
CHUNK = 1024


def encoded(
  task: TokenizerTask, state: TrainState, images: np.ndarray
) -> np.ndarray:
  """Bytes [N, H, W, C] to int32 [N, h, w], a part at a time."""
  count = len(images)
  padded = np.arange(-(-count // CHUNK) * CHUNK) % count  # One shape for all.
  parts = [
    task.tokens(state, images[rows]) for rows in padded.reshape(-1, CHUNK)
  ]
  return np.concatenate(parts)[:count]


def information(
  tokens: np.ndarray, nats: float, num_codes: int
) -> dict[str, Any]:
  """What tokens could hold, seem to hold, and hold for the prior.

  Args:
    tokens: [N, T] of held-out images.
    nats: loss of the prior, per token.
    num_codes: K.

  Returns:
    `capacity`, log2 K; `entropy`, in bits, of their frequencies; `usage`, the
    share of codes among them; `bits_per_token`; `bits` of an image.

  Example:
    >>> information(np.array([[0, 1], [1, 0]]), math.log(2) / 2, 4)['entropy']
    1.0
  """
  share = np.bincount(np.ravel(tokens), minlength=num_codes) / np.size(tokens)
  seen = share[share > 0]
  bits = nats / math.log(2)
  return {
    'capacity': math.log2(num_codes),
    'entropy': float(-np.sum(seen * np.log2(seen))),
    'usage': len(seen) / num_codes,
    'bits_per_token': bits,
    'bits': bits * tokens.shape[1],
  }


def fidelity(images: np.ndarray, originals: np.ndarray) -> dict[str, float]:
  r"""How far reconstructions are off.

  Args:
    images: bytes.
    originals: bytes.

  Returns:
    `error`, the mean square of a pixel in 0..1; `residual_bits`, what a normal
    law of that variance needs for what is missing in an image of `P` bytes,
    :math:`\frac P2 \log_2(2 \pi e \, 255^2 \, \mathrm{error})`.
  """
  error = np.mean((np.float64(images) - originals) ** 2) / 255**2
  each = 0.5 * math.log2(2 * math.pi * math.e * 255**2 * max(error, 1e-12))
  return {'error': error, 'residual_bits': each * originals[0].size}


def as_strip(images: np.ndarray) -> Row:
  """Images side by side as text; the x keeps it from being a number."""
  strip = np.concatenate([*images], axis=1)
  height, columns, channels = strip.shape
  return {
    'height': height,
    'columns': columns,
    'pixels': 'x' + strip.tobytes().hex(),
  } | ({'channels': channels} if channels > 1 else {})
