"""Which cure keeps a codebook in use, from 64 to 4096 codes, and what it gains.

Papers: Mentzer et al., arXiv 2309.15505, figure 3 (article 9826): codebooks
fall out of use from 2^11 codes on, finite scalar quantisation does not; Zhu et
al., arXiv 2411.02038 (article 10519): one linear map moves all codes; Fifty et
al., arXiv 2410.06424, table 2: the rotation trick brings codes back; Su,
article 10757: so would the bias of loss-free balancing. The oldest cures are a
start from k-means, and putting codes that nothing chooses where vectors are.

What should be seen (500 steps, three seeds; codes that occur in 25,088 held-out
tokens): of 4096 codes 3 % where they start from U(-1/K, 1/K), as libraries have
it, 39 % from k-means. Revival uses 98 % from either start. The bias has 96 % of
1024 codes in use, 86 % without k-means, and 74 and 30 % of 4096, where a batch
of 784 tokens tells it little; of 64 codes it uses all alike, a perplexity of 63
where straight through has 44. Its sign rule, at the best of its own rates, ends
lower, at 56 % of 4096. The rotation trick is no cure: 41 and 5 %. SimVQ has 54
%, FSQ 19 %: with bounds on latents that have to be learned first.

Reconstruction gains little, as runs are short: from 0.0144 to 0.0130 between 64
and 4096 codes straight through, to 0.0125 with revival, the best there from
both starts. Unfit codes stay at 0.0143 however many they are, but for revival
(0.0131). Seeds differ by more than most techniques.

What is not reproduced: that FSQ uses nearly all of 2^12 codes: here it is the
last, after 500 steps; that SimVQ uses all; usage by the rotation trick.

How: the VQ-VAE of `rotation_trick`, its learning rates, running means over 20
steps and a commitment weight of 0.25. Rates of the bias were tried by factors
of 3 and the decay by factors of 2 to 5, with one seed, at 256 and 4096 codes.
All start from the same encoder and see the same batches.

Expected: at 4096 codes revival above 95 %, bias between, others below 60 %.
Cost on two CPU cores: quick 1.5 minutes, full 12 minutes.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax

from ..models import CodebookState, init_codebook
from ..training import TrainState
from ..training.records import Row
from .session import session
from .tokenizer import (
  FASTER,
  LEVELS,
  Tokenizer,
  TokenizerConfig,
  make_quantizer,
)
from .usage_panels import (
  curves_of,
  of_start,
  plot_bits,
  plot_sizes,
  plot_steps,
  results,
)

MOSAIC = [
  ['usage_fit', 'loss_fit', 'steps'],
  ['usage_unfit', 'loss_unfit', 'bits'],
]
TECHNIQUES = (
  'ste',
  'rotation',
  'revival',
  'balanced',
  'balanced_sign',
  'simvq',
  'fsq',
)
# Their codes are state, which can start anywhere.
RUNNING_MEANS = TECHNIQUES[:5]


class Setting(NamedTuple):
  """What is trained: technique, start, number of codes.

  The start is "fit": k-means of vectors; "unfit": U(-1/K, 1/K), as libraries
  have it; "none" for finite scalar quantisation.
  """

  technique: str
  start: str
  num_codes: int

  @property
  def label(self) -> str:
    """Of its runs, but for the seed."""
    return '{}-{}-{}'.format(*self)


@dataclasses.dataclass
class Config(TokenizerConfig):
  """What is trained.

  Args:
    fit: names of `TECHNIQUES` that start from k-means, if from anything.
    unfit: those of them that start from U(-1/K, 1/K) too; no "simvq", "fsq".
    sizes: numbers of codes, powers of 2 from 64 to 4096, ascending.
  """

  batch_size: int = 16
  steps: int = 400
  learning_rate: float = 0.006
  seeds: int = 1
  log_points: int = 5
  fit: tuple[str, ...] = ('ste', 'revival', 'balanced', 'fsq')
  unfit: tuple[str, ...] = ('ste', 'revival')
  sizes: tuple[int, ...] = (2**6, 2**12)

  @classmethod
  def full(cls) -> 'Config':
    """All techniques, more sizes and seeds."""
    return cls(
      steps=500,
      seeds=3,
      fit=TECHNIQUES,
      unfit=('ste', 'rotation', 'revival', 'balanced'),
      sizes=(2**6, 2**8, 2**10, 2**12),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    also = [x for x in RUNNING_MEANS if x in self.fit]
    for name, allowed in (('fit', TECHNIQUES), ('unfit', also)):
      values = getattr(self, name)
      different = 0 < len(values) == len({*values})
      good = lambda x, ok=different, allowed=allowed: ok and x in allowed
      self.require_every(name, good, f'different ones of {", ".join(allowed)}')
    rising = [*self.sizes] == sorted({*self.sizes})
    good = lambda x: rising and x in LEVELS and x <= 2**12
    self.require_every('sizes', good, 'powers of 2 from 64 to 4096, ascending')
    super().check(data_dir)

  def starts(self, technique: str) -> list[str]:
    """Of its runs."""
    if technique == 'fsq':
      return ['none']
    return ['fit', 'unfit'] if technique in self.unfit else ['fit']

  @property
  def settings(self) -> list[Setting]:
    """All of them."""
    return [
      Setting(technique, start, size)
      for size in self.sizes
      for technique in self.fit
      for start in self.starts(technique)
    ]


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Trains every setting with every seed and returns the rows."""
  c = config
  data, dataset = c.data(data_dir), c.resolved(data_dir)

  @functools.cache  # Both starts share a program.
  def tokenizer(technique: str, size: int) -> Tokenizer:
    return c.tokenizer(c.task(data, make_quantizer(technique, size)), parallel)

  with session(workdir, key, len(c.settings) * c.seeds * c.steps) as launch:
    for setting, seed in itertools.product(c.settings, range(c.seeds)):
      technique, start, size = setting
      of_seed = jax.random.fold_in(key, seed)
      unfit = functools.partial(unfit_codes, key=of_seed)
      tokenizer(technique, size).train(
        launch,
        f'{setting.label}-s{seed}',
        {**setting._asdict(), 'dataset': dataset},
        seed=seed,
        learning_rate=c.learning_rate * FASTER.get(technique, 1.0),
        **({'change': unfit} if start == 'unfit' else {}),
      )
  return launch.records.rows


