r"""Distortion and realism of diffusion codecs against their bits.

Papers: Ohayon et al., arXiv 2502.01189 (DDCM; fig. 5: PSNR and FID over bits a
pixel); Vaisman et al., arXiv 2511.06424 (Turbo-DDCM); Su, article 10711; Theis
et al., arXiv 2206.08889 (codecs of a Gaussian diffusion, and their rates).

What should be seen (128 held-out images of Fashion-MNIST, gains are means of
paired differences with their standard errors): timesteps of equal KL are what
such a codec lives on. At equal bits they bring DDCM 0.5 ± 0.1 dB over even ones
at a quarter of a bit a pixel, 2.2 ± 0.1 at a half (K = 256, T = 50), 5.2 ± 0.1
at one (T = 100), and Turbo 4.1 ± 0.1 at one (M = 4), 7.3 ± 0.1 at 1.4 (M = 1,
T = 100) and 10.8 ± 0.2 at 3.4 (M = 16). At 0.11 bits nothing is gained in PSNR.
More steps are worth more than more atoms in each: at a bit a pixel 100 steps of
one atom have 35.8 dB, 20 of Turbo's four 34.7, 25 of matching pursuit's four
31.9. At half a bit DDCM has 30.1 dB (even steps 28.0), PCA 23.7, cosines 21.4,
JPEG without its header 19.7; at one 35.8, 27.5, 25.3 and 23.4. With its header
a JPEG file has four bits a pixel at least. These are means of the images' PSNR:
those of diffusion codecs differ more between images, and at equal mean squared
error of all DDCM's 35.8 dB are 33.2, the 29.2 of PCA at 1.3 bits still 29.2.
Distances to the originals are a tenth of those of PCA at half a bit, 0.0005
against 0.005, and less above.

Structured codebooks are as good as Gaussian ones: Rademacher +0.1 ± 0.1 and
0.0 ± 0.1 dB (one of 256 atoms; Turbo with four of 1024), circulant -0.1 ± 0.1
and 0.0 ± 0.1, Hadamard +0.2 ± 0.1 and +0.4 ± 0.1, whose atoms in a step are all
but orthogonal. They have to be as random: without signs of its entries a
circulant codebook is 11 dB worse, with the first 784 of 1024 columns, which
correlate, Hadamard's Turbo was 0.7 below and not 0.4 above.

On the Gaussian bed, all of which is known, DDCM with 1024 atoms spends 0.98
bits a coordinate where 0.59 are the least for its distortion, 0.72 if decoded
draws have to be like the source; with even steps these are 0.19 and 0.33. That
is better than R(D/2), at which realism without common random numbers begins.

How: all codecs code the same images, which neither the network nor the
transforms' coder nor the judge has seen; bits are those of the dense packing.
PSNR is that of bytes. The Fréchet distance is that of a small classifier's
features to the originals' own, over the latters' variance: 0 without loss.
Its error is the deviation over pairs of image and original drawn again. PCA and
cosines are rounded to a step, with an ideal coder of each coordinate by itself
whose frequencies are those of 20,000 training images; JPEG is Pillow's. Even
steps have no tail without codes, as it costs them 0.5 to 3 dB, equal-KL ones
have two steps. The nats that an equal-KL step spends, of those that its bits
could tell, were tuned on 64 other images: 0.5 to 0.6 for one atom, 0.5, 0.45,
0.35 and 0.3 for two, four, eight and 16 of Turbo; a tenth or two more costs
decibels from eight atoms on.

What is not reproduced: comparisons with trained codecs and BPG, and FID, on
photographs. 28 x 28 pixels are too few for either.

Expected: equal KL ahead of even steps by 1 dB or more from half a bit a pixel
on, and by more with more bits. Cost on two CPU cores, the model given: quick
1.5 minutes, full 9 minutes; training it comes to that.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..diffusion import Header, bits_per_pixel
from ..diffusion.codebook import KINDS
from ..training.batches import count_examples
from ..training.codec_settings import header_schedule
from ..training.loop import Interrupted
from ..training.pretrained import load_diffusion
from ..training.records import Row
from .codec_bed import BED_SHAPE, bed_contest, bed_images, bed_variances
from .codec_contest import Contest, label_of, spending
from .diffusion_model import FULL, DiffusionConfig, pretrained
from .rate_distortion_panels import (
  plot_bed,
  plot_frechet,
  plot_gains,
  plot_images,
  plot_kinds,
  plot_ladders,
  plot_psnr,
)
from .rate_distortion_rows import Scorer, classical_rows, standard_error
from .rate_distortion_table import results
from .session import Session, session
from .trained_judge import SETTINGS, trained_judge

MOSAIC = [
  ['psnr', 'frechet', 'gains'],
  ['ladder', 'kinds', 'bed'],
  ['images', 'images', 'images'],
]

Pursuit = tuple[int, int, int, int, float]
Turbo = tuple[int, int, float]


@dataclasses.dataclass
class Config(DiffusionConfig):
  """What is coded, and how.

  Args:
    coded: held-out images; those before them, as many, are what real ones are.
    batch: images at once.
    pursuits: codecs of DDCM: atoms of a codebook K, atoms of a step M, bits of
      a further atom's weight C, steps, and of the nats that a step's bits could
      tell the part that it spends with equal-KL timesteps.
    turbos: the same of Turbo: M, steps, part; K is the least power of 2 with as
      many atoms as pixels.
    tail: steps without bits at the end, of equal-KL timesteps; even ones are
      better without.
    kinds: of codebooks, which are compared with "gaussian" ...
    kind_pursuits: ... for these,
    kind_turbos: ... and these.
    steps_of_transforms: in bytes, of the coordinates' rounding.
    qualities: of JPEG.
    known: training images, the first ones, of transforms and their coder.
    bed_pursuits: on the Gaussian bed.
    bed_turbos: on it.
    bed_tail: on it.
    bed_images: draws from it.
  """

  coded: int = 64
  batch: int = 64
  pursuits: tuple[Pursuit, ...] = ((256, 1, 1, 50, 0.6),)
  turbos: tuple[Turbo, ...] = ((1, 20, 0.5), (4, 20, 0.45))
  tail: int = 2
  kinds: tuple[str, ...] = ('rademacher',)
  kind_pursuits: tuple[Pursuit, ...] = ()
  kind_turbos: tuple[Turbo, ...] = ((1, 20, 0.5),)
  steps_of_transforms: tuple[float, ...] = (320.0, 160.0, 80.0, 40.0)
  qualities: tuple[int, ...] = (10, 50)
  known: int = 5_000
  bed_pursuits: tuple[Pursuit, ...] = ((64, 1, 1, 100, 0.7),)
  bed_turbos: tuple[Turbo, ...] = ((16, 20, 0.33),)
  bed_tail: int = 2
  bed_images: int = 64

  @classmethod
  def full(cls) -> 'Config':
    """More codecs, more images."""
    return cls(
      **FULL,
      coded=128,
      pursuits=(
        (16, 1, 1, 50, 0.6),
        (256, 1, 1, 50, 0.6),
        (16384, 1, 1, 50, 0.6),
        (256, 1, 1, 25, 0.6),
        (256, 1, 1, 100, 0.6),
        (256, 2, 1, 25, 0.45),
        (256, 4, 1, 25, 0.35),
        (256, 4, 3, 25, 0.3),
      ),
      turbos=(
        (1, 8, 0.5),
        (1, 20, 0.5),
        (1, 50, 0.6),
        (1, 100, 0.6),
        (2, 20, 0.5),
        (4, 20, 0.45),
        (8, 20, 0.35),
        (16, 20, 0.3),
      ),
      kinds=('rademacher', 'circulant', 'hadamard'),
      kind_pursuits=((256, 1, 1, 50, 0.6),),
      kind_turbos=((4, 20, 0.45),),
      steps_of_transforms=(640.0, 320.0, 160.0, 80.0, 40.0, 20.0),
      qualities=(1, 5, 10, 20, 50, 80),
      known=20_000,
      bed_pursuits=tuple((k, 1, 1, 100, 0.7) for k in (4, 16, 64, 256, 1024)),
      bed_turbos=((1, 20, 0.5), (4, 20, 0.4), (16, 20, 0.33)),
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    for name in ('batch', 'known', 'bed_images'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    for name in ('tail', 'bed_tail'):
      self.require_every(name, lambda x: x >= 0, '0 or more')
    self._require_all('steps_of_transforms', lambda x: x > 0, 'above 0')
    self._require_all('qualities', lambda x: 1 <= x <= 95, '1 to 95')
    structured = [kind for kind in KINDS if kind != 'gaussian']
    good = lambda kind: kind in structured
    self._require_all('kinds', good, f'of {", ".join(structured)}')
    data = self.data(data_dir)
    self.require_half('coded', count_examples(data.validation))
    self._check_codecs(data.train['image'].shape[1:])

  def _require_all(self, name: str, good: Callable, expected: str) -> None:
    """Like `require_every`, but there may be none."""
    if getattr(self, name):
      self.require_every(name, good, expected)

  def _check_codecs(self, shape: tuple[int, ...]) -> None:
    """Refuses headers that cannot be, or what a given model has no nats for."""
    entrants = self.entrants(shape)
    require(bool(entrants), 'config.pursuits', self.pursuits, 'one, or a turbo')
    for each in (entrants, self.bed_entrants()):
      labels = [label_of(header) for header in each]
      twice = {x for x in labels if labels.count(x) > 1}
      require(not twice, 'config', sorted(twice), 'one part of nats for each')
    if self.model:
      model = load_diffusion(self.model)
      for header in entrants:
        header_schedule(header, model)

  def entrants(self, shape: tuple[int, ...]) -> list[Header]:
    """All codecs of images, each with even steps and with equal-KL ones."""
    found = [*_both_rules(self.pursuits, self.turbos, shape, self.tail)]
    for kind in ('gaussian', *self.kinds) if self.kinds else ():
      listed = self.kind_pursuits, self.kind_turbos
      both = _both_rules(*listed, shape, self.tail, kind)
      found += [header for header in both if header.rule == 'equal_kl']
    return list(dict.fromkeys(found))

  def bed_entrants(self) -> list[Header]:
    """All codecs of the Gaussian bed."""
    listed = self.bed_pursuits, self.bed_turbos
    return [*_both_rules(*listed, BED_SHAPE, self.bed_tail)]


def _both_rules(
  pursuits: tuple[Pursuit, ...],
  turbos: tuple[Turbo, ...],
  shape: tuple[int, ...],
  tail: int,
  kind: str = 'hadamard',
) -> Iterator[Header]:
  """Headers of equal bits in pairs: even steps first."""
  whole = 1 << (math.prod(shape) - 1).bit_length()
  listed = [('ddcm', *entry) for entry in pursuits]
  listed += [('turbo', whole, m, 1, *more) for m, *more in turbos]
  for mode, size, atoms, coefficient_bits, steps, told in listed:
    header = Header(
      mode=mode,
      kind=kind,
      size=size,
      atoms=atoms,
      coefficient_bits=coefficient_bits,
      steps=steps,
      shape=tuple(shape),
      rule='even',
    )
    yield header
    yield spending(dataclasses.replace(header, tail=tail), told)


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Lets every codec code the same images and returns the rows."""
  c, data = config, config.data(data_dir)
  shape = data.train['image'].shape[1:]
  entrants, bed = c.entrants(shape), c.bed_entrants()
  batches = -(-c.coded // c.batch)
  calls = sum(_calls(h) * batches for h in entrants) + sum(map(_calls, bed))
  total = c.training_steps + SETTINGS['steps'] + calls
  with session(workdir, key, total) as launch:
    model = pretrained(c, launch, parallel=parallel, data_dir=data_dir)
    judge = trained_judge(launch, data, c.coded, parallel=parallel)
    originals = data.validation['image'][c.coded : 2 * c.coded]
    scorer, known = Scorer(judge, originals), data.train['image'][: c.known]
    about = {'dataset': c.resolved(data_dir)}
    launch.record('real', 1, lambda: [about | scorer.real()])
    for label, row in classical_rows(
      scorer, known, c.steps_of_transforms, c.qualities
    ):
      launch.record(label, 1, lambda row=row: [row()])
    contest = Contest.of(model, batch=c.batch)
    for header in entrants:
      through = lambda h=header: contest.rebuilt(h, originals)
      row = lambda h=header, f=through: scorer.row(f(), bits_per_pixel(h))
      _enter(launch, header, label_of(header), row, _calls(header) * batches)
    _bed(c, launch, bed)
  return launch.records.rows


def _calls(header: Header) -> int:
  """Of the denoiser, there and back."""
  return 2 * (header.steps + 1 + header.tail)


def _enter(
  launch: Session,
  header: Header,
  label: str,
  row: Callable[[], Row],
  calls: int,
) -> None:
  """Records what a codec does, unless an earlier launch has."""
  if launch.records.of(label):
    return launch.progress.skip(calls)
  names = ('mode', 'kind', 'rule', 'size', 'atoms', 'coefficient_bits')
  names += ('steps', 'tail', 'millinats')
  tags = {name: getattr(header, name) for name in names}
  tags['bits_per_pixel'] = bits_per_pixel(header)
  launch.record(label, 1, lambda: [tags | row()])
  (found,) = launch.records.of(label)
  launch.progress.advance(calls, label, psnr=found['psnr'])
  if launch.stop.agreed():
    raise Interrupted(f'{label}: stopped after it')


def _bed(c: Config, launch: Session, headers: list[Header]) -> None:
  """Rows of codecs of a source of which all is known."""
  contest = bed_contest(c.bed_images)
  x0 = bed_images(jax.random.fold_in(launch.key, 1), c.bed_images)

  def row(header):
    wrong = contest.decode(header, contest.encode(header, x0)) - x0
    each = np.float64(jnp.mean(jnp.square(wrong), axis=(1, 2, 3)))
    rates = {'distortion': float(each.mean())}
    rates['distortion_error'] = standard_error(each)
    return rates | {'psnr': 10 * math.log10(4 / each.mean())}

  for header in headers:
    label = f'bed-{label_of(header)}'
    found = functools.partial(row, header)
    _enter(launch, header, label, found, _calls(header))


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  variances = bed_variances()
  numbers = results(rows, variances)
  plot_psnr(axes['psnr'], rows)
  plot_frechet(axes['frechet'], rows, numbers['real_frechet'])
  plot_gains(axes['gains'], numbers['gains'])
  plot_ladders(axes['ladder'], rows)
  plot_kinds(axes['kinds'], numbers['kinds'])
  plot_bed(axes['bed'], rows, variances)
  plot_images(axes['images'], rows)
  axes['psnr'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """Gains with their errors, and who is best at half a bit."""
  said = lambda row: f'{row["gain"]:+.1f} ± {row["error"]:.1f}'
  gains = sorted(numbers['gains'], key=lambda row: row['bits_per_pixel'])
  ends = ' ... '.join(
    f'{said(row)} dB ({row["bits_per_pixel"]:.2f} bits)'
    for row in (gains[0], gains[-1])
  )
  lines = [f'equal KL over even steps: {ends} on {numbers["images"]} images']
  if numbers['kinds']:
    worst = max(numbers['kinds'], key=lambda row: abs(row['gain']))
    lines[0] += f'; farthest from Gaussian codebooks: {worst["kind"]} '
    lines[0] += f'{said(worst)} dB'
  at = numbers['psnr_at']['0.5']
  shown = '; '.join(f'{k} {v:.1f}' for k, v in at.items())
  lines.append(f'{numbers["dataset"]} at 0.5 bits a pixel, dB: {shown}')
  return '\n'.join(lines)
