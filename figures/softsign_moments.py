r"""The moments of SoftSign: exact, as the articles approximate them, drawn.

Papers: Su, articles 10563 and 11280. An update u = x / sqrt(x^2 + eps^2) of a
noisy gradient x ~ N(g, sigma^2 / B) has moments that the articles replace by
those of a clipped line, or by a SoftSign of their own; from these they conclude
how the best learning rate depends on the batch size.

What should be seen: draws on the curves of the quadrature, and the
approximations off by up to 0.25 (clip), 0.11 (10563) and 0.08 (11280) in the
mean, by 0.43, 0.31 and 0.24 in the second moment, all of them above it. On
the example of four parameters, the learning rate overshoots its value at large
batches: by 15 % for the sign, *more* for a small epsilon, and not at all for a
large one. The mean field has it gone where 3 % are left.

How: x / sigma with a = g sqrt(B) / sigma and b = eps sqrt(B) / sigma on a grid,
`samples` draws for each pair, common to all. The example is g = (1, 0.5, -0.25,
0.8), sigma = (2, 4, 1, 3), H = diag(1, 2, 0.5, 1.5) + 2 v v^T with v = (1, 1,
-1, 1), noise independent.

Expected: no draw further from the quadrature than chance, |z| < 5. Cost on two
CPU cores: quick 10 seconds, full 1 minute.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from ..optimizers import softsign
from ..scaling import sign_optimal_lr, softsign_moments
from .checked import CheckedConfig
from .comparison import Row, by_run, select
from .session import session

MOSAIC = [
  ['mean', 'mean_error', 'curve'],
  ['second', 'second_error', 'overshoot'],
]
# Labels and colors by the methods of `softsign_moments`.
METHODS = {
  'quadrature': ('exact', 'black'),
  'clip': ('clip, 10563', 'tab:green'),
  'softsign': ('softsign, 10563', 'tab:orange'),
  'mean_field': ('mean field, 11280', 'tab:blue'),
}
LARGE = 1e9  # A batch without noise.
DRAWN = 1 << 16  # Draws at a time.


def example() -> dict[str, jax.Array]:
  """Gradient, noise and Hessian of four parameters.

  >>> sorted(example())
  ['gradient', 'hessian', 'noise_std']
  """
  v = jnp.array([1.0, 1.0, -1.0, 1.0])
  return {
    'gradient': jnp.array([1.0, 0.5, -0.25, 0.8]),
    'noise_std': jnp.array([2.0, 4.0, 1.0, 3.0]),
    'hessian': jnp.diag(jnp.array([1.0, 2.0, 0.5, 1.5])) + 2 * jnp.outer(v, v),
  }


@dataclasses.dataclass
class Config(CheckedConfig):
  """What is computed.

  Args:
    points: of `a`, from 0 to 6.
    b: every epsilon, in deviations of the gradient.
    samples: draws at each pair, a multiple of 65,536.
    eps: every epsilon of the example, ascending.
    batch_sizes: of its curves.
  """

  points: int = 13
  b: tuple[float, ...] = (0.1, 1.0, 3.0)
  samples: int = 4 * DRAWN
  eps: tuple[float, ...] = (0.0, 0.1, 0.4, 0.8, 1.6)
  batch_sizes: tuple[float, ...] = tuple(2.0**i for i in range(-2, 15))

  @classmethod
  def full(cls) -> 'Config':
    """More points, epsilons and sixteen times the draws."""
    return cls(
      points=49,
      b=(0.01, 0.1, 0.5, 1.0, 3.0, 10.0),
      samples=64 * DRAWN,
      eps=(0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 3.2),
      batch_sizes=tuple(2.0 ** (i / 2) for i in range(-8, 32)),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    del data_dir
    self.require_every('points', lambda x: x >= 2, '2 or more')
    for name in ('b', 'batch_sizes'):
      self.require_every(name, lambda x: x > 0, 'positive numbers')
    self.require_every('eps', lambda x: x >= 0, 'numbers of 0 or more')
    good = lambda x: x >= DRAWN and x % DRAWN == 0
    self.require_every('samples', good, f'a multiple of {DRAWN}')


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Computes both tables and returns a row for each of their points."""
  del parallel, data_dir
  c = config
  with session(workdir, key, len(c.b) + len(c.eps)) as launch:
    for b in c.b:
      launch.record(f'moments-{b:g}', c.points, lambda b=b: _moments(c, b, key))
      launch.progress.advance(1, f'b = {b:g}')
    for eps in c.eps:
      count = len(c.batch_sizes) + 1
      launch.record(f'example-{eps:g}', count, lambda eps=eps: _curve(c, eps))
      launch.progress.advance(1, f'epsilon = {eps:g}')
  return launch.records.rows


