r"""How many atoms a step needs to generate: codebooks in the place of noise.

Papers: Ohayon et al., arXiv 2502.01189 (DDCM), figure 3: Fréchet distances over
the size K of codebooks, where K = 64 is as good as DDPM and K = 2 near it;
article 10711, by which one codebook for all steps needs K of 8192 or more.

What should be seen (Fashion-MNIST, 50 steps, sets of 1024 images): distances to
real images of 0.226, 0.137, 0.028, 0.017, 0.013 and 0.014 of the variance of
real features at K = 1, 2, 4, 16, 64 and 256, where two sets of DDPM have 0.016
and 0.013 and other real images 0.004. From 64 atoms on, 300 bits an image, sets
are as near to real images as DDPM's: the interval of the difference is -0.006
to 0.006, and half of the swaps are further off. To another set of DDPM that of
64 atoms is further off than DDPM's own by 0.0025: its interval, -0.002 to
0.009, holds 0, but none of 200 swaps is; 256 atoms are told from DDPM by
neither (0.07). With one codebook for all steps distances are 0.104, 0.048 and
0.011 at 64, 512 and 4096 atoms, and even the last ones' are told from DDPM's:
sharing costs more the more steps there are, by theory on the source 10 times as
much of 20 and 27 times of 50. There laws of images are known exactly (eight
codebooks of 128 entries, 50 steps): slopes are -0.99 without sharing over K =
16 to 1024, with a factor of 1.6 where theory has 1.7; with it -0.92, and -1.02
from 64 on, as fewer atoms are too few for the law, by a factor of 43 at 1024
where theory has 45.

How: all sets are drawn for the classes of the same held-out images, with which
the judge compares them; an image is then log2 K bits for each step and the
start. A small codebook is the first atoms of a large one, so that one program
serves all sizes. Distances are shares of the variance of real features, and too
large by about a constant over the number of images, which is why all sets are
of one size. Whether codebooks are told from DDPM is asked of two distances,
to real images and to a set of DDPM, each less that of another set of DDPM.
Bootstrap intervals of these differences are wider than they should be: on
normal features of alike sets all of 100 held 0. Beside them stands the chance
that a set of DDPM is so much further off, by swapping images of a class; it is
exact, and the sharper question. The bed is `codebook_bed`.

What is not reproduced: Inception's features, pictures of 256 x 256 pixels, and
more than one network.

Expected: a slope of -1 on the source, within 0.05 for codebooks of each step,
within 0.1 for shared ones; intervals that hold 0 from K = 64 on; shared ones at
least five times as far off as those of each step at equal K. Cost on two CPU
cores, of a model that is there: quick 2 minutes, full 8.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..diffusion import Codebook, Codes, Schedule, ddcm_decode
from ..training.batches import count_examples
from ..training.data import Dataset
from ..training.loop import Interrupted
from ..training.pretrained import PretrainedDiffusion, load_diffusion
from ..training.records import Row
from .codebook_bed import excess, law
from .codebook_size_panels import (
  plot_bed,
  plot_distance,
  plot_excess,
  plot_images,
  plot_intervals,
  results,
)
from .ddpm_samples import draw
from .diffusion_model import FULL, DiffusionConfig, as_bytes, pretrained
from .frechet_bootstrap import (
  Redrawn,
  distances,
  interval,
  redrawn,
  swapping,
)
from .image_features import Judge
from .image_model import CLASSES
from .session import Session, session
from .token_measures import as_strip
from .trained_judge import SETTINGS, trained_judge

MOSAIC = [
  ['distance', 'ddpm', 'bed'],
  ['intervals', 'images', 'images'],
]
# Images of each class in a row; entries of the bed and the slope of its
# variances.
SHOWN = 3
BED_ENTRIES, BED_SLOPE = 128, 1.2


@dataclasses.dataclass
class Config(DiffusionConfig):
  """What is trained, drawn and judged.

  Args:
    sizes: of codebooks of which each step has its own, ascending.
    shared_sizes: of codebooks that all steps share, ascending.
    sampling_steps: of DDPM and of all codebooks.
    judged: images in each set; of the held-out ones the first so many are what
      they are compared with, and the next so many are the real ones.
    batch: images drawn at once.
    resamples: sets drawn again from each, for intervals, and swaps of two.
    bed_sizes: of codebooks on the Gaussian source, ascending.
    bed_seeds: codebooks of each size there.
  """

  sizes: tuple[int, ...] = (1, 2, 4, 16, 64)
  shared_sizes: tuple[int, ...] = (64, 1024)
  sampling_steps: int = 25
  judged: int = 512
  batch: int = 64
  resamples: int = 100
  bed_sizes: tuple[int, ...] = (1, 4, 16, 64, 256)
  bed_seeds: int = 4

  @classmethod
  def full(cls) -> 'Config':
    """A larger model, more images and codebooks."""
    return cls(
      **FULL,
      sizes=(1, 2, 4, 16, 64, 256),
      shared_sizes=(64, 512, 4096),
      sampling_steps=50,
      judged=1024,
      resamples=200,
      bed_sizes=tuple(2**k for k in range(11)),
      bed_seeds=16,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    for name in ('batch', 'bed_seeds'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('resamples', lambda x: x >= 2, '2 or more')
    for name in ('sizes', 'shared_sizes', 'bed_sizes'):
      values = getattr(self, name)
      rising = [*values] == sorted({*values})
      good = lambda x, rising=rising: rising and 1 <= x < 2**20
      self.require_every(name, good, 'ascending numbers of atoms')
    trained = load_diffusion(self.model).schedule.steps if self.model else None
    most = trained or self.timesteps
    good = lambda x: 2 <= x <= most
    self.require_every('sampling_steps', good, f'2 to {most} timesteps')
    held_out = count_examples(self.data(data_dir).validation)
    self.require_half('judged', held_out)
    whole = self.judged % self.batch == 0
    require(whole, 'config.judged', self.judged, f'{self.batch} at a time')

  @property
  def sets(self) -> dict[str, tuple[int, bool] | None]:
    """Codebooks of all sets of images, size and whether it is shared."""
    own = {f'independent-{k}': (k, False) for k in self.sizes}
    shared = {f'shared-{k}': (k, True) for k in self.shared_sizes}
    return {'ddpm-1': None, 'ddpm-2': None, **own, **shared}


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Trains the model unless it is there, draws and judges."""
  c, data = config, config.data(data_dir)
  evaluations = c.judged // c.batch * c.sampling_steps
  total = c.training_steps + SETTINGS['steps'] + len(c.sets) * evaluations
  with session(workdir, key, total) as launch:
    for shared in (False, True):
      _record_bed(c, launch, shared)
    model = pretrained(c, launch, parallel=parallel, data_dir=data_dir)
    judge = trained_judge(launch, data, c.judged, parallel=parallel)
    contest = Contest(c, launch, model, judge, data)
    contest.record('real', dataset=c.resolved(data_dir))
    for name in c.sets:
      if launch.stop.agreed():
        raise Interrupted(f'stopped before {name}')
      contest.record(name)
      launch.progress.advance(evaluations, name)
  return launch.records.rows


