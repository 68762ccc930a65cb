"""Denoising diffusion, and codecs whose noise comes out of codebooks."""

from .bits_per_dim import BitsPerDim, bits_per_dim, kl_per_step
from .bitstream import bits_per_pixel, pack_bitstream, unpack_bitstream
from .codebook import Codebook
from .codes import Codes
from .combinadics import colex_rank, colex_unrank
from .ddcm import DDCMSample, ddcm_decode, ddcm_encode, ddcm_sample
from .ddpm_loss import ddpm_loss, min_snr_weights, prediction_target
from .equal_kl import equal_kl_timesteps
from .gaussian_source import (
  gaussian_denoiser,
  rate_distortion,
  realistic_rate_distortion,
)
from .guidance import (
  classifier_direction,
  compressed_guidance,
  guided,
  label_direction,
)
from .header_bytes import read_header
from .latent_space import LatentSpace
from .linear_operators import average_pooling, blur, grey, masked
from .matching_pursuit import pursue, pursued
from .packing import ideal_bits, payload_bits
from .process import (
  Posterior,
  add_noise,
  ddim_step,
  ddpm_step,
  posterior,
  predict_noise,
  predict_x0,
)
from .restoration import Restored, restore
from .sampler import denoiser, sample
from .schedule import Schedule
from .stream_header import BitstreamError, Header, schedule_hash
from .turbo import signed_sum, top_atoms, turbo_decode, turbo_encode
from .unet import UNet, UNetConfig

__all__ = [
  'BitsPerDim',
  'BitstreamError',
  'Codebook',
  'Codes',
  'DDCMSample',
  'Header',
  'LatentSpace',
  'Posterior',
  'Restored',
  'Schedule',
  'UNet',
  'UNetConfig',
  'add_noise',
  'average_pooling',
  'bits_per_dim',
  'bits_per_pixel',
  'blur',
  'classifier_direction',
  'colex_rank',
  'colex_unrank',
  'compressed_guidance',
  'ddcm_decode',
  'ddcm_encode',
  'ddcm_sample',
  'ddim_step',
  'ddpm_loss',
  'ddpm_step',
  'denoiser',
  'equal_kl_timesteps',
  'gaussian_denoiser',
  'grey',
  'guided',
  'ideal_bits',
  'kl_per_step',
  'label_direction',
  'masked',
  'min_snr_weights',
  'pack_bitstream',
  'payload_bits',
  'posterior',
  'predict_noise',
  'predict_x0',
  'prediction_target',
  'pursue',
  'pursued',
  'rate_distortion',
  'read_header',
  'realistic_rate_distortion',
  'restore',
  'sample',
  'schedule_hash',
  'signed_sum',
  'top_atoms',
  'turbo_decode',
  'turbo_encode',
  'unpack_bitstream',
]
