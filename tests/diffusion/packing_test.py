"""Payloads: there and back, their length, prefixes, and wrong bits."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kexue.diffusion import BitstreamError, Codes, Header, ideal_bits
from kexue.diffusion.packing import pack_codes, payload_bits, unpack_codes

KINDS = (
  ('ddcm', 'step'),
  ('ddcm', 'dense'),
  ('turbo', 'step'),
  ('turbo', 'dense'),
  ('turbo', 'independent'),
)
LARGE = dict(size=4096, steps=3, count=2, shape=(8, 8, 1))


def random_codes(header, rng):
  """Codes as an encoder could have made them."""
  shape = header.count, header.steps, header.atoms
  if header.mode == 'turbo':
    everything = np.tile(np.arange(header.size), (*shape[:2], 1))
    chosen = rng.permuted(everything, axis=-1)[..., : header.atoms]
    return Codes(np.sort(chosen), rng.integers(0, 2, shape))
  indices = rng.integers(0, header.size, shape)
  coefficients = rng.integers(1, 2**header.coefficient_bits, shape)
  length = rng.integers(1, header.atoms + 1, shape[:2])
  on = np.arange(header.atoms) < length[..., None]
  coefficients[..., 0] = 0
  return Codes(indices * on, coefficients * on)


def assert_same(codes, expected):
  for found, wanted in zip(codes, expected, strict=True):
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, wanted)


@st.composite
def headers(draw):
  mode, packing = draw(st.sampled_from(KINDS))
  size = draw(st.integers(1, 40) | st.sampled_from([64, 1000, 1024, 4096]))
  atoms = draw(st.integers(1, min(size if mode == 'turbo' else 8, 40)))
  bits = draw(st.integers(1, 4)) if mode == 'ddcm' else 1
  return Header(
    mode=mode,
    packing=packing,
    size=size,
    atoms=atoms,
    coefficient_bits=bits,
    steps=draw(st.integers(1, 12)),
    count=draw(st.integers(1, 5)),
    shape=(4, 4, 1),
  )


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(headers(), st.integers(0, 2**32), st.floats(0, 1))
def test_there_and_back_whole_and_cut_short(header, seed, part):
  rng = np.random.default_rng(seed)
  codes = random_codes(header, rng)
  payload = pack_codes(codes, header)
  bits = payload_bits(header)
  assert len(payload) == -(-bits // 8)
  assert_same(unpack_codes(payload, header), codes)
  assert_same(unpack_codes(payload, header, mend=True), codes)
  if header.packing == 'dense':
    assert 0 <= bits - ideal_bits(header) < header.count + 1e-6
  cut = int(part * len(payload))
  short = unpack_codes(payload[:cut], header)
  steps = short.indices.shape[1]
  assert_same(short, [x[:, :steps] for x in codes])
  if header.packing != 'dense':  # As many steps as there are bits for.
    assert steps >= math.floor(header.steps * cut / max(len(payload), 1))


def test_a_dense_prefix_is_what_all_its_continuations_share():
  """By brute force: three steps of five ladders, every cut of seven bits."""
  header = Header(
    mode='ddcm', size=1, atoms=5, steps=3, count=8, shape=(4, 4, 1)
  )
  assert payload_bits(header) == 8 * 7  # 5^3 = 125 numbers, a byte for a bit.
  digits = np.stack(np.unravel_index(np.arange(125), (5, 5, 5)), -1)
  for number in range(0, 125, 7):
    lengths = np.tile(digits[number], (8, 1))  # Rungs of a ladder.
    on = np.arange(1, 5) <= lengths[..., None]
    first = np.zeros((8, 3, 1), int)
    codes = Codes(
      np.zeros((8, 3, 5), int), np.concatenate([first, on], axis=-1)
    )
    payload = pack_codes(codes, header)
    for cut in range(8):
      same = np.arange(125) >> 7 - cut == number >> 7 - cut
      agree = (digits[same] == digits[number]).all(0).astype(int)
      short = unpack_codes(payload[:cut], header)
      assert short.indices.shape[1] == np.cumprod(agree).sum()
      assert_same(short, [x[:, : short.indices.shape[1]] for x in codes])


def test_lengths_by_hand():
  of = lambda **fields: payload_bits(Header(**LARGE | fields))
  assert of(mode='ddcm', packing='step') == 2 * 3 * 12
  ladder = dict(mode='ddcm', atoms=3, coefficient_bits=2)
  assert of(**ladder, packing='step') == 2 * 3 * (3 * 12 + 2 * 2)
  q = 4096 * 3
  assert of(**ladder) == 2 * math.ceil(3 * math.log2(4096 * (1 + q + q**2)))
  sets = math.log2(math.comb(4096, 5))
  assert of(atoms=5, packing='step') == 2 * 3 * (math.ceil(sets) + 5)
  assert of(atoms=5, packing='independent') == 2 * 3 * 5 * 13
  assert of(atoms=5) == 2 * math.ceil(3 * (sets + 5))
  # One of three things, 20 times: 32 bits, not 40.
  assert of(mode='ddcm', size=3, steps=20, count=1) == 32
  assert of(mode='ddcm', size=3, steps=20, count=1, packing='step') == 40
  # Nothing to say.
  assert of(mode='ddcm', size=1, steps=2**14) == 0
  assert of(size=8, atoms=8) == 2 * 3 * 8


@pytest.mark.parametrize('mode, packing', KINDS)
def test_first_and_last_codes(mode, packing):
  header = Header(**LARGE | {'mode': mode, 'packing': packing, 'atoms': 3})
  shape = (2, 3, 3)
  first, last = np.zeros(shape, int), np.zeros(shape, int)
  top = np.ones(shape, int)
  if mode == 'turbo':
    first[:] = 0, 1, 2
    last[:] = 4093, 4094, 4095
  else:
    last[:] = 4095
    top[..., 0] = 0
  zeros = Codes(first, 0 * first)
  if packing != 'independent':  # There a set is not a rank.
    assert not any(pack_codes(zeros, header))
  for codes in (zeros, Codes(last, top)):
    assert_same(unpack_codes(pack_codes(codes, header), header), codes)


@pytest.mark.parametrize('mode, packing', KINDS[:1] + KINDS[2:])
def test_images_are_interleaved_bit_by_bit(mode, packing):
  header = Header(**LARGE | {'mode': mode, 'packing': packing, 'atoms': 2})
  codes = random_codes(header, np.random.default_rng(0))
  both = np.unpackbits(np.frombuffer(pack_codes(codes, header), np.uint8))
  for b in range(2):
    one = Header(
      **LARGE | {'mode': mode, 'packing': packing, 'atoms': 2, 'count': 1}
    )
    alone = pack_codes(Codes(*(x[b : b + 1] for x in codes)), one)
    bits = np.unpackbits(np.frombuffer(alone, np.uint8))[: payload_bits(one)]
    np.testing.assert_array_equal(both[b::2][: bits.size], bits)


@pytest.mark.parametrize(
  'packing, most', [('step', 16), ('independent', 1), ('dense', 320)]
)
def test_a_wrong_bit_spoils_as_much_as_its_packing_says(packing, most):
  """One atom, one step, or all steps from there on."""
  header = Header(
    size=1000, atoms=16, steps=20, shape=(8, 8, 1), packing=packing
  )
  rng = np.random.default_rng(1)
  codes = random_codes(header, rng)
  payload = bytearray(pack_codes(codes, header))
  spoilt, steps = [], []
  for bit in rng.integers(0, payload_bits(header), 40):
    payload[bit // 8] ^= 128 >> bit % 8
    found = unpack_codes(bytes(payload), header, mend=True)
    payload[bit // 8] ^= 128 >> bit % 8
    assert 0 <= found.indices.min() and found.indices.max() < 1000
    ours = [
      set(zip(*x, strict=True))
      for x in zip(*(c[0].tolist() for c in codes), strict=True)
    ]
    theirs = [
      set(zip(*x, strict=True))
      for x in zip(*(c[0].tolist() for c in found), strict=True)
    ]
    lost = [len(a - b) for a, b in zip(ours, theirs, strict=True)]
    spoilt.append(sum(lost))
    steps.append(sum(n > 0 for n in lost))
  assert max(spoilt) <= most and min(spoilt) >= 1
  if packing == 'dense':
    assert max(steps) > 10
  else:
    assert max(steps) == 1
  if packing == 'step':
    assert max(spoilt) > 4


CODES = Codes(np.array([[[3, 5]]]), np.array([[[0, 1]]]))
TINY = dict(size=9, atoms=2, steps=1, shape=(8, 8, 1))


@pytest.mark.parametrize(
  'indices, coefficients, mode, message',
  [
    ([[[3, 5]]], [[[0, 2]]], 'ddcm', 'coefficients: .* 0 to 1'),
    ([[[3, 5]]], [[[1, 1]]], 'ddcm', 'the first is not 0'),
    ([[[3, 5]]], [[[0, 0]]], 'ddcm', 'indices: one follows the end'),
    ([[[3, 9]]], [[[0, 1]]], 'ddcm', 'indices: .* 0 to 8'),
    ([[[-1, 5]]], [[[0, 1]]], 'ddcm', 'indices: .* 0 to 8'),
    ([[[3, 9]]], [[[0, 1]]], 'turbo', 'indices: .* 0 to 8'),
    ([[[5, 3]]], [[[0, 1]]], 'turbo', 'ascending'),
    ([[[3, 3]]], [[[0, 1]]], 'turbo', 'ascending'),
    ([[[3, 5]]], [[[0, 2]]], 'turbo', 'coefficients: .* 0 to 1'),
    ([[[3, 5]]], [[[0]]], 'turbo', r'coefficients: got int64\[1, 1, 1\]'),
    ([[3, 5]], [[0, 1]], 'turbo', r'indices: got int64\[1, 2\]'),
    ([[[3.0, 5]]], [[[0, 1]]], 'turbo', 'indices: got float64'),
  ],
)
def test_codes_that_no_encoder_makes_are_refused(
  indices, coefficients, mode, message
):
  codes = Codes(np.array(indices), np.array(coefficients))
  with pytest.raises(BitstreamError, match=message):
    pack_codes(codes, Header(mode=mode, **TINY))


def test_a_coefficient_after_the_end_is_refused():
  header = Header(mode='ddcm', packing='step', **TINY | {'atoms': 3})
  codes = Codes(np.array([[[3, 0, 5]]]), np.array([[[0, 0, 1]]]))
  with pytest.raises(BitstreamError, match='coefficients: one follows the end'):
    pack_codes(codes, header)
  # 0011 0 1 0000 0101 and no encoder's either way.
  payload = bytes([0b00110100, 0b00010100])
  with pytest.raises(BitstreamError, match='one follows the end'):
    unpack_codes(payload, header)
  mended = unpack_codes(payload, header, mend=True)
  assert mended.indices.tolist() == [[[3, 0, 0]]]
  assert mended.coefficients.tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize('mode, packing', KINDS)
def test_numbers_too_large_are_refused_or_mended(mode, packing):
  header = Header(mode=mode, packing=packing, **TINY)
  size = len(pack_codes(CODES, header))
  bits = payload_bits(header)
  ones = ((2**bits - 1) << (8 * size - bits)).to_bytes(size, 'big')
  with pytest.raises(BitstreamError, match='a number is too large'):
    unpack_codes(ones, header)
  indices, coefficients = unpack_codes(ones, header, mend=True)
  assert 0 <= indices.min() and indices.max() < 9
  assert 0 <= coefficients.min() and coefficients.max() < 2


def test_bits_that_fill_up_the_last_byte_are_zeros():
  header = Header(packing='independent', **TINY)  # 10 bits.
  payload = bytearray(pack_codes(CODES, header))
  payload[1] |= 1
  with pytest.raises(BitstreamError, match='fill up the last byte'):
    unpack_codes(bytes(payload), header)
  assert_same(unpack_codes(bytes(payload), header, mend=True), CODES)


@pytest.mark.parametrize(
  'fields',
  [
    dict(size=2**24, atoms=1024, steps=4000),
    dict(size=2**24, atoms=1024, steps=100, packing='step'),
    dict(mode='ddcm', size=2**24, atoms=1024, coefficient_bits=8, steps=40),
    dict(size=2**20, atoms=4, steps=1000, count=1000, packing='step'),
    dict(size=2**20, atoms=4, steps=1000, count=1000),
  ],
)
def test_absurd_lengths_are_refused_before_they_are_formed(fields):
  with pytest.raises(BitstreamError, match='payload: .* bits'):
    payload_bits(Header(shape=(8, 8, 1), **fields))
