"""What learning rate for what batch: laws, estimators, recommendations."""

from .batch_size_schedule import batch_size_schedule
from .clipping import (
  ClippingStatistics,
  clipping_statistics,
  sign_learning_rate,
)
from .curvature import CurvatureNoiseScale, curvature_noise_scale
from .fit import LawFit, SgdPowerLaw, fit_law
from .gradients import (
  hessian_vector_product,
  squared_norms,
)
from .grid_optimum import OptimalLearningRate, optimal_learning_rate
from .hessian import (
  AdamHessianAlignment,
  LogLogFit,
  adam_hessian_alignment,
  hessian_diagonal,
  hessian_row_norms,
)
from .laws import SgdLaw, SignLaw, SoftsignLaw
from .least_squares import LeastSquares, least_squares
from .matrix_free import matrix_free_step
from .microbatches import GradientMoments, accumulate_gradients
from .noise_scale import (
  NoiseScale,
  per_example_noise_scale,
  two_batch_noise_scale,
)
from .one_step import OneStep, one_step
from .power_laws import (
  PowerLines,
  PublishedOptimum,
  deepseek_law,
  moonlight_law,
  power_lines_law,
  step_law,
)
from .probe import ProbedLearningRate, probe_learning_rate
from .recommend import Recommendation, recommend_learning_rate
from .rules import (
  AdamHyperparameters,
  adascale_gain,
  half_life_rule,
  malladi_rule,
  scale_learning_rate,
)
from .sgd import SgdMoments, sgd_moments, sgd_optimal_lr
from .sign import sign_mean, sign_one_step, sign_optimal_lr
from .sign_correlation import (
  correlated_trace,
  sign_product_mean,
  sign_second_moment,
)
from .sign_noise import (
  SignNoiseScale,
  preconditioned_noise_scale,
  sign_noise_scale,
)
from .softsign_moments import SoftsignMoments, softsign_moments
from .surge import (
  LargeBatchSurge,
  SurgePeak,
  large_batch_surge,
  surge_index,
  surge_peak,
)
from .surge_estimate import SurgeIndex, surge_index_estimate
from .tracker import (
  NoiseScaleTracker,
  NoiseScaleTrackerState,
  TrackedNoiseScale,
  noise_scale_tracker,
  tracked_noise_scale,
)
from .tradeoff import (
  Tradeoff,
  adaptive_batch_gain,
  adaptive_batch_size,
  fit_tradeoff,
  steps_examples_tradeoff,
  steps_to_target,
)
from .update_rms import adam_update_rms

__all__ = [
  'AdamHessianAlignment',
  'AdamHyperparameters',
  'ClippingStatistics',
  'CurvatureNoiseScale',
  'GradientMoments',
  'LargeBatchSurge',
  'LawFit',
  'LeastSquares',
  'LogLogFit',
  'NoiseScale',
  'NoiseScaleTracker',
  'NoiseScaleTrackerState',
  'OneStep',
  'OptimalLearningRate',
  'PowerLines',
  'ProbedLearningRate',
  'PublishedOptimum',
  'Recommendation',
  'SgdLaw',
  'SgdMoments',
  'SgdPowerLaw',
  'SignLaw',
  'SignNoiseScale',
  'SoftsignLaw',
  'SoftsignMoments',
  'SurgeIndex',
  'SurgePeak',
  'TrackedNoiseScale',
  'Tradeoff',
  'accumulate_gradients',
  'adam_hessian_alignment',
  'adam_update_rms',
  'adaptive_batch_gain',
  'adaptive_batch_size',
  'adascale_gain',
  'batch_size_schedule',
  'clipping_statistics',
  'correlated_trace',
  'curvature_noise_scale',
  'deepseek_law',
  'fit_law',
  'fit_tradeoff',
  'half_life_rule',
  'hessian_diagonal',
  'hessian_row_norms',
  'hessian_vector_product',
  'large_batch_surge',
  'least_squares',
  'malladi_rule',
  'matrix_free_step',
  'moonlight_law',
  'noise_scale_tracker',
  'one_step',
  'optimal_learning_rate',
  'per_example_noise_scale',
  'power_lines_law',
  'preconditioned_noise_scale',
  'probe_learning_rate',
  'recommend_learning_rate',
  'scale_learning_rate',
  'sgd_moments',
  'sgd_optimal_lr',
  'sign_learning_rate',
  'sign_mean',
  'sign_noise_scale',
  'sign_one_step',
  'sign_optimal_lr',
  'sign_product_mean',
  'sign_second_moment',
  'softsign_moments',
  'squared_norms',
  'step_law',
  'steps_examples_tradeoff',
  'steps_to_target',
  'surge_index',
  'surge_index_estimate',
  'surge_peak',
  'tracked_noise_scale',
  'two_batch_noise_scale',
]
