"""A model that needs no training: independent normal pixels."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from kexue.diffusion import Schedule, gaussian_denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianModel:
  """What `PretrainedDiffusion` offers a codec, with the exact denoiser."""

  params: Any
  schedule: Schedule
  image_shape: tuple[int, int, int]
  fingerprint: bytes = b'gaussian'

  def denoise(self, label=None):
    return gaussian_denoiser(self.params, self.schedule)

  @property
  def kl_per_step(self):
    variances = np.asarray(self.params, np.float64)
    signal = self.schedule.alpha_bar[1:, None]
    error = variances.reshape(-1) * (1 - signal)
    error = error / (signal * variances.reshape(-1) + 1 - signal)
    told = -np.diff(np.minimum(self.schedule.snr, 1e9)) / 2
    return told * error.sum(-1)


@pytest.fixture(scope='session')
def gaussian_model():
  """Of 8 x 8 pixels; 64 of them, most of which vary little."""
  variances = 0.3 / (1 + np.arange(64.0).reshape(8, 8, 1)) ** 1.2
  return GaussianModel(
    variances.astype(np.float32), Schedule.cosine(100), (8, 8, 1)
  )


@pytest.fixture
def pictures(gaussian_model):
  """`pictures(count, h, w)`: uint8 [count, h, w, 1], as the model has them."""

  def draw(count, height, width, seed=0):
    rng = np.random.default_rng(seed)
    deviation = np.sqrt(np.tile(gaussian_model.params, (9, 9, 1)))
    deviation = deviation[:height, :width]
    x = rng.normal(size=(count, height, width, 1)) * deviation
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)

  return draw
