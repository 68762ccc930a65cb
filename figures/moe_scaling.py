"""Loss against active parameters: what more experts bring, and until when.

Papers: Dai et al., DeepSeekMoE, arXiv 2401.06066, fig. 2 and 3: at equal active
parameters a mixture has a lower loss than a dense model. Su, article 10699: the
experts, divided by their root mean square; article 10757: the bias by which
they are balanced, here the RMS rule at 0.001.

What should be seen (800 steps of 1024 bytes, means of two seeds, held-out nats
a byte): dense models of hidden widths 32, 64, 128, 256 and 512 end at 1.533,
1.488, 1.456, 1.416 and 1.392. One expert of 4, 8, 16 and 32, each of width 32,
ends 0.036, 0.038, 0.052 and 0.036 below a dense model of equal active
parameters, and equals one with 1.7, 1.8, 2.7 and 1.9 times as many: the best
number is 16, as the router counts, a third of an expert for 32 of them, and
each sees less of a short text. Two and four of 32 end 0.043 and 0.060 below,
four of 8 0.037. Four of 32 are level with the widest dense model, which has 3.7
times their active parameters. Gains of the two seeds differ by up to 0.026, so
neighbours in these lists are not told apart. With 2.5 times the text one of 32
was 0.02 below one of 8 (one seed and learning rate).

Of these gains 0.013 (0.005 and 0.020) are the normalisation, as "1 of 1" says,
a dense model with it. Mixtures need it: plain experts, four of 32, end 0.020
below dense ones, not 0.060.

What is not gained is time: on two CPU cores a step of four of 32 takes 24 ms,
of the dense model of width 512, as good, 19 ms. Balance is easy for 4 and 8
experts, MaxVio of 0.01 to 0.04, and for four of 32, 0.09, but not for one of 16
and 32, 0.19 and 0.71; faster is not better: for plain experts at one learning
rate, 1000 steps, one of 32 is at 0.2 with a rate of 0.001, at 0.5 with 0.003
and at 1.3 with 0.01, losses within 0.01.

How: a byte-level transformer of width 64 with two layers; only feed-forward
layers differ. Their parameters, with the router, are the ones that are drawn;
attention, norms, head and embedding, 66 thousand in all models, are added in
`active_all` and `total_all` of the numbers. Start and batches of a seed are the
same for all. The learning rate of each model is halved and doubled until both
neighbours are worse, with the first seed. Gains are taken from the dense models
of the same seed, linear in the logarithm of active parameters; what they do not
bound is not said.

Expected: gains of 0.03 to 0.06. At 400 steps (quick) 8 experts bring 0.02, and
16 nothing yet. Cost on two CPU cores: quick 1.5 minutes, full 14 minutes.
"""

import dataclasses
from typing import NamedTuple

import jax

from ..models import TransformerConfig
from ..training.data import load
from ..training.records import Row
from .active_panels import (
  plot_gain,
  plot_loss,
  plot_rates,
  plot_speed,
  plot_steps,
  read_models,
  results,
)
from .active_parameters import parameter_counts
from .mixture_model import Mixture, MixtureConfig
from .session import Session, session

# Of each model at least: the best one, its half and its double.
_RATES = 3
MOSAIC = [
  ['active', 'gain', 'steps'],
  ['total', 'speed', 'rates'],
]


class Shape(NamedTuple):
  """A feed-forward layer: `chosen` of `experts` with so many hidden units.

  `form` is "dense", "normalized" or "plain"; see `MoE` on the last two.
  """

  form: str
  chosen: int
  experts: int
  hidden: int

  @property
  def name(self) -> str:
    """In records and legends.

    >>> Shape('plain', 2, 8, 32).name, Shape('dense', 1, 1, 64).name
    ('plain 2 of 8 x 32', 'dense 64')
    """
    if self.form == 'dense':
      return f'dense {self.hidden}'
    of = f'{self.chosen} of {self.experts} x {self.hidden}'
    return of if self.form == 'normalized' else f'{self.form} {of}'

  @property
  def options(self) -> Row:
    """Of `MoEConfig`; a single expert has a gate of 1, and no balance."""
    sizes = {k: getattr(self, k) for k in ('chosen', 'experts', 'hidden')}
    sizes['normalized'] = self.form == 'normalized'
    if self.experts > 1:
      return sizes | {'rule': 'rms'}
    return sizes | {'rule': 'none', 'score': 'softmax', 'method': 'dense'}


