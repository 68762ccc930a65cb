"""Panels of `noise_scale`: rows and numbers in, axes drawn on."""

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row
from .noise_tracking import TRACKED

COLORS = dict(zip(TRACKED, ('tab:blue', 'tab:orange'), strict=True))


def column(rows: list[Row], name: str) -> np.ndarray:
  """The values of a column."""
  return np.array([row[name] for row in rows], np.float64)


def differences(rows: list[Row]) -> np.ndarray:
  """By how many standard errors two batch sizes differ, at each look.

  In 1 / B, which is nearly normal; the trackers' batches are independent.
  """

  def inverse(name):
    with np.errstate(divide='ignore'):  # Of two steps, the interval [0, inf].
      low, high = (1 / column(rows, f'{name}_{e}') for e in ('high', 'low'))
    return 1 / column(rows, name), (high - low) / 2 / 1.96

  (a, error_a), (b, error_b) = map(inverse, TRACKED)
  return (a - b) / np.hypot(error_a, error_b)


def overlapping(rows: list[Row]) -> np.ndarray:
  """Whether the intervals of the two batch sizes meet, at each look."""
  low, high = (
    [column(rows, f'{name}_{end}') for name in TRACKED]
    for end in ('low', 'high')
  )
  return np.maximum(*low) <= np.minimum(*high)


def parts_of(row: Row) -> list[str]:
  """Names of the parts whose noise scale a row holds."""
  names = [name.removeprefix('part ') for name in row if name[:5] == 'part ']
  return [n for n in names if not n.endswith(('_low', '_high'))]


def _bars(middle, low, high) -> np.ndarray:
  """Lengths [2, n] of error bars, of which none is infinite."""
  high = np.minimum(high, 1e3 * middle)
  with np.errstate(invalid='ignore'):
    return np.nan_to_num(np.maximum([middle - low, high - middle], 0))


def _line(ax: Axes, rows: list[Row], name: str, **style) -> None:
  """A column against the steps, with a band for its interval."""
  steps = column(rows, 'step')
  (line,) = ax.plot(steps, column(rows, name), **style)
  low, high = (column(rows, f'{name}_{end}') for end in ('low', 'high'))
  top = 1e3 * np.nanmax(np.where(np.isfinite(high), high, 1))
  high = np.minimum(high, top)
  ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)


def _label(ax: Axes, ylabel: str, title: str, **options) -> None:
  ax.set(xlabel='step', ylabel=ylabel, title=title, **options)
  ax.legend(fontsize='small')


def simple(ax: Axes, rows: list[Row]) -> None:
  """Both trackers, and what single steps say."""
  row = rows[0]
  for (name, color), size in zip(
    COLORS.items(), (row['batch_size'], row['other_batch']), strict=True
  ):
    _line(ax, rows, name, color=color, label=f'batches of {size}, tracked')
  middle = column(rows, 'simple')
  bars = _bars(middle, *(column(rows, f'simple_{e}') for e in ('low', 'high')))
  label = 'at the look, from fresh batches'
  style = dict(fmt='ok', capsize=3, markersize=4, label=label)
  ax.errorbar(column(rows, 'step'), middle, bars, **style)
  one = column(rows, 'one_step')
  seen = one > 0
  steps, style = column(rows, 'step'), dict(color='gray', label='one step')
  ax.plot(steps[seen], one[seen], '.', **style)
  below = f'; {np.sum(~seen)} of {len(one)} are negative' if any(~seen) else ''
  _label(
    ax,
    'noise scale tr(Sigma) / |g|^2 [sequences]',
    f'B_simple with 95 % intervals (dots: single steps{below})',
    yscale='log',
  )


def agreement(ax: Axes, runs: list[list[Row]], numbers: dict) -> None:
  """By how much two batch sizes differ."""
  for rows in runs:
    label = f'seed {rows[0]["seed"]}'
    ax.plot(column(rows, 'step'), differences(rows), 'o-', label=label)
  ax.axhspan(-1.96, 1.96, color='gray', alpha=0.15, label='95 %')
  ax.axhline(0, color='black', linewidth=0.5)
  ratio = numbers['other_over_training']['mean']
  _label(
    ax,
    'difference in 1 / B_simple [standard errors]',
    f'batches of {rows[0]["batch_size"]} against {rows[0]["other_batch"]}: '
    f'ratio {ratio:.2f} on average',
  )


def scales(ax: Axes, rows: list[Row]) -> None:
  """The scales of SGD and of the sign beside the simple one."""
  _line(ax, rows, 'training', color='tab:blue', label='B_simple, tracked')
  label = 'B_noise = tr(Sigma H) / g H g'
  _line(ax, rows, 'curvature_scale', color='tab:red', label=label)
  ends = (column(rows, f'sign_scale{end}') for end in ('', '_above'))
  label = f'of the sign: plug-in, cross of halves ({rows[0]["rows"]} sequences)'
  style = dict(color='tab:purple', alpha=0.3, label=label)
  ax.fill_between(column(rows, 'step'), *ends, **style)
  size = rows[0]['batch_size']
  ax.axhline(size, color='black', linestyle=':', label=f'batch of {size}')
  _label(ax, 'noise scale [sequences]', 'three noise scales', yscale='log')


def parts(ax: Axes, rows: list[Row]) -> None:
  """Noise scales of the parts of the model, and of all of it."""
  steps = column(rows, 'step')
  for i, part in enumerate(parts_of(rows[-1])):
    _line(ax, rows, f'part {part}', color=f'C{i + 1}', label=part)
  ax.plot(steps, column(rows, 'training'), 'k-', linewidth=2, label='all')
  _label(
    ax,
    'noise scale of the part [sequences]',
    'parts of the model, with 95 % intervals',
    yscale='log',
  )
  ax.legend(fontsize='small', ncols=2)


def loss(ax: Axes, runs: list[list[Row]]) -> None:
  """The noise scale against the loss."""
  for rows in runs:
    x, y = column(rows, 'val_loss'), column(rows, 'simple')
    ends = (column(rows, f'simple_{end}') for end in ('low', 'high'))
    style = dict(fmt='o-', capsize=3, label=f'seed {rows[0]["seed"]}')
    ax.errorbar(x, y, _bars(y, *ends), **style)
  ax.invert_xaxis()
  _label(
    ax,
    'B_simple [sequences]',
    'the noise scale as the loss falls, at the looks',
    yscale='log',
  )
  ax.set_xlabel('validation loss [nats per byte]')


def surge(ax: Axes, rows: list[Row]) -> None:
  """The surge index with correlated noise, and that of the article."""
  _line(
    ax, rows, 'surge', color='tab:green', label='P / 2 T0, correlated noise'
  )
  label = 'P / 2 T of article 10542'
  _line(ax, rows, 'article_surge', color='tab:red', label=label)
  ax.axhline(1, color='black', linestyle='--', label='surge above')
  _label(
    ax,
    'surge index',
    f'does sign descent surge? P of {rows[0]["rows"]} sequences',
    yscale='log',
  )
