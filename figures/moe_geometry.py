r"""A dense layer as a sum of expert vectors, of which k of n are kept.

Papers: Su, article 10699: a feed-forward layer adds up n vectors; if they are
orthogonal, keeping the k longest is best; a router that predicts their lengths
spares computing the others; and experts divided by their length leave length to
the router. Zhang et al., MoEfication, arXiv 2110.01786: hidden units of a
trained layer that are active together make better experts.

What should be seen (after 1500 steps of a dense model, means of its layers,
held-out text): of 16 groups of neighbouring units the four longest vectors
leave an error of 0.48 of the length of the output, the best of all 1820 subsets
0.46, four random ones 0.80. So the longest are all but the best, though the
vectors are not orthogonal: cosines have an RMS of 0.20, and a positive mean,
random ones in 64 dimensions 0.125. If they were, the error would be 0.56: what
is kept points the way of what is left. In clusters of units that are active
together, of equal size by `balanced_assignment`, the same four leave 0.36 (best
0.35). A linear router with a softplus explains 60 % of the variance of lengths,
84 % of clusters, and loses 0.07 and 0.05 more. More and smaller groups are
better at the same share kept.

Trained with experts, in the residual layers of a transformer, with the learned
output scale of `MoE`, normalized experts are better than plain ones, each at
its own learning rate: 1.441 nats a byte to 1.517 after 400 steps, 1.450 with a
softplus gate, and none of three seeds overlaps; balanced to MaxVio 0.02 and
0.03 by the same rule. (In a regression of its own without that scale, they
failed.)

How: the dense model is trained, then frozen; clusters and router are made on
text of training, errors measured on held-out text, over all tokens, the root of
lost over whole squares. Best subsets are tried where they are 20,000 at most.
Experts: RMS rule at one rate, learning rates tuned for each kind with the first
seed; the ones of the article are not divided by length but by RMS, and scaled.

Expected: the longest within 5 % of the best subset, clusters well below
neighbours. Cost on two CPU cores: quick 1.5 minutes, full 6 minutes.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from ..models import TransformerConfig
from ..training import TrainState
from ..training.batches import token_windows
from ..training.data import Dataset, load
from ..training.loop import fit
from ..training.records import Row
from .expert_geometry import (
  GROUPS,
  DenseLayer,
  dense_layers,
  geometry,
  numbers_kept,
)
from .geometry_panels import (
  plot_cosines,
  plot_experts,
  plot_kept,
  plot_runs,
  results,
)
from .mixture_model import Mixture, MixtureConfig, MixtureTask
from .session import Session, session

MOSAIC = [
  ['neighbours', 'clusters', 'cosines'],
  ['experts', 'loss', 'violation'],
]
# Options of `MoEConfig`: the gate of the article is any that is not negative.
EXPERTS = {
  'plain': dict(normalized=False),
  'normalized': dict(normalized=True),
  'normalized, softplus gate': dict(normalized=True, gate='softplus'),
}


@dataclasses.dataclass
class Config(MixtureConfig):
  """What is taken apart, and what is trained.

  Args:
    hidden: units of a dense layer.
    dense_steps: of the training of the dense model.
    groups: numbers of experts of a dense layer, powers of two from 8, which
      divide `hidden`, ascending.
    windows: sequences of text for clusters and router, and for errors.
    kinds: names of `EXPERTS`.
    learning_rates: over which each of them is tuned.
    bias_rate: of the loss-free bias, by the "rms" rule.
  """

  steps: int = 200
  learning_rate: float = 0.004
  hidden: int = 256
  dense_steps: int = 300
  groups: tuple[int, ...] = (8, 16)
  windows: int = 48
  kinds: tuple[str, ...] = ('plain', 'normalized')
  learning_rates: tuple[float, ...] = (0.016,)
  bias_rate: float = 0.001

  @classmethod
  def full(cls) -> 'Config':
    """Longer runs, more groups, seeds and learning rates."""
    return cls(
      steps=400,
      seeds=3,
      dense_steps=1500,
      groups=(8, 16, 32, 64),
      windows=64,
      kinds=tuple(EXPERTS),
      learning_rates=(0.008, 0.016, 0.032, 0.064),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    for name in ('hidden', 'dense_steps', 'windows'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    rising = [*self.groups] == sorted({*self.groups})
    power = lambda x: x >= 8 and x.bit_count() == 1
    good = lambda x: rising and power(x) and self.hidden % x == 0
    expected = f'ascending powers of 2 from 8 that divide {self.hidden}'
    self.require_every('groups', good, expected)
    different = len(self.kinds) == len({*self.kinds})
    expected = f'different ones of {", ".join(EXPERTS)}'
    self.require_every('kinds', lambda x: different and x in EXPERTS, expected)
    for name in ('learning_rates', 'bias_rate'):
      self.require_every(name, lambda x: x > 0, 'positive')
    super().check(data_dir)

  @property
  def dense_sizes(self) -> TransformerConfig:
    """The model without experts."""
    return TransformerConfig(
      layers=self.layers,
      width=self.width,
      heads=max(1, self.width // 32),
      hidden=self.hidden,
    )


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Takes a trained model apart, trains those with experts; the rows."""
  c, text = config, load(config.dataset, data_dir=data_dir)
  runs = len(c.kinds) * (len(c.learning_rates) + c.seeds - 1)
  with session(workdir, key, c.dense_steps + runs * c.steps) as launch:
    _take_apart(c, launch, text, parallel)
    for kind in c.kinds:
      sizes = c.sizes(rule='rms', **EXPERTS[kind])
      _tune(c, launch, c.mixture(text, sizes, parallel), kind)
  return launch.records.rows


