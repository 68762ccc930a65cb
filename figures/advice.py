"""The learning rate for another batch size, from the last state of a run."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..optimizers import softsign_sgd
from ..scaling import (
  probe_learning_rate,
  recommend_learning_rate,
  scale_learning_rate,
  surge_index_estimate,
  tracked_noise_scale,
)
from ..training import TrainState
from .comparison import Row, power_law
from .image_model import ImageTask
from .one_step_search import FRESH, draws

# Ways to a learning rate, their labels and colors.
RULES = {
  'advice': ('advice', 'tab:green'),
  'one_step': ('with the surge index of a step', 'tab:orange'),
  'probe': ('probe of one step', 'tab:blue'),
  'linear': ('linear rule', 'tab:red'),
  'sqrt': ('square-root rule', 'tab:purple'),
}
FLAGS = {'past_critical': 'critical batch size', 'past_surge': 'surge'}
# One step of these is probed; Adam without its memory is the sign.
PROBED = {'sgd': optax.sgd(1.0), 'adam': softsign_sgd(1.0, eps=0.0)}
LARGE = 1024  # A batch that has little noise left.


class Advisor:
  """What the end of a base run says of other batch sizes.

  Args:
    task: the model at the base batch size.
    optimizer: "sgd" or "adam".
    state: of a `tracked_step`.
    past: rows of the base run, with its learning rate.
    key: of the draws of probe and surge index.
    probed: draws of the probe.
  """

  def __init__(
    self,
    task: ImageTask,
    optimizer: str,
    state: TrainState,
    past: Sequence[Row],
    key: jax.Array,
    probed: int,
  ):
    state = jax.tree.map(jnp.asarray, jax.device_get(state))
    self._task, self._params, self._key = task, state.params, key
    self._optimizer, self._probed = optimizer, probed
    self._base, self._rate = task.batch_size, past[-1]['base_rate']
    self._noise, self._decay = tracked_noise_scale(state.variables), fall(past)
    self._at_base = self._probe(self._base)
    self._index = self._surge_index() if optimizer == 'adam' else 0.0

  def rows(self, batch_size: int, budgets: Sequence[str]) -> Iterator[Row]:
    """A learning rate by every rule, for each budget."""
    sizes = self._rate, self._base, batch_size
    probe = self._rate * self._probe(batch_size) / self._at_base
    for budget in budgets:
      advice = self._recommend(batch_size, None, budget)
      of_a_step = self._recommend(batch_size, self._index, budget)
      yield {
        'advised': self._optimizer,
        'fixed': budget,
        'batch_size': batch_size,
        'base_batch_size': self._base,
        'base_rate': self._rate,
        'advice': advice['learning_rate'],
        'low': advice['low'],
        'high': advice['high'],
        'one_step': of_a_step['learning_rate'],
        'probe': probe,
        'linear': scale_learning_rate(*sizes, rule='linear'),
        'sqrt': scale_learning_rate(*sizes, rule='sqrt'),
        **{flag: int(of_a_step[flag]) for flag in FLAGS},
        'noise_scale': float(self._noise.scale),
        'surge_index': self._index,
        'decay': self._decay,
      }

  def _recommend(self, batch_size, surge_index, budget) -> dict[str, Any]:
    found = recommend_learning_rate(
      self._rate,
      self._base,
      batch_size,
      statistics=self._noise,
      optimizer=self._optimizer,
      surge_index=surge_index,
      budget=budget,
      decay=self._decay,
    )
    return {name: x.item() for name, x in found._asdict().items()}

  def _probe(self, batch_size: int) -> float:
    """The best learning rate of a step."""
    loss, optimizer = self._task.mean_loss, PROBED[self._optimizer]
    probe = jax.jit(
      lambda params, batches: probe_learning_rate(
        loss, params, batches, optimizer, batch_size=batch_size
      )
    )
    rows = batch_size + FRESH
    batches = draws(self._task, self._key, self._probed, rows)
    return float(probe(self._params, batches).learning_rate)

  def _surge_index(self) -> float:
    """Of the sign."""
    loss = self._task.mean_loss
    estimate = jax.jit(
      lambda params, batch: surge_index_estimate(loss, params, batch, pairs=8)
    )
    batch = draws(self._task, self._key, 1, 4 * LARGE)
    batch = jax.tree.map(lambda x: x[0], batch)
    return float(estimate(self._params, batch).index)


def fall(rows: Sequence[Row]) -> float:
  """The power of the steps with which the loss of a run falls, 0 or more.

  Of its second half.

  >>> rows = [dict(step=t, train_loss=t**-0.5) for t in (1, 2, 4, 8)]
  >>> round(fall(rows), 3)
  0.5
  """
  late = rows[len(rows) // 2 :]
  steps, losses = ([r[k] for r in late] for k in ('step', 'train_loss'))
  return max(0.0, power_law(steps, losses)['b'])


def warnings(row: Row) -> str:
  """What a row of advice warns of, to end a line with.

  >>> warnings({'past_critical': 1, 'past_surge': 0})
  ', past the critical batch size'
  """
  return ''.join(f', past the {FLAGS[f]}' for f in FLAGS if row[f])
