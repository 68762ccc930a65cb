"""The header of a bitstream as bytes, and back.

Small, since the pictures are: 40 to 50 bytes as a rule. Integers are little
endian; a varint is LEB128 of at most 64 bits in its shortest form.

  offset  bytes
       0  4   magic, "KXD" and the version, 1
       4  2   length of the header, its check sum included
       6  1   bit 0: mode, ddcm or turbo; bits 1-2: packing, step, dense or
              independent; bits 3-5: kind of codebook, gaussian, rademacher,
              circulant or hadamard; bit 6: shared codebook; bit 7: there is
              the check sum of the output
       7  1   bits 0-1: rule of timesteps, listed, even or equal_kl; bits 2-5:
              coefficient bits; bit 6: colour by planes; bit 7: 0
       8  8   fingerprint of the model
      16  4   hash of the schedule
      20  4   CRC-32 of the payload
      24  ... varints: seed, codebook size, atoms, steps, tail, tile's height,
              width and channels, number of tiles, picture's height and width,
              bits of payload
          ... of rule listed: varints, the first timestep and each one's excess
              over the one before; of equal_kl: varint, thousandths of a nat
          4   CRC-32 of the output, if bit 7 of byte 6 is set
          4   CRC-32 of all bytes before
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .codebook import KINDS
from .stream_header import (
  MODES,
  PACKINGS,
  RULES,
  BitstreamError,
  Header,
  check,
)

# 1: circulant and Hadamard codebooks of other atoms.
_MAGIC, _VERSION = b'KXD', 2
_PREAMBLE = 6  # Magic, version and length.
_FIXED = 24  # Bytes before the varints.


def _varint(value: int) -> bytes:
  out = bytearray()
  while value >= 128:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def _read_varint(source: Iterator[int]) -> int:
  value = 0
  for shift in range(0, 64, 7):
    byte = next(source, None)
    check(byte is not None, 'the header is too short for its fields')
    value |= (byte & 127) << shift
    if byte < 128:
      check(byte or not shift, 'the header has a number in a longer form')
      return value
  raise BitstreamError('the header has a number of more than 64 bits')


def _crc(data: bytes) -> bytes:
  return zlib.crc32(data).to_bytes(4, 'little')


def write_header(header: Header, bits: int, payload_crc: int) -> bytes:
  """The header as bytes.

  Args:
    header: the fields.
    bits: length of the payload.
    payload_crc: CRC-32 of the payload's bytes.

  Returns:
    Bytes as the module says.

  Example:
    >>> header = Header(size=1024, atoms=16, steps=20, shape=(28, 28, 1))
    >>> len(write_header(header, 2632, 0))
    43
  """
  h = header
  modes = MODES.index(h.mode) | PACKINGS.index(h.packing) << 1
  modes |= KINDS.index(h.kind) << 3 | h.shared << 6
  modes |= (h.output_crc is not None) << 7
  rules = RULES.index(h.rule) | h.coefficient_bits << 2 | (h.planes == 3) << 6
  numbers = [h.seed, h.size, h.atoms, h.steps, h.tail, *h.shape]
  numbers += [h.count, *h.picture, bits]
  if h.rule == 'listed':
    numbers += [int(d) for d in np.diff(h.timesteps, prepend=0)]
  elif h.rule == 'equal_kl':
    numbers.append(h.millinats)
  rest = bytes([modes, rules]) + h.fingerprint
  rest += h.schedule_hash.to_bytes(4, 'little')
  rest += payload_crc.to_bytes(4, 'little')
  rest += b''.join(map(_varint, numbers))
  if h.output_crc is not None:
    rest += h.output_crc.to_bytes(4, 'little')
  length = _PREAMBLE + len(rest) + 4
  start = _MAGIC + bytes([_VERSION]) + length.to_bytes(2, 'little')
  return start + rest + _crc(start + rest)


class ReadHeader(NamedTuple):
  """A header, its length in bytes, and what it says of the payload."""

  header: Header
  length: int
  bits: int
  payload_crc: int


def read_header(data: bytes) -> ReadHeader:
  """The header at the beginning of a stream.

  Args:
    data: the stream, or as much of it as there is.

  Returns:
    `ReadHeader(header, length, bits, payload_crc)`.

  Raises:
    BitstreamError: if this is no header, is of a later version, is damaged, or
      asks for what cannot be.

  Example:
    >>> header = Header(size=1024, atoms=16, steps=20, shape=(28, 28, 1))
    >>> read_header(write_header(header, 2632, 0)).bits
    2632
  """
  check(data[:3] == _MAGIC, 'this is no stream of this codec')
  check(len(data) >= _PREAMBLE, 'the stream ends within its header')
  version = data[3]
  check(version <= _VERSION, f'version: {version} is newer than {_VERSION}')
  check(version == _VERSION, f'version: got {version}, expected {_VERSION}')
  length = int.from_bytes(data[4:6], 'little')
  check(length >= _FIXED + 4, 'the header is damaged: its length is wrong')
  check(len(data) >= length, 'the stream ends within its header')
  body, crc = data[: length - 4], data[length - 4 : length]
  check(_crc(body) == crc, 'the header is damaged: its check sum is wrong')
  header, bits = _fields(body)
  return ReadHeader(header, length, bits, int.from_bytes(body[20:24], 'little'))


def _pick(name: str, allowed: Sequence[str], index: int) -> str:
  check(index < len(allowed), f'{name}: number {index} is not known')
  return allowed[index]


def _fields(body: bytes) -> tuple[Header, int]:
  """Header and bits of payload, from all bytes but the last four."""
  modes, rules = body[_PREAMBLE : _PREAMBLE + 2]
  check(rules < 128, 'the header has a bit set that means nothing')
  source = iter(body[_FIXED:])
  seed, size, atoms, steps, tail, *sides, bits = (
    _read_varint(source) for _ in range(12)
  )
  rule = _pick('rule', RULES, rules & 3)
  timesteps, millinats = (), 0
  if rule == 'listed':
    excess = (_read_varint(source) for _ in range(steps + 1 + tail))
    timesteps = tuple(itertools.accumulate(excess))
  elif rule == 'equal_kl':
    millinats = _read_varint(source)
  output_crc = None
  if modes & 128:
    crc = bytes(itertools.islice(source, 4))
    check(len(crc) == 4, 'the header is too short for its fields')
    output_crc = int.from_bytes(crc, 'little')
  check(next(source, None) is None, 'the header is too long for its fields')
  header = Header(
    mode=MODES[modes & 1],
    packing=_pick('packing', PACKINGS, modes >> 1 & 3),
    kind=_pick('kind', KINDS, modes >> 3 & 7),
    shared=bool(modes & 64),
    seed=seed,
    size=size,
    atoms=atoms,
    coefficient_bits=rules >> 2 & 15,
    steps=steps,
    tail=tail,
    shape=tuple(sides[:3]),
    count=sides[3],
    picture=tuple(sides[4:]),
    planes=3 if rules & 64 else 1,
    rule=rule,
    timesteps=timesteps,
    millinats=millinats,
    schedule_hash=int.from_bytes(body[16:20], 'little'),
    fingerprint=bytes(body[8:16]),
    output_crc=output_crc,
  )
  return header, bits
