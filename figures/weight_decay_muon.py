"""Weight decay for Muon: who is ahead when, and where the weights settle.

Paper: Liu et al., *Muon is Scalable for LLM Training* (Moonlight), arXiv
2502.16982, figure 2: without weight decay Muon is ahead by 0.023 nats after 24
thousand steps and behind by 0.017 after 66 thousand. Articles 10739 and 11307
of kexue.fm: decay bounds the spectral norm of Muon's weights, and the RMS at
which weights settle is known in advance.

What should be seen: the gap between the two losses changes sign along the run;
without decay the weights grow and grow, with it they settle.

How: Muon at each decay, over the same learning rates with a cosine to zero;
then `seeds` seeds at each optimum. The gap is taken between runs of the same
seed, which share start and batches.

Theory, article 11307 carried over to Muon: updates that are noise of RMS r,
correlated as averages of K gradients are (`gradients_averaged` of
`momentum_ablation`), make the mean square V of the weights

  V <- (1 - eta lambda)^2 V + eta^2 r^2 K,   settling at r^2 K eta / (2 lambda),

eta the learning rate of the step and lambda the decay; with AdamW r^2 K = 1.
r = 0.2 is what Muon's factor s = 0.2 sqrt(max(in, out)) aims at; V starts from
the first log point and nothing is fitted. The bound of article 10739 on
spectral norms is s c / lambda, with c = 1.21 the largest singular value that
Muon's five iterations let through.

Expected: a change of sign, decay ahead by 0.01 nats at the end; weights a
quarter smaller than the theory, which knows no gradient that pushes back. Cost
on two CPU cores: quick 1 minute, full 6 minutes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from ..optimizers import muon
from ..training.schedules import schedule
from .comparison import by_run, grid, spread, tuned
from .language_model import Task, TaskConfig
from .momentum_ablation import gradients_averaged
from .panels import band, bowl, rate_axis
from .session import session

MOSAIC = [['gap', 'grid'], ['rms', 'norm']]
PAPER_GAPS = {'24k': 0.023, '66k': -0.017}
PAPER_DECAY = 0.1
MOMENTUM, UPDATE_RMS, ITERATED, WARMUP = 0.95, 0.2, 1.21, 0.1


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains, besides what `TaskConfig` says.

  Args:
    weight_decays: compared, instead of one `weight_decay`; 0 and 0.1 must be
      among them.
  """

  steps: int = 600
  learning_rates: tuple[float, ...] = (0.032, 0.064, 0.128, 0.256)
  weight_decays: tuple[float, ...] = (0.0, PAPER_DECAY)

  @classmethod
  def full(cls) -> 'Config':
    """Longer runs, a weaker decay, three seeds."""
    return cls(
      steps=1200,
      learning_rates=(0.032, 0.064, 0.128, 0.256),
      weight_decays=(0.0, 0.03, PAPER_DECAY),
      log_points=40,
      seeds=3,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    known = {0.0, PAPER_DECAY} <= set(self.weight_decays)
    self.require_every(
      'weight_decays',
      lambda x: known and x >= 0,
      f'numbers of 0 or more with 0 and {PAPER_DECAY} among them',
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
  matrices = functools.partial(
    muon, momentum=MOMENTUM, dimension_numbers=task.model.dimension_numbers
  )
  with session(workdir, key, _total_steps(c)) as launch:
    sweep = c.sweep(
      task,
      lambda rate, decay: matrices(rate, weight_decay=decay),
      'muon',
      parallel=parallel,
      warmup=WARMUP,
      measure=functools.partial(_sizes, task),
    )
    for decay in c.weight_decays:
      sweep.tune(launch, c.learning_rates, seeds=c.seeds, weight_decay=decay)
  return launch.records.rows


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  return len(c.weight_decays) * (len(c.learning_rates) + c.seeds - 1) * c.steps


def _sizes(task: Task, state) -> dict[str, jax.Array]:
  """Sizes of what Muon trains: the RMS of all its matrices together.

  And, for each kind of matrix, the largest spectral norm in units of s c.
  """
  sizes, flat = {}, []
  for path, (w,) in task.matrices(state.params).items():
    unit = UPDATE_RMS * max(w.shape) ** 0.5 * ITERATED
    name = f'norm_{path.split("/")[-2]}'  # Before its "kernel".
    norm = jnp.linalg.norm(w, 2) / unit
    sizes[name] = jnp.maximum(sizes.get(name, 0.0), norm)
    flat.append(w.ravel())
  return sizes | {'weight_rms': jnp.sqrt(jnp.mean(jnp.concatenate(flat) ** 2))}


def weight_rms(
  start: float, rates: np.ndarray, decay: float, *, square: float
) -> np.ndarray:
  r"""Theory: the RMS of weights that take correlated noise and decay.

  Args:
    start: RMS before the first step.
    rates: learning rate of each step [n].
    decay: :math:`\lambda`.
    square: :math:`r^2 K`, see the docstring of the module.

  Returns:
    [n], after each step.

  Example:
    >>> rates = np.full(10_000, 0.01)
    >>> rms = weight_rms(1.0, rates, 0.5, square=1.0)
    >>> round(float(rms[-1]), 3)  # sqrt(eta / (2 lambda))
    0.1
  """
  v, result = start**2, []
  for rate in rates:
    v = (1 - rate * decay) ** 2 * v + rate**2 * square
    result.append(v**0.5)
  return np.array(result)


def _theory(runs) -> list[dict]:
  """Rows of step and RMS that the theory gives for one contestant."""
  first, last = runs[0][0], runs[0][-1]['step']
  shape = schedule('cosine', steps=last, warmup=round(WARMUP * last))
  steps = np.arange(first['step'], last)
  rms = weight_rms(
    float(np.mean([rows[0]['weight_rms'] for rows in runs])),
    first['learning_rate'] * np.asarray(shape(jnp.asarray(steps))),
    first['weight_decay'],
    square=UPDATE_RMS**2 * gradients_averaged(MOMENTUM),
  )
  return [
    {'step': int(step) + 1, 'weight_rms': float(value)}
    for step, value in zip(steps, rms, strict=True)
  ]


def _gaps(without, decayed) -> list[list[dict]]:
  """Loss with decay less the loss without, for each seed that both have."""
  by_seed = {rows[0]['seed']: rows for rows in decayed}
  return [
    [
      {'step': a['step'], 'gap': b['val_loss'] - a['val_loss']}
      for a, b in zip(rows, by_seed[rows[0]['seed']], strict=True)
    ]
    for rows in without
    if rows[0]['seed'] in by_seed
  ]


def _norms(row) -> list[str]:
  return [name for name in row if name.startswith('norm_')]


def _numbers(found) -> dict:
  """The headline: gaps along the runs, and theory over measurement."""
  numbers = {}
  for decay, runs in found.items():
    measured = [rows[-1]['weight_rms'] for rows in runs]
    theory = _theory(runs)[-1]['weight_rms']
    gaps = _gaps(found[0.0], runs)
    curve = np.mean([[row['gap'] for row in rows] for rows in gaps], axis=0)
    behind = np.flatnonzero(curve > 0)
    numbers[f'{decay:g}'] = {
      'learning_rate': runs[0][0]['learning_rate'],
      'final_loss': spread([rows[-1]['val_loss'] for rows in runs]),
      'final_gap': spread([rows[-1]['gap'] for rows in gaps]),
      'largest_gap': float(curve.max()),
      'last_step_behind': gaps[0][behind[-1]]['step'] if len(behind) else 0,
      'weight_rms': spread(measured),
      'theory_over_weight_rms': theory / float(np.mean(measured)),
      'largest_norm_times_decay': decay
      * max(row[n] for rows in runs for row in rows for n in _norms(row)),
    }
  at = numbers[f'{PAPER_DECAY:g}']
  return {
    'final_gap': at['final_gap'],
    'largest_gap': at['largest_gap'],
    'paper_gaps': PAPER_GAPS,
    'by_decay': numbers,
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the four panels from the rows and returns the headline numbers."""
  runs = by_run(rows)
  decays = sorted({row['weight_decay'] for row in rows})
  found = {decay: tuned(runs, weight_decay=decay) for decay in decays}
  numbers = _numbers(found)
  shades = matplotlib.colormaps['viridis'](np.linspace(0.8, 0, len(decays)))
  style = {
    decay: dict(color=tuple(shade), label=f'$\\lambda$ = {decay:g}')
    for decay, shade in zip(decays, shades, strict=True)
  }
  _plot_gap(found, style, axes['gap'])
  _plot_grid(runs, style, axes['grid'])
  _plot_rms(found, style, axes['rms'])
  _plot_norm(found, style, axes['norm'])
  gap, early = numbers['final_gap'], numbers['largest_gap']
  axes['gap'].figure.suptitle(
    f'What decay adds to the loss: up to {early:+.3f} on the way, '
    f'{gap["mean"]:+.3f} at the end ({gap["min"]:+.3f} to {gap["max"]:+.3f} '
    'over seeds); Moonlight: '
    + ', then '.join(f'{gap:+}' for gap in PAPER_GAPS.values())
  )
  return numbers


def _plot_gap(found, style, ax):
  """Who is ahead along the run."""
  for decay, runs in found.items():
    if decay:
      band(ax, _gaps(found[0.0], runs), 'gap', **style[decay])
  for (steps, gap), line in zip(PAPER_GAPS.items(), ('--', ':'), strict=True):
    label = f'Moonlight, after {steps} steps: {gap:+}'
    ax.axhline(gap, color='black', linestyle=line, linewidth=1, label=label)
  ax.axhline(0, color='gray', linewidth=0.8)
  ax.set(
    xlabel='step',
    ylabel='loss with decay - loss without [nats per byte]',
    title='above zero no decay is ahead, below zero decay',
  )
  ax.legend(fontsize='small', loc='lower center')


def _plot_grid(runs, style, ax):
  """The learning rate bowls of the first seed."""
  points = {decay: grid(runs, weight_decay=decay) for decay in style}
  for decay in style:
    bowl(ax, points[decay], **style[decay])
  rates = [rate for pairs in points.values() for rate, _ in pairs]
  title = 'the same grid for all (star: optimum, hollow: at the edge)'
  rate_axis(ax, rates, title)
  ax.legend(loc='upper center')


def _plot_rms(found, style, ax):
  """RMS of all matrices, and what the theory makes of the learning rates."""
  for decay, runs in found.items():
    band(ax, runs, 'weight_rms', **style[decay])
    dashed = dict(color=style[decay]['color'], linestyle='--')
    band(ax, [_theory(runs)], 'weight_rms', **dashed)
  ax.plot([], [], '--', color='gray', label='theory, nothing fitted')
  ax.set(
    xlabel='step',
    ylabel='RMS of the weights that Muon trains',
    ylim=(0, 1.25 * ax.get_ylim()[1]),  # Room for the legend.
    title='updates as correlated noise against decay',
  )
  ax.legend(ncols=2, loc='upper center')


def _plot_norm(found, style, ax):
  """Spectral norms by kind of matrix, and the bounds on them."""
  for decay, runs in found.items():
    for i, column in enumerate(_norms(runs[0][0])):
      label = None if i else style[decay]['label']
      band(ax, runs, column, **style[decay] | {'label': label}, linewidth=1)
    if decay:
      ax.axhline(1 / decay, color=style[decay]['color'], linestyle='--')
  ax.plot([], [], '--', color='gray', label='bound 1 / $\\lambda$')
  ax.set(
    xlabel='step',
    ylabel='spectral norm / (s c)',
    yscale='log',
    title='a line for each kind of matrix, its largest over the layers',
  )
  ax.legend()
