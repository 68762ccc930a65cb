"""Numbers and panels of `assignment`: rows in, axes drawn on.

A place is a problem and a size; of what moves by a rate the best one is drawn.
"""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from .comparison import Row, spread

COLORS = {
  'sign': 'tab:gray',
  'rms': 'tab:orange',
  'quantile': 'tab:blue',
  'middle': 'tab:red',
  'none': 'tab:green',
  'scipy': 'black',
}
LABELS = {
  'sign': 'sign, falling rate',
  'rms': 'rms, falling rate',
  'quantile': 'quantiles (article 11619)',
  'middle': 'quantiles, middle on both sides',
}
STYLES = {'uniform': '-', 'points': '--', 'images': ':'}
FEW = 8  # Turns that are shown as the choice of `balanced_assignment`.
_SMALLEST = 1e-5  # Smaller gaps are drawn there.


def at(rows: list[Row], **wanted) -> list[Row]:
  """The rows with these values.

  >>> at([{'n': 2, 'rule': 'sign'}, {'n': 4, 'rule': 'sign'}], n=4)
  [{'n': 4, 'rule': 'sign'}]
  """
  return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def curve(
  rows: list[Row], column: Callable[[Row], float]
) -> dict[int, list[float]]:
  """A column by number of turns, of all draws, each at the best rate.

  Args:
    rows: of one place and rule.
    column: what is read, and what the mean over draws is the least of.

  Returns:
    Numbers of the draws by turns, ascending.

  Example:
    >>> row = dict(turns=4, rate=1.0, gap=0.5)
    >>> other = dict(turns=4, rate=3.0, gap=0.2)
    >>> curve([row, other], lambda r: r['gap'])
    {4: [0.2]}
  """
  found = {}
  for turns in sorted({row['turns'] for row in rows}):
    own = at(rows, turns=turns)
    by_rate = [
      [column(row) for row in at(own, rate=rate)]
      for rate in sorted({row['rate'] for row in own})
    ]
    found[turns] = min(by_rate, key=np.mean)
  return found


def seconds(row: Row) -> float:
  """Of turns and paths together."""
  return row.get('turn_seconds', 0.0) + row['path_seconds']


def results(rows: list[Row]) -> dict:
  """Gaps and times by problem and size."""
  solved = [row for row in rows if 'turns' in row]
  sizes = sorted({row['n'] for row in rows})
  problems = list(dict.fromkeys(row['problem'] for row in rows))
  few = min({row['turns'] for row in solved}, key=lambda x: abs(x - FEW))
  rules = [rule for rule in LABELS if at(solved, rule=rule)]
  table: dict = {}
  for problem in problems:
    for n in sizes:
      own = at(rows, problem=problem, n=n)
      middle = at(own, rule='middle', turns=few)
      table.setdefault(problem, {})[n] = {
        'scipy_ms': _ms(at(own, rule='scipy')),
        'paths_alone_ms': _ms(at(own, rule='none')),
        'few_turns_ms': _ms(middle),
        'paths_alone': _mean(at(own, rule='none'), 'paths') / n,
        'paths_after_few': _mean(middle, 'paths') / n,
        'scanned_over_none': _mean(middle, 'scanned')
        / max(1.0, _mean(at(own, rule='none'), 'scanned')),
        'rules': {rule: _of_rule(at(own, rule=rule)) for rule in rules},
      }
  return {
    'dataset': rows[0]['dataset'],
    'few_turns': few,
    'largest_exact_gap': max(abs(row['exact_gap']) for row in solved),
    'table': table,
  }


def _mean(rows: list[Row], column: str) -> float:
  return float(np.mean([row[column] for row in rows]))


def _ms(rows: list[Row]) -> dict[str, float]:
  return spread([1e3 * seconds(row) for row in rows])


def _of_rule(rows: list[Row]) -> dict[str, float]:
  """After most turns the gaps, at the best turns the time."""
  last = lambda column: float(
    np.mean([*curve(rows, lambda row: row[column]).values()][-1])
  )
  times = curve(rows, seconds)
  best = min(times, key=lambda turns: np.mean(times[turns]))
  return {
    'dual_gap': last('dual_gap'),
    'rounded_gap': last('rounded_gap'),
    'best_turns': best,
    'best_ms': 1e3 * float(np.mean(times[best])),
  }


def _line(ax: Axes, found: dict[int, list[float]], **style) -> None:
  """Means over draws, their range as a band."""
  values = np.maximum([*found.values()], _SMALLEST)
  (line,) = ax.plot([*found], values.mean(axis=1), marker='.', **style)
  if values.max() / values.min() > 1e4:  # From rounding to all of it.
    return
  ax.fill_between(
    [*found],
    values.min(axis=1),
    values.max(axis=1),
    color=line.get_color(),
    alpha=0.15,
    linewidth=0,
  )


