"""The numbers of `ddcm_rate_distortion`: which codec is how good at what rate.

A line is what a legend names: a family of codecs, and how their timesteps are
chosen, "even", "equal_kl" or "" for what has none.
"""

import math
from typing import Any

import numpy as np

from ..checks import require
from ..diffusion import rate_distortion, realistic_rate_distortion
from .comparison import Row

# Columns that two codecs share whose steps alone are other ones.
_SETTING = ('mode', 'kind', 'size', 'atoms', 'coefficient_bits', 'steps')
# Bits a pixel at which lines are compared, and pictures are.
_RATES = (0.25, 0.5, 1.0, 2.0)
PICTURED = 0.6
NAMES = {'pca': 'PCA', 'dct': 'DCT 8 x 8', 'jpeg': 'JPEG without header'}
RULES = {'even': 'even steps', 'equal_kl': 'equal KL'}


def codecs(rows: list[Row], *, bed: bool = False) -> list[Row]:
  """Rows of diffusion codecs, of images or of the bed."""
  of = lambda row: row['run'].startswith('bed-') == bed
  return [row for row in rows if 'rule' in row and of(row)]


def pictured(rate: float) -> bool:
  """Whether some images are kept, for the picture of one rate.

  >>> pictured(0.5), pictured(3.0)
  (True, False)
  """
  return PICTURED / 2 < rate < PICTURED * 2


def family(row: Row) -> str:
  """What a codec is called in legends."""
  if row['mode'] == 'turbo':
    return 'Turbo'
  if row['mode'] == 'ddcm':
    return 'pursuit' if row['atoms'] > 1 else 'DDCM'
  return row['mode']


def setting(row: Row) -> str:
  """Of a diffusion codec, in short.

  >>> setting({'mode': 'ddcm', 'atoms': 2, 'size': 64, 'steps': 9,
  ...          'coefficient_bits': 3})
  'K=64, M=2, C=3, T=9'
  """
  atoms, bits = row['atoms'], row['coefficient_bits']
  more = f', M={atoms}' if atoms > 1 or row['mode'] == 'turbo' else ''
  more += f', C={bits}' if atoms > 1 and row['mode'] == 'ddcm' else ''
  return f'K={row["size"]}{more}, T={row["steps"]}'


def difference(one: Row, other: Row) -> dict[str, float]:
  """Mean difference in PSNR over the same images, and its standard error."""
  d = _psnrs(one) - _psnrs(other)
  error = float(np.std(d, ddof=1) / math.sqrt(len(d)))
  return {'gain': float(d.mean()), 'error': error}


def psnr_of_mean_error(row: Row) -> float:
  """Of all images together; below the mean of theirs if they differ.

  >>> round(psnr_of_mean_error({'psnrs': '20.0 40.0'}), 2)
  22.97
  """
  errors = 10 ** (-_psnrs(row) / 10)
  return float(-10 * np.log10(errors.mean()))


def _psnrs(row: Row) -> np.ndarray:
  return np.array(str(row['psnrs']).split(), float)


def gains(rows: list[Row]) -> list[Row]:
  """Equal KL less even steps, for all that differ in nothing else."""
  found = codecs(rows)
  even = {_key(row): row for row in found if row['rule'] == 'even'}
  return [
    {
      'family': family(row),
      'setting': setting(row),
      'bits_per_pixel': row['bits_per_pixel'],
      'psnr': row['psnr'],
      **difference(row, even[_key(row)]),
    }
    for row in found
    if row['rule'] == 'equal_kl' and _key(row) in even
  ]


def _key(row: Row) -> tuple:
  return tuple(row[name] for name in _SETTING)


def kinds(rows: list[Row]) -> list[Row]:
  """Structured codebooks less Gaussian ones, of equal-KL codecs."""
  found = [row for row in codecs(rows) if row['rule'] == 'equal_kl']
  without = lambda row: _key(row)[:1] + _key(row)[2:]
  dense = {without(row): row for row in found if row['kind'] == 'gaussian'}
  return [
    {
      'kind': row['kind'],
      'family': family(row),
      'setting': setting(row),
      **difference(row, dense[without(row)]),
    }
    for row in found
    if row['kind'] != 'gaussian' and without(row) in dense
  ]


