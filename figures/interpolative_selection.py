r"""Which columns tell a matrix: coefficients, error and time of the choices.

Paper: Su, article 10501, whose tables compare the largest coefficient, the
error and the time of "Optim-RID" (4 r columns by chance, pivoted QR among them;
arXiv 2105.07076) with SciPy's decomposition and find the former better on all
but a few coefficients; Osinsky, arXiv 2308.09068; Gu and Eisenstat, SIAM J.
Sci. Comput. 17, 1996.

What should be seen: columns drawn by chance, by norms or by leverage are behind
everywhere, by orders of magnitude on a smooth kernel, where neighbours repeat
each other. Optim-RID is a little behind SciPy here, in error and coefficients
(the paper finds it ahead in error): pivots among 4 r columns are what it saves
time by. SciPy's two are the same columns on all of these matrices. Osinsky's
choice has a quarter to a third less error where singular values fall fast and
up to a twentieth more where they fall slowly; its coefficients are not bounded,
and pass 3 where terms are sparse. Kahan's matrix: the error of pivoted QR grows
exponentially with n, a sketch helps its pivots by chance alone, strong RRQR and
Osinsky's stay well within sqrt(1 + r (n - r)). Strong RRQR holds coefficients
at its threshold, after a few swaps.

How: 256 x 240 matrices at rank 30 in float64: Haar vectors with two spectra, a
Gaussian kernel of random points, sparse rank-one terms, columns of images and
of MiniLM's weights where installed; draws of columns or sketches by seed. Times
are the least of some runs, after compilation, on a matrix of known singular
values. Dots: medians, whiskers: range over seeds.

Expected: sqrt(1 + r (n - r)) = 9.5 at n = 90; Osinsky's error a quarter below
SciPy's on the fast spectrum, at 1/6 of the time for 4000 x 3000. Cost on two
CPU cores: quick 1 minute, full 4 minutes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..lowrank import strong_rrqr
from .checked import CheckedConfig
from .column_choices import BASELINES, OURS, Choice, choose, fit
from .column_matrices import haar, kahan, matrices, spectra
from .interpolative_panels import (
  kinds,
  median,
  of,
  plot_article,
  plot_kahan,
  plot_selectors,
  plot_threshold,
  plot_time,
)
from .session import Session, session

MOSAIC = [['error', 'coefficient', 'time'], ['article', 'kahan', 'threshold']]
RANK = 30
THRESHOLDS = (1.001, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is decomposed.

  Args:
    seeds: of matrices, draws and sketches.
    images: a set of images, `auto` for the best one there is.
    weights: 'minilm', 'none', or `auto` for the former where it is installed.
    shape: of the matrices on which time is measured.
    rank: of these.
    repeats: of a measurement of time.
    sizes: of Kahan's matrices.
  """

  seeds: int = 3
  images: str = 'auto'
  weights: str = 'auto'
  shape: tuple[int, int] = (1000, 800)
  rank: int = 50
  repeats: int = 3
  sizes: tuple[int, ...] = (30, 90)

  @classmethod
  def full(cls) -> 'Config':
    """Time at the size of the library's targets, more seeds and sizes."""
    return cls(
      seeds=20,
      shape=(4000, 3000),
      repeats=5,
      sizes=(10, 20, 30, 40, 50, 60, 70, 80, 90),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('seeds', 'repeats'):
      value = getattr(self, name)
      require(value >= 1, f'config.{name}', value, '1 or more')
    good = len(self.shape) == 2 and min(self.shape) >= 100
    require(good, 'config.shape', self.shape, 'two numbers of 100 or more')
    most = min(self.shape) // 5
    good = 1 <= self.rank <= most
    require(good, 'config.rank', self.rank, f'1 to {most}')
    good = bool(self.sizes) and all(5 <= n <= 90 for n in self.sizes)
    require(good, 'config.sizes', self.sizes, 'sizes of 5 to 90')
    matrices(self.images, self.weights, data_dir)


def _projection_error(a: np.ndarray, indices) -> float:
  """Frobenius norm of what columns leave, to the last digit."""
  q, _ = np.linalg.qr(a[:, np.asarray(indices)])
  left = a - q @ (q.T @ a)
  return float(np.linalg.norm(left - q @ (q.T @ left)))


def _quality(a: np.ndarray, choice: Choice, optimum: float) -> dict:
  return {
    'error': _projection_error(a, choice.indices) / optimum,
    'coefficient': float(np.abs(choice.coefficients).max()),
  }


def _optimum(a: np.ndarray) -> float:
  return np.linalg.norm(np.linalg.svd(a, compute_uv=False)[RANK:])


def _compare(c: Config, kind: str, make: Callable) -> Iterable[dict]:
  """Error and coefficients of all selectors on a kind of matrix, by seed."""
  for seed in range(c.seeds):
    a = make(np.random.default_rng(seed))
    optimum = _optimum(a)
    for name in (*OURS, *BASELINES):
      choice = choose(name, a, RANK, seed)
      tags = {'matrix': kind, 'selector': name, 'seed': seed}
      yield tags | _quality(a, choice, optimum)


def _clock(c: Config, spectrum: str, s, names) -> Iterable[dict]:
  """Seconds of selectors on a large matrix, and of their first call."""
  a = haar(np.random.default_rng(0), c.shape, s)
  on_device = jnp.asarray(a)
  for name in names:
    operand = a if name in BASELINES else on_device
    seconds = []
    for _ in range(c.repeats + 1):
      start = time.perf_counter()
      choice = choose(name, operand, c.rank, 0)
      seconds.append(time.perf_counter() - start)
    yield {
      'spectrum': spectrum,
      'shape': '{} x {}'.format(*c.shape),
      'selector': name,
      'first_seconds': seconds[0],
      'seconds_of_one': min(seconds[1:]),
      **_quality(a, choice, np.linalg.norm(s[c.rank :])),
    }


def _on_kahan(n: int) -> Iterable[dict]:
  a = kahan(n)
  optimum = np.linalg.svd(a, compute_uv=False)[-1]
  for name in OURS:
    choice = choose(name, a, n - 1, 0)
    yield {'size': n, 'selector': name, **_quality(a, choice, optimum)}


def _by_threshold(c: Config, kind: str, make: Callable) -> Iterable[dict]:
  """Swaps, coefficients and error of strong RRQR, means over seeds."""
  for threshold in THRESHOLDS:
    swaps, qualities = [], []
    for seed in range(c.seeds):
      a = make(np.random.default_rng(seed))
      found = strong_rrqr(a, RANK, threshold=threshold)
      swaps.append(int(found.swaps))
      choice = fit(a, np.asarray(found.indices))
      qualities.append(_quality(a, choice, _optimum(a)))
    yield {
      'kind': kind,
      'threshold': threshold,
      'swaps': np.mean(swaps),
      'largest_coefficient': max(q['coefficient'] for q in qualities),
      'mean_error': np.mean([q['error'] for q in qualities]),
    }


def _tasks(c: Config, data_dir) -> Iterable[tuple[str, int, Callable]]:
  """Label, number of rows and what computes them."""
  found = matrices(c.images, c.weights, data_dir)
  for kind, make in found.items():
    rows = functools.partial(_compare, c, kind, make)
    yield kind, c.seeds * len((*OURS, *BASELINES)), rows
  timed = [*OURS, 'SciPy-ID', 'SciPy-RID', 'Optim-RID']
  for spectrum, s in spectra(min(600, *c.shape)).items():
    rows = functools.partial(_clock, c, spectrum, s, timed)
    yield f'time-{spectrum}', len(timed), rows
  for n in c.sizes:
    yield f'kahan-{n}', len(OURS), functools.partial(_on_kahan, n)
  for kind in ('fast', 'kernel'):
    rows = functools.partial(_by_threshold, c, kind, found[kind])
    yield f'threshold-{kind}', len(THRESHOLDS), rows


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Decomposes what is missing, in double precision, and returns the rows."""
  del parallel  # One matrix at a time.
  tasks = [*_tasks(config, data_dir)]
  with session(workdir, key, len(tasks)) as launch:
    for label, count, rows in tasks:
      _record(launch, label, count, rows)
  return launch.records.rows


def _record(launch: Session, label: str, count: int, rows: Callable) -> None:
  def double():
    with jax.enable_x64(True):
      yield from rows()

  launch.record(label, count, double)
  launch.progress.advance(1, label)


def _speed(rows: list[dict], spectrum: str) -> dict:
  """Of selectors on a large matrix: speed and error relative to SciPy."""
  found = {row['selector']: row for row in of(rows, spectrum=spectrum)}
  peer = found['SciPy-RID']
  return {
    name: {
      'seconds': row['seconds_of_one'],
      'times_as_fast_as_scipy': peer['seconds_of_one'] / row['seconds_of_one'],
      'error_over_scipy': row['error'] / peer['error'],
      'error_over_optimum': row['error'],
    }
    for name, row in found.items()
  }


def _numbers(rows: list[dict]) -> dict:
  """Medians by selector and kind, speeds, Kahan's errors and swaps."""
  names = kinds(rows)
  require(bool(names), 'records', 'none of a matrix', 'rows of selectors')
  table = lambda column: {
    name: {
      kind: median(rows, column, matrix=kind, selector=name) for kind in names
    }
    for name in (*OURS, *BASELINES)
  }
  largest = max(row['size'] for row in rows if row.get('size'))
  by_chance = [row for row in rows if row.get('threshold')]
  return {
    'median_error_over_optimum': table('error'),
    'median_largest_coefficient': table('coefficient'),
    'large': {
      spectrum: _speed(rows, spectrum)
      for spectrum in dict.fromkeys(
        row['spectrum'] for row in rows if row.get('spectrum')
      )
    },
    'kahan': {row['selector']: row['error'] for row in of(rows, size=largest)},
    'kahan_size': largest,
    'kahan_guarantee': float(np.sqrt(largest)),
    'strong_rrqr_keeps_its_threshold': all(
      row['largest_coefficient'] <= row['threshold'] + 1e-6 for row in by_chance
    ),
    'swaps': {
      f'{row["kind"]}, f = {row["threshold"]:g}': row['swaps']
      for row in by_chance
    },
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  numbers = _numbers(rows)
  plot_selectors(rows, 'error', axes['error'])
  axes['error'].set(
    ylabel='error over optimum',
    title=f'projection error at rank {RANK}, range over seeds',
  )
  plot_selectors(rows, 'coefficient', axes['coefficient'])
  axes['coefficient'].set(ylabel='max |Z|', title='largest coefficient')
  axes['coefficient'].legend(
    fontsize='small', ncols=2, loc='upper right', columnspacing=1
  )
  plot_time(rows, axes['time'])
  plot_article(rows, numbers, axes['article'])
  plot_kahan(rows, axes['kahan'])
  plot_threshold(rows, axes['threshold'])
  ours = numbers['large']['fast']['osinsky']
  axes['error'].figure.suptitle(
    f"Osinsky's columns: {ours['times_as_fast_as_scipy']:.1f} times as fast as "
    f'SciPy, error {ours["error_over_scipy"] - 1:+.0%} where singular values '
    f'fall fast; on Kahan {numbers["kahan"]["osinsky"]:.1f} times the optimum, '
    f'pivoted QR {numbers["kahan"]["pivoted_qr"]:.0e}'
  )
  return numbers
