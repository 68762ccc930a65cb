"""What made-up rows say of the contestants."""

import pytest

from kexue.figures.comparison import by_run
from kexue.figures.lora_contest import (
  CONTESTANTS,
  SETTINGS,
  STARTS,
  best_rate,
  headline,
  names_in,
  scores_of,
  tuned_runs,
)

RATES = (0.1, 0.2, 0.4)
# Losses fall evenly to their end, so that steps to a loss are known.
ENDS = dict(zip(CONTESTANTS, (0.5, 1.0, 0.9, 0.6, 0.8, 1.1), strict=True))


def made_up():
  """Each best at 0.2, where it falls from 2 to its end over ten steps."""
  rows = []
  for setting in SETTINGS:
    for name in names_in(setting):
      for rate, seed in ((0.1, 0), (0.2, 0), (0.4, 0), (0.2, 1)):
        for step in range(1, 11):
          score = 2 - (2 - ENDS[name]) * step / 10 + (rate != 0.2)
          rows.append(
            {
              'run': f'{setting}-{name}-{rate}-{seed}',
              'step': step,
              'setting': setting,
              'contestant': name,
              'learning_rate': rate,
              'seed': seed,
              'score': score + seed / 8,
              'cosine': 0.5,
            }
          )
  sizes = ('missed_at_best_rate', 'missed_of_fresh', 'theory')
  for name in STARTS:
    for rank in (1, 2, 4):
      about = {'run': 'first', 'start': name, 'rank': rank}
      rows.append(about | dict.fromkeys(sizes, 0.5) | {'missed': 0.25 * rank})
  return rows


def test_steps_to_the_target_by_hand():
  numbers = headline(made_up())
  for setting, by in numbers['by_setting'].items():
    assert by['LoRA']['steps_ratio'] == pytest.approx(
      {'mean': 1.0, 'min': 1.0, 'max': 1.0}
    )
    assert by['full']['steps_ratio']['mean'] == pytest.approx(1 / 1.5)
    # Each seed has LoRA's loss with this seed for a target.
    ga = by['LoRA-GA']
    assert ga['steps_ratio']['max'] == pytest.approx(1 / 1.4)
    assert ga['steps_ratio']['min'] == pytest.approx(1 / 1.4)
    assert ga['less_than_lora']['mean'] == pytest.approx(0.4)
    assert ga['final_loss']['min'] == pytest.approx(0.6)
    assert ga['final_loss']['max'] == pytest.approx(0.725)
    assert ga['learning_rate'] == 0.2 and not ga['at_the_edge_of_the_grid']
    assert ga['mean_cosine'] == 0.5
    assert numbers['lowest_adapter'][setting] == 'LoRA-GA'
    if setting != 'sgd':  # It never has LoRA's loss.
      assert by['LoRA-Pro efficient']['steps_ratio']['mean'] == 1
  assert 'LoRA-Pro efficient' not in numbers['by_setting']['sgd']
  assert numbers['largest_ratio_to_theory'] == 2
  assert numbers['missed_at_first']['LoRA'] == {'1': 0.25, '2': 0.5, '4': 1.0}


def test_a_diverged_run_is_no_optimum():
  rows = made_up()
  for row in rows:
    if row.get('learning_rate') == 0.2 and row['contestant'] == 'PiSSA':
      row['score'] = float('inf')
  runs = by_run(rows)
  (best,) = tuned_runs(runs, 'adam', 'PiSSA')
  assert best[0]['learning_rate'] in (0.1, 0.4)
  assert list(scores_of(runs, 'adam', 'PiSSA')) == [*RATES]
  numbers = headline(rows)['by_setting']
  assert numbers['adam']['PiSSA']['at_the_edge_of_the_grid']


def test_the_best_rate_is_that_of_all_seeds():
  rows = made_up()
  for row in rows:  # A lucky first seed does not do.
    if row.get('learning_rate') == 0.2:
      row['score'] += 5 * row['seed'] - 0.4
  runs = by_run(rows)
  scores = scores_of(runs, 'sgd', 'LoRA')
  assert scores[0.1] == [2.0] and scores[0.2] == pytest.approx([0.6, 5.725])
  assert best_rate(scores) in (0.1, 0.4)
  assert best_rate(scores | {0.2: scores[0.2][:1]}) == 0.2


def test_what_is_not_recorded_is_named():
  rows = made_up()
  with pytest.raises(ValueError, match='none of sgd LoRA-Pro'):
    headline(
      [
        r
        for r in rows
        if r.get('contestant') != 'LoRA-Pro' or r['setting'] != 'sgd'
      ]
    )
  with pytest.raises(ValueError, match='no first steps'):
    headline([r for r in rows if r['run'] != 'first'])
