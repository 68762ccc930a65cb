r"""How far each decomposition is from the best approximation of its rank.

Paper: Su, articles 10407 (SVD), 10501 (ID) and 10662 (CUR) on low-rank
approximation; Halko, Martinsson and Tropp, arXiv 0909.4061; Osinsky, arXiv
2308.09068. The article on ID shows that its error is "only a little" above that
of the SVD.

What should be seen: with two power iterations the randomized SVD is at the
optimum whatever the spectrum; columns of the matrix itself cost a factor of one
to two, columns and rows a little more, much less than the guarantees; the core
of the intersection alone is worse. Osinsky's choice is the best where the
spectrum falls, and nothing tells the choices apart where it is flat.

How: every method in float32, the error in float64 over that of the exact SVD,
on matrices of four spectra with random singular vectors; on images, a column
each; and on the weights of a trained transformer (MiniLM, where it is
installed). Bands: range over keys. Below: the guarantees beside what was
measured; power iterations normalised in several ways (scikit-learn's names);
tolerances asked for and delivered by `adaptive_range`.

Expected: 1 for the SVDs, 1 to 2 for ID, 1 to 3 for CUR. Cost on two CPU cores:
quick 1 minute, full 4 minutes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np

from ..checks import require, require_one_of
from ..lowrank import (
  adaptive_range,
  cur,
  interpolative,
  randomized_svd,
)
from ..training.data import DataUnavailable, best_images, load, load_weights
from . import lowrank_panels
from .checked import CheckedConfig
from .comparison import by_run
from .session import Session, session

MOSAIC = [
  ['fast', 'slow', 'step'],
  ['noise', 'images', 'weights'],
  ['bounds', 'power', 'tolerance'],
]
SHAPE = (784, 384)  # Of all but the images, if these are smaller.
WEIGHT = 'encoder.layer.0.intermediate.dense.weight'
TITLES = {
  'fast': r'$s_j = 10^{-(j - 1) / 30}$',
  'slow': r'$s_j = 1 / j$',
  'step': r'$s_j = 1$ for 20, then $10^{-2}$',
  'noise': 'rank 20 and noise of a tenth',
  'images': '{}, an image a column',
  'weights': 'MiniLM, an up-projection',
}
SVDS = {
  'SVD, q = 0': dict(power_iterations=0),
  'SVD, q = 1': dict(power_iterations=1),
  'SVD, q = 2': dict(power_iterations=2),
  'SVD, single pass': dict(single_pass=True),
}
IDS = ('pivoted_qr', 'randomized', 'strong_rrqr', 'osinsky')
CURS = ('pivoted_qr', 'leverage', 'deim', 'maxvol', 'osinsky')
LINES = ('-', '--', '-.', ':', (0, (1, 4)), (0, (5, 4)))
FIXED = ('ID, pivoted_qr', 'ID, strong_rrqr', 'CUR, pivoted_qr')


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is decomposed.

  Args:
    ranks: of the decompositions, ascending.
    keys: of sketches and samples, for the bands.
    images: a set of images, `auto` for the best one there is.
    weights: 'minilm', 'none', or `auto` for the former where it is installed.
    tolerances: asked of `adaptive_range`, relative to the Frobenius norm.
    power: most power iterations of the panel on normalisation.
  """

  ranks: tuple[int, ...] = (5, 20)
  keys: int = 3
  images: str = 'auto'
  weights: str = 'auto'
  tolerances: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)
  power: int = 4

  @classmethod
  def full(cls) -> 'Config':
    """More ranks, tolerances and keys."""
    return cls(
      ranks=(5, 10, 20, 40, 60, 80),
      keys=5,
      tolerances=(0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005),
      power=8,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    largest = min(SHAPE) // 2
    good = bool(self.ranks) and all(1 <= r <= largest for r in self.ranks)
    good = good and list(self.ranks) == sorted(set(self.ranks))
    expected = f'ascending ranks of 1 to {largest}'
    require(good, 'config.ranks', self.ranks, expected)
    good = bool(self.tolerances) and all(0 < x < 1 for x in self.tolerances)
    require(good, 'config.tolerances', self.tolerances, 'numbers in (0, 1)')
    require(self.keys >= 1, 'config.keys', self.keys, '1 or more')
    require(self.power >= 1, 'config.power', self.power, '1 or more')
    require_one_of('config.weights', self.weights, ('auto', 'minilm', 'none'))
    _images(self, data_dir)
    _weights(self)


def _images(c: Config, data_dir) -> tuple[str, np.ndarray]:
  """Name, and an image a column; as many as a matrix has."""
  name = best_images(data_dir) if c.images == 'auto' else c.images
  images = load(name, data_dir=data_dir).train
  require(isinstance(images, dict), 'config.images', name, 'a set of images')
  found = images['image'][: SHAPE[1]]
  return name, found.reshape(len(found), -1).T / 255.0


def _weights(c: Config) -> np.ndarray | None:
  """Rows of a weight, `None` where `auto` finds none."""
  if c.weights == 'none':
    return None
  try:
    return load_weights('minilm')[WEIGHT][: SHAPE[0]]
  except DataUnavailable:
    if c.weights == 'auto':
      return None
    raise


def _spectra() -> dict[str, np.ndarray]:
  j = np.arange(SHAPE[1])
  return {
    'fast': 10.0 ** -(j / 30),
    'slow': 1 / (j + 1),
    'step': np.where(j < 20, 1.0, 0.01),
  }


def _matrices(c: Config, data_dir) -> dict[str, tuple[str, np.ndarray]]:
  """Title and float32 matrix by panel."""
  rng = np.random.default_rng(0)
  m, n = SHAPE
  u = np.linalg.qr(rng.standard_normal((m, n)))[0]
  v = np.linalg.qr(rng.standard_normal((n, n)))[0]
  found = {name: (u * s) @ v.T for name, s in _spectra().items()}
  noise = rng.standard_normal((m, n)) / np.sqrt(m)
  found['noise'] = u[:, :20] @ v[:, :20].T + 0.1 * noise
  titles = dict(TITLES)
  name, found['images'] = _images(c, data_dir)
  titles['images'] = titles['images'].format(name)
  weights = _weights(c)
  if weights is not None:
    found['weights'] = weights
  return {k: (titles[k], x.astype(np.float32)) for k, x in found.items()}


@functools.cache
def _methods() -> dict[str, Callable]:
  """`method(a, rank, key)` -> the approximation, by name."""

  def product(found):
    return found[0] * found[1] @ found[2]

  def columns(a, found):
    return a[:, found.indices] @ found.coefficients

  methods = {
    name: lambda a, rank, key, o=options: product(
      randomized_svd(a, rank, key=key, **o)
    )
    for name, options in SVDS.items()
  }
  for name in IDS:
    methods[f'ID, {name}'] = lambda a, rank, key, n=name: columns(
      a, interpolative(a, rank, method=n, key=key)
    )
  for name, core in [*((n, 'optimal') for n in CURS), ('osinsky', '')]:
    label = f'CUR, {name}' if core else 'CUR, osinsky, intersection'

    def decompose(a, rank, key, name=name, core=core or 'intersection'):
      _, _, c, u, r = cur(a, rank, method=name, core=core, key=key)
      return c @ u @ r

    methods[label] = decompose
  jit = functools.partial(jax.jit, static_argnames='rank')
  return {name: jit(method) for name, method in methods.items()}


def _errors(c: Config, panel, name, title, a, key) -> Iterable[dict]:
  """Error over optimum of a method on a matrix, by rank."""
  exact = a.astype(np.float64)
  s = np.linalg.svd(exact, compute_uv=False)
  keys = 1 if name in FIXED else c.keys
  for rank in c.ranks:
    if rank > len(s) // 2:
      continue
    optimum = np.linalg.norm(s[rank:])
    ratios = []
    for i in range(keys):
      found = _methods()[name](a, rank, jax.random.fold_in(key, i))
      ratios.append(np.linalg.norm(exact - np.asarray(found)) / optimum)
    yield {
      'matrix': panel,
      'title': title,
      'method': name,
      'rank': rank,
      'optimum': optimum / np.linalg.norm(s),
      'ratio': np.mean(ratios),
      'ratio_min': np.min(ratios),
      'ratio_max': np.max(ratios),
    }


def _powers(c: Config, a, rank, key) -> Iterable[dict]:
  """Error over optimum against power iterations, by normalisation."""
  from sklearn.utils.extmath import randomized_svd as peer

  exact = a.astype(np.float64)
  optimum = np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[rank:])
  ours = jax.jit(
    functools.partial(randomized_svd, rank=rank),
    static_argnames='power_iterations',
  )
  for q in range(c.power + 1):
    found = {'kexue': ours(a, power_iterations=q, key=key)}
    for name in lowrank_panels.NORMALIZERS:
      options = dict(power_iteration_normalizer=name, random_state=0)
      found[name] = peer(a, rank, n_iter=q, **options)
    for name, (u, s, vh) in found.items():
      gap = exact - np.asarray(u) * np.asarray(s) @ np.asarray(vh)
      ratio = np.linalg.norm(gap) / optimum
      yield {'normalizer': name, 'iterations': q, 'ratio': ratio}


