r"""Codes as bits, and back.

With :math:`N` possible steps, an image of S steps is a number below
:math:`N^S`: packing "dense" writes that number, the first step in the highest
place, in :math:`\lceil S \log_2 N \rceil` bits. The others write the parts of
every step, each in as many whole bits as it takes:

  step, ddcm           first index; M - 1 coefficients; M - 1 indices
  step, turbo          rank of the set; M signs
  independent, turbo   M indices; M signs

Every image has the same number of bits. They are interleaved: bit j of image b
is bit j B + b of the payload, so that a payload cut short is the first steps of
all images. Numbers start with their highest bit, as bytes do; the last byte is
filled up with zeros.
"""

import functools
import itertools
import math

import numpy as np

from .codes import Codes
from .combinadics import colex_rank, colex_unrank
from .step_number import step_rank, step_states, step_unrank
from .stream_header import Header, check

# Of one image and of all: so much arithmetic, so much memory, and no more.
_MOST_IMAGE_BITS = 2**20
_MOST_BITS = 2**26
# Integers of as many bits are NumPy's; longer ones are Python's.
_WORD = 62


def _bits_for(count: int) -> int:
  """Bits that tell `count` things apart."""
  return (count - 1).bit_length()


def _fields(header: Header) -> list[tuple[int, int]]:
  """How many numbers, below what, a step is written as; see the module."""
  h = header
  if h.mode == 'ddcm':
    more = h.atoms - 1
    return [(1, h.size), (more, 2**h.coefficient_bits), (more, h.size)]
  if h.packing == 'independent':
    return [(h.atoms, h.size), (h.atoms, 2)]
  return [(1, math.comb(h.size, h.atoms)), (h.atoms, 2)]


def _step_bits(header: Header) -> int:
  return sum(n * _bits_for(below) for n, below in _fields(header))


@functools.lru_cache(maxsize=64)
def _image_bits(header: Header) -> int:
  """Bits of an image; refused before anything that large is formed."""
  if header.packing != 'dense':
    bits = header.steps * _step_bits(header)
  else:
    bits = math.ceil(header.steps * math.log2(step_states(header)))
  most = _MOST_IMAGE_BITS
  check(bits <= most, f'payload: {bits} bits an image, expected {most} at most')
  if header.packing == 'dense':
    bits = _bits_for(step_states(header) ** header.steps)
  total, most = bits * header.count, _MOST_BITS
  check(total <= most, f'payload: {total} bits, expected {most} at most')
  return bits


def payload_bits(header: Header) -> int:
  """Bits of all codes as they are packed.

  Raises:
    BitstreamError: if they are absurdly many.

  Example:
    >>> header = Header(size=1000, atoms=4, steps=20, shape=(28, 28, 1))
    >>> payload_bits(header), f'{ideal_bits(header):.2f}'
    (786, '785.39')
  """
  return header.count * _image_bits(header)


def ideal_bits(header: Header) -> float:
  """The same without rounding up: B S log2 N.

  Example:
    >>> ideal_bits(Header(size=64, atoms=1, steps=10, shape=(8, 8, 1)))
    70.0
  """
  return header.count * header.steps * math.log2(step_states(header))