def _tune(c: Config, launch: Session, mixture: Mixture, kind: str) -> None:
  """Every learning rate with the first seed, the others at the best."""

  def train(rate, seed):
    return mixture.train(
      launch,
      f'{kind}-lr{rate:g}-s{seed}',
      {'kind': kind, 'layers': c.layers},
      seed=seed,
      learning_rate=rate,
      bias_rate=c.bias_rate,
    )

  losses = {rate: train(rate, 0)['val_loss'] for rate in c.learning_rates}
  best = min(losses, key=losses.get)
  for seed in range(1, c.seeds):
    train(best, seed)


def _take_apart(c: Config, launch: Session, text: Dataset, parallel: str):
  """Layers of a dense model as sums of vectors, by groups and their number."""
  places = [*itertools.product(range(c.layers), c.groups, GROUPS)]
  label = lambda layer, n, group: f'layer{layer}-{group}-n{n}'
  count = lambda n: len(numbers_kept(n)) + 1
  missing = [
    place
    for place in places
    if len(launch.records.of(label(*place))) < count(place[1])
  ]
  if not missing:
    launch.progress.skip(c.dense_steps)
    return
  train, held_out = _layers(c, launch, text, parallel)
  for place in missing:
    layer, n, group = place
    rows = lambda layer=layer, n=n, group=group: (
      {'layer': layer, **row}
      for row in geometry(train[layer], held_out[layer], n, group, launch.key)
    )
    launch.record(label(*place), count(n), rows)


def _layers(
  c: Config, launch: Session, text: Dataset, parallel: str
) -> list[list[DenseLayer]]:
  """Those of the trained model, on text of training and held out."""
  state, task = trained(c, launch, text, parallel)
  windows = lambda split: jnp.asarray(
    token_windows(split, count=c.windows, length=c.length)[:, :-1], jnp.int32
  )
  return [
    dense_layers(task.model, state.params, windows(split))
    for split in (text.train, text.validation)
  ]


def trained(
  c: Config, launch: Session, text: Dataset, parallel: str
) -> tuple[TrainState, MixtureTask]:
  """The dense model after its training."""
  mixture = dataclasses.replace(
    c, steps=c.dense_steps, log_points=1, expert_devices=1
  ).mixture(text, c.dense_sizes, parallel)
  state = fit(
    mixture.program,
    mixture.start(launch.key, learning_rate=c.learning_rate),
    mixture.task.batches(launch.key),
    launch.key,
    steps=c.dense_steps,
    log_every=c.dense_steps,
    label='dense',
    progress=launch.progress,
    stop=launch.stop,
  )
  return state, mixture.task


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  for group in GROUPS:
    plot_kept(axes[group], rows, group)
  plot_cosines(axes['cosines'], rows)
  plot_experts(axes['experts'], rows)
  for column in ('loss', 'violation'):
    plot_runs(axes[column], rows, column)
  axes['loss'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """What a quarter of the experts loses, and losses of training."""
  lost = numbers['a_quarter_kept']
  said = '; '.join(
    f'{group}: longest {x["norm"]:.2f}, by a router {x["router"]:.2f}, random '
    f'{x["random"]:.2f}'
    for group, x in lost.items()
  )
  runs = ', '.join(
    f'{kind} {x["val_loss"]["mean"]:.3f} (MaxVio {x["violation"]["mean"]:.2f})'
    for kind, x in numbers['training'].items()
  )
  return (
    f'a quarter of {numbers["n"]} experts of a trained dense layer kept, error '
    f'of the output: {said}\ntrained with experts, nats a byte: {runs}'
  )
