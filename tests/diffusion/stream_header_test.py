"""Headers: what they say of tiles, and what no stream can be."""

import dataclasses

import numpy as np
import pytest

from kexue.diffusion import BitstreamError, Header, Schedule, schedule_hash

GOOD = {'size': 64, 'steps': 4, 'shape': (8, 8, 1)}


def test_tiles_cover_the_picture():
  header = Header(**GOOD | {'picture': (9, 24), 'count': 12})
  assert header.tiles == (2, 3)
  assert header.pixels == 2 * 9 * 24  # 12 tiles are two pictures.
  colour = Header(**GOOD | {'picture': (9, 24), 'count': 18, 'planes': 3})
  assert colour.pixels == 9 * 24
  assert Header(**GOOD).picture == (8, 8)


def test_equal_fields_are_equal_headers_and_lists_are_tuples():
  listed = Header(**GOOD | {'shape': [8, 8, 1], 'rule': 'even'})
  assert listed == Header(**GOOD, rule='even')
  assert hash(listed) == hash(Header(**GOOD, rule='even'))
  with pytest.raises(dataclasses.FrozenInstanceError):
    listed.size = 3


@pytest.mark.parametrize(
  'change, message',
  [
    ({'mode': 'jpeg'}, "mode: got 'jpeg', expected one of ddcm, turbo"),
    ({'packing': 'zip'}, "packing: got 'zip'"),
    ({'kind': 'sine'}, "kind: got 'sine'"),
    ({'rule': 'odd'}, "rule: got 'odd'"),
    ({'seed': -1}, 'seed: got -1, expected 0 to 4294967295'),
    ({'seed': 2**32}, 'seed: got'),
    ({'size': 0}, 'size: got 0, expected 1 to'),
    ({'size': 2**24 + 1}, 'size: got'),
    ({'size': 2.0}, 'size: got 2.0'),
    ({'atoms': 0}, 'atoms: got 0'),
    ({'atoms': 1025, 'size': 4096}, 'atoms: got 1025'),
    ({'atoms': 65}, 'atoms: got 65, expected at most the 64'),
    ({'coefficient_bits': 2}, 'coefficient_bits: Turbo has one'),
    ({'mode': 'ddcm', 'coefficient_bits': 9}, 'coefficient_bits: got 9'),
    ({'mode': 'ddcm', 'packing': 'independent'}, 'packing: independent'),
    ({'steps': 0}, 'steps: got 0'),
    ({'tail': -1}, 'tail: got -1'),
    ({'shape': (8, 8)}, 'shape: got'),
    ({'shape': (8, 0, 1)}, 'shape: got 0'),
    ({'shape': (2**16 + 1, 1, 1)}, 'shape: got 65537'),
    ({'picture': (8,)}, 'picture: got'),
    ({'picture': (8, 9)}, 'count: got 1, expected 2 for each picture'),
    ({'planes': 2}, 'planes: got 2'),
    ({'planes': 3}, 'count: got 1, expected 3'),
    ({'count': 0}, 'count: got 0'),
    ({'count': 2**20, 'shape': (64, 64, 1)}, 'tiles: got 4294967296 values'),
    ({'count': 2**20, 'steps': 5}, 'codes: got 5242880 of them'),
    ({'rule': 'listed'}, 'timesteps: got 0, expected 5'),
    ({'timesteps': (1, 2, 3, 4, 5)}, 'timesteps: got 5, expected 0'),
    ({'rule': 'listed', 'timesteps': (1, 2, 4, 4, 5)}, 'timesteps: expected'),
    ({'rule': 'listed', 'timesteps': (0, 2, 3, 4, 5)}, 'timesteps: got 0'),
    ({'rule': 'even', 'millinats': 3}, 'millinats: got 3, but the rule is'),
    ({'schedule_hash': 2**32}, 'schedule_hash: got'),
    ({'fingerprint': b'short'}, 'fingerprint: got'),
    ({'output_crc': -1}, 'output_crc: got'),
    ({'shared': 2}, 'shared: got 2'),
  ],
)
def test_what_cannot_be_is_refused(change, message):
  with pytest.raises(BitstreamError, match=message):
    Header(**GOOD | change)


def test_schedule_hash_tells_tables_and_timesteps_apart():
  linear, cosine = Schedule.linear(100), Schedule.cosine(100)
  some = linear.respace(10)
  renamed = Schedule(some.alpha_bar, np.arange(1, 11))
  hashes = {schedule_hash(s) for s in (linear, cosine, some, renamed)}
  assert len(hashes) == 4
  assert schedule_hash(linear.respace(10)) == schedule_hash(some)
  # What another machine's last digit would be.
  nudged = linear.alpha_bar.copy()
  nudged[1:] *= 1 - 1e-16
  assert schedule_hash(Schedule(nudged)) == schedule_hash(linear)
