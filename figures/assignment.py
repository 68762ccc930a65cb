r"""How good a solver of the assignment problem the loss-free bias is.

Paper: Su, articles 10757, whose closing remark says that loss-free balancing
solves an assignment problem, and 11619, which solves its dual by quantiles;
Jonker and Volgenant, 1987. As many tokens as experts, one each: the classical
problem, to which SciPy knows the optimum.

What should be seen (1024 rows, three draws; random costs, points of a square,
images to images): 256 turns of a bias bring the bound of the dual from 17, 49
and 7 % below the optimum to 0.003 to 0.015, 21 to 28 and 0.2 to 1.2 %. Sign and
RMS, at tuned rates that fall to a hundredth, are level with quantiles, which
have none, for random costs, and behind for the others. But a bias is no
assignment: a greedy one made of it is 20 to 130, 34 to 41 and 4 to 8 % too
dear, where rows that are nearly indifferent choose the same column. Shortest
augmenting paths (`settle`) from the same bias are exact, after any number of
turns, which is why `balanced_assignment` is made of both: that is the algorithm
of Jonker and Volgenant with another start. Eight turns leave 5 to 13 % of the
rows to paths, not 28 to 37 %, and that is what they are for: 16.8 ms with them
for random costs, 32.9 without and 46.2 by SciPy, which has the same paths; 46,
65 and 83 ms for images, 87, 100 and 77 for points, where paths are long. Below
256 rows calls of a fraction of a millisecond are several times slower than
SciPy's.

What is not reproduced: that the bias solves the problem by itself, but for
random costs up to 128 rows, of which few are nearly indifferent.

How: costs are reduced by their rows' and columns' minima, which all rules get.
The range over draws is a band. Times are those of the faster of two calls, on
the CPU, compiled before. Gaps below 1e-5 are drawn there.

Expected: a gap of zero after paths, up to rounding. Cost on two CPU cores:
quick 1 minute, full 4 minutes.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from ..checks import require
from ..models import code_counts, update_bias
from ..models.assignment import least_two, settle, turn_bias
from ..training.data import best_images, load
from ..training.records import Row
from .assignment_panels import (
  plot_gaps,
  plot_rounded,
  plot_times,
  plot_turns,
  results,
)
from .checked import CheckedConfig
from .session import Session, session

MOSAIC = [
  ['dual_uniform', 'dual_points', 'dual_images'],
  ['rounded', 'time', 'turns'],
]
PROBLEMS = ('uniform', 'points', 'images')
# Those that move by a rate are tuned over it.
RULES = ('sign', 'rms', 'quantile', 'middle')
WITH_RATE = ('sign', 'rms')
_LAST = 0.01  # Of the rate over the first; between them it falls geometrically.
_REPEATS = 2  # Of which the faster is the time.


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is assigned.

  Args:
    dataset: images to be matched; "auto": the best that is there.
    sizes: rows and columns, ascending.
    turns: of the bias, ascending; 0, for none, is added.
    rates: at first, over the mean of the reduced costs over n.
    draws: of each problem.
  """

  dataset: str = 'auto'
  sizes: tuple[int, ...] = (32, 64, 128, 256)
  turns: tuple[int, ...] = (1, 8, 64, 256)
  rates: tuple[float, ...] = (0.3, 1.0, 3.0)
  draws: int = 2

  @classmethod
  def full(cls) -> 'Config':
    """More sizes, turns and draws."""
    return cls(
      sizes=(32, 64, 128, 256, 512, 1024),
      turns=(1, 4, 8, 16, 64, 256),
      draws=3,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name, least in (('sizes', 2), ('turns', 1)):
      values = getattr(self, name)
      rising = [*values] == sorted({*values})
      good = lambda x, rising=rising, least=least: rising and x >= least
      self.require_every(name, good, f'{least} or more, ascending')
    self.require_every('rates', lambda x: x > 0, 'positive numbers')
    self.require_every('draws', lambda x: x >= 1, '1 or more')
    number = len(self.images(data_dir))
    most = number // (2 * self.draws)
    fit = lambda x: x <= most
    self.require_every('sizes', fit, f'{most} at most, of {number} images')

  def resolved(self, data_dir: str | None = None) -> str:
    """The name of the data set, "auto" looked up."""
    return best_images(data_dir) if self.dataset == 'auto' else self.dataset

  def images(self, data_dir: str | None = None) -> np.ndarray:
    """Bytes [N, H, W, C]."""
    split = load(self.resolved(data_dir), data_dir=data_dir).train
    good = isinstance(split, dict) and 'image' in split
    require(good, 'config.dataset', self.dataset, 'a set of images')
    return split['image']


def costs(problem: str, n: int, draw: int, images: np.ndarray) -> np.ndarray:
  """A cost matrix, float32 [n, n].

  Args:
    problem: "uniform", numbers in (0, 1); "points", distances of points in the
      unit square; "images", squared distances a pixel.
    n: of rows and columns.
    draw: number of the draw.
    images: bytes [N, ...]; a draw takes 2 n of them, in their order.
  """
  rng = np.random.default_rng([PROBLEMS.index(problem), n, draw])
  if problem == 'uniform':
    return rng.random((n, n), np.float32)
  if problem == 'points':
    a, b = rng.random((2, n, 2))
    return np.linalg.norm(a[:, None] - b, axis=-1).astype(np.float32)
  own = images[2 * n * draw : 2 * n * (draw + 1)].reshape(2 * n, -1) / 255.0
  a, b = own[:n], own[n:]
  squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)
  return ((squares - 2 * a @ b.T) / a.shape[1]).astype(np.float32)