@dataclasses.dataclass
class Config(MixtureConfig):
  """What is trained.

  Args:
    dense: hidden widths of models without experts, ascending.
    mixtures: normalised experts: chosen, all of them, hidden width of each; in
      the place of `chosen` and `experts`.
    plain: mixtures without the normalisation.
    learning_rate: where the search for that of each model begins, by factors
      of two.
    bias_rate: of the loss-free bias, by the "rms" rule.
  """

  batch_size: int = 16
  steps: int = 400
  dense: tuple[int, ...] = (32, 64)
  mixtures: tuple[tuple[int, int, int], ...] = ((1, 8, 32), (1, 16, 32))
  plain: tuple[tuple[int, int, int], ...] = ()
  bias_rate: float = 0.001

  @classmethod
  def full(cls) -> 'Config':
    """Longer runs, more models, learning rates and seeds."""
    return cls(
      steps=800,
      learning_rate=0.012,
      seeds=2,
      validation_windows=2048,
      dense=(32, 64, 128, 256, 512),
      mixtures=(
        (1, 1, 32),
        (1, 4, 32),
        (1, 8, 32),
        (1, 16, 32),
        (1, 32, 32),
        (2, 32, 32),
        (4, 8, 32),
        (4, 32, 32),
      ),
      plain=((4, 32, 32),),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    rising = [*self.dense] == sorted({*self.dense}) and len(self.dense) > 1
    good = lambda x: rising and x >= 1
    self.require_every('dense', good, 'two or more numbers, ascending')
    for name in ('mixtures', 'plain') if self.plain else ('mixtures',):
      self._check_mixtures(name)
    self.require_every('bias_rate', lambda x: x > 0, 'a positive number')
    super().check(data_dir)

  def _check_mixtures(self, name: str) -> None:
    entries, devices = getattr(self, name), self.expert_devices
    different = len({*entries}) == len(entries)

    def good(entry):
      chosen, experts, hidden = entry
      sizes = 1 <= chosen <= experts and hidden >= 1
      return different and sizes and experts % max(devices, 1) == 0

    expected = f'different: chosen, of how many for {devices} devices, width'
    self.require_every(name, good, expected)

  @property
  def shapes(self) -> list[Shape]:
    """All of them, dense ones first."""
    return [
      *(Shape('dense', 1, 1, hidden) for hidden in self.dense),
      *(Shape('normalized', *entry) for entry in self.mixtures),
      *(Shape('plain', *entry) for entry in self.plain),
    ]

  def sizes_of(self, shape: Shape) -> TransformerConfig:
    """The model with such layers."""
    sizes = self.sizes(**shape.options)
    if shape.form == 'dense':
      return dataclasses.replace(sizes, moe=None, hidden=shape.hidden)
    return sizes


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Trains all models and returns the rows."""
  c, text = config, load(config.dataset, data_dir=data_dir)
  runs = len(c.shapes) * (_RATES + c.seeds - 1)
  about = {'dataset': c.dataset, 'step_tokens': c.batch_size * c.length}
  with session(workdir, key, runs * c.steps) as launch:
    for shape in c.shapes:
      sizes = c.sizes_of(shape)
      tags = {'model': shape.name, **shape._asdict()}
      tags |= parameter_counts(sizes) | about
      _tune(c, launch, c.mixture(text, sizes, parallel), tags)
  return launch.records.rows


def _tune(c: Config, launch: Session, mixture: Mixture, tags: Row) -> None:
  """Halves or doubles the rate until both are worse; then the other seeds."""

  def loss(power, seed):
    rate = c.learning_rate * 2.0**power
    label = f'{tags["model"]}-lr{rate:g}-s{seed}'.replace(' ', '-')
    numbers = dict(learning_rate=rate, bias_rate=c.bias_rate)
    return mixture.train(launch, label, tags, seed=seed, **numbers)['val_loss']

  losses, best = {}, 0
  while not {best - 1, best, best + 1} <= {*losses}:
    for power in (best - 1, best, best + 1):
      if power not in losses:
        launch.progress.expect(c.steps if len(losses) >= _RATES else 0)
        losses[power] = loss(power, 0)
    best = min(losses, key=losses.get)
  for seed in range(1, c.seeds):
    loss(best, seed)


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  models, numbers = read_models(rows), results(rows)
  plot_loss(axes['active'], models, 'active')
  plot_gain(axes['gain'], models, numbers)
  plot_steps(axes['steps'], models)
  plot_loss(axes['total'], models, 'total')
  plot_speed(axes['speed'], models)
  plot_rates(axes['rates'], models)
  axes['active'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """What each mixture gains, and how wide a dense model of its loss is."""

  def said(name, own):
    gain, times = own['gain'], own['dense_times']
    text = f'{name} {gain["mean"]:+.3f}' if gain else f'{name} not bounded'
    more = '> ' if own['dense_times_are_more'] else ''
    return f'{text} ({more}{times["mean"]:.1f}x)' if times else text

  parts = [said(*item) for item in numbers['mixtures'].items()]
  half = -(-len(parts) // 2)
  lines = ', '.join(parts[:half]), ', '.join(parts[half:])
  return (
    'loss below dense models of equal active parameters, nats a byte (and how '
    'many times as many parameters a dense model of equal loss has)\n'
    + '\n'.join(filter(None, lines))
    + f'; {numbers["dataset"]}, {numbers["steps"]} steps'
  )
