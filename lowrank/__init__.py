"""Low-rank approximation and low-rank adapters, as pure functions of arrays."""

from .adaptive_range import Range, adaptive_range
from .column_row import ColumnRow, column_row, column_row_matmul
from .column_row_dense import column_row_dense
from .column_row_error import column_row_expected_error
from .cur import CUR, cur, cur_approximation
from .cur_index import CURIndex, cur_index
from .cur_retrieval import cur_retrieval
from .cur_search import Retrieved, cur_search
from .deim import DEIMBound, deim, deim_bound, q_deim
from .error_estimate import ErrorEstimate, error_estimate
from .interpolation_bound import InterpolationBound, interpolation_bound
from .interpolative import Interpolative, interpolative
from .leverage import leverage_rows, leverage_scores
from .lora import (
  LoRA,
  lora_apply,
  lora_delta,
  lora_init,
  lora_merge,
  lora_scale,
)
from .lora_gradient import (
  LoraGradient,
  lora_equivalent_gradient,
  lora_pro_gradient,
)
from .maximum_volume import maximum_volume
from .nystrom import Nystrom, nystrom, nystrom_factor
from .nystrom_attention import nystrom_attention
from .osinsky import osinsky_columns
from .pinv import pinv
from .pivoted_qr import PivotedQR, pivoted_qr
from .randomized_svd import randomized_svd
from .strong_rrqr import StrongRRQR, strong_rrqr
from .svd import SVD, svd

__all__ = [
  'CUR',
  'SVD',
  'CURIndex',
  'ColumnRow',
  'DEIMBound',
  'ErrorEstimate',
  'InterpolationBound',
  'Interpolative',
  'LoRA',
  'LoraGradient',
  'Nystrom',
  'PivotedQR',
  'Range',
  'Retrieved',
  'StrongRRQR',
  'adaptive_range',
  'column_row',
  'column_row_dense',
  'column_row_expected_error',
  'column_row_matmul',
  'cur',
  'cur_approximation',
  'cur_index',
  'cur_retrieval',
  'cur_search',
  'deim',
  'deim_bound',
  'error_estimate',
  'interpolation_bound',
  'interpolative',
  'leverage_rows',
  'leverage_scores',
  'lora_apply',
  'lora_delta',
  'lora_equivalent_gradient',
  'lora_init',
  'lora_merge',
  'lora_pro_gradient',
  'lora_scale',
  'maximum_volume',
  'nystrom',
  'nystrom_attention',
  'nystrom_factor',
  'osinsky_columns',
  'pinv',
  'pivoted_qr',
  'q_deim',
  'randomized_svd',
  'strong_rrqr',
  'svd',
]
