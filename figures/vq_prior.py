"""Tokenizers judged by their use: a transformer prior, and its samples.

Papers: van den Oord et al., arXiv 1711.00937, whose VQ-VAE is made for a prior
on its tokens; the tokenizers of articles 10489 (rotation), 11328 (DiVeQ), 10519
(SimVQ) and 9826 (FSQ); the Fréchet distance of arXiv 1706.08500, here of the
features of a small classifier.

What should be seen (three seeds; held-out Fashion-MNIST): a full codebook is
not information. Straight through leaves an entropy of 7.3 of 8 bits in the
frequencies of its 256 codes, FSQ 6.5, and at the same error, 0.0110, the prior
needs 3.8 bits for a token of the one and 3.1 of the other, 185 and 151 for an
image. DiVeQ needs 3.4, rotation and SimVQ 3.6. By use DiVeQ is best: error
0.0105, description 5462 bits (FSQ 5477, the others 5502 to 5547), Fréchet
distance of samples 0.040 (FSQ 0.046, straight through 0.049, rotation 0.052,
SimVQ 0.057), where reconstructions have 0.022 to 0.029 and real images 0.003.
A lower error makes the better samples, a rank correlation of 0.89 over the
means. But it is not all: 64 codes straight through, with a tenth more error
than 256, cost 27 % fewer bits and draw as well, 0.051. Of all samples the
classifier knows 61 to 66 % for what they should be, of reconstructions 82 to
83 %, of real images 85 %.

How: the VQ-VAE of `rotation_trick` makes 7 x 7 tokens of an image. The same
transformer, of one vocabulary and compiled once, is trained on the tokens of
all training images, the class first; its loss on images that nothing has seen
is what it takes a token to hold, an upper bound. It then draws as many images
as are held out, at temperature 1, for the same classes. Bits of the tokens and
those of a normal law for the residual, bytes less their reconstruction, are a
length of description: equal sums are lines in the plane of bits and error.
Distances are shares of the variance of the real features. They grow with fewer
images: all are of equal counts, to real images that are neither trained on nor
encoded, and other held-out real images are the floor; `extrapolated` takes the
bias out, which leaves 0 for real ones. A seed is a tokenizer, a prior and its
draws; the classifier is one for all.

The learning rate of the prior was tuned by factors of 2 on one seed of DiVeQ's
tokens: 4.26, 4.23 and 4.25 bits a token at 0.016, 0.032 and 0.064, 400 steps;
those of the tokenizers are of `rotation_trick`.

What is not reproduced: priors of a few hundred steps are a start, and their
samples are far from real images whatever the tokens. A longer prior may order
tokenizers otherwise, in favour of those with more to learn.

Expected: DiVeQ ahead in error, description and samples, FSQ next in samples and
with at least a tenth fewer bits than straight through at an error within 5 %,
though ranges of three seeds overlap; no samples nearer to real images than the
reconstructions. Cost on two CPU cores: quick 1.5 minutes, full 12.5 minutes.
"""

import copy
import dataclasses
import functools
import itertools
import pathlib

import jax
import numpy as np

from ..checks import require
from ..models import Transformer, TransformerConfig
from ..training import TrainState
from ..training.batches import count_examples
from ..training.checkpoint import Checkpoints
from ..training.data import Dataset
from ..training.records import Row
from .image_features import ClassifierTask, Judge
from .image_model import CLASSES
from .prior_panels import (
  plot_images,
  plot_information,
  plot_plane,
  plot_scores,
  plot_training,
)
from .prior_table import results
from .session import Session, session
from .token_measures import as_strip, encoded, fidelity, information
from .token_prior import PriorTask, sample, sequences
from .tokenizer import (
  FASTER,
  QUANTIZERS,
  Tokenizer,
  TokenizerConfig,
  TokenizerTask,
  make_quantizer,
)

MOSAIC = [
  ['training', 'information', 'plane'],
  ['frechet', 'use', 'accuracy'],
  ['images', 'images', 'images'],
]
CLASSIFIER = {'steps': 400, 'batch_size': 64, 'learning_rate': 0.002}
# Images of each class in a row of samples.
SHOWN = 3


