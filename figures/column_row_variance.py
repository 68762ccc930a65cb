r"""Products from some columns and rows: measured errors against exact curves.

Paper: Drineas, Kannan and Mahoney, *Fast Monte Carlo algorithms for matrices
I*, SICOMP 36, 2006, lemma 4; Su, article 10427, which derives the optimal
sampling probabilities, the expected error and the weights of least error, for
the sake of faster products.

What should be seen: Monte Carlo on the exact curves, for every sampler that has
one, with slope -1 where draws are independent; without replacement less than
that, and systematic sampling, which has no closed form, about at the curve of
independent inclusion. How large the error is depends on the data. Terms of a
Gaussian product point every which way: at a twentieth of the terms the result
is more noise than signal, and no choice of them helps, for the best matrix of
that rank is no good either. Images are all alike to first order, and gradients
of a trained classifier come from few examples. Best weights help where few are
chosen. The time goes with the rank, less what finding the norms takes.

How: three products [p, l] @ [l, p] with p pixels: Gaussian with lognormal
column scales; second moments of images; the weight gradient of the second layer
of a perceptron, activations times what comes back, after a short training.
Errors of draws are :math:`\gamma^T H \gamma` with weights less one
:math:`\gamma` and the matrix `H` of inner products of terms, in float64. Times:
float32, compiled, interleaved with the full product.

Expected: 10 times faster at l / 20 and a relative error of 0.8 (largest norms)
to 3.5 (sampled) on Gaussian data. Cost on two CPU cores: quick 1 minute, full
4 minutes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..lowrank import (
  column_row,
  column_row_expected_error,
  column_row_matmul,
)
from ..training.data import best_images, load
from .comparison import by_run
from .session import session

MOSAIC = [['gaussian', 'images', 'gradient'], ['check', 'weights', 'speed']]
COLORS = {
  'uniform': 'tab:gray',
  'norm_iid': 'tab:orange',
  'bernoulli': 'tab:green',
  'norm_systematic': 'tab:blue',
  'top_norm': 'tab:red',
  'greedy': 'tab:purple',
}
CLOSED = ('norm_iid', 'uniform', 'bernoulli')  # With chance and a formula.
RANDOM = (*CLOSED, 'norm_systematic')
FIXED = ('top_norm', 'greedy')
REWEIGHTED = ('uniform', 'norm_iid', 'norm_systematic', *FIXED)
TITLES = {
  'gaussian': 'Gaussian, lognormal column scales',
  'images': '{}: second moments of pixels',
  'gradient': '{}: weight gradient of a trained layer',
}
MARKERS = {'gaussian': 'o', 'images': 's', 'gradient': '^'}
TIMED = (
  ('uniform', 'unbiased'),
  ('norm_systematic', 'unbiased'),
  ('top_norm', 'unbiased'),
  ('norm_systematic', 'optimal'),
)
CLASSES, BATCH = 10, 128


@dataclasses.dataclass
class Config:
  """What is multiplied, and how often.

  Args:
    images: a labelled set of images, `auto` for the best one there is.
    terms: of the products whose errors are sampled.
    ranks: of the choices, below `terms`.
    draws: of every sampler; a sixteenth with optimal weights.
    steps: of training before the gradient is taken.
    timed_shape: m, l, n of the product that is timed; images are fewer.
    timed_shares: of the terms of that product.
    repeats: of every timing.
  """

  images: str = 'auto'
  terms: int = 512
  ranks: tuple[int, ...] = (8, 64, 384)
  draws: int = 400
  steps: int = 100
  timed_shape: tuple[int, ...] = (1500, 4000, 1500)
  timed_shares: tuple[float, ...] = (0.05, 0.2)
  repeats: int = 5

  @classmethod
  def full(cls) -> 'Config':
    """Twice the terms, more of everything."""
    return cls(
      terms=1024,
      ranks=(8, 16, 32, 64, 128, 256, 512, 896),
      draws=1000,
      steps=300,
      timed_shares=(0.025, 0.05, 0.1, 0.2, 0.4),
      repeats=15,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    good = bool(self.ranks) and all(1 <= r < self.terms for r in self.ranks)
    expected = f'1 to {self.terms - 1}, ascending'
    good = good and list(self.ranks) == sorted(set(self.ranks))
    require(good, 'config.ranks', self.ranks, expected)
    good = len(self.timed_shape) == 3 and min(self.timed_shape) >= 20
    require(good, 'config.timed_shape', self.timed_shape, 'm, l, n of 20 or up')
    shares = self.timed_shares
    good = all(0 < share <= 1 for share in shares) and 0.05 in shares
    require(good, 'config.timed_shares', shares, 'in (0, 1], 0.05 among them')
    require(self.draws >= 32, 'config.draws', self.draws, '32 or more')
    for name in ('steps', 'repeats'):
      value = getattr(self, name)
      require(value >= 1, f'config.{name}', value, '1 or more')
    found = len(_images(self, data_dir)[1])
    require(found >= self.terms, 'config.terms', self.terms, f'<= {found}')


def _images(c: Config, data_dir) -> tuple[str, np.ndarray, np.ndarray]:
  """Name, images [N, p] in 0..1 and labels [N]."""
  name = best_images(data_dir) if c.images == 'auto' else c.images
  data = load(name, data_dir=data_dir).train
  labelled = isinstance(data, dict) and 'label' in data
  require(labelled, 'config.images', name, 'labelled images')
  pixels = data['image'].reshape(len(data['image']), -1)
  return name, np.float32(pixels / 255), data['label']


def _gaussian(m: int, l: int, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Factors whose terms differ in size and have nothing in common."""
  random = np.random.default_rng(0)
  x = random.normal(size=(m, l)) * np.exp(random.normal(size=l))
  return np.float32(x), np.float32(random.normal(size=(l, n)))


