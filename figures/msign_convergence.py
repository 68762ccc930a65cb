"""Newton-Schulz towards the matrix sign, and whether its accuracy matters.

Paper: Amsel et al., *The Polar Express*, arXiv 2505.16932, whose error falls
fastest for a given number of matrix products, while that of Keller Jordan's
coefficients stays at about 0.3; on GPT-2 Large Muon ends at a loss of 3.398
with them and at 3.340 with Polar Express. Su's and You's: article 10922.

What should be seen: the largest error over singular values in [1e-3, 1] of the
scalar iteration, with the float32 products on it: Keller's stays near 0.3,
You's near 0.01, Su's five diverge once the last of them is repeated, Polar
Express is below 1e-3 after eight steps; the same order on the momenta of a
transformer; final losses of Muon with five steps of each set. What was not seen
is the paper's order of the losses: at this size Keller's is the lowest, and
only the classic coefficients, which leave small singular values small, are far
behind.

How: `newton_schulz` after 1, 2, ... steps against the SVD in float64, on a
matrix whose singular values are spread over [1e-3, 1] of its Frobenius norm, on
Gaussian ones, and on every momentum half way through a run of Muon. A step is
three products. The theory is p_k(s) at the singular values. Muon with each set
is tuned over the same learning rates.

Expected: 0.32 and below 1e-3. Cost on two CPU cores: quick 1.5 minutes, full 5
minutes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
import optax

from ..checks import require
from ..optimizers import (
  NEWTON_SCHULZ_COEFFICIENTS,
  muon,
  newton_schulz,
)
from ..training import init_state, make_step, parallelize
from ..training.loop import fit
from ..training.schedules import schedule
from .comparison import by_run, grid, select, spread, tuned
from .language_model import Task, TaskConfig
from .panels import bowl, final_losses, rate_axis
from .session import Session, session

MOSAIC = [['sup', 'maps', 'momentum'], ['gaussian', 'grid', 'loss']]
SETS = tuple(NEWTON_SCHULZ_COEFFICIENTS)
LOWER = 1e-3  # The smallest singular value that Polar Express aims at.
PAPER_PLATEAU = 0.3
PAPER_GAIN = 0.058  # 3.398 with Keller's coefficients less 3.340.
BINS = np.geomspace(1e-5, 1, 41)
FAR = 10.0  # A singular value that diverged; entries are cut off there too.
COLORS = {
  'classic': 'gray',
  'keller': 'tab:orange',
  'you': 'tab:green',
  'su': 'tab:red',
  'polar_express': 'tab:blue',
}
SOURCES = {
  'momentum': 'momenta of Muon half way through training',
  'square': 'Gaussian, square',
  'wide': 'Gaussian, four times as wide as high',
}


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure iterates and trains.

  Args:
    iterations: largest number of Newton-Schulz steps whose error is measured.
    side: of the matrices that are drawn.
    matrices: Gaussian matrices of each shape.
    muon_iterations: Newton-Schulz steps of Muon.
  """

  steps: int = 150
  learning_rates: tuple[float, ...] = (0.064, 0.128, 0.256)
  log_points: int = 3
  iterations: int = 16
  side: int = 96
  seeds: int = 2
  matrices: int = 2
  muon_iterations: int = 5

  @classmethod
  def full(cls) -> 'Config':
    """Twice the width, three seeds, a wider grid."""
    return cls(
      width=64,
      steps=300,
      learning_rates=(0.016, 0.032, 0.064, 0.128),
      seeds=3,
      side=128,
      matrices=4,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    for name in ('matrices', 'muon_iterations'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('iterations', lambda x: x >= 8, '8 or more')
    self.require_every('side', lambda x: x >= 8, '8 or more')


def scalar_map(name: str, steps: int, s: np.ndarray) -> np.ndarray:
  """p_k(s): what `steps` iterations make of singular values."""
  table = NEWTON_SCHULZ_COEFFICIENTS[name]
  for i in range(steps):
    a, b, c = table[min(i, len(table) - 1)]  # The last triple repeats.
    s = np.clip(s * (a + s**2 * (b + c * s**2)), -FAR, FAR)
  return s


def sup_error(name: str, steps: int) -> float:
  """The largest |1 - p_k(s)| over s in [1e-3, 1].

  >>> round(sup_error('keller', 16), 2), sup_error('polar_express', 8) < 1e-3
  (0.32, True)
  """
  s = np.geomspace(LOWER, 1, 20_001)
  return float(np.max(np.abs(1 - scalar_map(name, steps, s))))


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Trains the sweep, measures errors and spectra, and returns the rows."""
  c = config
  with session(workdir, key, _total_steps(c)) as launch:
    task = c.task(data_dir)
    rate = _train_all(c, task, launch, parallel)
    _record_errors(c, launch, 'spread', lambda: _spread_spectrum(c.side))
    for source, aspect in (('square', 1), ('wide', 4)):
      draw = functools.partial(_gaussian, c.matrices, c.side, aspect)
      _record_errors(c, launch, source, draw)
    # Trained only if one of the two is not recorded yet.
    momenta = functools.cache(lambda: _momenta(c, task, launch, rate, parallel))
    _record_errors(c, launch, 'momentum', momenta)
    launch.record('spectrum', len(BINS) - 1, lambda: _histogram(momenta()))
  return launch.records.rows


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  runs = len(SETS) * (len(c.learning_rates) + c.seeds - 1)
  return runs * c.steps + c.steps // 2


def _muon(task: Task, name: str, iterations: int, rate, decay):
  """Muon with a set of coefficients."""
  return muon(
    rate,
    weight_decay=decay,
    coefficients=name,
    steps=iterations,
    dimension_numbers=task.model.dimension_numbers,
  )


def _train_all(c: Config, task: Task, launch: Session, parallel) -> float:
  """Tunes Muon with every set; returns the learning rate of Keller's."""
  best = {}
  for name in SETS:
    sweep = c.sweep(
      task,
      functools.partial(_muon, task, name, c.muon_iterations),
      name,
      parallel=parallel,
      tags={'iterations': c.muon_iterations},
    )
    best[name] = sweep.tune(
      launch, c.learning_rates, seeds=c.seeds, weight_decay=c.weight_decay
    )
  return best['keller']['learning_rate']


def _momenta(c: Config, task: Task, launch: Session, rate, parallel) -> list:
  """Momentum matrices half way through a run with Keller's coefficients."""
  shape = schedule('cosine', steps=c.steps, warmup=c.steps // 10)
  optimizer = _muon(
    task,
    'keller',
    c.muon_iterations,
    lambda count: rate * shape(count),
    c.weight_decay,
  )
  state = fit(
    parallelize(make_step(task.loss, optimizer), parallel),
    init_state(task.init(launch.key), optimizer),
    task.batches(launch.key),
    launch.key,
    steps=c.steps // 2,
    log_every=c.steps // 2,
    label='momentum',
    progress=launch.progress,
    stop=launch.stop,
  )
  momentum = optax.tree.get(state.opt_state, 'momentum')
  return [np.asarray(x[0]) for x in task.matrices(momentum).values()]


def _spread_spectrum(side: int) -> list[np.ndarray]:
  """A matrix of Frobenius norm one, singular values even in log from 1e-3."""
  random = np.random.default_rng(0)
  u, v = np.linalg.qr(random.normal(size=(2, side, side)))[0]
  s = np.geomspace(LOWER, 2 / side**0.5, side)
  s[-1] = np.sqrt(1 - np.sum(s[:-1] ** 2))
  return [np.float32((u * s) @ v.T)]


def _gaussian(count: int, side: int, aspect: int) -> list[np.ndarray]:
  shape = (count, side, aspect * side)
  return [*np.float32(np.random.default_rng(0).normal(size=shape))]


def _decomposed(matrices: list[np.ndarray]) -> tuple[list, list]:
  """Signs U V^T, and singular values relative to the Frobenius norm."""
  parts = [np.linalg.svd(np.float64(x), full_matrices=False) for x in matrices]
  return [u @ v for u, _, v in parts], [
    s / np.linalg.norm(s) for _, s, _ in parts
  ]


def _record_errors(
  c: Config, launch: Session, source: str, matrices: Callable[[], list]
) -> None:
  """Errors of every set after every number of steps on some matrices."""
  for name in SETS:
    rows = lambda name=name: _errors(source, matrices(), name, c.iterations)
    launch.record(f'error-{source}-{name}', c.iterations, rows)


def _errors(source, matrices, name, iterations) -> Iterable[dict]:
  """Relative Frobenius and largest errors, with what p_k(s) predicts."""
  exact, spectra = _decomposed(matrices)
  approximate = jax.jit(
    lambda x, steps: newton_schulz(x, coefficients=name, steps=steps)
  )
  for steps in range(1, iterations + 1):
    found = [np.nan_to_num(approximate(x, steps), nan=FAR) for x in matrices]
    gaps = [
      np.clip(x, -FAR, FAR) - y for x, y in zip(found, exact, strict=True)
    ]
    size = [min(x.shape) ** 0.5 for x in matrices]  # Of their signs.
    errors = np.array([*map(np.linalg.norm, gaps)]) / size
    theory = [1 - scalar_map(name, steps, s) for s in spectra]
    yield {
      'source': source,
      'coefficients': name,
      'error': np.mean(errors),
      'error_min': np.min(errors),
      'error_max': np.max(errors),
      'theory': np.mean([np.sqrt(np.mean(gap**2)) for gap in theory]),
      'largest_error': max(np.linalg.norm(gap, 2) for gap in gaps),
    }


def _histogram(matrices) -> Iterable[dict]:
  """Share of the singular values, relative to the norm, in each bin."""
  values = np.concatenate(_decomposed(matrices)[1])
  counts, _ = np.histogram(np.clip(values, BINS[0], BINS[-1]), BINS)
  for left, right, count in zip(BINS, BINS[1:], counts, strict=False):
    yield {'left': left, 'right': right, 'share': count / len(values)}


def _measured(runs, source) -> dict[str, list[dict]]:
  """The rows of each set on the matrices of a source, by steps."""
  found = {n: select(runs, source=source, coefficients=n) for n in SETS}
  missing = [n for n in SETS if not found[n] or len(found[n][0]) < 8]
  require(not missing, 'records', f'no {missing} on {source}', '8 steps of it')
  return {n: found[n][0] for n in SETS}


def _numbers(runs: dict) -> dict:
  """Errors and their theory, and the losses of Muon with each set."""
  largest = {
    n: [row['largest_error'] for row in rows]
    for n, rows in _measured(runs, 'spread').items()
  }
  iterations = len(largest['keller'])
  best = {n: tuned(runs, optimizer=n) for n in SETS}
  loss = {n: spread([rows[-1]['val_loss'] for rows in best[n]]) for n in SETS}
  pairs = zip(best['keller'], best['polar_express'], strict=False)
  gain = spread([a[-1]['val_loss'] - b[-1]['val_loss'] for a, b in pairs])
  return {
    'keller_plateau': largest['keller'][-1],
    'keller_plateau_theory': sup_error('keller', iterations),
    'paper_keller_plateau': PAPER_PLATEAU,
    'polar_express_after_8': largest['polar_express'][7],
    'polar_express_after_8_theory': sup_error('polar_express', 8),
    'products_to_1e-3': {
      n: next((3 * k for k, e in enumerate(largest[n], 1) if e < 1e-3), None)
      for n in SETS
    },
    'error_on_momenta_after_5': {
      n: rows[4]['error'] for n, rows in _measured(runs, 'momentum').items()
    },
    'largest_ratio_to_theory': max(
      row['error'] / row['theory']
      for source in SOURCES
      for rows in _measured(runs, source).values()
      for row in rows
      if 1e-4 < row['theory'] < 1  # Not float32's rounding, not divergence.
    ),
    'iterations_of_muon': best['keller'][0][0]['iterations'],
    'optimum': {n: best[n][0][0]['learning_rate'] for n in SETS},
    'final_loss': loss,
    'gain_of_polar_express': gain,  # Seed by seed.
    'paper_gain_of_polar_express': PAPER_GAIN,
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  numbers = _numbers(runs)
  _plot_sup(_measured(runs, 'spread'), axes['sup'])
  _plot_maps(runs['spectrum'], axes['maps'])
  _plot_errors(runs, {'momentum': '-'}, axes['momentum'])
  _plot_errors(runs, {'square': '-', 'wide': '--'}, axes['gaussian'])
  _plot_grid(runs, axes['grid'])
  iterations = numbers['iterations_of_muon']
  title = f'Muon with {iterations} steps at its best rate, range over seeds'
  final_losses(axes['loss'], numbers['final_loss'], {}, title)
  gain = numbers['gain_of_polar_express']
  axes['sup'].figure.suptitle(
    f"Keller's error stays at {numbers['keller_plateau']:.2f} (paper: "
    f'{PAPER_PLATEAU}), Polar Express is at '
    f'{numbers["polar_express_after_8"]:.0e} after 8 steps; the loss of Muon '
    f'changes by {-gain["mean"]:+.3f} from Keller to it ({-gain["max"]:+.3f} '
    f'to {-gain["min"]:+.3f} over seeds; GPT-2 Large: {-PAPER_GAIN})'
  )
  return numbers


def _plot_sup(measured, ax):
  """Largest error over [1e-3, 1]: the scalar iteration, and float32."""
  for name, rows in measured.items():
    products = [3 * row['step'] for row in rows]
    theory = [sup_error(name, row['step']) for row in rows]
    found = [row['largest_error'] for row in rows]
    ax.plot(products, theory, color=COLORS[name], label=name)
    ax.plot(products, found, 'o', color=COLORS[name], markersize=4)
  ax.axhline(PAPER_PLATEAU, color='black', linestyle=':', label="paper's 0.3")
  ax.set(
    yscale='log',
    ylim=(1e-7, 2),  # Su's five leave it: the last one may not be repeated.
    xlabel='matrix products, 3 a step',
    ylabel='largest error of a singular value',
    title='lines: p(s) over [0.001, 1]; dots: a float32 matrix',
  )
  ax.legend(fontsize='small', loc='lower left')


def _plot_maps(spectrum, ax):
  """What five steps make of a singular value, and where momenta have theirs."""
  s = np.geomspace(BINS[0], 1, 1000)
  for name in SETS:
    ax.plot(s, scalar_map(name, 5, s), color=COLORS[name], label=name, lw=1)
  last = dict(color=COLORS['polar_express'], linestyle='--')
  ax.plot(s, scalar_map('polar_express', 8, s), label='the same, 8', **last)
  share = np.array([row['share'] for row in spectrum])
  bars = dict(fill=True, color='lightgray', label='share of momenta')
  ax.stairs(share / share.max() / 2, BINS, **bars)
  ax.set(
    xscale='log',
    xlabel='singular value / Frobenius norm',
    ylabel='singular value after 5 steps',
    ylim=(0, 1.75),  # Room for a legend.
    title="the maps, over the singular values of Muon's momenta",
  )
  ax.legend(fontsize='small', loc='upper left', ncols=2)


def _plot_errors(runs, styles, ax):
  """Relative errors on matrices, their range as a band, theory as dots."""
  for source, style in styles.items():
    for name, rows in _measured(runs, source).items():
      products = [3 * row['step'] for row in rows]
      mean, low, high, theory = (
        [row[key] for row in rows]
        for key in ('error', 'error_min', 'error_max', 'theory')
      )
      color = COLORS[name]
      ax.plot(products, mean, style, color=color)
      ax.fill_between(products, low, high, color=color, alpha=0.2, linewidth=0)
      ax.plot(products, theory, '.', color=color, markersize=4)
    ax.plot([], [], style, color='gray', label=SOURCES[source])
  ax.plot([], [], '.', color='gray', label='p(s) at their singular values')
  ax.set(
    yscale='log',
    ylim=(3e-7, 2),
    xlabel='matrix products, 3 a step',
    ylabel='relative Frobenius error',
    title='float32 against the exact sign, band: range over matrices',
  )
  ax.legend(fontsize='small', loc='lower left')


def _plot_grid(runs, ax):
  """The learning rate bowls of the first seed."""
  for name in SETS:
    points = grid(runs, optimizer=name)
    bowl(ax, points, color=COLORS[name], label=name)
  title = 'Muon, the same grid for all (star: optimum, hollow: at the edge)'
  rate_axis(ax, [rate for rate, _ in points], title)
  ax.legend(fontsize='small')
