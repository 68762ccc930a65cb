"""Data, steps, devices, loop, checkpoints, records: what figures train by."""

from .parallel import MODES, data_mesh, parallelize, value_and_grad
from .step import TrainState, init_state, make_step

__all__ = [
  'MODES',
  'TrainState',
  'data_mesh',
  'init_state',
  'make_step',
  'parallelize',
  'value_and_grad',
]
