"""The size of an update: why 0.2, for Adam and for Muon.

Paper: Liu et al., *Muon is Scalable for LLM Training* (Moonlight), arXiv
2502.16982, table 8: Muon with AdamW's learning rate and its update scaled to an
RMS of 0.05, 0.1, 0.2, 0.4 and 0.8 ends at 3.503, 3.374, 3.325, 3.314 and 3.543,
AdamW at 3.679. Article 11267 says why AdamW's own RMS is 0.2: on gradients of
signal-to-noise ratio q it is about sqrt((q + r) / (q + 1)), r = (1 - b1) /
(1 + b1), 0.2294 for noise alone and b1 = 0.9, whatever b2.

What should be seen: the theory through simulated updates; Muon at 0.2 for every
shape, as far as its coefficients reach the matrix sign; a U-curve with its
bottom at 0.2 to 0.4. While training, the ratio q of the gradient at fixed
weights predicts an RMS that is too large: at the best learning rate successive
gradients point against each other (the cosine of momentum and gradient), which
the theory's independent ones do not.

How: `optax.scale_by_adam` on Gaussian gradients of constant mean;
`scale_by_muon` on Gaussian matrices; AdamW tuned over the learning rates, then
Muon at that rate with each RMS, which only its matrices see. In training the
RMS is that of the next update, on a fresh batch.

Expected: 0.227 to 0.229, and 0.2 to 0.4. Cost on two CPU cores: quick 1 minute,
full 5 minutes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..optimizers import muon, scale_by_muon
from ..scaling import adam_update_rms
from .comparison import by_run, grid, spread, tuned
from .language_model import Task, TaskConfig
from .msign_convergence import scalar_map
from .panels import band, bowl, rate_axis, whiskers
from .session import Session, session

MOSAIC = [['b1', 'snr', 'shapes'], ['grid', 'curve', 'training']]
PAPER = {0.05: 3.503, 0.1: 3.374, 0.2: 3.325, 0.4: 3.314, 0.8: 3.543}
PAPER_ADAMW = 3.679
B1 = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
B2 = (0.95, 0.999)
SNR = (0.001, 0.01, 0.1, 1.0, 10.0)
SHAPES = ((64, 64), (64, 256), (256, 64), (256, 256), (64, 1024))
# Name, coefficients and steps of what stands for the matrix sign.
SIGNS = {
  'Keller, 5 steps': ('keller', 5),
  'You, 5 steps': ('you', 5),
  'Polar Express, 5 steps': ('polar_express', 5),
  'Polar Express, 8 steps': ('polar_express', 8),
}
COLORS = {'adamw': 'tab:orange', 'muon': 'tab:blue'}


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure simulates and trains.

  Args:
    rms: what the updates of Muon's matrices are scaled to; 0.2 among them.
    entries: of a simulated gradient.
    simulated_steps: of Adam, many more than 1 / (1 - b2).
    probes: batches from which a gradient's signal and noise are told apart.
  """

  steps: int = 150
  learning_rates: tuple[float, ...] = (0.032, 0.064, 0.128)
  seeds: int = 2
  log_points: int = 10
  rms: tuple[float, ...] = tuple(PAPER)
  entries: int = 4096
  simulated_steps: int = 4000
  probes: int = 4

  @classmethod
  def full(cls) -> 'Config':
    """Twice the width and the steps, three seeds, a wider grid."""
    return cls(
      width=64,
      steps=300,
      learning_rates=(0.016, 0.032, 0.064, 0.128),
      seeds=3,
      entries=16384,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('rms', lambda x: x > 0, 'positive numbers')
    require(0.2 in self.rms, 'config.rms', self.rms, '0.2 among them')
    self.require_every('probes', lambda x: x >= 2, '2 or more')
    for name in ('entries', 'simulated_steps'):
      self.require_every(name, lambda x: x >= 1, '1 or more')


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Simulates and trains what is missing and returns the rows."""
  c = config
  with session(workdir, key, _total_steps(c)) as launch:
    settings = [(b1, b2, 0.0) for b2 in B2 for b1 in B1]
    settings += [(0.9, b2, snr) for b2 in B2 for snr in SNR]
    simulate = lambda: _simulated_adam(c, key, settings)
    launch.record('simulated', len(settings), simulate)
    count = len(SIGNS) * len(SHAPES)
    launch.record('shapes', count, lambda: _muon_by_shape(key))
    _train_all(c, c.task(data_dir), launch, parallel)
  return launch.records.rows


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  runs = len(c.learning_rates) + c.seeds - 1 + c.seeds * len(c.rms)
  return runs * c.steps


def _simulated_adam(c: Config, key, settings) -> Iterable[dict]:
  """RMS of the last update on gradients sqrt(snr) + noise, in each setting."""

  @jax.jit
  def last_rms(b1, b2, snr):
    tx = optax.scale_by_adam(b1, b2, eps=0.0)

    def step(carry, t):
      noise = jax.random.normal(jax.random.fold_in(key, t), [c.entries])
      update, state = tx.update(jnp.sqrt(snr) + noise, carry[1])
      return (update, state), None

    zero = jnp.zeros([c.entries])
    steps = jnp.arange(c.simulated_steps)
    (update, _), _ = jax.lax.scan(step, (zero, tx.init(zero)), steps)
    return jnp.sqrt(jnp.mean(update**2))

  for b1, b2, snr in settings:
    yield {'b1': b1, 'b2': b2, 'snr': snr, 'rms': last_rms(b1, b2, snr)}


def _muon_by_shape(key) -> Iterable[dict]:
  """RMS of Muon's update of Gaussian gradients."""
  keys = jax.random.split(key, len(SHAPES))
  gradients = {
    shape: jax.random.normal(k, shape)
    for shape, k in zip(SHAPES, keys, strict=True)
  }
  for name, (coefficients, steps) in SIGNS.items():
    tx = scale_by_muon(coefficients=coefficients, steps=steps)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients))
    for shape, update in updates.items():
      s = np.linalg.svd(gradients[shape], compute_uv=False)
      s = scalar_map(coefficients, steps, s / np.linalg.norm(s))
      yield {
        'sign': name,
        'shape': '{} x {}'.format(*shape),
        'rms': jnp.sqrt(jnp.mean(update**2)),
        'theory': 0.2 * np.sqrt(np.mean(s**2)),
      }


