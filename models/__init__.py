"""Models in flax linen, thin over pure functions."""

from .transformer import (
  Transformer,
  TransformerConfig,
  next_token_loss,
  rotary,
)

__all__ = [
  'Transformer',
  'TransformerConfig',
  'next_token_loss',
  'rotary',
]
