"""Streams: there and back, what is refused, and a fuzzer.

KEXUE_FUZZ sets how many streams are mutated; the suite takes 20,000.
"""

import dataclasses
import math
import os
import random
import zlib

import numpy as np
import pytest

from kexue.diffusion import (
  BitstreamError,
  Codes,
  Header,
  Schedule,
  bits_per_pixel,
  pack_bitstream,
  payload_bits,
  read_header,
  schedule_hash,
  unpack_bitstream,
)
from kexue.diffusion.header_bytes import write_header
from kexue.diffusion.packing import unpack_codes

MUTATIONS = int(os.environ.get('KEXUE_FUZZ', '20000'))
HEADER = Header(
  size=1000,
  atoms=4,
  steps=6,
  tail=3,
  shape=(8, 8, 1),
  picture=(8, 20),
  count=3,
  seed=7,
  kind='hadamard',
  schedule_hash=schedule_hash(Schedule.linear(100).respace(10)),
  fingerprint=b'\1\2\3\4\5\6\7\x08',
)
VARIANTS = [
  HEADER,
  dataclasses.replace(HEADER, packing='step'),
  dataclasses.replace(HEADER, packing='independent', output_crc=3**20),
  dataclasses.replace(HEADER, size=7, rule='even', count=1, picture=(8, 8)),
  dataclasses.replace(HEADER, mode='ddcm', shared=True, millinats=12_345),
  dataclasses.replace(
    HEADER, mode='ddcm', packing='step', coefficient_bits=3, size=9
  ),
  dataclasses.replace(
    HEADER, mode='ddcm', atoms=1, rule='listed', timesteps=range(1, 100, 10)
  ),
  dataclasses.replace(HEADER, mode='ddcm', size=1, atoms=1),  # No bits.
]


def random_codes(header, seed=0):
  """Those of random bits."""
  if header.packing == 'independent':  # Bits might repeat an atom.
    header = dataclasses.replace(header, packing='dense')
  rng = np.random.default_rng(seed)
  payload = rng.bytes(-(-payload_bits(header) // 8))
  return unpack_codes(payload, header, mend=True)


STREAMS = [pack_bitstream(random_codes(h), h) for h in VARIANTS]


def assert_same(codes, expected):
  for found, wanted in zip(codes, expected, strict=True):
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize('number', range(len(VARIANTS)))
def test_there_and_back(number):
  header, stream = VARIANTS[number], STREAMS[number]
  codes, same = unpack_bitstream(stream)
  assert same == header
  assert_same(codes, random_codes(header))
  assert pack_bitstream(codes, same) == stream
  assert unpack_bitstream(bytearray(stream))[1] == header
  bits = payload_bits(header)
  length = read_header(stream).length
  assert len(stream) == length + math.ceil(bits / 8)
  pixels = header.picture[0] * header.picture[1]
  assert bits_per_pixel(header) == bits / pixels
  assert bits_per_pixel(header, with_header=True) == 8 * len(stream) / pixels


@pytest.mark.parametrize('number', range(len(VARIANTS)))
def test_every_byte_and_every_length_matters(number):
  stream = STREAMS[number]
  for at in range(len(stream)):
    for bit in (1, 16, 128):
      wrong = bytearray(stream)
      wrong[at] ^= bit
      with pytest.raises(BitstreamError):
        unpack_bitstream(bytes(wrong))
    with pytest.raises(BitstreamError):
      unpack_bitstream(stream[:at])


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda s: s + b'\0', '1 more bytes follow the end'),
    (lambda s: s[:-1], 'the payload is cut short: .* bytes'),
    (lambda s: s[:-1] + b'?', 'the payload is damaged'),
    (lambda s: s[:9] + b'?' + s[10:], 'the header is damaged'),
    (lambda s: s[:3] + b'\3' + s[4:], 'version: 3 is newer'),
    (lambda s: b'\x89PNG' + s, 'no stream of this codec'),
    (lambda s: b'', 'no stream of this codec'),
  ],
)
def test_messages(change, message):
  with pytest.raises(BitstreamError, match=message):
    unpack_bitstream(change(STREAMS[0]))


def test_stated_bits_must_be_those_of_the_fields():
  header = VARIANTS[0]
  for bits in (0, payload_bits(header) - 1, 2**60):
    data = write_header(header, bits, 0) + bytes(200)
    with pytest.raises(BitstreamError, match=f'payload: {bits} bits are'):
      unpack_bitstream(data)


@pytest.mark.parametrize('number', range(len(VARIANTS)))
def test_a_prefix_is_the_first_steps(number):
  stream, codes = STREAMS[number], random_codes(VARIANTS[number])
  length = read_header(stream).length
  seen = set()
  for cut in range(length, len(stream) + 1):
    part, header = unpack_bitstream(stream[:cut], allow_prefix=True)
    steps = part.indices.shape[1]
    assert header.steps == codes.indices.shape[1]
    assert_same(part, [x[:, :steps] for x in codes])
    seen.add(steps)
  assert max(seen) == 6
  assert len(seen) == (7 if payload_bits(VARIANTS[number]) else 1)
  for cut in range(length):
    with pytest.raises(BitstreamError):
      unpack_bitstream(stream[:cut], allow_prefix=True)
  with pytest.raises(BitstreamError, match='follow'):
    unpack_bitstream(stream + b'\0', allow_prefix=True)
  if payload_bits(VARIANTS[number]):  # What is whole is checked.
    with pytest.raises(BitstreamError, match='check sum'):
      unpack_bitstream(stream[:-1] + bytes([stream[-1] ^ 8]), allow_prefix=True)