def _delivered(c: Config, panel, title, a, key) -> Iterable[dict]:
  """What `adaptive_range` gives for the tolerances, and what rank it takes."""
  exact = a.astype(np.float64)
  s = np.linalg.svd(exact, compute_uv=False)
  tails = np.sqrt(np.cumsum(s[::-1] ** 2)[::-1]) / np.linalg.norm(s)
  basis = jax.jit(adaptive_range, static_argnames='max_rank')
  for rtol in c.tolerances:
    found = basis(a, rtol=rtol, max_rank=min(a.shape), key=key)
    q = np.asarray(found.q, np.float64)
    error = np.linalg.norm(exact - q @ (q.T @ exact)) / np.linalg.norm(s)
    yield {
      'tolerance_of': panel,
      'title': title,
      'rtol': rtol,
      'delivered': error,
      'rank': int(found.rank),
      'optimal_rank': int(np.sum(tails > rtol)),
    }


def _total_steps(c: Config, panels: int) -> int:
  """Decompositions by rank, for the progress bar."""
  return len(c.ranks) * len(_methods()) * panels


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Decomposes what is missing and returns the rows."""
  del parallel  # One matrix at a time.
  c = config
  matrices = _matrices(c, data_dir)
  with session(workdir, key, _total_steps(c, len(matrices))) as launch:
    for panel, (title, a) in matrices.items():
      for name in _methods():
        _record(c, launch, panel, title, a, name)
      rows = lambda panel=panel, title=title, a=a: _delivered(
        c, panel, title, a, key
      )
      launch.record(f'tolerance-{panel}', len(c.tolerances), rows)
    count = (len(lowrank_panels.NORMALIZERS) + 1) * (c.power + 1)
    rank = c.ranks[-1]
    rows = lambda: _powers(c, matrices['fast'][1], rank, key)
    launch.record('power', count, rows)
  return launch.records.rows


def _record(c: Config, launch: Session, panel, title, a, name) -> None:
  """One method on one matrix, at every rank."""
  ranks = sum(r <= min(a.shape) // 2 for r in c.ranks)
  label = f'{panel}-{name}'
  rows = lambda: _errors(c, panel, name, title, a, launch.key)
  launch.record(label, ranks, rows)
  launch.progress.advance(len(c.ranks), label)


def _styles() -> dict[str, dict]:
  """A colour for each family, a line for each member."""
  styles, seen = {}, dict.fromkeys(lowrank_panels.FAMILIES, 0)
  for name in _methods():
    family = name.split(',')[0]
    styles[name] = dict(
      color=lowrank_panels.FAMILIES[family], linestyle=LINES[seen[family]]
    )
    seen[family] += 1
  return styles


def _numbers(runs: dict) -> dict:
  """Largest mean ratio of each method on each matrix, and the tolerances."""
  ratios: dict[str, dict[str, float]] = {}
  for rows in runs.values():
    if 'method' in rows[0] and rows[0]['method']:
      matrix = ratios.setdefault(rows[0]['method'], {})
      matrix[rows[0]['matrix']] = max(row['ratio'] for row in rows)
  require(bool(ratios), 'records', 'none of a method', 'errors of methods')
  asked = [r for rows in runs.values() for r in rows if r.get('rtol')]
  power = runs.get('power', [])
  return {
    'largest_ratio': ratios,
    'delivered_over_tolerance': max(r['delivered'] / r['rtol'] for r in asked),
    'rank_over_optimal': float(
      np.mean([r['rank'] / max(1, r['optimal_rank']) for r in asked])
    ),
    'after_most_power_iterations': {
      r['normalizer']: r['ratio']
      for r in power
      if r['iterations'] == max(x['iterations'] for x in power)
    },
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the nine panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  numbers = _numbers(runs)
  styles = _styles()
  for panel in TITLES:
    lowrank_panels.ratios(runs, panel, styles, axes[panel])
  lowrank_panels.bounds(runs, axes['bounds'])
  lowrank_panels.power(runs['power'], axes['power'])
  lowrank_panels.tolerance(runs, TITLES, axes['tolerance'])
  figure = axes['fast'].figure
  handles, labels = axes['fast'].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=5)
  worst = numbers['largest_ratio']
  largest = lambda name: max(worst[name].values())
  figure.suptitle(
    'Error over the optimum of the rank, worst over matrices and ranks: '
    f'randomized SVD with q = 2 {largest("SVD, q = 2"):.3f}, ID '
    f'{largest("ID, osinsky"):.2f}, CUR {largest("CUR, osinsky"):.2f} '
    '(both by Osinsky)'
  )
  return numbers
