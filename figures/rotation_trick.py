"""Which gradient, codebook and start a VQ-VAE needs: rotation trick and kin.

Papers: Fifty et al., arXiv 2410.06424, tables 1 to 3: with the rotation trick
quantisation error falls tenfold and more, and where codebooks collapse, usage
and reconstruction are saved; Su, article 10489: no gain on his model, and a
collapse to be feared where codes and vectors differ in length. Against them
DiVeQ (arXiv 2509.26469, article 11328), SimVQ (article 10519) and FSQ (article
9826), which has nothing that could collapse.

What should be seen (three seeds of the full preset; squares a pixel of 0..1 on
held-out Fashion-MNIST, 256 codes): the paper's win, learned codes that start 20
times too short, from 0.0135 and 70 % of the codes straight through to 0.0123
and 93 % with rotation. The failure, codes that start 4 times too long: from
0.0109 to 0.0144 learned, from 0.0110 to 0.0128 for running means, where 16 and
20 % of the codes are left. There |q| / |z| multiplies the gradient by 4, and
without it most of the loss is gone. Codes that fit, from k-means, need no
trick: 0.0116 to 0.0119 learned, 0.0110 to 0.0112 for running means. The
quantisation error is a half to a quarter throughout, but the latents shrink
more: over their mean square it is larger, 0.015 to 0.031. Best is DiVeQ,
0.0102; SimVQ, straight through (learned or not), FSQ and rotation on running
means are within a tenth of it, 0.0107 to 0.0112, at their best settings; the
reflection is worst, 0.0143. Usage is not quality: straight through on codes
that start too long is among the best with a third of them.

What is not reproduced: what the article fears of short codes under running
means, 0.0122 to 0.0119. And runs of 750 steps are a start: orders of techniques
are those of a fixed, small budget, and of most of these differences, of three
seeds, the bands overlap.

How: a small convolutional VQ-VAE, 28 x 28 pixels to 7 x 7 tokens, Adam on a
cosine. A cross about k-means codes and a commitment weight of 0.25: the weight,
and the ratio of the norms of codes and vectors at the start (k-means, scaled).
Start and batches are shared by all techniques. Learning rates were tuned by
factors of 2, at 500 steps and one seed: 0.006 is best or within 4 % of it for
all but DiVeQ and FSQ, which get 2 and 4 times as much. So was the decay of
running means: 0.8 to 0.95 are level, 0.99 is a tenth worse. Tokens/s are those
of training, of the fastest run.

Expected: rotation wins for short learned codes and loses for long ones, by 9 %
or more each; all else within a few per cent of straight through. Cost on two
CPU cores: quick 1.5 minutes, full 10.5 minutes.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np

from ..training import TrainState
from ..training.records import Row
from .rotation_panels import plot_best, plot_images, plot_lines
from .rotation_table import CENTRE, places_of, results
from .session import Session, session
from .tokenizer import FASTER, Tokenizer, TokenizerConfig, make_quantizer

MOSAIC = [
  ['beta_ema', 'beta_learned', 'images'],
  ['ratio_ema', 'ratio_learned', 'images'],
  ['error', 'usage', 'best'],
]
TECHNIQUES = (
  'ste',
  'rotation',
  'rotation_no_rescale',
  'reflection',
  'diveq',
  'simvq',
  'fsq',
)
# Codebooks that a technique has; all estimators have both.
CODEBOOKS = {'diveq': ('learned',), 'simvq': ('linear',), 'fsq': ('none',)}
# Trained at one setting alone.
CENTRAL = ('reflection', 'fsq')
IMAGES = 8
# Codebooks in the panels of each kind, and techniques that have both.
DRAWN = {'ema': ('ema', 'none'), 'learned': ('learned', 'linear', 'none')}
OF_BOTH = ('ste', 'rotation', 'rotation_no_rescale')


class Setting(NamedTuple):
  """What is trained: technique, codebook, commitment weight, norm ratio."""

  technique: str
  codebook: str
  weight: float
  ratio: float

  @property
  def label(self) -> str:
    """Of its runs, but for the seed."""
    return '{}-{}-b{:g}-r{:g}'.format(*self)


@dataclasses.dataclass
class Config(TokenizerConfig):
  """What is trained.

  Args:
    techniques: names of `TECHNIQUES`.
    num_codes: K, of all.
    weights: of the commitment loss, ascending, 0.25 among them.
    ratios: norms of codes over those of vectors at the start, ascending, 1
      among them: k-means, scaled.
  """

  batch_size: int = 16
  steps: int = 240
  learning_rate: float = 0.006
  seeds: int = 1
  log_points: int = 2
  techniques: tuple[str, ...] = ('ste', 'rotation', 'diveq', 'fsq')
  num_codes: int = 256
  weights: tuple[float, ...] = (0.25, 1.0)
  ratios: tuple[float, ...] = (0.05, 1.0, 4.0)

  @classmethod
  def full(cls) -> 'Config':
    """All techniques, a longer run and seeds."""
    return cls(
      steps=750,
      seeds=3,
      techniques=TECHNIQUES,
      weights=(0.05, 0.25, 1.0),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    known = f'of {", ".join(TECHNIQUES)}, ste and rotation among them'
    pair = {'ste', 'rotation'} <= {*self.techniques}
    good = lambda x: pair and x in TECHNIQUES
    self.require_every('techniques', good, known)
    for name, centre in zip(('weights', 'ratios'), CENTRE, strict=True):
      values = getattr(self, name)
      rising = [*values] == sorted({*values}) and centre in values
      good = lambda x, rising=rising: rising and x > 0
      self.require_every(name, good, f'positive, ascending, with {centre:g}')
    self.require_every('num_codes', lambda x: x >= 2, '2 or more')
    super().check(data_dir)
    for technique in self.techniques:
      make_quantizer(technique, self.num_codes)

  @property
  def settings(self) -> list[Setting]:
    """A cross about the centre for each technique and codebook."""
    places = [CENTRE]
    places += [(w, CENTRE[1]) for w in self.weights if w != CENTRE[0]]
    places += [(CENTRE[0], r) for r in self.ratios if r != CENTRE[1]]
    return [
      Setting(technique, codebook, *place)
      for technique in self.techniques
      for codebook in CODEBOOKS.get(technique, ('ema', 'learned'))
      for place in (places[:1] if technique in CENTRAL else places)
    ]

  @property
  def shown(self) -> list[Setting]:
    """Of which images are kept: the win, the failure, and two of the rest."""
    weight, ends = CENTRE[0], (self.ratios[0], self.ratios[-1])
    pairs = zip(('learned', 'ema'), ends, strict=True)
    return [
      Setting(technique, codebook, weight, ratio)
      for codebook, ratio in pairs
      for technique in ('ste', 'rotation')
    ] + [Setting('diveq', 'learned', *CENTRE), Setting('fsq', 'none', *CENTRE)]


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

  @functools.cache
  def tokenizer(technique: str, codebook: str) -> Tokenizer:
    options = dict(codebook=codebook)
    options = {} if technique in CODEBOOKS else options
    quantizer = make_quantizer(technique, c.num_codes, **options)
    return c.tokenizer(c.task(data, quantizer), parallel)

  shown = data.validation['image'][:IMAGES]
  with session(workdir, key, len(c.settings) * c.seeds * c.steps) as launch:
    for seed, setting in itertools.product(range(c.seeds), c.settings):
      chosen = tokenizer(setting.technique, setting.codebook)
      _train(c, launch, chosen, setting, seed, dataset, shown)
    launch.record('originals', IMAGES, lambda: _as_rows('originals', shown))
  return launch.records.rows


def _train(
  c: Config,
  launch: Session,
  tokenizer: Tokenizer,
  setting: Setting,
  seed: int,
  dataset: str,
  shown: np.ndarray,
) -> None:
  """One run, and what it makes of some images if it is to be shown."""
  technique, codebook, weight, ratio = setting
  label, name = f'{setting.label}-s{seed}', f'images-{setting.label}'
  keep = seed == 0 and setting in c.shown
  keep &= len(launch.records.of(name)) < IMAGES
  state = tokenizer.train(
    launch,
    label,
    {'technique': technique, 'codebook': codebook, 'ratio': ratio}
    | {'dataset': dataset, 'tokens': _tokens(tokenizer)},
    seed=seed,
    change=lambda state: scaled_codes(state, ratio),
    keep=keep,
    learning_rate=c.learning_rate * FASTER.get(technique, 1.0),
    commitment_weight=weight,
  )
  if state is not None:
    launch.record(
      name,
      IMAGES,
      lambda: _as_rows(
        f'{technique}, {codebook}, {ratio:g}',
        tokenizer.task.reconstruct(state, shown),
      ),
    )


def _tokens(tokenizer: Tokenizer) -> int:
  """Of a whole run."""
  task = tokenizer.task
  return tokenizer.steps * task.batch_size * int(np.prod(task.positions))


def _as_rows(of: str, images: np.ndarray) -> list[Row]:
  """Bytes of images as text; the x keeps it from being read as a number."""
  return [
    {
      'images': of,
      'height': image.shape[0],
      'columns': image.shape[1],
      'pixels': 'x' + np.ascontiguousarray(image[..., 0]).tobytes().hex(),
    }
    for image in images
  ]


def scaled_codes(state: TrainState, ratio: float) -> TrainState:
  """A start whose codes are `ratio` times as long.

  Args:
    state: before the first step; of any codebook, or of none.
    ratio: above 0.

  Returns:
    The state with codes, and the sums that belong to them, scaled.
  """

  def scale(path, x):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return ratio * x if name in ('codebook', 'sums', 'frozen') else x

  # Nothing in encoder and decoder has these names.
  params, variables = jax.tree_util.tree_map_with_path(
    scale, (state.params, state.variables)
  )
  return state._replace(params=params, variables=variables)


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers, places = results(rows), places_of(rows)
  for book, kinds in DRAWN.items():
    own = {p: ends for p, ends in places.items() if p[1] in kinds}
    at_weight = {p: x for p, x in own.items() if p[3] == CENTRE[1]}
    at_ratio = {p: x for p, x in own.items() if p[2] == CENTRE[0]}
    title = 'codebook of running means' if book == 'ema' else 'learned codebook'
    plot_lines(axes[f'beta_{book}'], at_weight, 2, 'val_loss', title)
    plot_lines(axes[f'ratio_{book}'], at_ratio, 3, 'val_loss', title)
  at_ratio = {p: x for p, x in places.items() if p[2] == CENTRE[0]}
  at_ratio = {p: x for p, x in at_ratio.items() if p[0] in OF_BOTH}
  for name, column in (('error', 'quantization_error'), ('usage', 'usage')):
    title = f'{column}: running means dashed, learned solid'
    title = title.replace('_', ' ')
    plot_lines(axes[name], at_ratio, 3, column, title)
  plot_images(axes['images'], rows)
  plot_best(axes['best'], numbers['table'])
  axes['images'].figure.suptitle(_title(rows, numbers))
  return numbers


def _title(rows: list[Row], numbers: dict) -> str:
  """The paper's win and the article's failure, and who is best."""
  best = min(
    numbers['table'].items(), key=lambda kv: kv[1]['best']['val_loss']['mean']
  )

  def said(pair):
    ste, rotation = (pair[name] for name in ('ste', 'rotation'))
    loss = lambda x: f'{1e3 * x["val_loss"]["mean"]:.1f}'
    share = lambda x: f'{x["usage"]["mean"]:.0%}'
    return (
      f'error {loss(ste)} to {loss(rotation)}, usage {share(ste)} to '
      f'{share(rotation)}'
    )

  long, short = numbers['long_codes'], numbers['short_codes']
  return (
    'straight through to rotation, 10^-3 a pixel: learned codes that start '
    f'{_ratio(short):g} as long as vectors, {said(short["learned"])}; means '
    f'that start {_ratio(long):g} as long, {said(long["ema"])};\n'
    f'learned codes that fit, {said(numbers["fit_codes"]["learned"])}; best of '
    f'all: {best[0]}, {1e3 * best[1]["best"]["val_loss"]["mean"]:.1f}; '
    f'{numbers["dataset"]}'
  )


def _ratio(pairs: dict) -> float:
  return pairs['ema']['ste']['ratio']
