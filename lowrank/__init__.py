"""Low-rank approximation and low-rank adapters, as pure functions of arrays."""

from .lora import LoraGradient, lora_equivalent_gradient, lora_pro_gradient

__all__ = [
  'LoraGradient',
  'lora_equivalent_gradient',
  'lora_pro_gradient',
]