def _train_all(c: Config, task: Task, launch: Session, parallel) -> None:
  """AdamW tuned; then Muon at its learning rate with every RMS."""
  adamw = functools.partial(optax.adamw, b1=0.9, b2=0.95)
  makers = {
    'adamw': lambda rate, decay, _=None: adamw(rate, weight_decay=decay),
    'muon': lambda rate, decay, rms: muon(
      rate,
      weight_decay=decay,
      scale=rms,
      dimension_numbers=task.model.dimension_numbers,
    ),
  }
  probes = task.batches(jax.random.fold_in(launch.key, 1))(0, c.probes)
  sweeps = {
    name: c.sweep(
      task,
      make,
      name,
      parallel=parallel,
      varies='rms' if name == 'muon' else None,
      measure=functools.partial(_measure, task, make, jnp.asarray(probes)),
    )
    for name, make in makers.items()
  }
  decay = dict(weight_decay=c.weight_decay)
  best = sweeps['adamw'].tune(launch, c.learning_rates, seeds=c.seeds, **decay)
  for rms in c.rms:
    sweeps['muon'].tune(
      launch, [best['learning_rate']], seeds=c.seeds, setting=rms, **decay
    )


def _measure(task: Task, make: Callable, probes: jax.Array, state) -> dict:
  """Of the matrices: size of the next update, signal, and overshooting."""
  loss = lambda params, batch: task.loss(params, (), batch, None)[0]
  every = jax.lax.map(functools.partial(jax.grad(loss), state.params), probes)
  # The same optimizer with learning rate one and no decay: its direction.
  setting = state.opt_state.hyperparams['setting']
  optimizer = make(lambda count: 1.0, 0.0, setting)
  inner_state, _ = state.opt_state.inner_state

  def matrices(tree):
    return jnp.concatenate([x.ravel() for x in task.matrices(tree).values()])

  def direction(gradient):
    updates, _ = optimizer.update(gradient, inner_state, state.params)
    return -matrices(updates)

  first = jax.tree.map(lambda g: g[0], every)
  before = direction(optax.tree.zeros_like(first))  # The momentum alone.
  each = jax.vmap(matrices)(every)
  mean, noise = jnp.mean(each, 0), jnp.sum(jnp.var(each, 0, ddof=1))
  signal = jnp.sum(mean**2) - noise / len(probes)
  norm = jnp.linalg.norm
  return {
    'update_rms': jnp.sqrt(jnp.mean(direction(first) ** 2)),
    'snr_measured': jnp.maximum(0.0, signal / noise),
    'momentum_cosine': before @ mean / (norm(before) * norm(mean)),
  }


