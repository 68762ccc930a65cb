r"""Adam's epsilon, from the sign to the gradient, on a language model.

Paper: Su, article 10563: with epsilon under the root, m / sqrt(v + eps^2), Adam
is a SoftSign that goes from the sign of the gradient at small epsilon to
gradient descent with the learning rate divided by epsilon at large; and at the
epsilon of LLaMA 2, 1e-5, many entries of the gradient are below it.

What should be seen: a final loss that goes from Adam's to that of gradient
descent with momentum; a best learning rate that is constant for small epsilon
and grows like epsilon for large; the cosine of the update with sign(m) falling
and with m rising to one. At epsilon zero the cosine with the sign is not one
but near sqrt(2 / pi) = 0.798: m over the root mean square of g is Gaussian
where the gradient is noise, not plus or minus one.

How: `softsign_adam` with every epsilon, tuned over a grid of learning rates
times sqrt(1 + (eps / unit)^2), so that the grid follows the expected optimum;
gradient descent with momentum is its limit, over the same grid divided by the
unit. Without weight decay, which would grow with the learning rate. The theory
of the best learning rate is sqrt(a^2 + (b eps)^2) with the tuned ends a and b;
that of the cosines takes each m as Gaussian with a variance proportional to v.

Expected: the ends reached, cosines within 0.1. Cost on two CPU cores: quick 1
minute, full 5 minutes.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..optimizers import softsign, softsign_adam
from ..training import init_state, make_step, parallelize
from ..training.schedules import schedule
from .comparison import by_run, grid, spread, tuned
from .language_model import Task, TaskConfig
from .panels import whiskers
from .session import Session, session

MOSAIC = [['loss', 'rate'], ['cosine', 'below']]
B1, B2 = 0.9, 0.95
PROBED = (0.0, *np.geomspace(1e-8, 10, 37))
STAGES = 3  # Equal parts of a run, after each of which gradients are looked at.
LEFT = 1e-9  # Where pictures have an epsilon of zero.
DEFAULTS = {1e-8: 'torch', 1e-7: 'Keras', 1e-5: 'LLaMA 2'}


@dataclasses.dataclass
class Config(TaskConfig):
  """What the figure trains.

  Args:
    eps: every epsilon, 0 (Adam) among them, ascending.
    unit: the epsilon from which on the grid of learning rates grows.
  """

  steps: int = 150
  learning_rates: tuple[float, ...] = (0.016, 0.032, 0.064, 0.128)
  weight_decay: float = 0.0
  log_points: int = 3
  eps: tuple[float, ...] = (0.0, 1e-5, 1e-3, 1e-2, 0.1, 1.0)
  unit: float = 5e-3

  @classmethod
  def full(cls) -> 'Config':
    """Twice the steps, a wider grid, three seeds."""
    return cls(
      steps=300,
      learning_rates=(0.008, 0.016, 0.032, 0.064, 0.128),
      eps=(0.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0),
      seeds=3,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('eps', lambda x: x >= 0, 'numbers of 0 or more')
    fine = 0.0 in self.eps and max(self.eps) > 0
    require(fine, 'config.eps', self.eps, '0 and another')
    self.require_every('unit', lambda x: x > 0, 'a number above 0')
    still = 'a number that its learning rates do not multiply: 0'
    self.require_every('weight_decay', lambda x: x == 0, still)

  def rates(self, eps: float) -> list[float]:
    """The grid at an epsilon."""
    growth = float(np.sqrt(1 + (eps / self.unit) ** 2))
    return [rate * growth for rate in self.learning_rates]


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[dict]:
  """Trains the sweep, looks at gradients, and returns the rows."""
  c = config
  with session(workdir, key, _total_steps(c)) as launch:
    task = c.task(data_dir)
    rate = _train_all(c, task, launch, parallel)
    _look(c, task, launch, rate, parallel)
  return launch.records.rows


def _total_steps(c: Config) -> int:
  """Steps of all runs together, for the progress bar."""
  runs = len(c.learning_rates) + c.seeds - 1
  return (len(c.eps) + 1) * runs * c.steps + c.steps // STAGES * STAGES


def _adam(rate, decay, eps):
  return softsign_adam(rate, b1=B1, b2=B2, eps=eps, weight_decay=decay)


def _descent(rate, decay):
  """The limit of a large epsilon, the learning rate divided by it."""
  del decay
  return optax.chain(optax.ema(B1), optax.scale_by_learning_rate(rate))


def _train_all(c: Config, task: Task, launch: Session, parallel) -> float:
  """Tunes every epsilon and descent; returns Adam's learning rate."""
  make = functools.partial(c.sweep, task, parallel=parallel)
  options = dict(seeds=c.seeds, weight_decay=c.weight_decay)
  adam = make(_adam, 'softsign_adam', varies='eps')
  best = {
    eps: adam.tune(launch, c.rates(eps), setting=eps, **options)
    for eps in c.eps
  }
  rates = [rate / c.unit for rate in c.learning_rates]
  make(_descent, 'descent').tune(launch, rates, **options)
  return best[0.0]['learning_rate']


