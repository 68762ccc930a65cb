r"""Products from some columns and rows: measured errors against exact curves.

Paper: Drineas, Kannan and Mahoney, *Fast Monte Carlo algorithms for matrices
I*, SICOMP 36, 2006, lemma 4; Su, article 10427, which derives the optimal
sampling probabilities, the expected error and the weights of least error, for
the sake of faster products.

What should be seen: Monte Carlo on the exact curves, for every sampler that has
one, with slope -1 where draws are independent and less error without
replacement. Systematic sampling, which has no closed form, is at the curve of
independent inclusion where terms have little in common, and at 0.6 of it where
they are alike. How large the error is depends on the data. Terms of a Gaussian
product point every which way: at a twentieth of the terms the result is more
noise than signal, and no choice of them helps, for the best matrix of that rank
is no good either. Images are alike to first order, and a few stand for all;
there the largest terms alone, which leave out what the others add up to, are
ten times worse than a sample. Weights of least error help where few terms are
chosen, and cost what they save at a fifth of the terms. The time goes with the
rank, less what finding the norms takes.

How: three products [p, l] @ [l, p] with p pixels: Gaussian with lognormal
column scales; second moments of images; the weight gradient of the second layer
of a perceptron, activations times what comes back, after a short training.
Errors of draws are :math:`\gamma^T H \gamma` with weights less one
:math:`\gamma` and the matrix `H` of inner products of terms, in float64. Times:
float32, compiled, interleaved with the full product.

Expected: about 10 times faster at l / 20; there relative errors of 0.6 (largest
norms), 2.6 (systematic) and 4 (uniform) on Gaussian data, of 0.87, 0.075 and
0.11 on Fashion-MNIST. Cost on two CPU cores: quick 1 minute, full 4 minutes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..lowrank import (
  column_row,
  column_row_expected_error,
  column_row_matmul,
)
from .checked import CheckedConfig
from .column_row_data import gaussian, labelled_images, layer_gradient
from .column_row_panels import (
  CLOSED,
  COLORS,
  FIXED,
  REWEIGHTED,
  TIMED,
  plot_check,
  plot_curves,
  plot_speed,
  plot_weights,
  speed_ups,
)
from .comparison import by_run
from .session import session

MOSAIC = [['gaussian', 'images', 'gradient'], ['check', 'weights', 'speed']]
TITLES = {
  'gaussian': 'Gaussian, lognormal column scales',
  'images': '{}: second moments of pixels',
  'gradient': '{}: weight gradient of a trained layer',
}
TIMED_DATA = ('gaussian', 'images')


@dataclasses.dataclass
class Config(CheckedConfig):
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
    found = len(labelled_images(self.images, data_dir)[1])
    require(found >= self.terms, 'config.terms', self.terms, f'<= {found}')


def _products(c: Config, data_dir) -> dict[str, tuple[str, Callable]]:
  """Titles and thunks of the factors by name, made when they are needed."""
  name, images, labels = labelled_images(c.images, data_dir)
  pixels, some = images.shape[1], images[: c.terms]
  makers = {
    'gaussian': lambda: gaussian(pixels, c.terms, pixels),
    'images': lambda: (some.T, some),
    'gradient': lambda: layer_gradient(images, labels, c.steps, c.terms),
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
    images = labelled_images(c.images, data_dir)[1][:l]
    timed = {
      'gaussian': lambda: gaussian(m, l, n),
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


def _errors(runs: dict, data: str, method: str, weights='unbiased'):
  """Mean relative squared errors by rank."""
  return np.array([r['error'] for r in runs[f'{data}-{method}-{weights}']])


def _gains(runs: dict, data: str) -> dict:
  """Root mean squared errors with optimal weights over those without."""
  ratio = lambda method: np.sqrt(
    _errors(runs, data, method, 'optimal') / _errors(runs, data, method)
  )
  return {method: ratio(method).tolist() for method in REWEIGHTED}


def _trade(runs: dict, data: str) -> dict:
  """Speed-ups and errors at a twentieth of the terms."""
  names = ('speedup', 'median_speedup', 'relative_error')
  return {
    f'{row["method"]}, {row["weights"]}': {name: row[name] for name in names}
    for row in speed_ups(runs, data)
    if abs(row['share'] - 0.05) < 0.005
  }


def _numbers(runs: dict) -> dict:
  """Gaps between measurement and theory, speed-ups, and what weights gain."""
  for name in ('theory-gaussian', 'timing-gaussian'):
    require(name in runs, 'records', f'no {name}', 'its rows')
  checks = _checks(runs)
  z = np.array([row['z'] for row in checks])
  ranks = np.log([row['rank'] for row in runs['theory-gaussian']])
  slope = lambda errors: float(np.polyfit(ranks, np.log(errors), 1)[0])
  bernoulli = lambda data: [r['bernoulli'] for r in runs[f'theory-{data}']]
  return {
    'means_compared': len(checks),
    'draws': checks[0]['draws'],
    'largest_gap_to_theory': max(abs(row['gap']) for row in checks),
    'largest_z': float(z[np.argmax(np.abs(z))]),
    'root_mean_square_z': float(np.sqrt(np.mean(z**2))),
    'slope_of_norm_iid': {
      data: slope(_errors(runs, data, 'norm_iid')) for data in TITLES
    },
    'systematic_over_bernoulli': {
      data: float(
        np.mean(_errors(runs, data, 'norm_systematic') / bernoulli(data))
      )
      for data in TITLES
    },
    'optimal_over_unbiased_error': {
      data: _gains(runs, data) for data in TITLES
    },
    'full_product_seconds': {
      data: runs[f'timing-{data}'][0]['seconds'] for data in TIMED_DATA
    },
    'at_a_twentieth': {data: _trade(runs, data) for data in TIMED_DATA},
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  numbers = _numbers(runs)
  for data in TITLES:
    plot_curves(runs, data, axes[data])
  plot_check(_checks(runs), axes['check'])
  plot_weights(runs, axes['weights'])
  plot_speed(runs, axes['speed'])
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
