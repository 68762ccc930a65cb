"""Models in flax linen, thin over pure functions."""

from .lora import LoRADense
from .transformer import (
  Transformer,
  TransformerConfig,
  next_token_loss,
  rotary,
)

__all__ = [
  'LoRADense',
  'Transformer',
  'TransformerConfig',
  'next_token_loss',
  'rotary',
]