def _look(c: Config, task: Task, launch: Session, rate, parallel) -> None:
  """Gradients and directions at stages of a run with Adam."""
  labels = [f'stage-{i + 1}' for i in range(STAGES)]
  records, part = launch.records, c.steps // STAGES
  if all(len(records.of(label)) == len(PROBED) for label in labels):
    launch.progress.skip(part * STAGES)
    return
  records.keep(lambda row: row['run'] not in labels)
  shape = schedule('cosine', steps=c.steps, warmup=c.steps // 10)
  optimizer = _adam(lambda count: rate * shape(count), 0.0, 0.0)
  program = parallelize(make_step(task.loss, optimizer), parallel)
  batches = task.batches(launch.key)
  state = init_state(task.init(launch.key), optimizer)
  state = program.place(state)
  gradient = jax.jit(
    jax.grad(lambda params, batch: task.loss(params, (), batch, None)[0])
  )
  for stage, label in enumerate(labels, start=1):
    done = stage * part
    state, _ = program(state, batches(done - part, part), launch.key)
    launch.progress.advance(part, label)
    # A batch that no step sees.
    g = gradient(state.params, jnp.asarray(batches(c.steps, 1)[0]))
    adam = state.opt_state[0]
    m = optax.tree.bias_correction(adam.mu, B1, adam.count)
    v = optax.tree.bias_correction(adam.nu, B2, adam.count)
    for step, row in enumerate(_directions(*map(_flat, (g, m, v)))):
      records.add({'run': label, 'step': step, 'trained': done, **row})


def _flat(tree) -> np.ndarray:
  leaves = [np.float64(x).reshape(-1) for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def _cosine(x, y) -> float:
  return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _directions(g, m, v) -> Iterable[dict]:
  """Cosines of Adam's and SoftSign's updates at every probed epsilon.

  In theory m is Gaussian with variance s^2 proportional to v. Then sums over
  entries of E|m| u and m u are sums of their moments.
  """
  seen = v > 0  # Bytes that the text lacks have embeddings without gradient.
  g, m, v = g[seen], m[seen], v[seen]
  for eps in PROBED:
    u = m / np.sqrt(v + eps**2)
    soft = np.asarray(softsign(m, eps))
    slope = 1 / np.sqrt(v + eps**2)
    size = np.sqrt(np.sum(v * slope**2))
    yield {
      'probed_eps': eps,
      'cosine_sign': _cosine(u, np.sign(m)),
      'cosine_momentum': _cosine(u, m),
      'cosine_sign_theory': (
        np.sqrt(2 / np.pi / len(v)) * np.sum(np.sqrt(v) * slope) / size
      ),
      'cosine_momentum_theory': (
        np.sum(v * slope) / (np.sqrt(np.sum(v)) * size)
      ),
      'softsign_cosine_sign': _cosine(soft, np.sign(m)),
      'softsign_cosine_momentum': _cosine(soft, m),
      'below': np.mean(np.abs(g) < eps),
      'below_root_v': np.mean(np.sqrt(v) < eps),
    }


def _best_rate(runs, **wanted) -> float:
  return tuned(runs, **wanted)[0][0]['learning_rate']


def _numbers(rows: list[dict]) -> dict:
  """Losses and learning rates by epsilon, and the cosines at its ends."""
  runs = by_run(rows)
  every = sorted({row['eps'] for row in rows if 'eps' in row})
  stages = [runs[name] for name in sorted(runs) if name.startswith('stage-')]
  require(len(stages) == STAGES, 'records', len(stages), f'{STAGES} stages')
  end = lambda **wanted: spread(
    [run[-1]['val_loss'] for run in tuned(runs, **wanted)]
  )
  adam = dict(optimizer='softsign_adam')
  loss = {eps: end(eps=eps, **adam) for eps in every}
  rates = {eps: _best_rate(runs, eps=eps, **adam) for eps in every}
  descent = _best_rate(runs, optimizer='descent')
  theory = {e: float(np.hypot(rates[0.0], descent * e)) for e in every}
  last = end(optimizer='descent')
  cosines = ('cosine_sign', 'cosine_momentum')
  at = lambda rows, eps: min(rows, key=lambda r: abs(r['probed_eps'] - eps))
  return {
    'loss_by_eps': loss,
    'loss_descent': last,
    'largest_eps_less_descent': loss[every[-1]]['mean'] - last['mean'],
    'rate_by_eps': rates,
    'rate_descent': descent,
    'rate_theory': theory,
    'largest_factor_between_rate_and_theory': max(
      np.exp(abs(np.log(rates[eps] / theory[eps]))) for eps in every
    ),
    'crossover_eps': rates[0.0] / descent,
    'cosine_sign_at_0': stages[1][0]['cosine_sign'],
    'cosine_sign_at_0_theory': float(np.sqrt(2 / np.pi)),
    'largest_error_of_cosine_theory': max(
      abs(row[name] - row[f'{name}_theory'])
      for row in stages[1]
      for name in cosines
    ),
    'below_1e-5_by_step': {
      of[0]['trained']: at(of, 1e-5)['below'] for of in stages
    },
  }


def plot(rows: list[dict], axes: dict) -> dict:
  """Draws the four panels from the rows and returns the headline numbers."""
  runs, numbers = by_run(rows), _numbers(rows)
  _plot_loss(numbers, axes['loss'])
  _plot_rate(runs, numbers, axes['rate'])
  _plot_cosine(runs['stage-2'], axes['cosine'])
  _plot_below(runs, axes['below'])
  loss = numbers['loss_by_eps']
  axes['loss'].figure.suptitle(
    f'epsilon takes Adam from {loss[0.0]["mean"]:.3f} to '
    f"{loss[max(loss)]['mean']:.3f}, gradient descent's "
    f'{numbers["loss_descent"]["mean"]:.3f}; the best learning rate follows '
    'sqrt(a^2 + (b eps)^2) within a factor of '
    f'{numbers["largest_factor_between_rate_and_theory"]:.1f}'
  )
  return numbers


def _epsilon_axis(ax, low, high):
  """A logarithmic axis with zero at its left end, and the usual epsilons."""
  ax.set(xscale='log', xlim=(low / 1.5, high * 1.5), xlabel='epsilon')
  powers = 10.0 ** np.arange(np.log10(low) + 1, np.log10(high) + 0.5)
  names = [f'1e{np.log10(x):.0f}' for x in powers]
  ax.set_xticks([low, *powers], ['0', *names])
  ax.set_xticks([], minor=True)
  top = ax.get_xaxis_transform()
  for eps, name in DEFAULTS.items():
    ax.axvline(eps, color='lightgray', linewidth=1, zorder=0)
    style = dict(rotation=90, fontsize='x-small', va='bottom', ha='right')
    ax.text(eps, 0.02, name, color='gray', transform=top, **style)


def _plot_loss(numbers, ax):
  """Final loss at each epsilon, each at its best learning rate."""
  loss, zero = numbers['loss_by_eps'], LEFT
  mean, error = whiskers([*loss.values()])
  x = [eps or zero for eps in loss]
  ax.errorbar(x, mean, error, fmt='o-', capsize=3, label='SoftSign Adam')
  for spread_, name, color in (
    (loss[0.0], 'Adam, epsilon 0', 'tab:orange'),
    (numbers['loss_descent'], 'gradient descent with momentum', 'tab:red'),
  ):
    ax.axhline(spread_['mean'], color=color, linestyle='--', label=name)
    ax.axhspan(spread_['min'], spread_['max'], color=color, alpha=0.15)
  _epsilon_axis(ax, zero, max(loss))
  ax.set(
    ylabel='final validation loss [nats per byte]',
    title='each at its best learning rate, range over seeds',
  )
  ax.legend(loc='center left')


def _plot_rate(runs, numbers, ax):
  """All learning rates tried, the best ones, and the theory from the ends."""
  rates, zero = numbers['rate_by_eps'], LEFT
  for eps, best in rates.items():
    points = grid(runs, optimizer='softsign_adam', eps=eps)
    tried, losses = map(np.array, zip(*points, strict=True))
    excess = np.minimum(losses - losses.min(), 0.3)
    x = np.full(len(tried), eps or zero)
    style = dict(c=excess, cmap='viridis_r', vmin=0, vmax=0.3, s=45)
    shown = ax.scatter(x, tried, **style)
    edge = best in (tried.min(), tried.max())
    face = 'none' if edge else 'tab:red'
    ax.scatter(eps or zero, best, s=170, marker='*', ec='tab:red', fc=face)
  line = np.geomspace(zero, max(rates))
  theory = np.hypot(rates[0.0], numbers['rate_descent'] * line)
  label = "sqrt(a^2 + (b eps)^2): Adam's and gradient descent's optima"
  ax.plot(line, theory, color='black', label=label)
  ax.figure.colorbar(shown, ax=ax, label='loss above the best [nats per byte]')
  _epsilon_axis(ax, zero, max(rates))
  ax.set(
    yscale='log',
    ylabel='learning rate',
    title='all that was tried (star: optimum, hollow: at the edge)',
  )
  ax.legend(loc='upper left', fontsize='small')


def _plot_cosine(rows, ax):
  """Cosines of the update with the sign and with the momentum itself."""
  x = [row['probed_eps'] or LEFT for row in rows]
  for name, color in (('sign', 'tab:orange'), ('momentum', 'tab:blue')):
    shown = 'sign(m)' if name == 'sign' else 'm'
    for column, style, label in (
      (f'cosine_{name}', '-', f'Adam, with {shown}'),
      (f'cosine_{name}_theory', '--', 'theory, Gaussian m'),
      (f'softsign_cosine_{name}', ':', f'softsign(m, eps), with {shown}'),
    ):
      y = [row[column] for row in rows]
      ax.plot(x, y, style, color=color, label=label)
  _epsilon_axis(ax, LEFT, max(x))
  ax.set(
    ylim=(0, 1.35),  # Room for a legend.
    ylabel='cosine with the update',
    title=f'one state of a run with Adam, after {rows[0]["trained"]} steps',
  )
  ax.legend(loc='upper center', fontsize='small', ncols=2)


def _plot_below(runs, ax):
  """How many entries of the gradient are below an epsilon."""
  for i in range(STAGES):
    rows = runs[f'stage-{i + 1}']
    x = [row['probed_eps'] or LEFT for row in rows]
    label = f'|g| < epsilon after {rows[0]["trained"]} steps'
    ax.plot(x, [row['below'] for row in rows], label=label)
  root = [row['below_root_v'] for row in rows]
  ax.plot(x, root, ':', color='black', label='sqrt(v) < epsilon, at the end')
  _epsilon_axis(ax, LEFT, max(x))
  ax.set(
    ylim=(0, 1.05),
    ylabel='share of the parameters',
    title='entries of the gradient below epsilon, of those that have one',
  )
  ax.legend(loc='upper left')