def _draw(key: jax.Array, a: jax.Array, b: float, samples: int) -> jax.Array:
  """Means [3, points] of u, u^2 and u^4, which give the errors of both."""

  def add(total, i):
    noise = jax.random.normal(jax.random.fold_in(key, i), (DRAWN,))
    u = softsign(a[:, None] + noise, b)
    powers = jnp.stack([jnp.mean(u**p, axis=1) for p in (1, 2, 4)])
    return total + powers, None

  parts = samples // DRAWN
  zeros = jnp.zeros((3, len(a)))
  return jax.lax.scan(add, zeros, jnp.arange(parts))[0] / parts


@jax.enable_x64(True)
def _moments(c: Config, b: float, key: jax.Array) -> list[Row]:
  """Every method and the draws at one epsilon, which in float32 differ."""
  a = jnp.linspace(0.0, 6.0, c.points)
  mean, square, fourth = map(
    np.float64, jax.jit(_draw, static_argnums=3)(key, a, b, c.samples)
  )
  # A rare draw that did not come is worth as much as one in all of them.
  error = lambda variance: np.hypot(
    np.sqrt(np.maximum(variance, 0) / c.samples), 1 / c.samples
  )
  columns = {
    'drawn_mean': mean,
    'drawn_second': square,
    'error_mean': error(square - mean**2),
    'error_second': error(fourth - square**2),
  }
  for method in METHODS:
    moments = softsign_moments(a, 1.0, b, 1, method=method)
    for name, values in zip(('mean', 'second'), moments, strict=True):
      columns[f'{method}_{name}'] = values
  columns = {name: np.asarray(x).tolist() for name, x in columns.items()}
  return [
    {'b': b, 'a': float(at)} | {name: x[i] for name, x in columns.items()}
    for i, at in enumerate(a)
  ]


def _curve(c: Config, eps: float) -> Iterable[Row]:
  """Learning rates of the example, at last for a batch without noise."""
  batches = jnp.array([*c.batch_sizes, LARGE])
  columns = {
    method: sign_optimal_lr(batches, eps=eps, method=method, **example())
    for method in ('exact', 'mean_field')
  }
  for i, batch in enumerate(batches):
    row = {name: float(values[i]) for name, values in columns.items()}
    yield {'eps': eps, 'batch_size': float(batch)} | row


def _numbers(rows: list[Row]) -> dict:
  """How far the draws are from the exact curves, and those from the others."""
  drawn = [row for row in rows if 'b' in row]
  z = [
    abs(row[f'drawn_{m}'] - row[f'quadrature_{m}']) / row[f'error_{m}']
    for row in drawn
    for m in ('mean', 'second')
  ]
  off = lambda method, m: max(
    abs(row[f'{method}_{m}'] - row[f'quadrature_{m}']) for row in drawn
  )
  return {
    'largest_z': max(z),
    'compared': len(z),
    'largest_error': {
      method: {m: off(method, m) for m in ('mean', 'second')}
      for method in METHODS
      if method != 'quadrature'
    },
    'overshoot_by_eps': {
      f'{eps:g}': {
        name: max(r[name] for r in rows) / rows[-1][name] - 1
        for name in ('exact', 'mean_field')
      }
      for eps, rows in _curves(rows)
    },
  }