def plot_gaps(ax: Axes, rows: list[Row], problem: str) -> None:
  """How far the bound of the bias is below the optimum, over turns.

  Args:
    ax: where.
    rows: all; the largest size is drawn.
    problem: its name.
  """
  n = max(row['n'] for row in rows)
  own = at(rows, problem=problem, n=n)
  for rule, label in LABELS.items():
    found = curve(at(own, rule=rule), lambda row: row['dual_gap'])
    _line(ax, found, color=COLORS[rule], label=label)
  none = _mean(at(own, rule='none'), 'dual_gap')
  ax.axhline(none, color='black', linewidth=0.8, linestyle=':', label='no bias')
  name = f'images ({rows[0]["dataset"]})' if problem == 'images' else problem
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='turns of the bias',
    ylabel='bound below the optimum [share of it]',
    title=f'the bias alone: {name}, n = {n}',
  )
  ax.legend(fontsize='small')


def plot_rounded(ax: Axes, rows: list[Row]) -> None:
  """Gap of the permutation that the bias suggests, after most turns.

  Args:
    ax: where.
    rows: all.
  """
  for problem, style in STYLES.items():
    for rule, label in LABELS.items():
      own = at(rows, problem=problem, rule=rule)
      found = {
        n: [*curve(at(own, n=n), lambda row: row['rounded_gap']).values()][-1]
        for n in sorted({row['n'] for row in own})
      }
      label = label if problem == 'uniform' else None
      _line(ax, found, color=COLORS[rule], linestyle=style, label=label)
  most = max(row.get('turns', 0) for row in rows)
  ax.set(
    yscale='log',
    xlabel='rows n',
    ylabel='cost above the optimum [share of it]',
    title=f'rounded greedily after {most} turns (paths instead: 0)',
    ylim=(_SMALLEST / 2, 300),
  )
  _sizes(ax, rows)
  _styles(ax)


def plot_times(ax: Axes, numbers: dict) -> None:
  """Milliseconds against n: SciPy, paths alone, paths after a few turns.

  Args:
    ax: where.
    numbers: of `results`.
  """
  few = numbers['few_turns']
  contestants = {
    'scipy': ('scipy_ms', 'SciPy'),
    'none': ('paths_alone_ms', 'paths alone'),
    'middle': ('few_turns_ms', f'{few} turns, then paths'),
  }
  for problem, table in numbers['table'].items():
    for name, (column, label) in contestants.items():
      found = {
        n: [row[column][k] for k in ('min', 'mean', 'max')]
        for n, row in table.items()
      }
      label = label if problem == 'uniform' else None
      style = dict(color=COLORS[name], linestyle=STYLES[problem])
      _line(ax, found, label=label, **style)
  ax.set(
    yscale='log',
    xlabel='rows n',
    ylabel='time [ms]',
    title='to the optimum',
  )
  _sizes(ax, [{'n': n} for n in table])
  _styles(ax)


def plot_turns(ax: Axes, rows: list[Row]) -> None:
  """Work that is left to paths, and time, over turns.

  Args:
    ax: where.
    rows: all; the largest size is drawn.
  """
  n = max(row['n'] for row in rows)
  own = at(rows, n=n)
  for problem, style in STYLES.items():
    for rule, label in LABELS.items():
      found = curve(at(own, problem=problem, rule=rule), seconds)
      found = {k: [1e3 * x for x in v] for k, v in found.items()}
      label = label if problem == 'uniform' else None
      _line(ax, found, color=COLORS[rule], linestyle=style, label=label)
    none = 1e3 * _mean(at(own, problem=problem, rule='none'), 'path_seconds')
    ax.axhline(none, color=COLORS['none'], linestyle=style, linewidth=1)
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='turns of the bias',
    ylabel='time of turns and paths [ms]',
    title=f'to the optimum, n = {n} (green: paths alone)',
  )
  _styles(ax)


def _sizes(ax: Axes, rows: list[Row]) -> None:
  """A logarithmic axis with the sizes at it."""
  ticks = sorted({row['n'] for row in rows})
  ax.set_xscale('log', base=2)
  ax.set_xticks(ticks, [f'{n}' for n in ticks])


def _styles(ax: Axes) -> None:
  """A legend of the problems beside the colours."""
  for problem, style in STYLES.items():
    ax.plot([], [], color='black', linestyle=style, label=problem)
  ax.legend(fontsize='small', ncols=2)