def unfit_codes(state: TrainState, *, key: jax.Array) -> TrainState:
  """The state with codes from U(-1/K, 1/K).

  Args:
    state: before the first step, of a codebook of running means.
    key: random key.

  Returns:
    The state; every code counts as one vector a batch.
  """

  def renewed(x):
    if not isinstance(x, CodebookState):
      return x
    size = len(x.codebook)
    return init_codebook(x.codebook, size, key=key, method='uniform')

  is_state = lambda x: isinstance(x, CodebookState)
  variables = jax.tree.map(renewed, state.variables, is_leaf=is_state)
  return state._replace(variables=variables)


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers, curves = results(rows), curves_of(rows)
  for start, title in (
    ('fit', 'codes start from k-means'),
    ('unfit', 'codes start from U(-1/K, 1/K)'),
  ):
    own = of_start(curves, start)
    plot_sizes(axes[f'usage_{start}'], own, 'usage', title)
    plot_sizes(axes[f'loss_{start}'], own, 'val_loss', title)
  plot_steps(axes['steps'], rows, 'unfit')
  plot_bits(axes['bits'], curves)
  axes['bits'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """Usage and error at the most codes, of both starts."""
  said = lambda own: ', '.join(
    f'{name} {x["usage"]:.0%} ({1e3 * x["val_loss"]:.1f})'
    for name, x in own.items()
  )
  lines = [
    f'{start} start: {said(own)}' for start, own in numbers['most'].items()
  ]
  most = f'{numbers["most_codes"]} codes, usage (error, 10^-3 a pixel)'
  return f'{most}, {numbers["dataset"]}\n' + '\n'.join(lines)
