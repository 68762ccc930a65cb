"""Spreads, winners and speeds of made-up runs."""

import numpy as np
import pytest

from kexue.figures.rotation_table import (
  CENTRE,
  places_of,
  results,
  summary,
  tokens_per_second,
)


def end(technique, codebook, loss, seed=0, ratio=1.0):
  """The last row of a run at the central weight."""
  row = {'run': f'{technique}-{codebook}-{ratio}-{seed}', 'step': 2}
  row |= {'technique': technique, 'codebook': codebook, 'ratio': ratio}
  row |= {'commitment_weight': CENTRE[0], 'seed': seed, 'val_loss': loss}
  row |= {'usage': 0.5, 'perplexity': 2.0, 'tokens': 100, 'dataset': 'made up'}
  return row | {'seconds': 1.0 + seed}


def test_places_hold_the_ends_of_runs():
  rows = [end('ste', 'ema', 3.0) | {'step': 1}, end('ste', 'ema', 2.0)]
  rows += [end('ste', 'ema', 1.0, seed=1), {'run': 'originals', 'images': 'x'}]
  places = places_of(rows)
  assert [*places] == [('ste', 'ema', *CENTRE)]
  losses = [row['val_loss'] for row in places['ste', 'ema', *CENTRE]]
  assert losses == [2.0, 1.0]


def test_a_summary_has_what_all_seeds_have():
  ends = [end('ste', 'ema', 2.0), end('ste', 'ema', 4.0, seed=1)]
  for row in ends:
    row |= {'quantization_error': row['val_loss'], 'latent_square': 4.0}
  found = summary(('ste', 'ema', *CENTRE), ends)
  assert (found['commitment_weight'], found['ratio']) == CENTRE
  assert found['val_loss'] == {'mean': 3.0, 'min': 2.0, 'max': 4.0}
  assert found['relative_quantization_error']['mean'] == 0.75
  lost = {k: ends[0][k] for k in ('technique', 'codebook')}
  found = summary(
    ('ste', 'ema', *CENTRE), [ends[0], lost | {'val_loss': np.inf}]
  )
  assert found['val_loss']['mean'] == np.inf
  assert 'usage' not in found and 'relative_quantization_error' not in found


def test_speed_is_that_of_the_fastest_but_not_of_one_alone():
  ends = [end('ste', 'ema', 2.0, seed=seed) for seed in (1, 3)]
  assert tokens_per_second(ends) == 50
  assert tokens_per_second(ends[:1]) is None


def test_winners_are_found_among_their_codebook():
  rows = [
    end('ste', book, loss, ratio=ratio)
    for book in ('ema', 'learned')
    for ratio, loss in ((0.1, 1.0), (1.0, 3.0), (5.0, 9.0))
  ]
  rows += [
    end('rotation', book, 2.0, ratio=ratio)
    for book in ('ema', 'learned')
    for ratio in (0.1, 1.0, 5.0)
  ]
  rows.append(end('fsq', 'none', np.inf))
  found = results(rows)
  assert found['winners']['ema, weight 0.25, ratio 0.1'] == 'ste'
  assert found['winners']['learned, weight 0.25, ratio 1'] == 'rotation'
  assert len(found['winners']) == 6
  table = found['table']
  assert table['ste learned']['wins'] == ['learned, weight 0.25, ratio 0.1']
  assert table['ste ema']['best']['ratio'] == 0.1
  assert table['ste ema']['worst']['val_loss']['max'] == 9
  assert table['ste ema']['at_the_centre']['val_loss']['mean'] == 3
  assert found['short_codes']['ema']['ste']['val_loss']['mean'] == 1
  assert found['fit_codes']['ema']['rotation']['ratio'] == 1
  assert found['long_codes']['learned']['ste']['ratio'] == 5
  assert found['runs_that_diverged'] == 1 and found['dataset'] == 'made up'
  assert table['fsq none']['wins'] == []
  assert table['fsq none']['best']['val_loss']['min'] == pytest.approx(np.inf)
