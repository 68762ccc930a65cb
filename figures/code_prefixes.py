"""What the first codes of an image tell: every prefix by a single walk down.

After `k` codes a decoder is at some noisy image. It can say what it expects,
the network's prediction, or go on to the end without noise, by DDIM.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..diffusion import (
  Codebook,
  Codes,
  Header,
  Schedule,
  ddim_step,
  ddpm_step,
  pursued,
  signed_sum,
)
from ..diffusion.sampler import Denoise


class Prefixes(NamedTuple):
  """Where codes lead, after none of them, the first one, ... all `n`.

  Attributes:
    noisy: [n + 1, B, H, W, C].
    expected: like them, the predicted images.
  """

  noisy: jax.Array
  expected: jax.Array


def header_codebook(header: Header) -> Codebook:
  """The codebook that a header says."""
  return Codebook(
    header.size,
    math.prod(header.shape),
    kind=header.kind,
    seed=header.seed,
    shared=header.shared,
  )


def walk(
  denoise: Denoise, codes: Codes, schedule: Schedule, header: Header
) -> Prefixes:
  """Replays codes and keeps what every one of them leads to.

  Args:
    denoise: the encoder's.
    codes: of all steps.
    schedule: the encoder's.
    header: mode, codebook and shape of the codes.

  Returns:
    `Prefixes`; what is expected after `k` codes is what a decoder makes of the
    first `k`, see `kexue.diffusion.ddcm_decode`.
  """
  codebook = header_codebook(header)
  noise = functools.partial(signed_sum, codebook)
  if header.mode == 'ddcm':
    bits = header.coefficient_bits
    noise = functools.partial(pursued, codebook, coefficient_bits=bits)
  timesteps = jnp.asarray(schedule.timesteps)
  count = codes.indices.shape[1]
  positions = schedule.steps - jnp.arange(count)

  def body(x, one):
    i, *code = one
    t = timesteps[i - 1]
    x0_hat = denoise(x, t)
    z = noise(*code, t=t).reshape(x.shape)
    return ddpm_step(schedule, x0_hat, x, i, z), (x, x0_hat)

  shape = (len(codes.indices), *header.shape)
  start = jnp.broadcast_to(codebook.start(), (shape[0], codebook.dim))
  by_step = [jnp.moveaxis(part, 1, 0) for part in codes]
  x, kept = lax.scan(body, start.reshape(shape), (positions, *by_step))
  last = x, denoise(x, timesteps[schedule.steps - count - 1])
  return Prefixes(
    *(jnp.append(a, b[None], 0) for a, b in zip(kept, last, strict=True))
  )


def finish(
  denoise: Denoise, x: jax.Array, schedule: Schedule, position: jax.Array
) -> jax.Array:
  """Images by DDIM without noise, on the steps that a schedule has left.

  Args:
    denoise: a denoiser.
    x: noisy images [B, H, W, C].
    schedule: of the steps.
    position: where `x` is, 1 or more; may be traced: one program for all.

  Returns:
    [B, H, W, C].
  """
  timesteps = jnp.asarray(schedule.timesteps)

  def body(k, x):
    i = position - k
    x0_hat = denoise(x, timesteps[i - 1])
    return ddim_step(schedule, x0_hat, x, i, jnp.zeros_like(x), eta=0.0)

  x = lax.fori_loop(0, position - 1, body, x)
  return denoise(x, timesteps[0])