def _gradient(
  images: np.ndarray, labels: np.ndarray, steps: int, terms: int
) -> tuple[np.ndarray, np.ndarray]:
  """Activations [p, l] and what comes back [l, p] at the second of 3 layers."""
  pixels = images.shape[1]
  keys = jax.random.split(jax.random.key(0), 3)
  widths = (pixels, pixels, pixels, CLASSES)
  params = [
    jax.random.normal(key, (a, b)) * (2 / a) ** 0.5
    for key, a, b in zip(keys, widths, widths[1:], strict=False)
  ]

  def loss(params, images, labels, shift=0.0):
    hidden = jax.nn.relu(images @ params[0])
    logits = jax.nn.relu(hidden @ params[1] + shift) @ params[2]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(each), hidden

  optimizer = optax.adam(1e-3)

  @jax.jit
  def step(carry, start):
    params, state = carry
    at = (start * BATCH + jnp.arange(BATCH)) % len(images)
    take = lambda x: jnp.asarray(x)[at]
    gradient, _ = jax.grad(loss, has_aux=True)(
      params, take(images), take(labels)
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  carry = params, optimizer.init(params)
  for i in range(steps):
    carry = step(carry, i)
  # The gradient with respect to a shift of each example is what comes back.
  back, hidden = jax.grad(loss, argnums=3, has_aux=True)(
    carry[0], images[:terms], labels[:terms], jnp.zeros((terms, pixels))
  )
  return np.asarray(hidden).T, np.asarray(back)


def _products(c: Config, data_dir) -> dict[str, tuple[str, Callable]]:
  """Titles and thunks of the factors by name, made when they are needed."""
  name, images, labels = _images(c, data_dir)
  pixels, some = images.shape[1], images[: c.terms]
  makers = {
    'gaussian': lambda: _gaussian(pixels, c.terms, pixels),
    'images': lambda: (some.T, some),
    'gradient': lambda: _gradient(images, labels, c.steps, c.terms),
  }
  return {
    data: (TITLES[data].format(name), functools.cache(make))
    for data, make in makers.items()
  }


def _inner_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Of the terms, as vectors of length m n, in float64."""
  x, y = np.float64(x), np.float64(y)
  return (x.T @ x) * (y @ y.T)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _drawn(x, y, key, rank, method, weights, draws):
  """Weights of all terms [draws, l], zero for what is not chosen."""

  def one(key):
    found = column_row(x, y, rank, method=method, key=key, weights=weights)
    empty = jnp.zeros(x.shape[1], found.weights.dtype)
    return empty.at[found.indices].add(found.weights)

  return jax.vmap(one)(jax.random.split(key, draws))


def _theory(c: Config, data, x, y) -> Iterable[dict]:
  """Exact relative squared errors, and of the best matrix of the rank."""
  s = np.linalg.svd(np.float64(x) @ np.float64(y), compute_uv=False)
  for rank in c.ranks:
    exact = {
      method: column_row_expected_error(x, y, rank, method=method)
      for method in (*CLOSED, *FIXED)
    }
    exact = {m: float(error) / np.sum(s**2) for m, error in exact.items()}
    best = np.sum(s[rank:] ** 2) / np.sum(s**2)
    yield {'data': data, 'rank': rank, 'optimum': best, **exact}


def _measured(c: Config, data, x, y, key, method, weights) -> Iterable[dict]:
  """Mean relative squared error of the draws at every rank."""
  gram = _inner_products(x, y)
  for rank in c.ranks:
    draws = c.draws if weights == 'unbiased' else c.draws // 16
    draws = 1 if method in FIXED else draws
    found = _drawn(x, y, key, rank, method, weights, draws)
    missing = np.float64(found) - 1
    errors = np.sum((missing @ gram) * missing, axis=1) / gram.sum()
    yield {
      'data': data,
      'method': method,
      'weights': weights,
      'rank': rank,
      'draws': draws,
      'error': errors.mean(),
      'deviation': errors.std() / max(draws - 1, 1) ** 0.5,
    }


def _timings(c: Config, data, x, y, key) -> Iterable[dict]:
  """Seconds of the full product and of its approximations, interleaved."""
  x, y = jnp.asarray(x), jnp.asarray(y)
  terms = x.shape[1]
  calls = {('full', 'exact', terms): jax.jit(jnp.matmul)}
  for share in c.timed_shares:
    for method, weights in TIMED:
      rank = round(share * terms)
      calls[method, weights, rank] = functools.partial(
        jax.jit(
          column_row_matmul, static_argnames=('method', 'weights', 'rank')
        ),
        rank=rank,
        method=method,
        weights=weights,
        key=key,
      )
  results = {name: np.asarray(call(x, y)) for name, call in calls.items()}
  exact = results['full', 'exact', terms]
  seconds = {name: [] for name in calls}
  for _ in range(c.repeats):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call(x, y))
      seconds[name].append(time.perf_counter() - start)
  for method, weights, rank in calls:
    name = method, weights, rank
    gap = np.linalg.norm(results[name] - exact) / np.linalg.norm(exact)
    yield {
      'timed': data,
      'shape': ' x '.join(map(str, (x.shape[0], *y.shape))),
      'method': method,
      'weights': weights,
      'rank': rank,
      'share': rank / terms,
      'relative_error': gap,
      'seconds': np.min(seconds[name]),
      'median_seconds': np.median(seconds[name]),
    }


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Samples and times what is missing and returns the rows."""
  del parallel  # Every product runs on one device.
  c = config
  kinds = [
    *((m, 'unbiased') for m in COLORS),
    *((m, 'optimal') for m in REWEIGHTED),
  ]
  products = _products(c, data_dir)
  with session(workdir, key, len(products) * (len(kinds) + 1) + 2) as launch:

    def record(label, count, rows):
      launch.record(label, count, rows)
      launch.progress.advance(1, label)

    for data, (title, make) in products.items():
      rows = lambda data=data, make=make, title=title: (
        row | {'title': title} for row in _theory(c, data, *make())
      )
      record(f'theory-{data}', len(c.ranks), rows)
      for method, weights in kinds:
        rows = lambda data=data, make=make, how=(method, weights): _measured(
          c, data, *make(), key, *how
        )
        record(f'{data}-{method}-{weights}', len(c.ranks), rows)
    m, l, n = c.timed_shape
    images = _images(c, data_dir)[1][:l]
    timed = {
      'gaussian': lambda: _gaussian(m, l, n),
      'images': lambda: (images.T, images),
    }
    for data, make in timed.items():
      rows = lambda data=data, make=make: _timings(c, data, *make(), key)
      count = 1 + len(c.timed_shares) * len(TIMED)
      record(f'timing-{data}', count, rows)
  return launch.records.rows


def _checks(runs: dict) -> list[dict]:
  """Every mean of draws beside its exact value."""
  pairs = [
    (row, exact[method])
    for data in TITLES
    for method in CLOSED
    for row, exact in zip(
      runs[f'{data}-{method}-unbiased'], runs[f'theory-{data}'], strict=True
    )
  ]
  return [
    row
    | {
      'gap': row['error'] / exact - 1,
      'z': (row['error'] - exact) / row['deviation'],
      'bar': row['deviation'] / exact,
    }
    for row, exact in pairs
  ]


def _speed(runs: dict, data: str) -> list[dict]:
  """Timed rows with their speed-up over the full product."""
  full, *rows = runs[f'timing-{data}']
  return [
    row
    | {
      'speedup': full['seconds'] / row['seconds'],
      'median_speedup': full['median_seconds'] / row['median_seconds'],
    }
    for row in rows
  ]


def _ratio(runs: dict, data: str, method: str) -> list[float]:
  """Root mean squared errors with optimal weights over those without."""
  one, other = (
    [row['error'] for row in runs[f'{data}-{method}-{w}']]
    for w in ('optimal', 'unbiased')
  )
  return np.sqrt(np.array(one) / other).tolist()


def _numbers(runs: dict) -> dict:
  """Gaps between measurement and theory, speed-ups, and what weights gain."""
  for name in ('theory-gaussian', 'timing-gaussian'):
    require(name in runs, 'records', f'no {name}', 'its rows')
  checks = _checks(runs)
  worst = max(checks, key=lambda row: abs(row['z']))
  ranks = np.log([row['rank'] for row in runs['gaussian-norm_iid-unbiased']])
  slopes = {
    data: np.polyfit(
      ranks,
      np.log([r['error'] for r in runs[f'{data}-norm_iid-unbiased']]),
      1,
    )[0]
    for data in TITLES
  }
  return {
    'means_compared': len(checks),
    'draws': checks[0]['draws'],
    'largest_gap_to_theory': max(abs(row['gap']) for row in checks),
    'largest_z': worst['z'],
    'root_mean_square_z': float(
      np.sqrt(np.mean([r['z'] ** 2 for r in checks]))
    ),
    'slope_of_norm_iid': slopes,
    'systematic_over_bernoulli': {
      data: float(
        np.mean(
          [
            row['error'] / exact['bernoulli']
            for row, exact in zip(
              runs[f'{data}-norm_systematic-unbiased'],
              runs[f'theory-{data}'],
              strict=True,
            )
          ]
        )
      )
      for data in TITLES
    },
    'optimal_over_unbiased_error': {
      data: {m: _ratio(runs, data, m) for m in REWEIGHTED} for data in TITLES
    },
    'full_product_seconds': {
      data: runs[f'timing-{data}'][0]['seconds']
      for data in MARKERS
      if f'timing-{data}' in runs
    },
    'at_a_twentieth': {
      data: {
        f'{row["method"]}, {row["weights"]}': {
          'speedup': row['speedup'],
          'median_speedup': row['median_speedup'],
          'relative_error': row['relative_error'],
        }
        for row in _speed(runs, data)
        if abs(row['share'] - 0.05) < 0.005
      }
      for data in ('gaussian', 'images')
    },
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  numbers = _numbers(runs)
  for data in TITLES:
    _plot_curves(runs, data, axes[data])
  _plot_check(_checks(runs), axes['check'])
  _plot_weights(runs, axes['weights'])
  _plot_speed(runs, axes['speed'])
  systematic = {
    data: found['norm_systematic, unbiased']
    for data, found in numbers['at_a_twentieth'].items()
  }
  at = lambda data: (
    f'{systematic[data]["speedup"]:.1f} times faster with an error of '
    f'{systematic[data]["relative_error"]:.2g}'
  )
  axes['check'].figure.suptitle(
    f'{numbers["means_compared"]} means of {numbers["draws"]} draws on the '
    f'exact curves (largest |z| {abs(numbers["largest_z"]):.1f}); a twentieth '
    f'of the terms: {at("gaussian")} (Gaussian), {at("images")} (images)'
  )
  return numbers


def _plot_curves(runs, data, ax):
  """Squared errors against rank: exact lines, measured dots."""
  theory = runs[f'theory-{data}']
  ranks = [row['rank'] for row in theory]
  for method, color in COLORS.items():
    found = [row['error'] for row in runs[f'{data}-{method}-unbiased']]
    if method in theory[0]:
      ax.plot(ranks, [row[method] for row in theory], color=color)
      ax.plot(ranks, found, 'o', color=color, label=method, markersize=5)
    else:
      style = dict(color=color, linewidth=1, markersize=6, fillstyle='none')
      ax.plot(ranks, found, 's:', label=f'{method} (no formula)', **style)
  optimum = [max(row['optimum'], 1e-12) for row in theory]
  ax.plot(ranks, optimum, 'k--', label='best matrix of the rank')
  guide = theory[0]['norm_iid'] * ranks[0] / np.array(ranks)
  ax.plot(ranks, guide * 2, 'k:', linewidth=0.8, label='slope -1')
  low = min(min(row[m] for m in (*CLOSED, *FIXED)) for row in theory)
  ax.set(
    xscale='log',
    yscale='log',
    ylim=(low / 5, None),
    xlabel='rank, terms kept',
    ylabel='squared error / squared norm, mean',
    title=theory[0]['title'],
  )
  ax.set_xscale('log', base=2)
  ax.set_xticks(ranks, [str(rank) for rank in ranks])
  if data == 'gaussian':
    ax.legend(fontsize='small', loc='lower left')


def _plot_check(checks, ax):
  """Measured over exact, less one, with two standard deviations."""
  ranks = sorted({row['rank'] for row in checks})
  for i, (data, marker) in enumerate(MARKERS.items()):
    for j, method in enumerate(CLOSED):
      of = [r for r in checks if (r['data'], r['method']) == (data, method)]
      place = [ranks.index(r['rank']) + 0.08 * (3 * j + i - 4) for r in of]
      gaps, bars = ([r[k] for r in of] for k in ('gap', 'bar'))
      style = dict(color=COLORS[method], markersize=4, linewidth=1)
      label = method if data == 'gaussian' else None
      bars = 2 * np.array(bars)
      ax.errorbar(place, gaps, bars, fmt=marker, label=label, **style)
  for data, marker in MARKERS.items():
    ax.plot([], [], marker, color='black', label=data, markersize=4)
  ax.axhline(0, color='black', linewidth=0.8)
  ax.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
  ax.set(
    xlabel='rank, terms kept',
    ylabel='measured / exact - 1',
    title=f'means of {checks[0]["draws"]} draws, bars: 2 standard errors',
  )
  ax.legend(fontsize='small', ncols=2)


def _plot_weights(runs, ax):
  """Unbiased and best weights, on the gradient."""
  for method in REWEIGHTED:
    for weights, line in (('unbiased', '-'), ('optimal', '--')):
      found = runs[f'gradient-{method}-{weights}']
      ranks = [row['rank'] for row in found]
      errors = np.sqrt([max(row['error'], 1e-16) for row in found])
      label = method if weights == 'unbiased' else None
      ax.plot(
        ranks, errors, f'{line}', color=COLORS[method], label=label, marker='.'
      )
  ax.plot([], [], 'k-', label='unbiased, or ones')
  ax.plot([], [], 'k--', label='of least error')
  ax.set_xscale('log', base=2)
  ax.set_xticks(ranks, [str(rank) for rank in ranks])
  ax.set(
    yscale='log',
    xlabel='rank, terms kept',
    ylabel='relative error, root mean square',
    title='weights, on the gradient',
  )
  ax.legend(fontsize='small')


def _plot_speed(runs, ax):
  """What a relative error buys, on incoherent data and on images."""
  colors = {'unbiased': COLORS, 'optimal': dict.fromkeys(COLORS, 'black')}
  for data, line in (('gaussian', '-'), ('images', '--')):
    for method, weights in TIMED:
      of = [
        row
        for row in _speed(runs, data)
        if (row['method'], row['weights']) == (method, weights)
      ]
      error, speed, median = (
        [row[k] for row in of]
        for k in ('relative_error', 'speedup', 'median_speedup')
      )
      color = colors[weights][method]
      label = f'{method}, {weights}' if weights == 'optimal' else method
      label = label if data == 'gaussian' else None
      ax.plot(
        error, speed, line, marker=MARKERS[data], color=color, label=label
      )
      ax.plot(error, median, '_', color=color)
    shape = runs[f'timing-{data}'][0]['shape']
    ax.plot(
      [], [], line, marker=MARKERS[data], color='gray', label=f'{data}, {shape}'
    )
  ax.plot([], [], '_', color='gray', label='of medians, not of minima')
  ax.axhline(1, color='black', linestyle=':', label='the full product')
  shares = sorted({row['share'] for row in _speed(runs, 'gaussian')})
  listed = ', '.join(f'{share:g}' for share in reversed(shares))
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='relative error of the product',
    ylabel='speed-up over the full product, float32',
    title=f'shares {listed} of the terms, upwards',
  )
  ticks = (0.2, 0.5, 1, 2, 5, 10, 20)
  ax.set_yticks(ticks, [f'{tick:g}' for tick in ticks])
  ax.set_yticks([], minor=True)
  low, high = ax.get_ylim()
  ax.set_ylim(low / 8, high)  # Room for a legend.
  ax.legend(fontsize='small', loc='lower center', ncols=2)