def _numbers(rows: list[dict]) -> dict:
  """Simulated and trained sizes against their theories, and the losses."""
  runs = by_run(rows)
  for name in ('simulated', 'shapes'):
    require(name in runs, 'records', f'no {name}', 'its rows')
  simulated = runs['simulated']
  error = lambda row: abs(
    row['rms'] / adam_update_rms(row['b1'], row['snr']) - 1
  )
  end = lambda found: spread([rows[-1]['val_loss'] for rows in found])
  adamw = tuned(runs, optimizer='adamw')
  sizes = sorted({r['rms'] for r in rows if r.get('optimizer') == 'muon'})
  muons = {r: tuned(runs, optimizer='muon', rms=r) for r in sizes}
  loss = {r: end(muons[r]) for r in sizes}
  best = min(sizes, key=lambda r: loss[r]['mean'])
  late = lambda found, column: np.mean(
    [row[column] for rows in found for row in rows[len(rows) // 2 :]]
  )
  return {
    'adam_on_noise': {
      f'b2 = {row["b2"]}': row['rms']
      for row in simulated
      if (row['b1'], row['snr']) == (0.9, 0.0)
    },
    'adam_on_noise_theory': adam_update_rms(0.9),
    'largest_error_of_adam_theory': {
      f'b2 = {b2}': max(error(row) for row in simulated if row['b2'] == b2)
      for b2 in B2
    },
    'muon_by_shape': {
      name: spread([r['rms'] for r in runs['shapes'] if r['sign'] == name])
      for name in SIGNS
    },
    'learning_rate': adamw[0][0]['learning_rate'],
    'final_loss_adamw': end(adamw),
    'final_loss_by_rms': loss,
    'best_rms': best,
    'paper_best_rms': min(PAPER, key=PAPER.get),
    'gain_over_adamw_at_0.2': end(adamw)['mean'] - loss[0.2]['mean'],
    'paper_gain_over_adamw_at_0.2': round(PAPER_ADAMW - PAPER[0.2], 3),
    'rms_in_training_adamw': late(adamw, 'update_rms'),
    'rms_in_training_adamw_theory': adam_update_rms(
      0.9, late(adamw, 'snr_measured')
    ),
    'momentum_cosine_adamw': late(adamw, 'momentum_cosine'),
    'rms_in_training_muon_at_0.2': late(muons[0.2], 'update_rms'),
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the six panels from the rows and returns the headline numbers."""
  runs, numbers = by_run(rows), _numbers(rows)
  _plot_b1(runs['simulated'], axes['b1'])
  _plot_snr(runs['simulated'], axes['snr'])
  _plot_shapes(runs['shapes'], axes['shapes'])
  _plot_grid(runs, axes['grid'])
  _plot_curve(numbers, axes['curve'])
  _plot_training(runs, axes['training'])
  noise = [*numbers['adam_on_noise'].values()]
  axes['b1'].figure.suptitle(
    f"Adam's update on noise: {min(noise):.3f} to {max(noise):.3f} (theory "
    f"{adam_update_rms(0.9):.3f}); Muon at AdamW's learning rate is best at an "
    f'RMS of {numbers["best_rms"]:g} (Moonlight: {numbers["paper_best_rms"]:g})'
  )
  return numbers


def _scatter(ax, rows, column):
  """Simulated sizes, a marker for each b2."""
  for b2, marker in zip(B2, 'ox', strict=True):
    of = [row for row in rows if row['b2'] == b2]
    x, y = [row[column] for row in of], [row['rms'] for row in of]
    ax.plot(x, y, marker, color='tab:orange', label=f'Adam, b2 = {b2}')
  ax.set(ylabel='RMS of the update', ylim=(0, 1.1))


def _plot_b1(simulated, ax):
  """Noise alone, over b1."""
  b1 = np.linspace(0, 0.99, 100)
  ax.plot(
    b1, adam_update_rms(b1), color='black', label='sqrt((1 - b1) / (1 + b1))'
  )
  _scatter(ax, [row for row in simulated if row['snr'] == 0], 'b1')
  ax.set(xlabel='b1', title='Adam on pure noise')
  ax.legend()


def _plot_snr(simulated, ax):
  """Signal and noise, at b1 = 0.9."""
  snr = np.geomspace(min(SNR), max(SNR))
  ax.plot(snr, adam_update_rms(0.9, snr), color='black', label='article 11267')
  _scatter(ax, [row for row in simulated if row['snr'] > 0], 'snr')
  ax.set(
    xscale='log',
    xlabel='signal to noise ratio, squared mean / variance',
    title='Adam on a constant gradient with noise, b1 = 0.9',
  )
  ax.legend(loc='upper left')


def _plot_shapes(rows, ax):
  """Muon's update by shape, with what the maps of its coefficients say."""
  shapes = list(dict.fromkeys(row['shape'] for row in rows))
  for i, name in enumerate(SIGNS):
    of = [row for row in rows if row['sign'] == name]
    place = [shapes.index(row['shape']) + 0.15 * (i - 1.5) for row in of]
    ax.plot(place, [row['rms'] for row in of], 'o', label=name)
    ax.plot(place, [row['theory'] for row in of], 'k_', markersize=10)
  ax.plot([], [], 'k_', label='theory, p(s)')
  ax.axhline(0.2, color='black', linestyle=':', label='exact sign')
  ax.set_xticks(range(len(shapes)), shapes)
  ax.set(
    xlabel='shape [in x out]',
    ylabel='RMS of the update',
    ylim=(0.13, 0.21),
    title='Muon on Gaussian gradients, 0.2 sqrt(max(in, out))',
  )
  ax.legend(fontsize='small', ncols=2, loc='lower right')


def _plot_grid(runs, ax):
  """AdamW's learning rate bowl, from which Muon's rate is taken."""
  points = grid(runs, optimizer='adamw')
  bowl(ax, points, color=COLORS['adamw'], label='AdamW')
  title = "star: AdamW's optimum, the rate of all runs of Muon"
  rate_axis(ax, [rate for rate, _ in points], title)
  ax.legend()


def _plot_curve(numbers, ax):
  """Final losses over the RMS less AdamW's, here and in the paper."""
  loss = numbers['final_loss_by_rms']
  adamw = numbers['final_loss_adamw']
  mean, error = whiskers([*loss.values()])
  style = dict(color=COLORS['muon'], fmt='o-', capsize=3, label='Muon, here')
  ours = ax.errorbar([*loss], mean - adamw['mean'], error, **style)
  low, high = adamw['min'] - adamw['mean'], adamw['max'] - adamw['mean']
  ax.axhspan(low, high, color=COLORS['adamw'], alpha=0.3)
  line = ax.axhline(0, color=COLORS['adamw'], label='AdamW')
  other = ax.twinx()
  paper = [value - PAPER_ADAMW for value in PAPER.values()]
  style = dict(color='gray', linestyle='--', label='Moonlight (right axis)')
  (theirs,) = other.plot([*PAPER], paper, 's', **style)
  other.set_ylabel("Moonlight: loss less AdamW's [nats per token]")
  other.grid(False)
  for each in (ax, other):  # Room for a legend.
    low, high = each.get_ylim()
    each.set_ylim(low - 0.25 * (high - low), high)
  ax.set_xscale('log', base=2)
  ax.set_xticks([*loss], [f'{rms:g}' for rms in loss])
  ax.set(
    xlabel="RMS that Muon's updates are scaled to",
    ylabel="final validation loss less AdamW's [nats per byte]",
    title="Muon at AdamW's learning rate, range over seeds",
  )
  ax.legend(handles=[ours, theirs, line], loc='lower center', ncols=3)


def _plot_training(runs, ax):
  """RMS of the next update of the matrices while training."""
  adamw = tuned(runs, optimizer='adamw')
  style = dict(color=COLORS['adamw'])
  band(ax, adamw, 'update_rms', label='AdamW', **style)
  steps = [row['step'] for row in adamw[0]]
  mean = lambda column: np.mean([[r[column] for r in run] for run in adamw], 0)
  label = 'theory, signal to noise at fixed weights'
  theory = adam_update_rms(0.9, mean('snr_measured'))
  ax.plot(steps, theory, '--', label=label, **style)
  label = "cosine of AdamW's momentum and the next gradient"
  ax.plot(steps, mean('momentum_cosine'), color='gray', label=label)
  ax.axhline(
    adam_update_rms(0.9), linestyle=':', label='theory, noise', **style
  )
  style = dict(color=COLORS['muon'])
  found = tuned(runs, optimizer='muon', rms=0.2)
  band(ax, found, 'update_rms', label='Muon scaled to 0.2', **style)
  ax.axhline(0.2, linestyle=':', label='theory, exact sign', **style)
  ax.set(
    xlabel='step',
    ylabel='RMS of the next update; cosine',
    ylim=(-0.3, 1.6),  # Room for a legend.
    title="the transformer's matrices, while training",
  )
  ax.legend(fontsize='small', loc='upper right')
