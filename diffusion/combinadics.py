r"""Sets of numbers as one number: the combinatorial number system.

In colexicographic order the set :math:`c_1 < c_2 < \dots < c_M` has rank

.. math:: \sum_{j=1}^M \binom{c_j}{j}, \qquad
  0 \le \text{rank} < \binom{K}{M} \text{ for numbers below } K,

whatever K, and the digits come off greedily, the largest number first. Integers
are Python's, of any size; nothing is stored.

References:
  Knuth, The Art of Computer Programming, volume 4A, section 7.2.1.3.
"""

import math
from collections.abc import Sequence

from ..checks import require


def colex_rank(subset: Sequence[int]) -> int:
  """The rank of a set among all sets of its size.

  Args:
    subset: `M` ascending integers from 0.

  Returns:
    The rank, 0 for 0, 1, ..., M - 1.

  Raises:
    ValueError: if the numbers do not ascend from 0 or above.

  Example:
    >>> colex_rank([0, 1, 2]), colex_rank([0, 1, 3]), colex_rank([2, 3, 4])
    (0, 1, 9)
  """
  numbers = [int(c) for c in subset]
  pairs = zip([-1, *numbers], numbers, strict=False)
  ascending = all(a < b for a, b in pairs)
  require(ascending, 'subset', numbers, 'ascending integers from 0')
  return sum(math.comb(c, j) for j, c in enumerate(numbers, start=1))


def colex_unrank(rank: int, size: int, count: int) -> list[int]:
  """The set of a rank, the inverse of `colex_rank`.

  Args:
    rank: 0 to `math.comb(size, count) - 1`.
    size: `K`, how many numbers there are to choose from, up to 2^31.
    count: `M`, numbers in the set.

  Returns:
    `count` ascending integers in 0 .. size - 1.

  Raises:
    ValueError: if no set has that rank, or the numbers are too many.

  Example:
    >>> colex_unrank(9, 5, 3)
    [2, 3, 4]
  """
  # Floats know them to the last digit.
  require(0 <= size <= 2**31, 'size', size, '0 to 2^31')
  good = 0 <= rank < math.comb(size, count)
  got = f'{rank:#x}'  # Long integers have no decimal digits.
  require(good, 'rank', got, f'0 to binom({size}, {count}) - 1')
  subset = []
  for j in range(count, 0, -1):
    number, below = _largest(rank, j)
    rank -= below
    subset.append(number)
  return subset[::-1]


def _largest(rank: int, j: int) -> tuple[int, int]:
  """The largest c with binom(c, j) <= rank, and that binomial.

  Starts where floats say and goes on by one: exact, however far off they are.
  """
  if rank == 0:
    return j - 1, 0
  # j! binom(c, j) is a product of j numbers about c - (j - 1) / 2.
  root = math.exp((math.log(rank) + math.lgamma(j + 1)) / j)
  c = max(int(root + (j - 1) / 2), j)
  value = math.comb(c, j)
  while value > rank:
    value = value * (c - j) // c
    c -= 1
  while (above := value * (c + 1) // (c + 1 - j)) <= rank:
    value = above
    c += 1
  return c, value