def _record_bed(c: Config, launch: Session, shared: bool) -> None:
  """The exact distances on the Gaussian source, and what they tend to."""
  label = 'bed-shared' if shared else 'bed-independent'
  variances = np.arange(1.0, BED_ENTRIES + 1) ** -BED_SLOPE
  schedule = Schedule.cosine(1000).respace(c.sampling_steps)

  def rows() -> Iterator[Row]:
    tends = law(variances, schedule, shared=shared)
    for seed in range(c.bed_seeds):
      found = excess(variances, schedule, c.bed_sizes, seed=seed, shared=shared)
      for size, value in zip(c.bed_sizes, found, strict=True):
        yield {'size': size, 'seed': seed, 'excess': value, 'law': tends}

  launch.record(label, len(c.bed_sizes) * c.bed_seeds, rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def decode(
  model: PretrainedDiffusion,
  schedule: Schedule,
  codebook: Codebook,
  label: jax.Array,
  drawn: jax.Array,
) -> jax.Array:
  """Images of random codes, as `kexue.diffusion.ddcm_sample` makes them.

  One program for codebooks of all sizes, which are the first atoms of a large
  one.

  Args:
    model: of which the averages are used.
    schedule: its own, respaced.
    codebook: of as many atoms or more.
    label: int32 [B].
    drawn: int32 [B, S], atoms of the start and of every step with noise.

  Returns:
    [B, H, W, C] in -1..1.
  """
  indices = drawn[:, 1:, None]
  return ddcm_decode(
    model.denoise(label),
    Codes(indices, jnp.zeros_like(indices)),
    schedule,
    codebook,
    shape=model.image_shape,
    start=drawn[:, 0],
  )


class Contest:
  """Sets of images for the same classes, and what the judge says of them."""

  def __init__(
    self,
    config: Config,
    launch: Session,
    model: PretrainedDiffusion,
    judge: Judge,
    data: Dataset,
  ):
    self.config, self.launch = config, launch
    self.model, self.judge = model, judge
    count = config.judged
    self.reference = data.validation['image'][:count]
    self.labels = np.int32(data.validation['label'][:count])
    self.held_out = {
      k: x[count : 2 * count] for k, x in data.validation.items()
    }
    self.schedule = model.schedule.respace(config.sampling_steps)
    self.images = functools.cache(self._images)
    self.floor = functools.cache(self._floor)

  def record(self, name: str, **tags: str) -> None:
    """Draws and judges one set, unless that was done."""
    self.launch.record(name, 1, lambda: [self._row(name) | tags])

  def _row(self, name: str) -> Row:
    images, real = self.images(name), name == 'real'
    labels = self.held_out['label'] if real else self.labels
    row = self._about(name) | self.judge.score(images, labels)
    own = self._redrawn(name, 0)
    for to in ('reference', 'ddpm-1'):
      if name != to:
        found, floor = self._distances(own, to), self.floor(to)
        more = interval(found - floor)
        row[f'{to}_distance'] = float(found[0])
        row |= {f'{to}_{key}': value for key, value in more.items()}
        row[f'{to}_chance'] = self._chance(own, to)
    shown = [np.flatnonzero(self.labels == k)[:SHOWN] for k in range(CLASSES)]
    images = self.reference if real else images
    return row | as_strip(images[np.concatenate(shown)])

  def _about(self, name: str) -> Row:
    steps, codebook = self.schedule.steps, self.config.sets.get(name)
    row = {'steps': steps, 'judged': self.config.judged}
    if codebook is None:
      return row
    size, shared = codebook
    bits = steps * math.log2(size)
    return row | {'size': size, 'shared': int(shared), 'bits': bits}

  def _distances(self, own: Redrawn, to: str) -> np.ndarray:
    """Over the variance of real features."""
    return distances(own, self._redrawn(to, 1)) / self.judge.variance

  def _floor(self, to: str) -> np.ndarray:
    """Those of the second set of DDPM."""
    return self._distances(self._redrawn('ddpm-2', 0), to)

  def _chance(self, own: Redrawn, to: str) -> float:
    """Of a set of DDPM to be so much further off than its second one."""
    others = self._redrawn('ddpm-2', 0), self._redrawn(to, 1)
    sets = (x.features for x in (own, *others))
    return swapping(*sets, self.config.resamples, seed=0)

  def _redrawn(self, name: str, seed: int) -> Redrawn:
    """Contestants are drawn again at the same places: for the same classes."""
    features = (
      self.judge.reference
      if name == 'reference'
      else self.judge.features(self.images(name))
    )
    return redrawn(features, self.config.resamples, seed)

  def _images(self, name: str) -> np.ndarray:
    """Bytes [N, H, W, C]."""
    if name == 'real':
      return self.held_out['image']
    c = self.config
    key = jax.random.fold_in(self.launch.key, [*c.sets].index(name))
    labels = self.labels.reshape(-1, c.batch)
    if c.sets[name] is None:
      keys = jax.random.split(key, len(labels))
      one = lambda label, key: draw(
        self.model, self.schedule, None, False, label, key, 1.0
      )
      return _in_parts(one, labels, keys)
    size, shared = c.sets[name]
    most = max(c.shared_sizes if shared else c.sizes)
    dim = math.prod(self.model.image_shape)
    codebook = Codebook(most, dim, shared=shared)
    shape = (*labels.shape, self.schedule.steps)
    drawn = jax.random.randint(key, shape, 0, size)
    one = lambda label, drawn: decode(
      self.model, self.schedule, codebook, label, drawn
    )
    return _in_parts(one, labels, drawn)


def _in_parts(draw_one, *parts) -> np.ndarray:
  """Bytes of all images, drawn a part at a time."""
  some = [draw_one(*part) for part in zip(*parts, strict=True)]
  return as_bytes(np.concatenate(some))


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  plot_distance(axes['distance'], numbers)
  plot_excess(axes['ddpm'], numbers)
  plot_bed(axes['bed'], rows, numbers)
  plot_intervals(axes['intervals'], numbers)
  plot_images(axes['images'], rows)
  axes['images'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """From which sizes on DDPM is not told from codebooks."""
  said = []
  for kind, size in numbers['indistinguishable'].items():
    said.append(
      f'{kind} codebooks: all are told from DDPM'
      if size is None
      else f'{kind} codebooks: not told from DDPM from K = {size} on'
    )
  bed = numbers['bed']
  slopes = ', '.join(f'{x["slope"]:.2f} ({kind})' for kind, x in bed.items())
  ddpm, real = numbers['table']['ddpm-2'], numbers['table']['real']
  return (
    f'{numbers["judged"]} images of {numbers["steps"]} steps, '
    f'{numbers["dataset"]}; {"; ".join(said)};\n'
    f'Fréchet distance of DDPM {ddpm["reference_distance"]:.3f}, of real '
    f'images {real["reference_distance"]:.3f}; slopes on the Gaussian source: '
    f'{slopes}'
  )
