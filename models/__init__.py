"""Models in flax linen, thin over pure functions."""

from .balancing import max_violation, update_bias
from .code_statistics import CodebookMetrics, code_counts, codebook_metrics
from .codebook import (
  CodebookState,
  init_codebook,
  revive_codes,
  update_codebook,
)
from .codebook_losses import codebook_loss, commitment_loss
from .fsq import (
  FSQ_LEVELS,
  FiniteScalarQuantizer,
  fsq_codes,
  fsq_indices,
  fsq_quantize,
)
from .gradient_estimators import (
  gradient_estimator,
  rotation_trick,
  straight_through,
)
from .k_means import k_means, k_means_start
from .lora import LoRADense
from .nearest_code import nearest_code
from .quantized import Quantized
from .residual_quantizer import ResidualQuantizer
from .transformer import (
  Transformer,
  TransformerConfig,
  next_token_loss,
  rotary,
)
from .vector_quantizer import VectorQuantizer
from .vqvae import VQVAE, VQVAEConfig, VQVAEOutput

__all__ = [
  'FSQ_LEVELS',
  'VQVAE',
  'CodebookMetrics',
  'CodebookState',
  'FiniteScalarQuantizer',
  'LoRADense',
  'Quantized',
  'ResidualQuantizer',
  'Transformer',
  'TransformerConfig',
  'VQVAEConfig',
  'VQVAEOutput',
  'VectorQuantizer',
  'code_counts',
  'codebook_loss',
  'codebook_metrics',
  'commitment_loss',
  'fsq_codes',
  'fsq_indices',
  'fsq_quantize',
  'gradient_estimator',
  'init_codebook',
  'k_means',
  'k_means_start',
  'max_violation',
  'nearest_code',
  'next_token_loss',
  'revive_codes',
  'rotary',
  'rotation_trick',
  'straight_through',
  'update_bias',
  'update_codebook',
]
