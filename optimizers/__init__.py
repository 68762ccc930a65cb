"""Optax transforms of the articles, and the functions that they apply."""

from .clip_by_descent import ClipByDescentState, clip_by_descent
from .matrices import matrix_labels
from .muon import MuonState, muon, scale_by_muon
from .newton_schulz import (
  NEWTON_SCHULZ_COEFFICIENTS,
  msign,
  newton_schulz,
  polar_express_coefficients,
)
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

__all__ = [
  'NEWTON_SCHULZ_COEFFICIENTS',
  'ClipByDescentState',
  'MuonState',
  'SoftsignAdamState',
  'SoftsignMomentumState',
  'SpectralDecayState',
  'add_spectral_decay',
  'clip_by_descent',
  'matrix_labels',
  'msign',
  'muon',
  'newton_schulz',
  'polar_express_coefficients',
  'scale_by_muon',
  'scale_by_softsign',
  'scale_by_softsign_adam',
  'scale_by_softsign_momentum',
  'schatten_gradient',
  'softsign',
  'softsign_adam',
  'softsign_sgd',
  'spectral_norm',
]
