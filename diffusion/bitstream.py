"""Codes as a file: a header that says all, the payload, and check sums.

  header    as `header_bytes` lays it out byte by byte: mode, codebook, steps,
            schedule, tiles and picture, bits and CRC-32 of the payload, its own
            length and CRC-32
  payload   so many bits as the header says, as `packing` lays them out, filled
            up to whole bytes with zeros

and nothing after it. There is one stream for given codes and header: what does
not come out of `pack_bitstream` is refused by `unpack_bitstream`, before
anything of the size that it claims is allocated.

What this does not know is the model: whether it has the fingerprint and the
schedule of the header is for the decoder to check.
"""

import zlib

from .codes import Codes
from .header_bytes import read_header, write_header
from .packing import pack_codes, payload_bits, unpack_codes
from .stream_header import Header, check


def pack_bitstream(codes: Codes, header: Header) -> bytes:
  """Codes and all that it takes to decode them, as bytes.

  Args:
    codes: int [B, steps, M] each, as `ddcm_encode` or `turbo_encode` made them.
    header: what they are.

  Returns:
    The stream.

  Raises:
    BitstreamError: if codes and header do not belong together, or are too many.

  Example:
    >>> import numpy as np
    >>> header = Header(size=1000, atoms=2, steps=3, shape=(8, 8, 1))
    >>> indices = np.array([[[3, 14], [15, 92], [65, 358]]])
    >>> stream = pack_bitstream(Codes(indices, indices % 2), header)
    >>> len(stream), payload_bits(header), bits_per_pixel(header)
    (50, 63, 0.984375)
    >>> codes, same = unpack_bitstream(stream)
    >>> codes.indices.tolist(), same == header
    ([[[3, 14], [15, 92], [65, 358]]], True)
  """
  payload = pack_codes(codes, header)
  crc = zlib.crc32(payload)
  return write_header(header, payload_bits(header), crc) + payload


def unpack_bitstream(
  data: bytes, *, allow_prefix: bool = False, allow_damage: bool = False
) -> tuple[Codes, Header]:
  """The inverse of `pack_bitstream`; refuses anything else.

  Args:
    data: the stream.
    allow_prefix: the payload may end early: the codes are then those of the
      steps that are whole, unchecked where the check sum is of the rest too.
    allow_damage: bits of the payload may be wrong: its check sum is not looked
      at, and codes that cannot be are replaced by some that can.

  Returns:
    `Codes`, NumPy's int32, and `Header`.

  Raises:
    BitstreamError: for no stream, a later version, one that is cut short,
      damaged, followed by something, or absurdly large.

  Example:
    >>> import numpy as np
    >>> header = Header(size=1000, atoms=2, steps=3, shape=(8, 8, 1))
    >>> indices = np.array([[[3, 14], [15, 92], [65, 358]]])
    >>> stream = pack_bitstream(Codes(indices, indices % 2), header)
    >>> unpack_bitstream(stream[:-4], allow_prefix=True)[0].indices.tolist()
    [[[3, 14]]]
    >>> try:
    ...   unpack_bitstream(stream[:-1] + b'?')
    ... except ValueError as error:
    ...   print(error)
    the payload is damaged: its check sum is wrong
  """
  header, length, stated, crc = read_header(data)
  bits = payload_bits(header)
  check(bits == stated, f'payload: {stated} bits are stated, expected {bits}')
  payload, expected = data[length:], -(-bits // 8)
  extra = len(payload) - expected
  check(extra <= 0, f'{extra} more bytes follow the end of the stream')
  whole = extra == 0
  got = f'{len(payload)} of {expected} bytes'
  check(whole or allow_prefix, f'the payload is cut short: {got}')
  good = not whole or allow_damage or zlib.crc32(payload) == crc
  check(good, 'the payload is damaged: its check sum is wrong')
  return unpack_codes(payload, header, mend=allow_damage), header


def bits_per_pixel(header: Header, *, with_header: bool = False) -> float:
  """Bits over pixels of all pictures, whatever their channels.

  Args:
    header: of the stream.
    with_header: count the whole stream, in bytes as a file has it.

  Returns:
    Payload bits, or those of the stream, per pixel.

  Example:
    >>> header = Header(size=1024, atoms=16, steps=20, shape=(28, 28, 1))
    >>> f'{bits_per_pixel(header):.3f}'
    '3.357'
    >>> f'{bits_per_pixel(header, with_header=True):.3f}'
    '3.796'
  """
  bits = payload_bits(header)
  if with_header:
    bits = 8 * (len(write_header(header, bits, 0)) + -(-bits // 8))
  return bits / header.pixels
