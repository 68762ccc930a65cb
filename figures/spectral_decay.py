"""Weight decay by L2, by Schatten norms and by the spectral norm.

Article 10648 of kexue.fm puts the gradient of half the squared spectral norm,
sigma_1 u_1 v_1^T, in the place of the W of weight decay: only the largest
singular value shrinks. Its author saw a loss that "might be slightly" better,
no number. The Schatten norms of order 2k lie between that and L2.

What should be seen: the same loss at a smaller product of spectral norms, which
bounds what the network can amplify, and spectra whose top is cut while the rest
stays.

How: AdamW's update with each decay on the matrices alone, each over the same
learning rates and its own grid of decays, L2's times a factor; then `seeds`
seeds at each optimum. Training sees the first `train_bytes` of the text only, a
few times over, so that there is something to regularise.

Theory, derived here: the decay by Schatten-2k alone makes every singular value
fall as d sigma / dt ~ -sigma^(2k - 1), which turns sigma into

  (sigma^-(2k - 2) + tau^-(2k - 2))^(-1 / (2k - 2)),

a soft clip at a tau that grows smaller with time; L2 scales the spectrum, and
the spectral norm clips it, min(sigma, tau). The picture applies this to the
spectrum trained without decay, with the tau that gives the measured sigma_1.

Expected: every decay better than none, the spectral one like L2, Schatten-4 and
Schatten-8 between the two and better than both. Cost on two CPU cores: quick
1.5 minutes, full 6 minutes.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..optimizers import add_spectral_decay, matrix_labels
from ..training.data import load
from .comparison import by_run, grid, select, spread
from .language_model import Task, TaskConfig
from .panels import bowl, final_losses, rate_axis, whiskers
from .session import session

MOSAIC = [['front', 'final', 'spectrum'], ['rates', 'decays', 'gap']]
POSITIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Decay(NamedTuple):
  """A contestant: `order` of `add_spectral_decay`, its grid over L2's."""

  order: int | None
  factor: float
  color: str


DECAYS = {
  'L2': Decay(1, 1, 'tab:orange'),
  'Schatten-4': Decay(2, 3, 'tab:green'),
  'Schatten-8': Decay(4, 5, 'tab:cyan'),
  'spectral': Decay(None, 10, 'tab:blue'),
}


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains, besides what `TaskConfig` says.

  Args:
    train_bytes: of the text, from its beginning.
    weight_decays: L2's grid, instead of one `weight_decay`; that of another
      decay is this times a factor. Without decay is always tried.
  """

  batch_size: int = 16
  steps: int = 200
  learning_rates: tuple[float, ...] = (0.016, 0.032, 0.064)
  log_points: int = 10
  train_bytes: int = 65_536
  weight_decays: tuple[float, ...] = (0.3, 1.0)

  @classmethod
  def full(cls) -> 'Config':
    """Longer runs, four decays each, three seeds."""
    return cls(
      steps=500,
      learning_rates=(0.008, 0.016, 0.032, 0.064),
      weight_decays=(0.1, 0.3, 1.0, 3.0),
      seeds=3,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('weight_decays', lambda x: x > 0, 'positive numbers')
    more = f'more than the length {self.length}'
    self.require_every('train_bytes', lambda x: x > self.length, more)

  def task(self, data_dir: str | None = None) -> Task:
    """The model on the beginning of its text."""
    text = load(self.dataset, data_dir=data_dir)
    return Task(
      self.sizes,
      text._replace(train=text.train[: self.train_bytes]),
      length=self.length,
      batch_size=self.batch_size,
      validation_windows=self.validation_windows,
    )


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Trains the sweep and returns a row for each log point of each run."""
  c, task = config, config.task(data_dir)
  with session(workdir, key, _total_steps(c)) as launch:
    for name, decay in DECAYS.items():
      sweep = c.sweep(
        task,
        functools.partial(_adam, task, decay.order),
        name.lower(),
        parallel=parallel,
        measure=functools.partial(_spectrum, task),
        tags={'decay': name},
      )
      if name == 'L2':
        sweep.tune(launch, c.learning_rates, seeds=c.seeds, weight_decay=0.0)
      tried = itertools.product(
        [decay.factor * x for x in c.weight_decays], c.learning_rates
      )
      ends = [
        sweep.train(launch, learning_rate=rate, weight_decay=strength)
        for strength, rate in tried
      ]
      best = min(ends, key=lambda row: row['val_loss'])
      chosen = {k: best[k] for k in ('learning_rate', 'weight_decay')}
      for seed in range(1, c.seeds):
        sweep.train(launch, **chosen, seed=seed)
  return launch.records.rows


def _adam(task: Task, order: int | None, rate, strength):
  """AdamW whose decay is that of a norm, on the matrices alone."""
  numbers = task.model.dimension_numbers
  matrices = lambda params: jax.tree.map(
    lambda label: label == 'muon', matrix_labels(params, numbers)
  )
  return optax.chain(
    optax.scale_by_adam(b1=0.9, b2=0.95),
    add_spectral_decay(
      strength, order=order, mask=matrices, dimension_numbers=numbers
    ),
    optax.scale_by_learning_rate(rate),
  )


