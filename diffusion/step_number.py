r"""A step's codes as one number: what a step can be, counted and numbered.

A step of Turbo is one of :math:`\binom K M 2^M`: a set by its rank in
colexicographic order, then signs. A ladder of matching pursuit has a first
atom, and after it at every rung either ends or goes on with one of :math:`K`
atoms and :math:`2^C - 1` coefficients,

.. math:: K \sum_{m=0}^{M-1} q^m, \qquad q = K (2^C - 1).
"""

import functools
import math

from .combinadics import colex_rank, colex_unrank
from .stream_header import Header


def step_states(header: Header) -> int:
  """How many different steps there are, `N`.

  Example:
    >>> step_states(Header(size=4, atoms=2, steps=1, shape=(1, 1, 1)))
    24
  """
  h = header
  return _states(h.mode, h.size, h.atoms, h.coefficient_bits)


@functools.lru_cache(maxsize=64)
def _states(mode: str, size: int, atoms: int, coefficient_bits: int) -> int:
  if mode == 'turbo':
    return math.comb(size, atoms) << atoms
  return size * _rungs(size, coefficient_bits, atoms - 1)


@functools.lru_cache(maxsize=4096)
def _rungs(size: int, coefficient_bits: int, rungs: int) -> int:
  """Ways to go on when so many rungs are left: 1 + q + ... + q^rungs."""
  q = size * (2**coefficient_bits - 1)
  return rungs + 1 if q == 1 else (q ** (rungs + 1) - 1) // (q - 1)


def step_rank(
  header: Header, indices: list[int], coefficients: list[int]
) -> int:
  """The number of a step among all that there are."""
  if header.mode == 'turbo':
    signs = sum(s << j for j, s in enumerate(reversed(coefficients)))
    return colex_rank(indices) << header.atoms | signs
  size, bits = header.size, header.coefficient_bits
  rungs = zip(indices[:0:-1], coefficients[:0:-1], strict=True)
  rank = 0
  for left, (k, c) in enumerate(rungs):
    pair = k * (2**bits - 1) + c - 1
    rank = 1 + pair * _rungs(size, bits, left) + rank if c else 0
  return indices[0] * _rungs(size, bits, header.atoms - 1) + rank


def step_unrank(header: Header, rank: int) -> tuple[list[int], list[int]]:
  """Indices and coefficients of a step, the inverse of `step_rank`."""
  size, bits, atoms = header.size, header.coefficient_bits, header.atoms
  if header.mode == 'turbo':
    signs = [rank >> j & 1 for j in range(atoms - 1, -1, -1)]
    return colex_unrank(rank >> atoms, size, atoms), signs
  first, rank = divmod(rank, _rungs(size, bits, atoms - 1))
  indices, coefficients = [first] + [0] * (atoms - 1), [0] * atoms
  for m in range(1, atoms):
    if rank == 0:
      break
    pair, rank = divmod(rank - 1, _rungs(size, bits, atoms - 1 - m))
    indices[m], c = divmod(pair, 2**bits - 1)
    coefficients[m] = c + 1
  return indices, coefficients
