"""A trained diffusion model as a codec of tiles: what runs on devices.

Programs are compiled for a fixed number of tiles on one device, filled up where
there are fewer, and every device runs the same one: how many pictures there
are, and on how many devices, changes no bit of what comes out. With `strict`
the encoder also runs the decoder, that very program, and keeps a check sum of
its pixels.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..diffusion import (
  BitstreamError,
  Codebook,
  Codes,
  Header,
  Schedule,
  ddcm_decode,
  ddcm_encode,
  schedule_hash,
  turbo_decode,
  turbo_encode,
)
from .codec_settings import header_schedule

BATCH = 8  # Tiles on a device: part of what makes pictures what they are.


def output_crc(tiles: np.ndarray) -> int:
  """CRC-32 of decoded tiles, uint8 [N, H, W, C]."""
  return zlib.crc32(np.ascontiguousarray(tiles))


class Codec:
  """Encodes and decodes tiles with one model.

  Args:
    model: `PretrainedDiffusion`.
    devices: where to run; `None`: all of this process.
  """

  def __init__(
    self, model: Any, *, devices: Sequence[jax.Device] | None = None
  ):
    self.model = model
    self._devices = list(devices or jax.local_devices())
    self._params = [jax.device_put(model.params, d) for d in self._devices]
    self._fingerprint = model.fingerprint  # A hash of all weights: once.
    self._schedule = functools.lru_cache(self._checked_schedule)
    self._encode = jax.jit(self._encode_batch, static_argnames='header')
    self._decode = jax.jit(
      self._decode_batch, static_argnames=('header', 'steps')
    )

  def sign(self, settings: Header, **fields) -> Header:
    """Settings as the header of a stream of this model."""
    fields = {'fingerprint': self._fingerprint, **fields}
    return dataclasses.replace(settings, **fields)

  def check(self, header: Header) -> None:
    """Refuses a header that is of another model.

    Raises:
      BitstreamError: says what differs.
    """
    if header.fingerprint != self._fingerprint:
      raise BitstreamError(
        f'was encoded with model {header.fingerprint.hex()}, and this is '
        f'{self._fingerprint.hex()}'
      )
    self._schedule(settings_of(header))

  def _checked_schedule(self, settings: Header) -> Schedule:
    if settings.shape != tuple(self.model.image_shape):
      raise BitstreamError(
        f'shape: got tiles of {settings.shape}, and the model knows '
        f'{self.model.image_shape}'
      )
    schedule = header_schedule(settings, self.model)
    if schedule_hash(schedule) != settings.schedule_hash:
      raise BitstreamError(
        'the timesteps are not those of the encoder, which another version of '
        'this program may have chosen'
      )
    return schedule

  def _parts(self, params, header: Header):
    """Denoiser, schedule and codebook of a header."""
    dim = math.prod(header.shape)
    codebook = Codebook(
      header.size, dim, kind=header.kind, seed=header.seed, shared=header.shared
    )
    model = dataclasses.replace(self.model, params=params)
    return model.denoise(), self._schedule(header), codebook

  def _encode_batch(self, params, tiles, *, header: Header) -> Codes:
    x0 = tiles.astype(jnp.float32) / 127.5 - 1.0
    denoise, *rest = self._parts(params, header)
    encode, more = turbo_encode, {}
    if header.mode == 'ddcm':
      encode, more = ddcm_encode, {'coefficient_bits': header.coefficient_bits}
    return encode(
      denoise, x0, *rest, atoms=header.atoms, tail=header.tail, **more
    )

  def _decode_batch(self, params, *codes, header: Header, steps: int):
    denoise, *rest = self._parts(params, header)
    decode, more = turbo_decode, {}
    if header.mode == 'ddcm':
      decode, more = ddcm_decode, {'coefficient_bits': header.coefficient_bits}
    x0 = decode(
      denoise,
      Codes(*codes),
      *rest,
      shape=header.shape,
      steps=steps,
      tail=header.tail,
      **more,
    )
    return jnp.clip(jnp.round((x0 + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

  def _in_batches(self, program: Callable, arrays, advance: Callable) -> Any:
    """`program` on rows of arrays, so many at a time on every device."""
    count, parts = len(arrays[0]), []
    starts = range(0, count, BATCH)
    for first in range(0, len(starts), len(self._devices)):
      running = []
      for start, params, device in zip(
        starts[first:], self._params, self._devices, strict=False
      ):
        rows = [_filled(x[start : start + BATCH]) for x in arrays]
        running.append(program(params, *jax.device_put(rows, device)))
      for part in running:
        parts.append(jax.tree.map(np.asarray, part))
        advance(min(BATCH, count - BATCH * (len(parts) - 1)))
    join = lambda *x: np.concatenate(x)[:count]
    return jax.tree.map(join, *parts)

  def encode(
    self,
    tiles: np.ndarray,
    header: Header,
    *,
    advance: Callable[[int], Any] = lambda tiles: None,
  ) -> Codes:
    """Codes of tiles.

    Args:
      tiles: uint8 [N, H, W, C], N at least 1.
      header: settings; of its counts and check sums nothing is read.
      advance: called with how many tiles more are done.

    Returns:
      `Codes`, NumPy's int32 [N, steps, M].

    Raises:
      BitstreamError: if the header is of another model.
    """
    self.check(header)
    require(len(tiles) > 0, 'tiles', len(tiles), '1 or more')
    program = functools.partial(self._encode, header=settings_of(header))
    return self._in_batches(program, [tiles], advance)

  def decode(
    self,
    codes: Codes,
    header: Header,
    *,
    steps: int | None = None,
    advance: Callable[[int], Any] = lambda tiles: None,
  ) -> np.ndarray:
    """Tiles of codes.

    Args:
      codes: int [N, steps, M], of all steps or of the first ones.
      header: settings; of its counts and check sums nothing is read.
      steps: how many of the codes to use; `None`: all.
      advance: called with how many tiles more are done.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      BitstreamError: if the header is of another model.
      ValueError: for more steps than there are.
    """
    self.check(header)
    given = codes.indices.shape[1]
    steps = given if steps is None else steps
    require(0 <= steps <= given, 'steps', steps, f'0 to {given}')
    used = [np.asarray(x)[:, :steps] for x in codes]
    program = functools.partial(
      self._decode, header=settings_of(header), steps=steps
    )
    return self._in_batches(program, used, advance)


def settings_of(header: Header) -> Header:
  """What a header says of one tile: equal for all that share a program."""
  return dataclasses.replace(
    header, count=1, picture=None, planes=1, output_crc=None, packing='dense'
  )


def _filled(rows: np.ndarray) -> np.ndarray:
  """As many rows as a program takes."""
  missing = BATCH - len(rows)
  return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