def _spectrum(task: Task, state) -> dict[str, jax.Array]:
  """Singular values by position, as geometric means over the matrices."""
  logs = [
    jnp.log(jnp.linalg.svd(x[0], compute_uv=False))
    for x in task.matrices(state.params).values()
  ]
  size = min(map(len, logs))
  mean = jnp.exp(jnp.mean(jnp.stack([log[:size] for log in logs]), axis=0))
  return {f'sigma_{i}': mean[i - 1] for i in POSITIONS if i <= size}


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  rates, more = len(c.learning_rates), c.seeds - 1
  each = len(c.weight_decays) * rates + more
  return (rates + more + len(DECAYS) * each) * c.steps


def clipped(sigma: np.ndarray, order: int | None, top: float) -> np.ndarray:
  """Theory: what a decay alone makes of a spectrum, its largest value given.

  Args:
    sigma: singular values, the largest first.
    order: `k` of the Schatten-2k norm, or `None` for the spectral norm.
    top: the largest value afterwards, at most the first of `sigma`.

  Returns:
    The spectrum when its largest value has come down to `top`.

  Example:
    >>> clipped(np.array([2.0, 1.0, 0.5]), None, 1.5).tolist()
    [1.5, 1.0, 0.5]
    >>> clipped(np.array([2.0, 1.0, 0.5]), 1, 1.5).tolist()
    [1.5, 0.75, 0.375]
  """
  if order is None:
    return np.minimum(sigma, top)
  if order == 1:
    return sigma * top / sigma[0]
  power = 2 * order - 2
  tau = top**-power - sigma[0] ** -power
  return (sigma**-power + tau) ** (-1 / power)


def _contestants(runs) -> dict[str, list[list[dict]]]:
  """All seeds of each decay at its best pair, and of none at its best rate."""
  found = {}
  for name in ('none', *DECAYS):
    at = dict(decay='L2' if name == 'none' else name)
    ends = [
      rows[-1]
      for rows in select(runs, seed=0, **at)
      if (rows[-1]['weight_decay'] == 0) == (name == 'none')
    ]
    finite = [row for row in ends if np.isfinite(row['val_loss'])]
    require(bool(finite), 'records', f'none of {name}', 'a finite run')
    best = min(finite, key=lambda row: row['val_loss'])
    pair = {k: best[k] for k in ('learning_rate', 'weight_decay')}
    whole = [
      rows
      for rows in select(runs, **at, **pair)
      if rows[-1]['step'] == best['step'] and np.isfinite(rows[-1]['val_loss'])
    ]
    found[name] = sorted(whole, key=lambda rows: rows[0]['seed'])
  return found


def _columns(row: dict) -> list[str]:
  return [f'sigma_{i}' for i in POSITIONS if f'sigma_{i}' in row]


def _mean_spectrum(runs) -> np.ndarray:
  """Singular values by position, geometric mean over the seeds."""
  columns = _columns(runs[0][-1])
  return np.exp(
    np.mean([[np.log(rows[-1][c]) for c in columns] for rows in runs], axis=0)
  )


def _at_edge(runs, name: str, rows: list[dict]) -> bool:
  """Whether the best pair lies at an edge of its grid."""
  tried = [r[-1] for r in select(runs, decay=rows[0]['decay'], seed=0)]
  keys = ['learning_rate'] + ['weight_decay'] * (name != 'none')
  edges = [
    {f(row[k] for row in tried if row[k] > 0) for f in (min, max)} for k in keys
  ]
  return any(rows[0][k] in e for k, e in zip(keys, edges, strict=True))


def _numbers(runs, found) -> dict:
  """Losses, spectral norms and what the theory of the spectra is worth."""
  base, numbers = _mean_spectrum(found['none']), {}
  for name, best in found.items():
    end = lambda column, best=best: [rows[-1][column] for rows in best]
    gap = [a - b for a, b in zip(end('val_loss'), end('loss'), strict=True)]
    numbers[name] = {
      'learning_rate': best[0][0]['learning_rate'],
      'weight_decay': best[0][0]['weight_decay'],
      'at_the_edge_of_the_grid': _at_edge(runs, name, best[0]),
      'final_loss': spread(end('val_loss')),
      'spectral_norm': spread(end('sigma_1')),
      'validation_less_training': spread(gap),
    }
    if name != 'none':
      spectrum = _mean_spectrum(best)
      top = min(spectrum[0], base[0])
      theory = clipped(base, DECAYS[name].order, top)
      error = np.sqrt(np.mean(np.log(theory / spectrum) ** 2))
      numbers[name]['spectrum_error_of_theory'] = float(error)
  return {'gain_over_L2': _gains(found), 'by_decay': numbers}