def _join(digits: list[int], base: int) -> int:
  """The number with these digits, the highest first; by halves, for speed."""
  if len(digits) == 1:
    return digits[0]
  high, low = digits[: len(digits) // 2], digits[len(digits) // 2 :]
  return _join(high, base) * base ** len(low) + _join(low, base)


def _split(number: int, base: int, count: int) -> list[int]:
  """The inverse of `_join`."""
  if count == 1:
    return [number]
  low = count - count // 2
  high, rest = divmod(number, base**low)
  return _split(high, base, count - low) + _split(rest, base, low)


def _to_bits(values: np.ndarray, width: int) -> np.ndarray:
  """[...] integers as uint8 [..., width], the highest bit first."""
  out = np.empty((*values.shape, width), np.uint8)
  if width <= _WORD:
    for j in range(width):
      out[..., j] = values >> (width - 1 - j) & 1
    return out
  for at, value in np.ndenumerate(values):
    whole = np.frombuffer(value.to_bytes(-(-width // 8), 'big'), np.uint8)
    out[at] = np.unpackbits(whole)[-width:]
  return out


def _from_bits(bits: np.ndarray) -> np.ndarray:
  """The inverse: int64 or, for long ones, Python's integers."""
  width = bits.shape[-1]
  if width <= _WORD:
    out = np.zeros(bits.shape[:-1], np.int64)
    for j in range(width):
      out = out << 1 | bits[..., j]
    return out
  out = np.empty(bits.shape[:-1], object)
  for at in np.ndindex(out.shape):
    whole = int.from_bytes(np.packbits(bits[at]).tobytes(), 'big')
    out[at] = whole >> (-width % 8)
  return out


def _integers(values: list, width: int) -> np.ndarray:
  return np.array(values, np.int64 if width <= _WORD else object)


def _check_codes(header: Header, indices, coefficients) -> None:
  """Refuses codes that no encoder makes: for them there are no bits."""
  most = 1 if header.mode == 'turbo' else 2**header.coefficient_bits - 1
  for name, x, top in (
    ('indices', indices, header.size - 1),
    ('coefficients', coefficients, most),
  ):
    good = np.all((x >= 0) & (x <= top))
    check(good, f'codes.{name}: got one out of range, expected 0 to {top}')
  if header.mode == 'turbo':
    ascending = (np.diff(indices, axis=-1) > 0).all()
    check(ascending, 'codes.indices: expected ascending ones')
    return
  check(
    not coefficients[..., 0].any(), 'codes.coefficients: the first is not 0'
  )
  there = coefficients[..., 1:] > 0
  on = np.logical_and.accumulate(there, axis=-1)
  check((on == there).all(), 'codes.coefficients: one follows the end')
  check(not indices[..., 1:][~on].any(), 'codes.indices: one follows the end')


def _mended(header: Header, indices, coefficients) -> Codes:
  """Codes with wrong bits made such as an encoder could have made."""
  if header.mode == 'turbo':
    order = np.argsort(indices, axis=-1, kind='stable')
    take = lambda x: np.take_along_axis(x, order, axis=-1)
    return Codes(take(indices), take(coefficients))
  on = np.logical_and.accumulate(coefficients[..., 1:] > 0, axis=-1)
  for x in (indices, coefficients):
    x[..., 1:] *= on
  return Codes(indices, coefficients)


def pack_codes(codes: Codes, header: Header) -> bytes:
  """The payload of a stream.

  Args:
    codes: int [B, steps, M] as `ddcm_encode` and `turbo_encode` make them.
    header: what they are codes of.

  Returns:
    `payload_bits(header)` bits, filled up to whole bytes.

  Raises:
    BitstreamError: for codes that are not those of the header.
  """
  indices, coefficients = (np.asarray(x) for x in codes)
  expected = header.count, header.steps, header.atoms
  for name, x in (('indices', indices), ('coefficients', coefficients)):
    good = x.dtype.kind in 'iu' and x.shape == expected
    got = f'{x.dtype}{list(x.shape)}'
    check(good, f'codes.{name}: got {got}, expected integers {list(expected)}')
  _check_codes(header, indices, coefficients)
  if header.packing == 'dense':
    bits = _pack_images(header, indices.tolist(), coefficients.tolist())
  else:
    bits = _pack_fields(header, indices, coefficients)
  return np.packbits(bits.T).tobytes()


def _pack_images(header: Header, indices: list, coefficients: list):
  """uint8 [B, bits]: an image is a number, its steps the digits."""
  base, width = step_states(header), _image_bits(header)
  images = [
    _join([step_rank(header, *step) for step in zip(*image, strict=True)], base)
    for image in zip(indices, coefficients, strict=True)
  ]
  return _to_bits(_integers(images, width), width)


def _pack_fields(header: Header, indices, coefficients) -> np.ndarray:
  """uint8 [B, bits]: all fields of a step, then those of the next."""
  if header.mode == 'ddcm':
    parts = [indices[..., :1], coefficients[..., 1:], indices[..., 1:]]
  elif header.packing == 'independent':
    parts = [indices, coefficients]
  else:
    width = _bits_for(math.comb(header.size, header.atoms))
    rows = indices.reshape(-1, header.atoms).tolist()
    ranks = _integers([colex_rank(row) for row in rows], width)
    parts = [ranks.reshape(*indices.shape[:2], 1), coefficients]
  lead = indices.shape[:2]
  bits = [
    _to_bits(part, _bits_for(below)).reshape(*lead, -1)
    for part, (_, below) in zip(parts, _fields(header), strict=True)
  ]
  return np.concatenate(bits, axis=-1).reshape(lead[0], -1)


def unpack_codes(
  payload: bytes, header: Header, *, mend: bool = False
) -> Codes:
  """The inverse of `pack_codes`, also of the beginning of a payload.

  Args:
    payload: `payload_bits(header)` bits in whole bytes, or fewer.
    header: what they are codes of.
    mend: bits may be wrong, and what cannot be is replaced: numbers too
      large by their remainders, a set that is none by its numbers in order.

  Returns:
    `Codes`, NumPy's int32 [B, steps that are whole, M].

  Raises:
    BitstreamError: for bits that no codes have.
  """
  total = payload_bits(header)
  bits = np.unpackbits(np.frombuffer(payload, np.uint8))
  clean = mend or not bits[total:].any()
  check(clean, 'payload: the bits that fill up the last byte are not 0')
  rows = min(bits.size, total) // header.count
  bits = bits[: rows * header.count].reshape(rows, header.count).T
  unpack = _unpack_images if header.packing == 'dense' else _unpack_fields
  codes = [x.astype(np.int32) for x in unpack(header, bits, mend)]
  if mend:
    return _mended(header, *codes)
  _check_codes(header, *codes)
  return Codes(*codes)


def _within(values, below: int, mend: bool):
  """Numbers that must be below a bound, or are made so."""
  if mend:
    return values % below
  check(bool(np.all(values < below)), 'payload: a number is too large')
  return values


def _unpack_fields(header: Header, bits: np.ndarray, mend: bool):
  """Indices and coefficients of the steps that are whole."""
  width = _step_bits(header)
  steps = min(bits.shape[1] // width, header.steps) if width else header.steps
  bits = bits[:, : steps * width].reshape(len(bits), steps, width)
  parts, at = [], 0
  for count, below in _fields(header):
    one = _bits_for(below)
    part = bits[..., at : at + count * one]
    values = _from_bits(part.reshape(*part.shape[:2], count, one))
    parts.append(_within(values, below, mend))
    at += count * one
  if header.mode == 'ddcm':
    first, coefficients, indices = parts
    nothing = np.zeros_like(first)
    return (
      np.concatenate([first, indices], axis=-1),
      np.concatenate([nothing, coefficients], axis=-1),
    )
  if header.packing == 'independent':
    return parts
  ranks, signs = parts
  sets = [
    colex_unrank(int(rank), header.size, header.atoms) for rank in ranks.flat
  ]
  return np.array(sets, np.int64).reshape(signs.shape), signs


def _unpack_images(header: Header, bits: np.ndarray, mend: bool):
  """The same from a number for each image.

  The first bits of a number are an interval of numbers: the digits on which its
  ends agree are known.
  """
  base, missing = step_states(header), _image_bits(header) - bits.shape[1]
  states = base**header.steps
  images, whole = [], header.steps
  for number in _from_bits(bits).tolist():
    low = _within(number << missing, states, mend)
    high = min(low + (1 << missing), states) - 1
    digits = _split(low, base, header.steps)
    if missing:
      ends = zip(digits, _split(high, base, header.steps), strict=True)
      agree = itertools.takewhile(lambda pair: pair[0] == pair[1], ends)
      whole = min(whole, sum(1 for _ in agree))
    images.append(digits)
  steps = [[step_unrank(header, d) for d in image[:whole]] for image in images]
  shape = len(bits), whole, 2, header.atoms
  codes = np.array(steps, np.int64).reshape(shape)
  return codes[:, :, 0], codes[:, :, 1]
