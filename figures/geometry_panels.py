"""Numbers and panels of `moe_geometry`: rows in, axes drawn on.

Rows of the geometry have a `group`, those of training with experts a `kind`;
of these the ones with a `val_loss` are of held-out text.
"""

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import beta

from .comparison import Row, spread
from .panels import band

RULES = {  # Label and style.
  'random': ('random', dict(color='tab:gray')),
  'router': ('by a router', dict(color='tab:orange', marker='.')),
  'norm': ('the longest', dict(color='tab:blue', marker='.')),
  'best': ('the best subset', dict(color='black', marker='x', linestyle=':')),
  'orthogonal': (
    'the longest, if orthogonal',
    dict(color='tab:blue', linestyle='--', linewidth=1),
  ),
}
LINES = {'neighbours': '--', 'clusters': '-'}
HEADLINE = 16  # Experts, of the panels over k.


def chosen_n(rows: list[Row]) -> int:
  """The number of experts of the panels over k.

  >>> chosen_n([{'group': 'clusters', 'n': n} for n in (8, 32)])
  8
  """
  found = sorted({row['n'] for row in rows if 'group' in row})
  return HEADLINE if HEADLINE in found else found[0]


def of_layers(
  rows: list[Row], group: str, n: int, column: str
) -> dict[int, list[float]]:
  """An error by numbers kept, of all layers.

  Args:
    rows: all.
    group: how units are grouped.
    n: experts.
    column: rule of choice.

  Returns:
    Errors of the layers by k, ascending; those that were not computed left out.
  """
  own = [r for r in rows if r.get('group') == group and r['n'] == n]
  return {
    k: [row[column] for row in own if row.get('k') == k]
    for k in sorted({row['k'] for row in own if 'k' in row})
    if any(column in row for row in own if row.get('k') == k)
  }


def tuned_runs(rows: list[Row]) -> dict[str, list[list[Row]]]:
  """Training rows of the seeds of each kind, at its best learning rate."""
  found = {}
  for kind in dict.fromkeys(row['kind'] for row in rows if 'kind' in row):
    own = [row for row in rows if row.get('kind') == kind]
    rate = best_rate(own)
    seeds = sorted({r['seed'] for r in own if r['learning_rate'] == rate})
    found[kind] = [
      [
        r
        for r in own
        if (r['learning_rate'], r['seed']) == (rate, seed)
        and 'val_loss' not in r
      ]
      for seed in seeds
    ]
  return found


def best_rate(rows: list[Row]) -> float:
  """The learning rate of the lowest held-out loss of the first seed.

  >>> ends = {0.1: 2.0, 0.2: 1.0}
  >>> best_rate([
  ...   dict(learning_rate=k, val_loss=x, seed=0) for k, x in ends.items()])
  0.2
  """
  ends = [row for row in rows if 'val_loss' in row and row['seed'] == 0]
  return min(ends, key=lambda row: row['val_loss'])['learning_rate']