def test_damage_is_mended_on_request_but_not_in_the_header():
  stream = bytearray(STREAMS[1])
  stream[-20] ^= 0xFF
  codes, header = unpack_bitstream(bytes(stream), allow_damage=True)
  assert header == VARIANTS[1]
  wrong = (codes.indices != random_codes(header).indices).any(axis=-1)
  assert 1 <= wrong.sum() <= 8
  stream[10] ^= 1
  with pytest.raises(BitstreamError, match='header is damaged'):
    unpack_bitstream(bytes(stream), allow_damage=True)


def mutated(draw, stream, other):
  """A stream with one thing wrong, or a few."""
  data = bytearray(stream)
  at = draw.randrange(len(data))
  to = min(len(data), at + draw.randrange(1, 12))
  kind = draw.randrange(7)
  if kind == 0:
    for _ in range(draw.randrange(1, 9)):
      data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  elif kind == 1:
    data[at:to] = draw.randbytes(to - at)
  elif kind == 2:
    del data[at:to]
  elif kind == 3:
    data[at:at] = draw.randbytes(draw.randrange(1, 20))
  elif kind == 4:
    data[at:at] = data[at:to]
  elif kind == 5:
    data[at:] = other[at:]
  else:
    del data[at:]
  return bytes(data)


def signed(data):
  """The same with all check sums and the header's length put right."""
  length = int.from_bytes(data[4:6], 'little')
  if not 28 <= length <= len(data):
    length = min(len(data), 45)
  head, payload = bytearray(data[: length - 4]), data[length:]
  head[4:6] = length.to_bytes(2, 'little')
  head[20:24] = zlib.crc32(payload).to_bytes(4, 'little')
  return bytes(head) + zlib.crc32(head).to_bytes(4, 'little') + payload


def refused_or_the_only_stream(data):
  """Whether it is refused; if not it must be what packing makes of it."""
  try:
    codes, header = unpack_bitstream(data)
  except BitstreamError:
    return True
  assert pack_bitstream(codes, header) == data
  return False


def test_fuzz_mutated_streams_are_refused():
  draw = random.Random(MUTATIONS)
  for _ in range(MUTATIONS // 2):
    stream, other = draw.choices(STREAMS, k=2)
    data = mutated(draw, stream, other)
    assert refused_or_the_only_stream(data) or data in STREAMS
    try:  # Whatever is asked for: nothing else is raised, codes can be.
      codes, header = unpack_bitstream(
        data, allow_prefix=draw.random() < 0.5, allow_damage=True
      )
    except BitstreamError:
      continue
    assert 0 <= codes.indices.min(initial=0)
    assert codes.indices.max(initial=0) < header.size
    assert codes.indices.shape[::2] == (header.count, header.atoms)


def test_fuzz_mutated_streams_with_right_check_sums():
  """There is no checksum to hide behind; some say something else rightly."""
  draw = random.Random(MUTATIONS + 1)
  refused = [
    refused_or_the_only_stream(
      signed(mutated(draw, *draw.choices(STREAMS, k=2)))
    )
    for _ in range(MUTATIONS // 4)
  ]
  assert 0.5 < np.mean(refused) < 0.99


def random_header(draw):
  near = lambda least, most: int(2 ** draw.uniform(least, most))
  mode = draw.choice(('ddcm', 'turbo'))
  packings = ('step', 'dense', 'independent')[: 2 + (mode == 'turbo')]
  return Header(
    mode=mode,
    packing=draw.choice(packings),
    size=near(0, 12),
    atoms=near(0, 4),
    coefficient_bits=draw.randrange(1, 5) if mode == 'ddcm' else 1,
    steps=near(0, 6),
    count=near(0, 3),
    shape=(8, 8, 1),
  )


def test_fuzz_random_payloads():
  """Every header with random bits of the right length."""
  draw = random.Random(MUTATIONS + 2)
  refused = []
  for _ in range(MUTATIONS // 4):
    try:
      header = random_header(draw)
    except BitstreamError:  # More atoms than the codebook has.
      continue
    bits = payload_bits(header)
    payload = bytearray(draw.randbytes(-(-bits // 8)))
    if payload:
      payload[-1] &= 0xFF << -bits % 8 & 0xFF
    data = write_header(header, bits, zlib.crc32(payload)) + payload
    refused.append(refused_or_the_only_stream(data))
  assert 0.2 < np.mean(refused) < 0.9


def test_codes_of_another_header_are_refused():
  with pytest.raises(
    BitstreamError, match=r'codes.indices: got int32\[3, 6, 4'
  ):
    pack_bitstream(random_codes(HEADER), dataclasses.replace(HEADER, steps=5))
  other = Codes(*(x[:, :, :1] for x in random_codes(HEADER)))
  with pytest.raises(BitstreamError, match='codes.indices'):
    pack_bitstream(other, HEADER)
