"""Headers as bytes: byte by byte, there and back, and what is refused."""

import zlib

import hypothesis
import pytest
from hypothesis import strategies as st

from kexue.diffusion import BitstreamError, Header, read_header
from kexue.diffusion.header_bytes import write_header

SMALL = Header(
  mode='ddcm',
  packing='step',
  kind='circulant',
  shared=True,
  seed=300,
  size=64,
  atoms=2,
  coefficient_bits=3,
  steps=2,
  tail=1,
  shape=(8, 9, 1),
  count=6,
  picture=(8, 10),
  planes=3,
  rule='listed',
  timesteps=(1, 7, 300, 1000),
  schedule_hash=0x01020304,
  fingerprint=b'abcdefgh',
  output_crc=0x0A0B0C0D,
)


def signed(data):
  """Bytes with the length and the check sum of a header."""
  body = data[:4] + (len(data) + 4).to_bytes(2, 'little') + data[6:]
  return body + zlib.crc32(body).to_bytes(4, 'little')


def test_every_byte_is_where_the_layout_says():
  data = write_header(SMALL, 1000, 0x11121314)
  modes = 0 | 0 << 1 | 2 << 3 | 1 << 6 | 1 << 7
  rules = 0 | 3 << 2 | 1 << 6
  expected = b'KXD\x02' + bytes([len(data), 0, modes, rules]) + b'abcdefgh'
  expected += bytes([4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11])
  expected += bytes([0xAC, 2, 64, 2, 2, 1, 8, 9, 1, 6, 8, 10])
  expected += bytes([0xE8, 7])  # 1000 bits.
  expected += bytes([1, 6, 0xA5, 2, 0xBC, 5])  # 1, 6, 293, 700.
  expected += bytes([0x0D, 0x0C, 0x0B, 0x0A])
  expected += zlib.crc32(expected).to_bytes(4, 'little')
  assert data == expected
  read = read_header(data + b'more')
  assert read == (SMALL, len(data), 1000, 0x11121314)


FIELDS = st.fixed_dictionaries(
  {
    'mode': st.sampled_from(['ddcm', 'turbo']),
    'packing': st.sampled_from(['step', 'dense']),
    'kind': st.sampled_from(['gaussian', 'rademacher', 'hadamard']),
    'seed': st.integers(0, 2**32 - 1),
    'shared': st.booleans(),
    'size': st.integers(40, 2**24),
    'atoms': st.integers(1, 40),
    'steps': st.integers(1, 1000),
    'tail': st.integers(0, 100),
    'shape': st.tuples(*[st.integers(1, 64)] * 3),
    'count': st.integers(1, 50),
    'rule': st.sampled_from(['even', 'equal_kl']),
    'schedule_hash': st.integers(0, 2**32 - 1),
    'fingerprint': st.binary(min_size=8, max_size=8),
    'output_crc': st.none() | st.integers(0, 2**32 - 1),
  }
)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(FIELDS, st.integers(0, 2**40), st.integers(0, 2**32 - 1))
def test_there_and_back(fields, bits, crc):
  header = Header(**fields)
  data = write_header(header, bits, crc)
  assert read_header(data) == (header, len(data), bits, crc)
  assert len(data) <= 64


def test_a_usual_header_is_small():
  header = Header(
    size=1024, atoms=16, steps=20, shape=(28, 28, 1), millinats=80_000
  )
  assert len(write_header(header, 3000, 2**31)) == 45


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda d: b'PNG' + d[3:], 'no stream of this codec'),
    (lambda d: b'', 'no stream of this codec'),
    (lambda d: d[:5], 'ends within its header'),
    (lambda d: d[:-1], 'ends within its header'),
    (lambda d: d[:3] + b'\3' + d[4:], 'version: 3 is newer than 2'),
    (lambda d: d[:3] + b'\1' + d[4:], 'version: got 1, expected 2'),
    (lambda d: d[:4] + b'\5\0' + d[6:], 'its length is wrong'),
    (lambda d: d[:30] + b'?' + d[31:], 'its check sum is wrong'),
    (lambda d: signed(d[:-9]), 'too short for its fields'),
    (lambda d: signed(d[:-4] + b'\0'), 'too long for its fields'),
    (lambda d: signed(d[:6] + b'\x06' + d[7:-8]), 'packing: number 3'),
    (lambda d: signed(d[:6] + b'\x20' + d[7:-8]), 'kind: number 4'),
    (lambda d: signed(d[:7] + b'\x07' + d[8:-4]), 'rule: number 3'),
    (lambda d: signed(d[:7] + b'\x80' + d[8:-4]), 'means nothing'),
    (lambda d: signed(d[:24] + b'\x80\0' + d[26:-4]), 'a longer form'),
    (lambda d: signed(d[:24] + b'\xff' * 9 + d[24:-4]), 'more than 64 bits'),
    (lambda d: signed(d[:26] + b'\0' + d[27:-4]), 'size: got 0'),
  ],
)
def test_what_is_no_header_is_refused(change, message):
  data = write_header(SMALL, 1000, 0)
  with pytest.raises(BitstreamError, match=message):
    read_header(change(data))


def test_the_longest_list_of_timesteps_has_room():
  """As many as there can be, as many of two bytes as there can be."""
  steps = tail = 2**14
  short = 2 * 2**14 + 1 - 7900
  timesteps = [*range(1, short + 1), *range(short + 128, 2**20, 128)]
  header = Header(
    size=2,
    steps=steps,
    tail=tail,
    shape=(8, 8, 1),
    rule='listed',
    timesteps=tuple(timesteps[: steps + 1 + tail]),
  )
  assert read_header(write_header(header, 9, 9)).header == header
