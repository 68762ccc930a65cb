"""Optax transforms of the articles: Muon and its matrix sign."""

from .matrices import matrix_labels
from .muon import MuonState, muon, scale_by_muon
from .newton_schulz import (
  NEWTON_SCHULZ_COEFFICIENTS,
  msign,
  newton_schulz,
  polar_express_coefficients,
)

__all__ = [
  'NEWTON_SCHULZ_COEFFICIENTS',
  'MuonState',
  'matrix_labels',
  'msign',
  'muon',
  'newton_schulz',
  'polar_express_coefficients',
  'scale_by_muon',
]
