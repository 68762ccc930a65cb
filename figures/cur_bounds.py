"""CUR against its computable guarantees, and where its choices go wrong.

Paper: Sorensen and Embree, *A DEIM induced CUR factorization*, arXiv 1407.5516,
theorem 4.1: with k rows p and columns q the error is at most (eta_p + eta_q)
s_{k+1}, eta the norms of inverses of the chosen rows of singular vectors;
Mahoney and Drineas, PNAS 2009: O(k log k / eps^2) columns and rows sampled by
leverage are within 2 + eps of the optimum of rank k; Su, article 10662.

What should be seen: no error is above its own bound, and none far from the
optimum but that of leverage, which may sample copies; the bounds are several
times as large, and tell little of rows and columns that were not chosen for
them. On Kahan's matrix eta is 2e11 for DEIM, and 1.5 for Q-DEIM and maxvol.
The intersection is nearly as good as the optimal core if its rows are chosen
given the columns, and tens to hundreds of times worse if apart. Leverage is
within 2 of the optimum with k to 4 k columns and rows; uniform samples are as
good but where few columns matter.

How: `cur`, `deim_bound` and `cur_approximation` in float64 against the exact
SVD. Bands: range over seeds, which draw matrices, images, sketches and samples;
lines: geometric mean. The bound is sqrt(eta_p^2 + eta_q^2) s_{k+1}: the parts
of the error that come of columns and rows are orthogonal, so that it is up to
sqrt(2) below the paper's.

Expected: no error above its bound, 1.5 times the optimum for Osinsky's choice
and 1.7 to 2 for the others. Cost on two CPU cores: quick 1 minute, full 4
minutes.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np

from ..checks import require
from ..lowrank import (
  cur,
  cur_approximation,
  deim,
  deim_bound,
  leverage_rows,
  maximum_volume,
  q_deim,
)
from ..training.data import best_images, load
from .checked import CheckedConfig
from .comparison import Row, spread
from .session import session

MOSAIC = [['fast', 'kernel', 'images'], ['ratio', 'cross', 'leverage']]
METHODS = {
  'osinsky': 'tab:blue',
  'maxvol': 'tab:green',
  'q_deim': 'tab:red',
  'deim': 'tab:orange',
  'pivoted_qr': 'tab:purple',
  'leverage': 'tab:brown',
}
MATRICES = {
  'fast': r'random vectors, $s_j = 10^{-j/15}$',
  'slow': r'random vectors, $s_j = 1/j$',
  'kernel': r'$e^{-10 |x - y|}$ of clustered points',
  'images': 'images, one a row',
}
# The core that rows and columns are chosen for, and the one that is used.
CROSSES = {
  'optimal core': ('optimal', 'optimal'),
  'intersection, rows given columns': ('intersection', 'intersection'),
  'intersection, rows apart': ('optimal', 'intersection'),
}
COLORS = ('tab:blue', 'tab:green', 'tab:red')
CROSSED = {'slow': '-', 'images': '--'}
SAMPLERS = {'leverage': '-', 'uniform': '--'}
SAMPLED = ('slow', 'images', 'kernel')
MULTIPLES = (1, 2, 3, 4, 6, 8)
KAHAN = 90


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is decomposed.

  Args:
    images: a set of images, `auto` for the best one there is.
    rows: of every matrix; the columns are as many as pixels.
    ranks: of the decompositions, ascending.
    seeds: of matrices, sketches and samples.
    sampled_rank: k of the panel on leverage, which samples up to 8 k.
  """

  images: str = 'auto'
  rows: int = 256
  ranks: tuple[int, ...] = (5, 20)
  seeds: int = 3
  sampled_rank: int = 10

  @classmethod
  def full(cls) -> 'Config':
    """Larger matrices, more ranks and seeds."""
    return cls(rows=800, ranks=(5, 10, 20, 40, 80), seeds=4)

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('rows', 'seeds', 'sampled_rank'):
      value = getattr(self, name)
      require(value >= 1, f'config.{name}', value, '1 or more')
    _, images = _images(self, data_dir)
    most = len(images) // self.seeds
    require(self.rows <= most, 'config.rows', self.rows, f'up to {most}')
    smallest = min(self.rows, images.shape[1])
    allowed = {*self.ranks} & {*range(1, smallest // 2 + 1)}
    good = bool(allowed) and [*self.ranks] == sorted(allowed)
    expected = f'ascending ranks of 1 to {smallest // 2}'
    require(good, 'config.ranks', self.ranks, expected)
    k, most = self.sampled_rank, (smallest - 1) // MULTIPLES[-1]
    require(k <= most, 'config.sampled_rank', k, f'up to {most}')


def _images(c: Config, data_dir) -> tuple[str, np.ndarray]:
  """Name of the set, and [N, pixels]."""
  name = best_images(data_dir) if c.images == 'auto' else c.images
  data = load(name, data_dir=data_dir).train
  require(isinstance(data, dict), 'config.images', name, 'a set of images')
  images = data['image'][: c.rows * c.seeds]
  return name, images.reshape(len(images), -1).astype(np.float64)


def _matrix(c: Config, name: str, seed: int, images: np.ndarray) -> np.ndarray:
  """A matrix of largest singular value one."""
  rng = np.random.default_rng(seed)
  shape = c.rows, images.shape[1]
  if name == 'images':
    a = images[c.rows * seed : c.rows * (seed + 1)]
  elif name == 'kernel':  # Half of the points lie below an eighth.
    x, y = (rng.random(n)[:, None] ** 3 for n in shape)
    a = np.exp(-10 * np.abs(x - y.T))
  else:
    j = np.arange(min(shape))
    u, v = (np.linalg.qr(rng.normal(size=(x, len(j))))[0] for x in shape)
    s = 10.0 ** -(j / 15) if name == 'fast' else 1 / (j + 1)
    a = (u * s) @ v.T
  return a / np.linalg.norm(a, 2)


def _bounds(c: Config, a: np.ndarray, tags: dict, key) -> Iterable[Row]:
  """Error, bound and optimum in the spectral norm, by rank and method."""
  u, s, vh = np.linalg.svd(a, full_matrices=False)
  for rank in c.ranks:
    for method in METHODS:
      rows, columns, *_ = cur(a, rank, method=method, key=key)
      error = a - cur_approximation(a, rows, columns)
      bound = deim_bound(u[:, :rank], vh[:rank].T, rows, columns, s[rank])
      yield tags | {
        'rank': rank,
        'method': method,
        'error': np.linalg.norm(error, 2),
        'optimum': s[rank],
        'eta_rows': bound.eta_rows,
        'eta_columns': bound.eta_columns,
        'bound': bound.error,
      }


def _crosses(c: Config, a: np.ndarray, tags: dict, key) -> Iterable[Row]:
  """Frobenius errors over the optimum of both cores, by rank."""
  s = np.linalg.svd(a, compute_uv=False)
  for rank in c.ranks:
    for variant, (chosen_for, core) in CROSSES.items():
      rows, columns, *_ = cur(a, rank, core=chosen_for, key=key)
      near = cur_approximation(a, rows, columns, core=core)
      ratio = np.linalg.norm(a - near) / np.linalg.norm(s[rank:])
      yield tags | {'rank': rank, 'variant': variant, 'ratio': ratio}


def _samples(c: Config, a: np.ndarray, tags: dict, key) -> Iterable[Row]:
  """Frobenius error over the optimum of rank k, by columns and rows sampled."""
  k = c.sampled_rank
  u, s, vh = np.linalg.svd(a, full_matrices=False)
  bases = {
    'leverage': (u[:, :k], vh[:k].T),
    'uniform': [np.ones((x, 1)) for x in a.shape],
  }
  for multiple in MULTIPLES:
    keys = jax.random.split(jax.random.fold_in(key, multiple), 2)
    for sampler in SAMPLERS:
      pairs = zip(bases[sampler], keys, strict=True)
      found = [leverage_rows(x, multiple * k, key=one) for x, one in pairs]
      gap = np.linalg.norm(a - cur_approximation(a, *found))
      ratio = gap / np.linalg.norm(s[k:])
      yield tags | {'sampler': sampler, 'multiple': multiple, 'ratio': ratio}


def _kahan() -> Iterable[Row]:
  """Eta of the selectors on the singular vectors of Kahan's matrix."""
  s, c = np.sin(1.2), np.cos(1.2)
  upper = np.eye(KAHAN) - c * np.triu(np.ones((KAHAN, KAHAN)), 1)
  a = s ** np.arange(KAHAN)[:, None] * upper
  a += np.diag(25 * np.finfo(float).eps * np.arange(KAHAN, 0, -1))
  u, s, vh = np.linalg.svd(a)
  u, v = u[:, :-1], vh[:-1].T
  selectors = {'deim': deim, 'q_deim': q_deim, 'maxvol': maximum_volume}
  for method, select in selectors.items():
    bound = deim_bound(u, v, select(u), select(v), s[-1])
    yield {'kahan': method, 'eta_columns': bound.eta_columns}


def _records(c: Config, key, data_dir) -> Iterable[tuple]:
  """Label, number and thunk of the rows of each part."""
  source, images = _images(c, data_dir)
  parts = (
    ('bounds', _bounds, MATRICES, len(c.ranks) * len(METHODS)),
    ('cross', _crosses, CROSSED, len(c.ranks) * len(CROSSES)),
    ('sampled', _samples, SAMPLED, len(MULTIPLES) * len(SAMPLERS)),
  )
  for seed in range(c.seeds):
    for name in MATRICES:
      # Drawn only if one of the three is not recorded yet.
      matrix = functools.cache(
        lambda name=name, seed=seed: _matrix(c, name, seed, images)
      )
      for part, measure, names, count in parts:
        if name in names:
          tags = {'part': part, 'matrix': name, 'seed': seed}
          tags['source'] = source if name == 'images' else 'drawn'
          one = jax.random.fold_in(key, seed)
          rows = lambda f=measure, a=matrix, t=tags, k=one: f(c, a(), t, k)
          yield f'{part}-{name}-{seed}', count, rows
  yield 'kahan', 3, _kahan


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Decomposes what is missing and returns the rows."""
  del parallel  # One matrix at a time.
  parts = [*_records(config, key, data_dir)]
  steps = sum(count for _, count, _ in parts)
  with jax.enable_x64(True), session(workdir, key, steps) as launch:
    for label, count, rows in parts:
      launch.record(label, count, rows)
      launch.progress.advance(count, label)
  return launch.records.rows


def _of(rows: list[Row], **wanted) -> list[Row]:
  """Rows with these values; refuses to draw without any."""
  found = [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]
  require(bool(found), 'records', f'none of {wanted}', 'some rows')
  return found


def _by(rows: list[Row], x: str, y: str) -> tuple[list, np.ndarray]:
  """Values of `x`, and [3, n] geometric mean, least and most of `y`."""
  groups: dict = {}
  for row in rows:
    groups.setdefault(row[x], []).append(row[y])
  measures = (lambda v: np.exp(np.mean(np.log(v))), min, max)
  table = [[f(v) for v in groups.values()] for f in measures]
  return [*groups], np.array(table)


def _numbers(rows: list[Row]) -> dict:
  """Errors over bounds, the pitfall of the intersection, and leverage."""
  bounds = _of(rows, part='bounds')
  etas = lambda r: r['eta_rows'] + r['eta_columns']
  paper = lambda r: r['error'] / (etas(r) * r['optimum'])
  over = lambda column: {
    method: spread([r['error'] / r[column] for r in _of(bounds, method=method)])
    for method in METHODS
  }
  largest = lambda **of: max(r['ratio'] for r in _of(rows, **of))
  return {
    'largest_error_over_bound': max(r['error'] / r['bound'] for r in bounds),
    'largest_error_over_that_of_paper': max(map(paper, bounds)),
    'error_over_bound': over('bound'),
    'error_over_optimum': over('optimum'),
    'largest_cross_over_optimum': {
      variant: largest(part='cross', variant=variant) for variant in CROSSES
    },
    'largest_leverage_over_optimum': {
      m: largest(part='sampled', sampler='leverage', multiple=m)
      for m in MULTIPLES
    },
    'eta_of_kahan': {
      r['kahan']: r['eta_columns'] for r in _of(rows, run='kahan')
    },
  }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  numbers = _numbers(rows)
  bounds = _of(rows, part='bounds')
  for name in ('fast', 'kernel', 'images'):
    _plot_errors(_of(bounds, matrix=name), axes[name])
    axes[name].set_title(MATRICES[name])
  source = _of(bounds, matrix='images')[0]['source']
  axes['images'].set_title(f'{source}, an image a row')
  axes['fast'].legend(fontsize='small', ncols=2, loc='lower left')
  _plot_ratio(bounds, axes['ratio'])
  _plot_cross(_of(rows, part='cross'), axes['cross'])
  _plot_leverage(_of(rows, part='sampled'), axes['leverage'])
  _, given, apart = numbers['largest_cross_over_optimum'].values()
  axes['fast'].figure.suptitle(
    'The error of CUR is at most '
    f'{numbers["largest_error_over_bound"]:.2f} of its bound; an intersection '
    f'is within {given:.1f} of the optimum if its rows are chosen given the '
    f'columns, and {apart:.0f} if apart; eta of DEIM on '
    f"Kahan's matrix: {numbers['eta_of_kahan']['deim']:.0e}"
  )
  return numbers


def _band(ax, found, **style) -> None:
  """Mean and range of `_by`."""
  x, (mean, low, high) = found
  (line,) = ax.plot(x, mean, marker='.', **style)
  color = line.get_color()
  ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _rank_axis(ax, ranks, **labels) -> None:
  ax.set(xscale='log', yscale='log', xlabel='rank k', **labels)
  ax.set_xticks(ranks, ranks)
  ax.set_xticks([], minor=True)


def _plot_errors(rows, ax):
  """Errors, their bounds, and the optimum, over the rank."""
  for method, color in METHODS.items():
    of = _of(rows, method=method)
    _band(ax, _by(of, 'rank', 'error'), color=color, label=method)
    ranks, (bound, _, _) = _by(of, 'rank', 'bound')
    ax.plot(ranks, bound, '--', color=color, linewidth=1)
  ranks, (optimum, _, _) = _by(rows, 'rank', 'optimum')
  ax.plot(ranks, optimum, 'k', linewidth=2, label='optimum')
  style = dict(color='gray', linewidth=1, label='bound of each')
  ax.plot([], [], '--', **style)
  # Room for a legend; some bounds leave.
  limits = dict(ylim=(optimum[-1] / 30, 50))
  _rank_axis(ax, ranks, ylabel=r'$\|M - C U R\|_2 \, / \, s_1$', **limits)


def _plot_ratio(rows, ax):
  """Error over bound by matrix; all ranks and seeds."""
  rows = [{**r, 'share': r['error'] / r['bound']} for r in rows]
  for i, (method, color) in enumerate(METHODS.items()):
    found = _by(_of(rows, method=method), 'matrix', 'share')
    names, (mean, low, high) = found
    x = np.arange(len(names)) + 0.12 * (i - (len(METHODS) - 1) / 2)
    style = dict(fmt='o', color=color, capsize=3, label=method)
    ax.errorbar(x, mean, [mean - low, high - mean], **style)
  ax.axhline(1, color='black', label='bound')
  ax.set_xticks(range(len(names)), names)
  ax.set(
    yscale='log',
    ylim=(1e-6, 3),  # Rows that are copies leave it.
    ylabel='error / bound',
    title='how much of its bound an error takes (range: ranks, seeds)',
  )
  ax.legend(fontsize='small', ncols=2, loc='lower left')


def _plot_cross(rows, ax):
  """Errors of both cores, and of rows chosen apart."""
  for name, line in CROSSED.items():
    for variant, color in zip(CROSSES, COLORS, strict=True):
      found = _by(_of(rows, matrix=name, variant=variant), 'rank', 'ratio')
      label = variant if line == '-' else None
      _band(ax, found, color=color, linestyle=line, label=label)
    ax.plot([], [], line, color='gray', label=MATRICES[name])
  ylabel = 'Frobenius error / optimum'
  _rank_axis(ax, found[0], ylabel=ylabel)
  ax.set_title('osinsky: optimal core and intersection')
  ax.legend(fontsize='small')


def _plot_leverage(rows, ax):
  """Error over the optimum of rank k, of more columns and rows than k."""
  for name, color in zip(SAMPLED, COLORS, strict=True):
    for sampler, line in SAMPLERS.items():
      found = _by(_of(rows, matrix=name, sampler=sampler), 'multiple', 'ratio')
      label = MATRICES[name] if line == '-' else None
      _band(ax, found, color=color, linestyle=line, label=label)
  for sampler, line in SAMPLERS.items():
    ax.plot([], [], line, color='gray', label=f'sampled by {sampler}')
  ax.axhline(2, color='black', linestyle=':', label='2, of 2 + eps')
  ax.set_xticks(MULTIPLES, [f'{m} k' for m in MULTIPLES])
  ax.set(
    yscale='log',
    xlabel='columns, and rows, that are sampled',
    ylabel='Frobenius error / optimum of rank k',
    title='more columns and rows than the rank k',
  )
  ax.legend(fontsize='small', loc='lower left')