def quantile_turn(cost: jax.Array, bias: jax.Array) -> jax.Array:
  """`quantile_bias` for one token an expert, of scores -cost, by minima.

  >>> print(quantile_turn(jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.zeros(2)))
  [-0.5  1.5]
  """
  alpha = sum(least_two(cost - bias, 1)) / 2
  return least_two(cost - alpha[:, None], 0)[1]


@functools.partial(jax.jit, static_argnames='rule')
def turned(
  cost: jax.Array, steps: jax.Array, rate: jax.Array, rule: str
) -> jax.Array:
  """The bias [n] after some turns from zero.

  Args:
    cost: of `reduced`, [n, n].
    steps: turns.
    rate: the first one of "sign" and "rms", which falls to a hundredth.
    rule: of `RULES`.
  """
  n = len(cost)

  def turn(i, bias):
    if rule == 'middle':
      return turn_bias(cost, bias)
    if rule == 'quantile':
      return quantile_turn(cost, bias)
    values = cost - bias
    chosen = values == jnp.min(values, axis=1, keepdims=True)
    load = code_counts(jnp.argmax(chosen, axis=1), n)
    now = rate * _LAST ** (i / steps)
    return update_bias(bias, load, rate=now, rule=rule)

  return jax.lax.fori_loop(0, steps, turn, jnp.zeros_like(cost[0]))


def rounded(cost: np.ndarray, bias: np.ndarray) -> np.ndarray:
  """The permutation that a bias suggests: one row after the other chooses.

  Args:
    cost: [n, n].
    bias: [n]; the row that would lose most by its second choice comes first.

  Returns:
    Column of each row [n].

  Example:
    >>> rounded(np.array([[0.0, 1.0], [0.0, 3.0]]), np.zeros(2)).tolist()
    [1, 0]
  """
  values = cost - bias
  two = np.partition(values, 1, axis=1)
  columns = np.zeros(len(cost), int)
  for row in np.argsort(two[:, 0] - two[:, 1], kind='stable'):
    columns[row] = np.argmin(values[row])
    values[:, columns[row]] = np.inf
  return columns


_settled = jax.jit(settle)


def _seconds(work: Callable[[], object]) -> float:
  """Of the fastest call; it has to be compiled."""
  seconds = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(work())
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def _total(cost: np.ndarray, columns: np.ndarray) -> float:
  """Of an assignment, in float64; it has to be a permutation."""
  n = len(cost)
  if sorted(columns) != [*range(n)]:
    raise AssertionError('not a permutation')
  return float(np.float64(cost)[np.arange(n), columns].sum())


