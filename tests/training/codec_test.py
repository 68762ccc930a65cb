"""Tiles to codes and back: the same bits however many there are, and where."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  BitstreamError,
  Codebook,
  Header,
  pack_bitstream,
  turbo_decode,
  turbo_encode,
  unpack_bitstream,
)
from kexue.training.codec import BATCH, Codec, output_crc
from kexue.training.codec_settings import (
  header_schedule,
  on_schedule,
  settings_for,
)


@pytest.fixture(scope='module')
def codec(gaussian_model):
  return Codec(gaussian_model, devices=jax.devices()[:2])


def assert_same(codes, expected):
  for found, wanted in zip(codes, expected, strict=True):
    np.testing.assert_array_equal(found, wanted)


def test_it_is_turbo_with_the_settings(codec, gaussian_model, pictures):
  tiles = pictures(BATCH, 8, 8)
  header = codec.sign(settings_for(1.0, gaussian_model), count=BATCH)
  assert header.fingerprint == b'gaussian' and header.mode == 'turbo'
  codes = codec.encode(tiles, header)
  schedule = header_schedule(header, gaussian_model)
  common = dict(
    denoise=gaussian_model.denoise(),
    schedule=schedule,
    codebook=Codebook(header.size, 64, kind=header.kind),
    tail=header.tail,
  )
  encode = functools.partial(turbo_encode, atoms=header.atoms, **common)
  expected = jax.jit(encode)(x0=tiles / np.float32(127.5) - 1)
  assert np.mean(codes.indices == expected.indices) > 0.99  # Ties may fall.
  decode = functools.partial(turbo_decode, shape=(8, 8, 1), **common)
  x0 = jax.jit(decode)(codes=jax.tree.map(jnp.asarray, codes))
  decoded = codec.decode(codes, header)
  assert decoded.dtype == np.uint8
  wanted = np.clip((np.asarray(x0) + 1) * 127.5, 0, 255)
  assert np.max(np.abs(decoded - wanted)) < 0.51


def test_more_bits_are_more_decibels(codec, gaussian_model, pictures):
  tiles = pictures(32, 8, 8)

  def error(rate):
    header = codec.sign(settings_for(rate, gaussian_model), count=32)
    decoded = codec.decode(codec.encode(tiles, header), header)
    return np.mean((decoded - tiles.astype(float)) ** 2)

  little, much = error(0.4), error(1.0)
  assert much < little / 1.3
  assert little < np.mean((tiles - 127.5) ** 2) / 1.5


def test_neither_number_nor_place_nor_devices_change_a_bit(
  codec, gaussian_model, pictures
):
  tiles = pictures(3 * BATCH + 5, 8, 8)
  header = codec.sign(settings_for(1.0, gaussian_model), count=len(tiles))
  codes = codec.encode(tiles, header)
  decoded = codec.decode(codes, header)
  alone = Codec(gaussian_model, devices=jax.devices()[2:3])
  assert_same(alone.encode(tiles, header), codes)
  np.testing.assert_array_equal(alone.decode(codes, header), decoded)
  for some in ([7], [28, 0, 11], np.arange(29)[::-1]):
    own = alone.encode(tiles[some], header)
    assert_same(own, [x[some] for x in codes])
    np.testing.assert_array_equal(alone.decode(own, header), decoded[some])
  assert output_crc(decoded) != output_crc(decoded[::-1])
  assert output_crc(decoded[::2]) == output_crc(decoded[::2].copy())


def test_progress_counts_every_tile_once(codec, gaussian_model, pictures):
  tiles, done = pictures(BATCH * 3 + 3, 8, 8), []
  header = codec.sign(settings_for(1.0, gaussian_model), count=len(tiles))
  codes = codec.encode(tiles, header, advance=done.append)
  assert done == [BATCH] * 3 + [3]
  codec.decode(codes, header, advance=done.append)
  assert sum(done) == 2 * len(tiles)


def test_fewer_steps_decode_too(codec, gaussian_model, pictures):
  tiles = pictures(BATCH, 8, 8)
  header = codec.sign(settings_for(1.0, gaussian_model), count=BATCH)
  codes = codec.encode(tiles, header)
  half = header.steps // 2
  part = codec.decode(codes, header, steps=half)
  first = type(codes)(*(x[:, :half] for x in codes))
  np.testing.assert_array_equal(codec.decode(first, header), part)
  error = lambda x: np.mean((x - tiles.astype(float)) ** 2)
  whole = codec.decode(codes, header)
  assert error(whole) < error(part) < np.mean((tiles - 127.5) ** 2)
  with pytest.raises(ValueError, match=f'steps: got {half + 1}, expected 0'):
    codec.decode(first, header, steps=half + 1)


def test_matching_pursuit_has_its_own_program(codec, gaussian_model, pictures):
  tiles = pictures(2, 8, 8)
  settings = Header(
    mode='ddcm',
    size=32,
    atoms=2,
    coefficient_bits=2,
    steps=10,
    tail=3,
    shape=(8, 8, 1),
  )
  header = codec.sign(on_schedule(settings, gaussian_model), count=2)
  codes = codec.encode(tiles, header)
  assert codes.indices.shape == codes.coefficients.shape == (2, 10, 2)
  assert_same(unpack_bitstream(pack_bitstream(codes, header))[0], codes)
  decoded = codec.decode(codes, header)
  square = lambda x: np.mean((x - tiles.astype(float)) ** 2)
  assert square(decoded) < square(127.5) / 1.5


@pytest.mark.parametrize(
  'change, message',
  [
    ({'fingerprint': b'another!'}, 'with model 616e6f7468657221, and this is'),
    ({'shape': (8, 4, 1), 'picture': (8, 4)}, r'tiles of \(8, 4, 1\)'),
    ({'schedule_hash': 1}, 'the timesteps are not those of the encoder'),
    ({'millinats': 1}, 'the timesteps are not those'),
    ({'steps': 99}, 'count: got 100'),
  ],
)
def test_another_model_is_refused(codec, gaussian_model, change, message):
  header = codec.sign(settings_for(1.0, gaussian_model), count=1)
  codes = codec.encode(np.zeros((1, 8, 8, 1), np.uint8), header)
  other = dataclasses.replace(header, **change)
  for call in (
    lambda: codec.check(other),
    lambda: codec.decode(codes, other),
    lambda: codec.encode(np.zeros((1, 8, 8, 1), np.uint8), other),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  assert issubclass(BitstreamError, ValueError)


def test_no_tiles_are_refused(codec, gaussian_model):
  header = codec.sign(settings_for(1.0, gaussian_model), count=1)
  with pytest.raises(ValueError, match='tiles: got 0'):
    codec.encode(np.zeros((0, 8, 8, 1), np.uint8), header)
