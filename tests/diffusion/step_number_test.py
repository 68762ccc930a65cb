"""Numbers of steps: every step that can be has one, and none is left."""

import itertools
import math

import pytest

from kexue.diffusion import Header
from kexue.diffusion.step_number import step_rank, step_states, step_unrank


def header(**fields):
  return Header(steps=1, shape=(1, 1, 1), **fields)


def ladders(size, atoms, coefficient_bits):
  """All ladders of matching pursuit, by brute force."""
  rungs = [(k, c) for k in range(size) for c in range(1, 2**coefficient_bits)]
  for first in range(size):
    for length in range(atoms):
      for more in itertools.product(rungs, repeat=length):
        padded = [(first, 0), *more] + [(0, 0)] * (atoms - 1 - length)
        yield tuple(zip(*padded, strict=True))


@pytest.mark.parametrize(
  'size, atoms, coefficient_bits',
  [
    (1, 1, 1),
    (5, 1, 3),
    (1, 4, 1),
    (2, 3, 1),
    (3, 3, 1),
    (2, 3, 2),
    (4, 2, 3),
    (1, 2, 4),
  ],
)
def test_ladders_and_numbers_are_one_to_one(size, atoms, coefficient_bits):
  h = header(
    mode='ddcm', size=size, atoms=atoms, coefficient_bits=coefficient_bits
  )
  every = list(ladders(size, atoms, coefficient_bits))
  assert len(every) == step_states(h)
  ranks = [step_rank(h, *ladder) for ladder in every]
  assert sorted(ranks) == list(range(len(every)))
  for rank, ladder in zip(ranks, every, strict=True):
    indices, coefficients = step_unrank(h, rank)
    assert (tuple(indices), tuple(coefficients)) == ladder


@pytest.mark.parametrize('size, atoms', [(1, 1), (5, 1), (5, 3), (4, 4)])
def test_signed_sets_and_numbers_are_one_to_one(size, atoms):
  h = header(mode='turbo', size=size, atoms=atoms)
  every = [
    (subset, signs)
    for subset in itertools.combinations(range(size), atoms)
    for signs in itertools.product((0, 1), repeat=atoms)
  ]
  assert len(every) == step_states(h) == math.comb(size, atoms) * 2**atoms
  ranks = [step_rank(h, *step) for step in every]
  assert sorted(ranks) == list(range(len(every)))
  for rank, step in zip(ranks, every, strict=True):
    assert tuple(map(tuple, step_unrank(h, rank))) == step


def test_a_ladder_of_one_atom_is_its_index():
  h = header(mode='ddcm', size=77, atoms=1, coefficient_bits=3)
  assert step_states(h) == 77
  assert [step_rank(h, [k], [0]) for k in range(77)] == list(range(77))