@dataclasses.dataclass
class Config(TokenizerConfig):
  """What is trained.

  Args:
    tokenizers: names of `tokenizer.QUANTIZERS`; "ste-64" has 64 codes.
    num_codes: K of all others.
    prior_width: D of the transformer.
    prior_layers: L of it.
    prior_batch: images in a step of it.
    prior_steps: of its run.
    prior_rate: peak of the cosine of its learning rate.
    prior_log_points: evaluations in its run.
    judged: images in each set that is judged; of the held-out ones the first so
      many are what they are compared with, and the next so many are encoded.
  """

  batch_size: int = 16
  steps: int = 240
  learning_rate: float = 0.006
  seeds: int = 1
  log_points: int = 2
  tokenizers: tuple[str, ...] = ('ste', 'diveq', 'fsq')
  num_codes: int = 256
  prior_width: int = 64
  prior_layers: int = 3
  prior_batch: int = 32
  prior_steps: int = 200
  prior_rate: float = 0.032
  prior_log_points: int = 4
  judged: int = 2048

  @classmethod
  def full(cls) -> 'Config':
    """More tokenizers, longer runs and seeds."""
    return cls(
      steps=750,
      seeds=3,
      tokenizers=('ste', 'ste-64', 'rotation', 'diveq', 'simvq', 'fsq'),
      prior_steps=800,
      prior_log_points=8,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    positive = ('prior_layers', 'prior_width', 'prior_log_points')
    for name in positive:
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('num_codes', lambda x: x >= 2, '2 or more')
    self.require_every('prior_rate', lambda x: x > 0, 'a positive number')
    parts = f'a multiple of the {self.prior_log_points} log points'
    good = lambda x: x >= 1 and x % self.prior_log_points == 0
    self.require_every('prior_steps', good, parts)
    self._check_tokenizers()
    _ = self.prior
    super().check(data_dir)
    self._check_images(self.data(data_dir))

  def _check_tokenizers(self) -> None:
    known = f'names of {", ".join(QUANTIZERS)}, or such as "ste-64"'
    well = lambda name: name.partition('-')[2].isdecimal() or '-' not in name
    good = lambda name: name.partition('-')[0] in QUANTIZERS and well(name)
    self.require_every('tokenizers', good, known)
    few = f'at most the {self.num_codes} codes of num_codes'
    good = lambda name: 2 <= self.codes_of(name) <= self.num_codes
    self.require_every('tokenizers', good, few)
    for name in self.tokenizers:
      self.quantizer(name)

  def _check_images(self, data: Dataset) -> None:
    devices = jax.device_count()
    train, held_out = map(count_examples, (data.train, data.validation))
    require('label' in data.train, 'config.dataset', self.dataset, 'labels')
    self.require_half('judged', held_out)
    most = min(train, self.images)
    split = f'a multiple of the {devices} devices, {most} at most'
    good = lambda x: x >= 1 and x % devices == 0 and x <= most
    self.require_every('prior_batch', good, split)

  def codes_of(self, name: str) -> int:
    """How many codes are asked of a tokenizer.

    >>> Config().codes_of('ste'), Config().codes_of('ste-64')
    (256, 64)
    """
    return int(name.partition('-')[2] or self.num_codes)

  def quantizer(self, name: str):
    """The quantiser of a tokenizer."""
    return make_quantizer(name.partition('-')[0], self.codes_of(name))

  @property
  def prior(self) -> Transformer:
    """One for all tokenizers: a vocabulary of all codes and the classes."""
    sizes = TransformerConfig(
      vocab_size=self.num_codes + CLASSES,
      layers=self.prior_layers,
      width=self.prior_width,
      heads=max(1, self.prior_width // 32),
    )
    return Transformer(sizes)


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Trains and judges every tokenizer with every seed; returns the rows."""
  c = config
  pairs = list(itertools.product(range(c.seeds), c.tokenizers))
  total = CLASSIFIER['steps'] + len(pairs) * (c.steps + c.prior_steps)
  with session(workdir, key, total) as launch:
    contest = _Contest(c, launch, c.data(data_dir), parallel)
    for seed, name in pairs:
      contest.enter(name, seed, c.resolved(data_dir))
  return launch.records.rows


class _Contest:
  """One launch: the judge, and one compiled prior for all tokenizers."""

  def __init__(
    self, config: Config, launch: Session, data: Dataset, parallel: str
  ):
    self.config, self.launch, self.data = config, launch, data
    self.parallel = parallel
    self.tokenizer = functools.cache(self._tokenizer)
    count = config.judged
    held_out = jax.tree.map(lambda x: x[count : 2 * count], data.validation)
    self.images, self.labels = held_out['image'], held_out['label']
    self.train = {k: x[: config.images] for k, x in data.train.items()}
    self.judge = self._judge()
    self.prior = None  # Its program; made with the first tokens.
    scores = lambda: self.judge.score(self.images, self.labels)
    strip = lambda: as_strip(self.images[self._shown])
    launch.record('real', 1, lambda: [scores() | strip()])

  @property
  def _shown(self) -> np.ndarray:
    """Where some images of each class are."""
    places = (np.flatnonzero(self.labels == k) for k in range(CLASSES))
    return np.concatenate([place[:SHOWN] for place in places])

  def _tokenizer(self, name: str) -> Tokenizer:
    c = self.config
    return c.tokenizer(c.task(self.data, c.quantizer(name)), self.parallel)

  def _judge(self) -> Judge:
    settings = dict(CLASSIFIER)
    rate, steps = settings.pop('learning_rate'), settings.pop('steps')
    task = ClassifierTask(self.data, images=self.config.images, **settings)
    runs = Tokenizer(task, steps=steps, log_every=steps, parallel=self.parallel)
    label = 'classifier'
    state = runs.train(
      self.launch, label, {}, seed=0, keep=True, learning_rate=rate
    )
    return Judge(task, state, self.data.validation['image'][: len(self.images)])

  def enter(self, name: str, seed: int, dataset: str) -> None:
    """A tokenizer, the prior on its tokens, and what the judge says."""
    c, launch, label = self.config, self.launch, f'{name}-s{seed}'
    judged = f'judged-{label}'
    if launch.records.of(judged):
      return launch.progress.skip(c.steps + c.prior_steps)
    tags = {'tokenizer': name, 'dataset': dataset}
    tokenizer = self.tokenizer(name)
    rate = c.learning_rate * FASTER.get(name.partition('-')[0], 1.0)
    kept = dict(seed=seed, keep=True)
    state = tokenizer.train(
      launch, f'tokenizer-{label}', tags, learning_rate=rate, **kept
    )
    if state is None:  # It diverged.
      return launch.progress.skip(c.prior_steps)
    task = self._prior_task(tokenizer.task, state)
    prior = self._with(task).train(
      launch, f'prior-{label}', tags, learning_rate=c.prior_rate, **kept
    )
    if prior is not None:
      row = lambda: self._scores(tokenizer.task, state, task, prior, seed)
      launch.record(judged, 1, lambda: [{**tags, 'seed': seed, **row()}])
    folder = pathlib.Path(launch.workdir) / 'checkpoints'
    for kind in ('tokenizer', 'prior'):
      Checkpoints(folder / f'{kind}-{label}').delete()

  def _prior_task(self, task: TokenizerTask, state: TrainState) -> PriorTask:
    c = self.config
    of = lambda images, labels: sequences(
      encoded(task, state, images), labels, c.num_codes
    )
    return PriorTask(
      c.prior,
      of(self.train['image'], self.train['label']),
      of(self.images, self.labels),
      batch_size=c.prior_batch,
    )

  def _with(self, task: PriorTask) -> Tokenizer:
    """What trains a prior: the same program, whatever the tokens are."""
    c = self.config
    if self.prior is None:
      every = c.prior_steps // c.prior_log_points
      self.prior = Tokenizer(
        task, steps=c.prior_steps, log_every=every, parallel=self.parallel
      )
    runs = copy.copy(self.prior)
    runs.task = task
    return runs

  def _scores(
    self,
    task: TokenizerTask,
    state: TrainState,
    prior_task: PriorTask,
    prior: TrainState,
    seed: int,
  ) -> Row:
    """All that is measured of a tokenizer and its prior, and some samples."""
    count, (rows, columns) = len(self.images), task.positions
    tokens = prior_task.held_out[:, 1:]
    drawn = sample(
      prior_task.model,
      prior.params,
      prior_task.held_out[:, 0],
      jax.random.fold_in(jax.random.fold_in(self.launch.key, seed), 1),
      length=rows * columns,
      num_codes=task.num_codes,
    )
    image = lambda x: task.images_of(
      state, np.reshape(x, (count, rows, columns))
    )
    through, new = image(tokens), image(np.asarray(drawn))
    nats = float(prior_task.evaluate(prior)['val_loss'])
    row = information(tokens, nats, task.num_codes)
    row |= fidelity(through, self.images)
    row['pixels_of_an_image'] = self.images[0].size
    row['description'] = row['bits'] + row['residual_bits']
    for kind, images in (('reconstructions', through), ('samples', new)):
      scores = self.judge.score(images, self.labels)
      row |= {f'{kind}_{name}': x for name, x in scores.items()}
    return row | (as_strip(new[self._shown]) if seed == 0 else {})


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  table, real = numbers['table'], numbers['real']
  plot_training(axes['training'], rows)
  plot_information(axes['information'], table)
  plot_plane(
    axes['plane'],
    rows,
    ('error', 'bits'),
    'grey: equal bits of tokens and residual together',
  )
  plot_scores(axes['frechet'], table, 'frechet', real['frechet'])
  plot_plane(
    axes['use'],
    rows,
    ('error', 'samples_frechet'),
    f'rank correlation {numbers["error_and_samples"]:.2f}',
  )
  plot_scores(axes['accuracy'], table, 'accuracy', real['accuracy'])
  plot_images(axes['images'], rows)
  axes['images'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """Who is best at what."""
  table, best = numbers['table'], numbers['best']
  of = lambda name, column: table[name][column]['mean']
  sharp, sampled = best['error'], best['samples_frechet']
  short, brief = best['bits'], best['description']
  return (
    f'lowest error: {sharp}, {1e3 * of(sharp, "error"):.1f} 10^-3 a pixel; '
    f'fewest bits: {short}, {of(short, "bits"):.0f} an image; '
    f'shortest description: {brief}, {of(brief, "description"):.0f} bits;\n'
    f'best samples: {sampled}, Fréchet distance '
    f'{of(sampled, "samples_frechet"):.3f}, real images '
    f'{numbers["real"]["frechet"]:.3f}; a token of {sampled} holds '
    f'{of(sampled, "bits_per_token"):.1f} of '
    f'{of(sampled, "capacity"):.1f} bits; {numbers["dataset"]}'
  )
