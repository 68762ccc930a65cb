"""Sets drawn again, and how often intervals hold what they should."""

import numpy as np
import pytest

from kexue.figures.frechet_bootstrap import (
  distances,
  interval,
  redrawn,
  swapping,
)
from kexue.figures.image_features import frechet


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_distances_of_sets_and_of_what_is_drawn_from_them(rng):
  a, b = (redrawn(rng.normal(size=(50, 3)), 4, seed) for seed in (0, 1))
  found = distances(a, b)
  assert found.shape == (5,)
  assert found[0] == frechet(a.features, b.features)
  again = frechet(a.features[a.rows[2]], b.features[b.rows[2]])
  assert found[3] == again != found[0]
  assert a.rows.shape == (4, 50) and 0 <= a.rows.min() <= a.rows.max() < 50
  assert len({*a.rows[0]}) < 50  # With replacement.
  assert np.any(a.rows != b.rows)
  np.testing.assert_array_equal(redrawn(b.features, 4, 0).rows, a.rows)


def test_sets_that_are_drawn_again_are_further_apart(rng):
  """Why a distance by itself gets no interval."""
  a, b = (redrawn(rng.normal(size=(300, 8)), 50, seed) for seed in (0, 1))
  found = distances(a, b)
  assert np.mean(found[1:]) == pytest.approx(2 * found[0], rel=0.2)


def test_alike_sets_are_told_from_others(rng):
  """Intervals hold 0 at least as often as they say, swaps are exact."""
  held, told, wrong, right, trials = 0, 0, [], [], 40
  for _ in range(trials):
    draw = lambda shift=0.0: rng.normal(size=(150, 4)) + shift
    reference, first = redrawn(draw(), 60, 1), redrawn(draw(), 60, 0)
    floor = distances(first, reference)
    for shift in (0.0, 0.35):
      other = redrawn(draw(shift), 60, 0)
      found = interval(distances(other, reference) - floor)
      chance = swapping(
        other.features, first.features, reference.features, 39, 0
      )
      if shift:
        told += found['low'] > 0
        right.append(chance)
      else:
        held += found['low'] <= 0 <= found['high']
        wrong.append(chance)
  assert held >= 0.95 * trials and told >= 0.8 * trials, (held, told)
  # Even shares of the chances of alike sets, and the least of the others.
  assert np.mean(wrong) == pytest.approx(0.5, abs=4 * 0.29 / np.sqrt(trials))
  assert np.mean(np.array(wrong) <= 0.1) < 0.25 and np.mean(right) < 0.05
  same = interval(distances(first, reference) - floor)
  assert same == {'value': 0, 'low': 0, 'high': 0}
  none = swapping(first.features, first.features, reference.features, 9, 0)
  assert none == 1


def test_swaps_are_fair_to_both(rng):
  """Those that bring one set further off bring the other nearer."""
  a, b, third = rng.normal(size=(3, 40, 3)) * [[[1.0]], [[1.2]], [[1.0]]]
  both = swapping(a, b, third, 29, 5) + swapping(b, a, third, 29, 5)
  assert both == pytest.approx(31 / 30)