def lines(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
  """Rows by family and rule, from few bits to many; Hadamard codebooks."""
  found: dict[tuple[str, str], list[Row]] = {}
  for row in rows:
    if 'psnrs' in row and row.get('kind', 'hadamard') == 'hadamard':
      found.setdefault((family(row), row.get('rule', '')), []).append(row)
  by_rate = lambda row: row['bits_per_pixel']
  return {line: sorted(own, key=by_rate) for line, own in found.items()}


def name_of(line: tuple[str, str]) -> str:
  """A line in words.

  >>> name_of(('Turbo', 'even')), name_of(('pca', ''))
  ('Turbo, even steps', 'PCA')
  """
  name, rule = line
  words = [NAMES.get(name, name), *([RULES[rule]] if rule else [])]
  return ', '.join(words)


def frontier(line: list[Row], column: str) -> list[Row]:
  """Those of a line that none with fewer bits is as good as."""
  sign = 1 if column == 'psnr' else -1
  best, kept = -math.inf, []
  for row in line:
    if sign * row[column] > best:
      best = sign * row[column]
      kept.append(row)
  return kept


def at_rate(line: list[Row], rate: float) -> float | None:
  """PSNR between the best points of a line; none outside of it."""
  best = frontier(line, 'psnr')
  x = np.log([row['bits_per_pixel'] for row in best])
  if not x[0] <= math.log(rate) <= x[-1]:
    return None
  return float(np.interp(math.log(rate), x, [row['psnr'] for row in best]))


def ladders(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
  """Diffusion codecs that differ in one number, by rule and by that number."""
  varied = {'K': ('size',), 'M': ('atoms', 'coefficient_bits'), 'T': ('steps',)}
  found: dict[tuple, list[Row]] = {}
  for row in codecs(rows):
    if row['kind'] == 'hadamard':
      for name, columns in varied.items():
        fixed = tuple(row[k] for k in _SETTING if k not in columns)
        place = row['rule'], name, 'pursuit' == family(row), *fixed
        found.setdefault(place, []).append(row)
  by_rate = lambda row: row['bits_per_pixel']
  return {k: sorted(v, key=by_rate) for k, v in found.items() if len(v) > 1}


def bed_gap(row: Row, variances: np.ndarray) -> dict[str, float]:
  """Bits of a codec of the bed, and the least for its distortion."""
  at = row['distortion']
  return {
    'bits': row['bits_per_pixel'],
    'psnr': row['psnr'],
    'least': float(rate_distortion(variances, at)),
    'least_realistic': float(realistic_rate_distortion(variances, at)),
    'least_without_shared_noise': float(rate_distortion(variances, at / 2)),
  }


def results(rows: list[Row], variances: np.ndarray) -> dict[str, Any]:
  """The headline numbers."""
  real = [row for row in rows if row['run'] == 'real']
  require(bool(real), 'records', 'none of real images', 'a finished run')
  compared = gains(rows)
  table = {
    row['run']: {
      name: row[name]
      for name in ('bits_per_pixel', 'psnr', 'frechet')
      if name in row
    }
    | {f'{name}_error': row[f'{name}_error'] for name in ('psnr', 'frechet')}
    | {'psnr_of_mean_error': psnr_of_mean_error(row)}
    for own in lines(rows).values()
    for row in own
  }
  drawn = lines(rows)
  rates = {
    f'{rate:g}': {
      name_of(line): round(x, 3)
      for line, own in drawn.items()
      if (x := at_rate(own, rate)) is not None
    }
    for rate in _RATES
  }
  return {
    'dataset': real[0]['dataset'],
    'images': len(str(_first_psnrs(rows)).split()),
    'real_frechet': real[0]['real_frechet'],
    'gains': compared,
    'kinds': kinds(rows),
    'psnr_at': rates,
    'bed': {
      row['run']: bed_gap(row, variances) for row in codecs(rows, bed=True)
    },
    'table': table,
  }


def _first_psnrs(rows):
  return next((row['psnrs'] for row in rows if 'psnrs' in row), '')