def _curves(rows: list[Row]) -> list[tuple[float, list[Row]]]:
  """Rows of the example by epsilon, ascending."""
  runs = [r for r in by_run(rows).values() if 'eps' in r[0]]
  return sorted((rows[0]['eps'], rows) for rows in runs)


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  numbers, runs = _numbers(rows), by_run(rows)
  every = sorted({row['b'] for row in rows if 'b' in row})
  for name, symbol in (('mean', 'E[u]'), ('second', 'E[u^2]')):
    _plot_moments(axes[name], runs, every, name, symbol)
    _plot_errors(axes[f'{name}_error'], runs, every, name, symbol)
  _plot_curves(axes['curve'], _curves(rows))
  _plot_overshoot(axes['overshoot'], numbers['overshoot_by_eps'])
  axes['mean'].figure.suptitle(
    f'draws against the exact moments: |z| < {numbers["largest_z"]:.1f} in '
    f'{numbers["compared"]} comparisons'
  )
  return numbers


def _colors(values: list) -> list[str]:
  return [f'C{i}' for i in range(len(values))]


def _plot_moments(ax: Axes, runs, every, name: str, symbol: str) -> None:
  """Curves of the quadrature, and what was drawn."""
  for b, color in zip(every, _colors(every), strict=True):
    (rows,) = select(runs, b=b)
    a = [row['a'] for row in rows]
    exact = [row[f'quadrature_{name}'] for row in rows]
    ax.plot(a, exact, color=color, label=f'b = {b:g}')
    drawn = [row[f'drawn_{name}'] for row in rows]
    ax.plot(a, drawn, '.', color=color)
  ax.plot([], [], '.', color='gray', label='drawn')
  ax.set(
    xlabel='a = g sqrt(B) / sigma', ylabel=symbol, title=f'{symbol}, exact'
  )
  ax.legend(fontsize='small')


def _plot_errors(ax: Axes, runs, every, name: str, symbol: str) -> None:
  """Approximations less the exact moment: the range over every b."""
  for method, (label, color) in METHODS.items():
    if method == 'quadrature':
      continue
    errors = np.array(
      [
        [row[f'{method}_{name}'] - row[f'quadrature_{name}'] for row in rows]
        for b in every
        for rows in select(runs, b=b)
      ]
    )
    a = [row['a'] for row in select(runs, b=every[0])[0]]
    ax.fill_between(a, errors.min(0), errors.max(0), color=color, alpha=0.2)
    ax.plot(a, errors.min(0), color=color, label=label)
    ax.plot(a, errors.max(0), color=color)
  ax.axhline(0, color='black', linewidth=0.5)
  ax.set(
    xlabel='a = g sqrt(B) / sigma',
    ylabel=f'approximation less {symbol}',
    title=f'{symbol}: error of the articles, range over b',
  )
  ax.legend(fontsize='small')


def _plot_curves(ax: Axes, curves: list[tuple[float, list[Row]]]) -> None:
  """Learning rates over that of a batch without noise."""
  shown = curves[:: max(1, len(curves) // 4)]
  for (eps, rows), color in zip(shown, _colors(shown), strict=True):
    batches = [row['batch_size'] for row in rows[:-1]]
    for name, style in (('exact', '-'), ('mean_field', '--')):
      values = [row[name] / rows[-1][name] for row in rows[:-1]]
      label = f'epsilon = {eps:g}' if name == 'exact' else None
      ax.plot(batches, values, style, color=color, label=label)
  ax.plot([], [], '--', color='gray', label='mean field')
  ax.axhline(1, color='black', linewidth=0.5)
  ax.set_xscale('log', base=2)
  ax.set(
    xlabel='batch size [examples]',
    ylabel='best learning rate over that without noise',
    title='the example: a surge that epsilon takes away',
  )
  ax.legend(fontsize='small')


def _plot_overshoot(ax: Axes, overshoots: dict) -> None:
  """How far the learning rate rises above its limit."""
  eps = [float(name) for name in overshoots]
  for name, style in (('exact', 'o-'), ('mean_field', 's--')):
    values = [100 * at[name] for at in overshoots.values()]
    ax.plot(eps, values, style, label=name.replace('_', ' '))
  ax.set_xscale('symlog', linthresh=0.003)
  ax.set(
    xlabel='epsilon',
    ylabel='largest learning rate over its limit, less 1 [%]',
    title='overshoot of the example',
  )
  ax.legend(fontsize='small')
