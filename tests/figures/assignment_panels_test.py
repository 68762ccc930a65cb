"""Numbers from made-up rows."""

import pytest

from kexue.figures.assignment_panels import curve, results, seconds


def rows():
  """One size, two draws, and a time that grows with the turns."""
  found = []
  for draw in (0, 1):
    about = {'problem': 'points', 'n': 4, 'draw': draw, 'dataset': 'made up'}
    found.append({**about, 'rule': 'scipy', 'path_seconds': 0.5 + draw})
    for rule, turns, rate in (
      ('none', 0, 0.0),
      ('rms', 8, 1.0),
      ('rms', 8, 3.0),
      ('rms', 64, 1.0),
      ('rms', 64, 3.0),
      ('middle', 8, 0.0),
      ('middle', 64, 0.0),
    ):
      found.append(
        about
        | {
          'rule': rule,
          'turns': turns,
          'rate': rate,
          'dual_gap': rate / (1 + turns),
          'rounded_gap': 2 * rate / (1 + turns),
          'exact_gap': -1e-8 * draw,
          'own': 0.5,
          'paths': 4 - (turns > 0),
          'scanned': 8 if turns else 10,
          'turn_seconds': turns / 1000,
          'path_seconds': 0.002,
        }
      )
  return found


def test_the_best_rate_is_taken():
  own = [row for row in rows() if row['rule'] == 'rms']
  found = curve(own, lambda row: row['dual_gap'])
  assert found == {8: [1 / 9, 1 / 9], 64: [1 / 65, 1 / 65]}


def test_numbers():
  numbers = results(rows())
  assert numbers['few_turns'] == 8 and numbers['dataset'] == 'made up'
  assert numbers['largest_exact_gap'] == 1e-8
  found = numbers['table']['points'][4]
  assert found['scipy_ms'] == {'mean': 1000, 'min': 500, 'max': 1500}
  assert found['paths_alone_ms']['mean'] == 2
  assert found['few_turns_ms']['mean'] == pytest.approx(10)
  assert found['paths_alone'] == 1 and found['paths_after_few'] == 0.75
  assert found['scanned_over_none'] == 0.8
  assert found['rules']['rms'] == {
    'dual_gap': pytest.approx(1 / 65),
    'rounded_gap': pytest.approx(2 / 65),
    'best_turns': 8,
    'best_ms': pytest.approx(10),
  }
  assert {*found['rules']} == {'rms', 'middle'}
  assert seconds({'path_seconds': 1.0}) == 1.0
