"""The table of `vq_prior`: what tokenizers reach, and who is best at what."""

from typing import Any

import numpy as np

from ..checks import require
from .comparison import Row, spread

# Columns of a tokenizer, and whether more of it is better.
COLUMNS = {
  'error': False,
  'bits': False,
  'description': False,
  'bits_per_token': False,
  'reconstructions_frechet': False,
  'reconstructions_extrapolated': False,
  'reconstructions_accuracy': True,
  'samples_frechet': False,
  'samples_extrapolated': False,
  'samples_accuracy': True,
  'usage': True,
  'entropy': True,
  'capacity': True,
}


def judged(rows: list[Row]) -> dict[str, list[Row]]:
  """The rows of tokenizers that were judged, one for each seed."""
  found: dict[str, list[Row]] = {}
  for row in rows:
    if 'samples_frechet' in row:
      found.setdefault(row['tokenizer'], []).append(row)
  return found


def ranks(values: list[float]) -> np.ndarray:
  """Places in ascending order.

  >>> ranks([0.3, 0.1, 0.2]).tolist()
  [2, 0, 1]
  """
  return np.argsort(np.argsort(values))


def rank_correlation(x: list[float], y: list[float]) -> float:
  """Spearman's, of values without ties; NaN for fewer than two.

  >>> rank_correlation([1.0, 2.0, 9.0], [3.0, 2.0, 1.0])
  -1.0
  """
  if len(x) < 2:
    return float('nan')
  return round(float(np.corrcoef(ranks(x), ranks(y))[0, 1]), 6)


def results(rows: list[Row]) -> dict[str, Any]:
  """The table, the best in each column, and what error says of samples.

  Args:
    rows: of a run.

  Returns:
    `table`: spreads over seeds by tokenizer and column of `COLUMNS`, and
    `share`, bits per token over log2 K; `best`: the tokenizer for each column;
    `real`: scores of real images; `error_and_samples`: the rank correlation of
    reconstruction error and Fréchet distance of samples over tokenizers;
    `dataset`.

  Raises:
    ValueError: if no tokenizer was judged.
  """
  found = judged(rows)
  require(bool(found), 'rows', 'no tokenizer that was judged', 'one or more')
  table = {
    name: {column: spread([row[column] for row in own]) for column in COLUMNS}
    | {'share': spread([r['bits_per_token'] / r['capacity'] for r in own])}
    for name, own in found.items()
  }
  best = {}
  for column, more in COLUMNS.items():
    at = lambda name, column=column: table[name][column]['mean']
    best[column] = (max if more else min)(table, key=at)
  means = lambda column: [entry[column]['mean'] for entry in table.values()]
  (real,) = (row for row in rows if row['run'] == 'real')
  return {
    'dataset': next(iter(found.values()))[0]['dataset'],
    'table': table,
    'best': best,
    'real': {k: real[k] for k in ('frechet', 'extrapolated', 'accuracy')},
    'error_and_samples': rank_correlation(
      means('error'), means('samples_frechet')
    ),
  }
