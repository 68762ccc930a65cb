"""What figures that compare training runs share: rows by run, ratios, fits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import require

Row = dict[str, Any]


def by_run(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """The rows of each run, in the order recorded."""
  runs: dict[str, list[Row]] = {}
  for row in rows:
    runs.setdefault(row['run'], []).append(row)
  return runs


def select(runs: dict[str, list[Row]], **wanted: Any) -> list[list[Row]]:
  """The runs whose columns have the wanted values.

  >>> runs = {'a': [{'width': 32}], 'b': [{'width': 64}]}
  >>> select(runs, width=64)
  [[{'width': 64}]]
  """
  return [
    rows
    for rows in runs.values()
    if all(rows[0].get(k) == v for k, v in wanted.items())
  ]


def grid(runs: dict[str, list[Row]], **wanted: Any) -> list[tuple]:
  """Pairs of learning rate and final loss of the first seed, ascending.

  >>> ends = {'a': [{'seed': 0, 'learning_rate': 0.1, 'val_loss': 2.0}]}
  >>> grid(ends)
  [(0.1, 2.0)]
  """
  ends = [rows[-1] for rows in select(runs, seed=0, **wanted)]
  return sorted((row['learning_rate'], row['val_loss']) for row in ends)


def tuned(runs: dict[str, list[Row]], **wanted: Any) -> list[list[Row]]:
  """All seeds at the learning rate that was best for the first.

  Args:
    runs: of `by_run`.
    **wanted: columns that single out one contestant.

  Returns:
    Its finite, complete runs at that learning rate, the first seed first.

  Raises:
    ValueError: if there is none.
  """
  pairs = [p for p in grid(runs, **wanted) if np.isfinite(p[1])]
  require(bool(pairs), 'records', f'none with {wanted}', 'a finite run')
  rate = min(pairs, key=lambda pair: pair[1])[0]
  found = select(runs, learning_rate=rate, **wanted)
  steps = max(rows[-1]['step'] for rows in found)
  whole = [
    rows
    for rows in found
    if rows[-1]['step'] == steps and np.isfinite(rows[-1]['val_loss'])
  ]
  return sorted(whole, key=lambda rows: rows[0]['seed'])


def crossing(x: Sequence[float], y: Sequence[float], target: float) -> float:
  """Where the curve through the points first comes down to `target`.

  Linear between points. Past the ends the outermost segment is continued, for
  sparse curves that do not bracket the target.

  Args:
    x: positions, increasing, two or more.
    y: values at them.
    target: the value looked for.

  Returns:
    The position; NaN if the segment that would have to be continued is flat.

  Raises:
    ValueError: for fewer than two points or lengths that differ.

  Example:
    >>> crossing([0.5, 1.0], [2.0, 1.0], 1.5)
    0.75
  """
  require(len(x) == len(y) >= 2, 'x, y', (len(x), len(y)), 'equal, 2 or more')
  below = [i for i, value in enumerate(y) if value <= target]
  i = max(1, below[0]) if below else len(x) - 1
  if y[i] == y[i - 1]:
    return float('nan')
  slope = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
  return float(x[i] + (target - y[i]) / slope)


def spread(values: Sequence[float]) -> dict[str, float]:
  """Mean, smallest and largest.

  >>> spread([1.0, 3.0])
  {'mean': 2.0, 'min': 1.0, 'max': 3.0}
  """
  return {
    'mean': float(np.mean(values)),
    'min': float(np.min(values)),
    'max': float(np.max(values)),
  }


def power_law(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
  """Least squares of log y = log a - b log x, as {'a': ..., 'b': ...}.

  >>> law = power_law([1.0, 2.0, 4.0], [6.0, 3.0, 1.5])
  >>> round(law['a'], 6), round(law['b'], 6)
  (6.0, 1.0)
  """
  require(len(x) == len(y) >= 2, 'x, y', (len(x), len(y)), 'equal, 2 or more')
  slope, offset = np.polyfit(np.log(x), np.log(y), 1)
  return {'a': float(np.exp(offset)), 'b': float(-slope)}
