"""What runs over batch sizes and learning rates say: steps, budgets, optima."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..scaling import fit_tradeoff
from .comparison import Row, crossing, spread
from .optima import optimum


class Curves(NamedTuple):
  """Runs at one batch size: steps [P], learning rates [L], losses [S, L, P]."""

  steps: np.ndarray
  rates: np.ndarray
  losses: np.ndarray


def curves_of(rows: Sequence[Row]) -> dict[int, Curves]:
  """By batch size, ascending, of rows with a `train_loss`."""
  found: dict[int, dict] = {}
  for row in rows:
    if 'train_loss' in row:
      place = row['seed'], row['learning_rate'], row['steps']
      found.setdefault(row['batch_size'], {})[place] = row['train_loss']
  curves = {}
  for batch_size, losses in sorted(found.items()):
    axes = [sorted({place[i] for place in losses}) for i in range(3)]
    seeds, rates, steps = axes
    values = [[[losses[s, r, t] for t in steps] for r in rates] for s in seeds]
    curves[batch_size] = Curves(*map(np.array, (steps, rates, values)))
  return curves


def steps_to(curves: Curves, target: float) -> np.ndarray:
  """Steps to a loss [seeds, rates], infinite where it is not reached.

  Losses are linear in the logarithm of the step between looks, and before the
  first one the segment after it is continued.

  >>> curves = Curves(np.array([1, 10]), np.ones(1), np.array([[[3.0, 2.0]]]))
  >>> round(float(steps_to(curves, 2.5)[0, 0]), 3)
  3.162
  """

  def of(losses):
    if not np.min(losses) <= target:
      return np.inf
    return np.exp(crossing(np.log(curves.steps), losses, target))

  return np.apply_along_axis(of, -1, curves.losses)


def losses_after(curves: Curves, steps: float) -> np.ndarray:
  """Losses [seeds, rates] after some steps, linear in their logarithm."""
  of = lambda losses: np.interp(np.log(steps), np.log(curves.steps), losses)
  return np.apply_along_axis(of, -1, curves.losses)


def exponents(batch_sizes: Sequence[float], rates: Sequence[float]) -> list:
  """Slopes of log rate against log batch size, between neighbours.

  >>> exponents([1, 2, 4], [1.0, 2.0, 2.0])
  [1.0, 0.0]
  """
  slopes = np.diff(np.log(rates)) / np.diff(np.log(batch_sizes))
  return [float(slope) for slope in slopes]


def tradeoff(curves: dict[int, Curves], target: float) -> dict:
  """Steps to the target at the best learning rates, and their hyperbola."""
  batches, found = [*curves], {}
  for batch, at in curves.items():
    steps = steps_to(at, target)
    best = int(np.argmin(steps.mean(0)))
    found[batch] = {
      **spread(steps[:, best]),
      'learning_rate': float(at.rates[best]),
      'at_edge': best in (0, len(at.rates) - 1),
      'by_rate': steps.mean(0).tolist(),
    }
  steps = [at['mean'] for at in found.values()]
  fit = fit_tradeoff(np.array(batches, float), np.array(steps))
  return {
    'steps': found,
    'min_steps': float(fit.min_steps),
    'min_examples': float(fit.min_examples),
    'critical_batch_size': float(fit.critical_batch_size),
    'log_error': float(fit.standard_errors['critical_batch_size']),
    'rms': float(fit.rms),
  }


def budgets(curves: dict[int, Curves], steps: int, examples: int) -> dict:
  """Optima by batch size, at fixed steps and at fixed examples."""
  ends = {
    'steps': lambda batch: steps,
    'examples': lambda batch: examples / batch,
  }
  found = {}
  for name, end in ends.items():
    optima = {
      batch: optimum(at.rates, losses_after(at, end(batch)))
      for batch, at in curves.items()
    }
    rates = [at['rate'] for at in optima.values()]
    found[name] = {'optima': optima, 'exponents': exponents([*curves], rates)}
  return found
