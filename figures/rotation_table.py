"""The table of `rotation_trick`: what techniques reach, and where they win.

A place is a tuple of technique, codebook, commitment weight and norm ratio.
"""

from typing import Any

import numpy as np

from .comparison import Row, by_run, spread

# The weight and the ratio of everybody.
CENTRE = (0.25, 1.0)


def places_of(rows: list[Row]) -> dict[tuple, list[Row]]:
  """Last rows of the seeds by technique, codebook, weight and ratio."""
  places: dict[tuple, list[Row]] = {}
  for run in by_run(rows).values():
    row = run[-1]
    if 'technique' in row:
      names = ('technique', 'codebook', 'commitment_weight', 'ratio')
      places.setdefault(tuple(row[k] for k in names), []).append(row)
  return places


def summary(place: tuple, rows: list[Row]) -> dict[str, Any]:
  """Spreads over seeds; a run that diverged leaves an infinite loss alone."""
  columns = ('val_loss', 'usage', 'perplexity', 'quantization_error')
  found = {
    name: spread([row[name] for row in rows])
    for name in columns
    if all(name in row for row in rows)
  }
  squares = [row.get('latent_square') for row in rows]
  if 'quantization_error' in found and all(squares):
    found['relative_quantization_error'] = spread(
      [r['quantization_error'] / r['latent_square'] for r in rows]
    )
  return {'commitment_weight': place[2], 'ratio': place[3]} | found


def tokens_per_second(rows: list[Row]) -> float | None:
  """Of the fastest run; of one run alone it would be that of compiling."""
  timed = [r['tokens'] / r['seconds'] for r in rows if r.get('seconds')]
  return max(timed) if len(timed) >= 2 else None


def results(rows: list[Row]) -> dict:
  """The table, the winners of every setting, and the two claims."""
  places = places_of(rows)
  summaries = {place: summary(place, ends) for place, ends in places.items()}
  table = {}
  for pair in dict.fromkeys(place[:2] for place in places):
    own = [place for place in places if place[:2] == pair]
    loss = lambda place: summaries[place]['val_loss']['mean']
    ends = sum((places[place] for place in own), start=[])
    table[' '.join(pair)] = {
      'best': summaries[min(own, key=loss)],
      'worst': summaries[max(own, key=loss)],
      'at_the_centre': summaries[(*pair, *CENTRE)],
      'tokens_per_second': tokens_per_second(ends),
      'wins': [],
    }
  winners = {}
  for codebook, where in dict.fromkeys((p[1], p[2:]) for p in places):
    if codebook in ('ema', 'learned'):
      rivals = [p for p in places if p[1] == codebook and p[2:] == where]
      best = min(rivals, key=lambda p: summaries[p]['val_loss']['mean'])
      said = f'{codebook}, weight {where[0]:g}, ratio {where[1]:g}'
      winners[said] = best[0]
      table[' '.join(best[:2])]['wins'].append(said)
  ratios = sorted({place[3] for place in places})
  pairs = lambda ratio: {
    codebook: {
      name: summaries[name, codebook, CENTRE[0], ratio]
      for name in ('ste', 'rotation')
    }
    for codebook in ('ema', 'learned')
  }
  return {
    'dataset': next(row['dataset'] for row in rows if 'dataset' in row),
    'table': table,
    'winners': winners,
    'short_codes': pairs(ratios[0]),
    'fit_codes': pairs(1.0),
    'long_codes': pairs(ratios[-1]),
    'runs_that_diverged': sum(
      not np.isfinite(row['val_loss'])
      for ends in places.values()
      for row in ends
    ),
  }