def measured(cost: np.ndarray, rule: str, steps: int, rate: float) -> Row:
  """What a rule has reached after some turns, and what is left to paths.

  Args:
    cost: [n, n], float32.
    rule: of `RULES`.
    steps: turns; 0: none.
    rate: over the mean of the reduced costs over n.

  Returns:
    Over the optimum: `dual_gap`, by how much the bound of the dual is below,
    `rounded_gap`, by how much the permutation of `rounded` is above, and
    `exact_gap`, that of `settle`. `own`: share of columns chosen. `paths`,
    `scanned`: of `settle`. `turn_seconds` and `path_seconds`.
  """
  n = len(cost)
  matrix = cost - cost.min(axis=1, keepdims=True)
  matrix -= matrix.min(axis=0)
  turn = lambda: turned(matrix, steps, rate * matrix.mean() / n, rule)
  bias = turn() if steps else jnp.zeros(n)
  found = _settled(matrix, bias)
  optimum = _total(cost, linear_sum_assignment(cost)[1])
  b = np.float64(bias)
  values = np.float64(matrix) - b
  least = _total(matrix, linear_sum_assignment(matrix)[1])
  above = lambda columns: (_total(cost, columns) - optimum) / optimum
  return {
    'dual_gap': (least - values.min(axis=1).sum() - b.sum()) / optimum,
    'rounded_gap': above(rounded(matrix, b)),
    'exact_gap': above(np.asarray(found.columns)),
    'own': len({*values.argmin(axis=1)}) / n,
    'paths': int(found.paths),
    'scanned': int(found.scanned),
    'turn_seconds': _seconds(turn) if steps else 0.0,
    'path_seconds': _seconds(lambda: _settled(matrix, bias)),
  }


def _rows(c: Config, launch: Session, cost: np.ndarray) -> Iterator[Row]:
  """Every rule, rate and number of turns on one matrix, and SciPy."""
  seconds = _seconds(lambda: linear_sum_assignment(cost))
  yield {'rule': 'scipy', 'path_seconds': seconds}
  for rule, steps, rate in _settings(c):
    yield {
      'rule': rule,
      'turns': steps,
      'rate': rate,
      **measured(cost, rule, steps, rate),
    }
    launch.progress.advance(1, f'{rule}, {steps} turns, n = {len(cost)}')


def _settings(c: Config) -> list[tuple[str, int, float]]:
  """Rule, turns and rate; no turns are those of any rule."""
  return [('none', 0, 0.0)] + [
    (rule, steps, rate)
    for rule in RULES
    for rate in (c.rates if rule in WITH_RATE else (0.0,))
    for steps in c.turns
  ]


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Solves every problem of every size and returns the rows."""
  del parallel  # One matrix at a time.
  c, dataset = config, config.resolved(data_dir)
  images = config.images(data_dir)
  places = [*itertools.product(c.sizes, PROBLEMS, range(c.draws))]
  settings = len(_settings(c))
  with session(workdir, key, len(places) * settings) as launch:
    for n, problem, draw in places:
      about = {'problem': problem, 'n': n, 'draw': draw, 'dataset': dataset}
      cost = costs(problem, n, draw, images)
      launch.record(
        f'{problem}-n{n}-d{draw}',
        settings + 1,
        lambda about=about, cost=cost: (
          {**about, **row} for row in _rows(c, launch, cost)
        ),
      )
  return launch.records.rows


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  for problem in PROBLEMS:
    plot_gaps(axes[f'dual_{problem}'], rows, problem)
  plot_rounded(axes['rounded'], rows)
  plot_times(axes['time'], numbers)
  plot_turns(axes['turns'], rows)
  axes['time'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """Gap, and times at the largest size."""
  few = numbers['few_turns']
  said = []
  for problem, table in numbers['table'].items():
    n = max(table)
    ms = lambda name, row=table[n]: f'{row[name]["mean"]:.3g}'
    said.append(
      f'{problem} {ms("few_turns_ms")} ms ({ms("paths_alone_ms")} without '
      f'turns, SciPy {ms("scipy_ms")})'
    )
  return (
    f'{few} turns of the bias, then shortest augmenting paths: gap '
    f'{numbers["largest_exact_gap"]:.0e} at most; n = {n}:\n{", ".join(said)}'
  )