def results(rows: list[Row]) -> dict:
  """Errors by group and n, cosines, and the tuned runs of each kind."""
  groups = [
    group for group in LINES if any(r.get('group') == group for r in rows)
  ]
  sizes = sorted({row['n'] for row in rows if 'group' in row})
  mean = lambda found: {k: float(np.mean(x)) for k, x in found.items()}
  errors = {
    group: {
      n: {rule: mean(of_layers(rows, group, n, rule)) for rule in RULES}
      for n in sizes
    }
    for group in groups
  }
  n = chosen_n(rows)
  return {
    'n': n,
    'a_quarter_kept': {
      group: {
        rule: found[n // 4]
        for rule, found in errors[group][n].items()
        if n // 4 in found
      }
      for group in groups
    },
    'errors': errors,
    'cosine': {
      group: {m: _mean(rows, group, m, 'cosine') for m in sizes}
      for group in groups
    },
    'cosine_of_random_vectors': _width(rows) ** -0.5,
    'explained_by_the_router': {
      group: {m: _mean(rows, group, m, 'explained') for m in sizes}
      for group in groups
    },
    'training': _training(rows),
  }


def _mean(rows: list[Row], group: str, n: int, column: str) -> float:
  own = [r for r in rows if r.get('group') == group and r['n'] == n]
  return float(np.mean([row[column] for row in own if 'cosine' in row]))


def _width(rows: list[Row]) -> int:
  return next(row['width'] for row in rows if 'cosine' in row)


def _training(rows: list[Row]) -> dict:
  """Held-out loss and violation of each kind at its best learning rate."""
  found = {}
  for kind in dict.fromkeys(row['kind'] for row in rows if 'kind' in row):
    own = [r for r in rows if r.get('kind') == kind and 'val_loss' in r]
    rate = best_rate(own)
    ends = [row for row in own if row['learning_rate'] == rate]
    first = [row for row in own if row['seed'] == 0]
    found[kind] = {
      'learning_rate': rate,
      'losses_of_rates': {r['learning_rate']: r['val_loss'] for r in first},
      'val_loss': spread([row['val_loss'] for row in ends]),
      'violation': spread([row['violation'] for row in ends]),
    }
  return found


def plot_kept(ax: Axes, rows: list[Row], group: str) -> None:
  """Error against the number of experts kept, layers as a band.

  Args:
    ax: where.
    rows: all.
    group: how units are grouped.
  """
  n = chosen_n(rows)
  for rule, (label, style) in RULES.items():
    found = of_layers(rows, group, n, rule)
    k, values = [*found], np.array([*found.values()])
    ax.plot(k, values.mean(axis=1), label=label, **style)
    if rule == 'norm':
      ax.fill_between(k, values.min(axis=1), values.max(axis=1), alpha=0.15)
  ax.set(
    xlabel='experts kept',
    ylabel='error of the output [share of its length]',
    ylim=(0, 1),
    title=f'{n} groups of hidden units: {group}',
  )
  ax.legend(fontsize='small')


def plot_cosines(ax: Axes, rows: list[Row]) -> None:
  """Density of the cosines of pairs, and that of random directions.

  Args:
    ax: where.
    rows: all.
  """
  n = chosen_n(rows)
  for group, line in LINES.items():
    own = [r for r in rows if r.get('group') == group and r['n'] == n]
    texts = [row['density'] for row in own if 'cosine' in row]
    density = np.mean([np.array(t.split(), float) for t in texts], axis=0)
    at = (np.arange(len(density)) + 0.5) * 2 / len(density) - 1
    size = _mean(rows, group, n, 'cosine')
    ax.plot(at, density, line, label=f'{group}: RMS {size:.2f}')
  width = _width(rows)
  x = np.linspace(-0.999, 0.999, 400)
  law = beta((width - 1) / 2, (width - 1) / 2, loc=-1, scale=2)
  label = f'random in {width} dimensions: RMS {width**-0.5:.2f}'
  ax.plot(x, law.pdf(x), color='tab:gray', linewidth=1, label=label)
  ax.set(
    xlabel='cosine of two vectors of a token',
    ylabel='density',
    title=f'how orthogonal {n} vectors are',
  )
  ax.legend(fontsize='small')


def plot_experts(ax: Axes, rows: list[Row]) -> None:
  """Error against the number of groups, a quarter of them kept.

  Args:
    ax: where.
    rows: all.
  """
  sizes = sorted({row['n'] for row in rows if 'group' in row})
  for group, line in LINES.items():
    for rule in ('random', 'router', 'norm'):
      label, style = RULES[rule]
      values = [of_layers(rows, group, n, rule)[n // 4] for n in sizes]
      ax.plot(
        sizes,
        np.mean(values, axis=1),
        line,
        color=style['color'],
        marker='.',
        label=f'{label}, {group}',
      )
  ax.set_xscale('log', base=2)
  ax.set_xticks(sizes, [str(n) for n in sizes])
  ax.set(
    xlabel='groups of hidden units',
    ylabel='error of the output [share of its length]',
    ylim=(0, 1),
    title='a quarter of the experts kept',
  )
  ax.legend(fontsize='small', ncols=2)


def plot_runs(ax: Axes, rows: list[Row], column: str) -> None:
  """Training of each kind of experts, seeds as a band.

  Args:
    ax: where.
    rows: all.
    column: "loss" or "violation", of batches.
  """
  found = tuned_runs(rows)
  training = _training(rows)
  for kind, seeds in found.items():
    rate = training[kind]['learning_rate']
    band(ax, seeds, column, label=f'{kind}: learning rate {rate:g}')
  label, title = {
    'loss': ('training loss [nats a byte]', 'experts of a transformer'),
    'violation': ('MaxVio of a batch', 'balance by the bias, rms rule'),
  }[column]
  ax.set(xlabel='steps', ylabel=label, title=title)
  ax.legend(fontsize='small')
