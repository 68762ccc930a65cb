"""Models in flax linen, thin over pure functions."""

from .assignment import balanced_assignment
from .balance_losses import (
  balance_loss,
  router_z_loss,
  straight_through_load,
)
from .balancing import max_violation, update_bias, violation_floor
from .code_statistics import (
  CodebookMetrics,
  code_counts,
  codebook_metrics,
)
from .codebook import (
  CodebookState,
  init_codebook,
  revive_codes,
  update_codebook,
)
from .codebook_losses import codebook_loss, commitment_loss
from .dispatch import dispatch, dropped_choices
from .expert_norms import (
  ExpertSubset,
  best_subset,
  expert_vectors,
  norm_top_k,
  random_subset_error,
  subset_error,
)
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
from .moe import (
  BalanceState,
  MoE,
  MoEConfig,
  expert_specs,
  update_balance,
)
from .nearest_code import nearest_code
from .quantile_balancing import quantile_bias
from .quantized import Quantized
from .residual_quantizer import ResidualQuantizer
from .routing import Routing, route
from .shared_experts import shared_expert_scale
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
  'BalanceState',
  'CodebookMetrics',
  'CodebookState',
  'ExpertSubset',
  'FiniteScalarQuantizer',
  'LoRADense',
  'MoE',
  'MoEConfig',
  'Quantized',
  'ResidualQuantizer',
  'Routing',
  'Transformer',
  'TransformerConfig',
  'VQVAEConfig',
  'VQVAEOutput',
  'VectorQuantizer',
  'balance_loss',
  'balanced_assignment',
  'best_subset',
  'code_counts',
  'codebook_loss',
  'codebook_metrics',
  'commitment_loss',
  'dispatch',
  'dropped_choices',
  'expert_specs',
  'expert_vectors',
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
  'norm_top_k',
  'quantile_bias',
  'random_subset_error',
  'revive_codes',
  'rotary',
  'rotation_trick',
  'route',
  'router_z_loss',
  'shared_expert_scale',
  'straight_through',
  'straight_through_load',
  'subset_error',
  'update_balance',
  'update_bias',
  'update_codebook',
  'violation_floor',
]
