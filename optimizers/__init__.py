"""Optax transforms of the articles, and the functions that they apply."""

from .cautious_decay import add_cautious_decay
from .clip_by_descent import ClipByDescentState, clip_by_descent
from .lora_pro import LoraProState, lora_pro
from .matrices import FusedDimensionNumbers, matrix_labels
from .muon import MuonState, muon, scale_by_muon
from .newton_schulz import (
  NEWTON_SCHULZ_COEFFICIENTS,
  msign,
  newton_schulz,
  polar_express_coefficients,
)
from .parameter_average import (
  ParameterAverageState,
  parameter_average,
  with_parameter_average,
)
from .qk_clip import qk_clip
from .softsign import (
  SoftsignAdamState,
  SoftsignMomentumState,
  scale_by_softsign,
  scale_by_softsign_adam,
  scale_by_softsign_momentum,
  softsign,
  softsign_adam,
  softsign_sgd,
)
from .spectral_decay import (
  SpectralDecayState,
  add_spectral_decay,
  schatten_gradient,
  spectral_norm,
)
from .stacks import distributed_newton_schulz
from .update_statistics import (
  UpdateStatisticsState,
  update_statistics,
  with_update_statistics,
)

__all__ = [
  'NEWTON_SCHULZ_COEFFICIENTS',
  'ClipByDescentState',
  'FusedDimensionNumbers',
  'LoraProState',
  'MuonState',
  'ParameterAverageState',
  'SoftsignAdamState',
  'SoftsignMomentumState',
  'SpectralDecayState',
  'UpdateStatisticsState',
  'add_cautious_decay',
  'add_spectral_decay',
  'clip_by_descent',
  'distributed_newton_schulz',
  'lora_pro',
  'matrix_labels',
  'msign',
  'muon',
  'newton_schulz',
  'parameter_average',
  'polar_express_coefficients',
  'qk_clip',
  'scale_by_muon',
  'scale_by_softsign',
  'scale_by_softsign_adam',
  'scale_by_softsign_momentum',
  'schatten_gradient',
  'softsign',
  'softsign_adam',
  'softsign_sgd',
  'spectral_norm',
  'update_statistics',
  'with_parameter_average',
  'with_update_statistics',
]