def _gains(found) -> dict[str, dict[str, float]]:
  """How much lower than L2's the losses end, seed by seed."""
  ends = {
    name: {rows[0]['seed']: rows[-1]['val_loss'] for rows in runs}
    for name, runs in found.items()
  }
  gains = lambda of: [a - of[s] for s, a in ends['L2'].items() if s in of]
  return {name: spread(gains(of)) for name, of in ends.items() if name != 'L2'}


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  found = _contestants(runs)
  numbers = _numbers(runs, found)
  _plot_front(runs, axes['front'])
  final_losses(
    axes['final'],
    {name: at['final_loss'] for name, at in numbers['by_decay'].items()},
    {name: _color(name) for name in found},
    'each at its best rate and decay, range over seeds',
  )
  _plot_spectrum(found, axes['spectrum'])
  _plot_rates(runs, found, axes['rates'])
  _plot_decays(runs, found, axes['decays'])
  _plot_gap(numbers, axes['gap'])
  said = ', '.join(
    f'{name} {gain["mean"]:+.3f} ({gain["min"]:+.3f} to {gain["max"]:+.3f})'
    for name, gain in numbers['gain_over_L2'].items()
  )
  axes['front'].figure.suptitle(
    f'nats gained over L2: {said}\n'
    'article 10648: decay by the spectral norm "might be slightly" better'
  )
  return numbers


def _color(name: str) -> str:
  return DECAYS[name].color if name in DECAYS else 'gray'


def _plot_front(runs, ax):
  """Every run of the first seed, and the front of each decay."""
  for name in DECAYS:
    ends = [rows[-1] for rows in select(runs, decay=name, seed=0)]
    ends = [row for row in ends if np.isfinite(row['val_loss'])]
    points = sorted((row['sigma_1'], row['val_loss']) for row in ends)
    norms, losses = np.transpose(points)
    ax.plot(norms, losses, '.', color=_color(name), alpha=0.5)
    lowest = np.minimum.accumulate(losses)  # The best at that norm or less.
    ax.step(norms, lowest, where='post', color=_color(name), label=name)
  ax.set(
    xscale='log',
    xlabel='spectral norm, geometric mean over the matrices',
    ylabel='final validation loss [nats per byte]',
    title='all runs of a seed, line: the best at that norm or less',
  )
  ax.legend()


def _plot_spectrum(found, ax):
  """Spectra at the optima, and what theory makes of that without decay."""
  base = _mean_spectrum(found['none'])
  positions = [int(c.split('_')[1]) for c in _columns(found['none'][0][-1])]
  for name, runs in found.items():
    spectrum = _mean_spectrum(runs)
    ax.plot(positions, spectrum, 'o', color=_color(name), label=name, ms=4)
    if name in DECAYS:
      top = min(spectrum[0], base[0])
      theory = clipped(base, DECAYS[name].order, top)
      ax.plot(positions, theory, '--', color=_color(name), linewidth=1)
  ax.plot([], [], '--', color='gray', label='theory, from "none"')
  ax.set(
    xscale='log',
    yscale='log',
    xlabel='position in the spectrum',
    ylabel='singular value, geometric mean',
    title='spectra at each optimum',
  )
  ax.legend(fontsize='small', loc='lower left')


def _plot_rates(runs, found, ax):
  """The learning rate bowls at the best decays."""
  for name, best in found.items():
    first = best[0][0]
    at = dict(decay=first['decay'], weight_decay=first['weight_decay'])
    bowl(ax, grid(runs, **at), color=_color(name), label=name)
  rates = [rows[0]['learning_rate'] for rows in runs.values()]
  title = 'at the best decay (star: optimum, hollow: at the edge)'
  rate_axis(ax, rates, title)
  ax.legend(fontsize='small')


def _plot_decays(runs, found, ax):
  """The same bowls over the decay."""
  for name, decay in DECAYS.items():
    rate = found[name][0][0]['learning_rate']
    ends = [
      rows[-1]
      for rows in select(runs, decay=name, seed=0, learning_rate=rate)
      if rows[-1]['weight_decay']
    ]
    points = [(r['weight_decay'] / decay.factor, r['val_loss']) for r in ends]
    label = f'{name}, times {decay.factor:g}'
    bowl(ax, points, color=_color(name), label=label)
  ax.set_xscale('log')
  tried = sorted(x for x, _ in points)
  ax.set_xticks(tried, [f'{x:g}' for x in tried])
  ax.set_xticks([], minor=True)
  ax.set(
    xlabel='weight decay over the factor of its kind',
    ylabel='final validation loss [nats per byte]',
    title='at the best learning rate',
  )
  ax.legend(fontsize='small')


def _plot_gap(numbers, ax):
  """How much worse the held out text is than the text trained on."""
  names = [*numbers['by_decay']]
  spreads = [numbers['by_decay'][n]['validation_less_training'] for n in names]
  mean, error = whiskers(spreads)
  ax.bar(names, mean, 0.6, color=[*map(_color, names)])
  ax.errorbar(names, mean, error, fmt='none', color='black', capsize=4)
  ax.set(
    ylabel='validation loss less training loss [nats per byte]',
    title='the gap that decay is meant to close, range over seeds',
  )
