"""Table, winners and rank correlation of made-up rows."""

import numpy as np
import pytest

from kexue.figures.prior_table import (
  COLUMNS,
  judged,
  rank_correlation,
  ranks,
  results,
)


def made_up(seeds=2):
  """Rows of three tokenizers: who reconstructs best samples worst."""
  real = {'frechet': 0.01, 'extrapolated': 0.0, 'accuracy': 0.9}
  rows = [{'run': 'real', 'step': 1, **real}]
  for i, name in enumerate(('ste', 'ste-64', 'fsq')):
    for seed in range(seeds):
      label, about = f'{name}-s{seed}', {'tokenizer': name, 'seed': seed}
      for step, loss in ((5, 2.0), (10, 1.0 + i)):
        row = {'run': f'prior-{label}', 'step': step, 'val_loss': loss}
        rows.append(row | about)
      values = {c: 2.0 + i + 0.1 * seed for c in COLUMNS}
      values |= {'error': 0.01 * (3 - i), 'capacity': 8.0}
      values |= {'pixels_of_an_image': 6, 'residual_bits': 4.0}
      strip = {'height': 1, 'columns': 6, 'pixels': 'x00ff0011ff22'}
      strip = strip if seed == 0 else {}
      label = f'judged-{label}'
      rows.append({'run': label, 'step': 1, **about, **values, **strip})
      rows[-1]['dataset'] = 'made up'
  return rows


def test_numbers_of_made_up_rows():
  rows = made_up()
  assert [*map(len, judged(rows).values())] == [2, 2, 2]
  numbers = results(rows)
  table, best = numbers['table'], numbers['best']
  assert [*table] == ['ste', 'ste-64', 'fsq']
  bits = table['ste-64']['bits']
  assert bits == pytest.approx({'mean': 3.05, 'min': 3.0, 'max': 3.1})
  assert table['ste']['share']['mean'] == pytest.approx(2.05 / 8)
  assert best['error'] == 'fsq' and best['samples_frechet'] == 'ste'
  assert best['samples_accuracy'] == 'fsq' and best['usage'] == 'fsq'
  assert numbers['error_and_samples'] == -1
  assert numbers['real'] == {
    'frechet': 0.01,
    'extrapolated': 0.0,
    'accuracy': 0.9,
  }
  assert numbers['dataset'] == 'made up'


def test_without_a_judged_tokenizer_there_is_no_table():
  with pytest.raises(ValueError, match='no tokenizer that was judged'):
    results(made_up()[:3])


def test_ranks_are_places():
  x = np.array([0.5, 3.0, 1.0, 2.0])
  assert ranks(x).tolist() == [0, 3, 1, 2]
  assert rank_correlation(x, np.exp(x)) == 1
  # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 0, 1, 1.
  assert rank_correlation(x, [0, 9, 2, 1]) == pytest.approx(0.8)
  assert np.isnan(rank_correlation([1.0], [1.0]))
