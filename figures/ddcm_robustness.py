"""Codes of images that arrive with wrong bits.

Papers: arXiv 2604.05743, which sends the indices of Turbo one by one so that
wrong bits stay where they are; Vaisman et al., arXiv 2511.06424 (Turbo, whose
sets are ranked); Ohayon et al., arXiv 2502.01189 (DDCM).

What should be seen (32 held-out images of Fashion-MNIST at 1.0 bits a pixel,
six draws of wrong bits): a code with places of its own for every step cannot
lose its way, and a wrong bit costs quality, not the image. At a rate of 1e-3,
not quite one wrong bit an image, single indices of Turbo lose 1.9 dB, DDCM's
1.9, a ranked set, which one bit changes as a whole, 3.2, JPEG 4.3 and all steps
as one number 5.3; a tenth of images is below 23.4, 27.3, 22.3, 8.3 and 18.2 dB.
One dB is lost at 6e-4, 3e-4, 3e-4 and 3e-4, and for one number below 1e-4. What
DDCM's 80 steps of one atom are ahead by without wrong bits, 36.2 dB against
34.4 of Turbo's 20 steps of four, they still are at 1e-2, 23.6 against 22.5 of
single indices and 19.1 of ranked sets. That indices are single costs 10 % of
the bits, here two steps of 20 and 1.0 dB, which pays from about 1e-3 on. JPEG
is wrong in whole blocks from the wrong bit on, and one file in twenty is lost
at 1e-2; diffusion's pictures are clothes, but at times others.

Early bits matter most: one in the first tenth of the code costs 17 dB (ranked
sets), 11 (single indices), 14 (DDCM) and 23 (one number), one in the last tenth
0.9, 0.5, 0.4 and 1.7; of JPEG it hardly matters where, 5 to 8 dB but in the
last fifth. But for JPEG and one number the first quarter of a code is three
fifths of what is lost, or more.

How: codes are packed by the library, headers and all, bits of the payload are
flipped and streams are read with `allow_damage`; for JPEG the bits after the
header, of the best quality for each image whose coded blocks fit into Turbo's
bits, the header not counted. A file that cannot be read is seen as grey. Codecs
have equal bits by their number of steps, on the timesteps that `codec_settings`
chooses. Images without a wrong code are not decoded again. PSNR is the mean
over images of each one's dB.

What is not reproduced: channel codes, photographs, and the rates of the paper,
of which the figures were not at hand.

Expected: loss in the order single indices, ranked sets, one number of Turbo
from 1e-3 to 1e-2; DDCM best in PSNR up to 1e-2; the first part of a code
the dearest for all but JPEG. Cost on two CPU cores with a model that is there:
quick 1 minute, full 3.5 minutes; training takes 1 and 12 more.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from ..checks import require
from ..diffusion import Header, payload_bits
from ..training.batches import count_examples
from ..training.codec_settings import KIND, TAIL, on_schedule
from ..training.loop import Interrupted
from ..training.pretrained import load_diffusion
from ..training.records import Row
from .codec_contest import Contest, psnr
from .damaged_codes import (
  DiffusionCodes,
  Flips,
  JpegCodes,
  Received,
  one_flip,
  random_flips,
)
from .diffusion_model import FULL, DiffusionConfig, pretrained
from .robustness_panels import (
  NAMES,
  plot_images,
  plot_loss,
  plot_parts,
  plot_psnr,
  results,
)
from .session import Session, session
from .token_measures import as_strip

MOSAIC = [
  ['psnr', 'loss', 'parts'],
  ['images', 'images', 'images'],
]
# Images of a strip.
SHOWN = 24


@dataclasses.dataclass
class Config(DiffusionConfig):
  """What is coded, and what happens to it.

  Args:
    coded: held-out images, the first ones.
    batch: images at once.
    size: of codebooks.
    atoms: of a set of Turbo.
    code_steps: of it, with codes; other codecs have as many as their bits are
      enough for.
    tail: steps without codes at the end.
    rates: of wrong bits, ascending.
    seeds: how often bits are drawn for each rate.
    pictured: the rate of the pictures.
    parts: of codes; one bit of each is wrong in turn.
  """

  coded: int = 16
  batch: int = 32
  size: int = 1024
  atoms: int = 4
  code_steps: int = 20
  tail: int = TAIL
  rates: tuple[float, ...] = (1e-4, 1e-3, 3e-3, 1e-2, 1e-1)
  seeds: int = 2
  pictured: float = 3e-3
  parts: int = 4

  @classmethod
  def full(cls) -> 'Config':
    """A larger model, more images, rates and draws."""
    return cls(
      **FULL,
      coded=32,
      batch=64,
      rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
      seeds=6,
      parts=10,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    for name in ('batch', 'seeds', 'parts'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    self.require_every('rates', lambda x: 0 < x <= 0.5, 'above 0, 0.5 at most')
    rising = [*self.rates] == sorted({*self.rates})
    require(rising, 'config.rates', self.rates, 'ascending')
    known = f'one of the rates {self.rates}'
    self.require_every('pictured', lambda x: x in self.rates, known)
    data = self.data(data_dir)
    held_out = count_examples(data.validation)
    most = f'2 to the {held_out} held-out images'
    self.require_every('coded', lambda x: 2 <= x <= held_out, most)
    headers = self.headers(data.train['image'].shape[1:])
    trained = load_diffusion(self.model).schedule.steps if self.model else None
    steps = trained or self.timesteps
    for header in headers.values():
      taken, name = header.steps + 1 + header.tail, 'config.code_steps'
      fewer = f'fewer than for {header.mode} of {taken} timesteps'
      require(taken <= steps, name, self.code_steps, fewer)

  def headers(self, shape: tuple[int, ...]) -> dict[str, Header]:
    """Codecs of about equal bits, by names of `NAMES`."""
    base = Header(
      packing='step',
      kind=KIND,
      size=self.size,
      atoms=self.atoms,
      steps=self.code_steps,
      tail=self.tail,
      shape=tuple(shape),
    )

    def as_long(**fields):
      one = dataclasses.replace(base, steps=1, **fields)
      steps = max(payload_bits(base) // payload_bits(one), 1)
      return dataclasses.replace(one, steps=steps)

    found = {
      'rank': base,
      'dense': dataclasses.replace(base, packing='dense'),
      'independent': as_long(packing='independent'),
      'ddcm': as_long(mode='ddcm', atoms=1),
    }
    full = functools.partial(dataclasses.replace, count=self.coded)
    return {name: full(header) for name, header in found.items()}


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Encodes once, then flips bits and decodes."""
  c, data = config, config.data(data_dir)
  headers = c.headers(data.train['image'].shape[1:])
  units = (len(headers) + 1) * (len(c.rates) + 2)
  with session(workdir, key, c.training_steps + units) as launch:
    model = pretrained(c, launch, parallel=parallel, data_dir=data_dir)
    originals = data.validation['image'][: c.coded]
    about = {'dataset': c.resolved(data_dir), 'images': c.coded}
    about |= {'seeds': c.seeds, 'pictured': c.pictured}
    launch.record('real', 1, lambda: [about | as_strip(originals[:SHOWN])])
    contest = Contest.of(model, batch=c.batch)
    for name, header in headers.items():
      signed_header = on_schedule(header, model)
      made = lambda h=signed_header: DiffusionCodes(contest, h, originals)
      _Damage(c, launch, name, made, originals).record()
    most = payload_bits(headers['rank']) / c.coded
    made = lambda: JpegCodes(originals, most)
    _Damage(c, launch, 'jpeg', made, originals).record()
  return launch.records.rows


class _Damage:
  """One codec, at all rates of wrong bits."""

  def __init__(
    self,
    config: Config,
    launch: Session,
    name: str,
    made: Callable[[], DiffusionCodes | JpegCodes],
    originals: np.ndarray,
  ):
    self.config, self.launch, self.name = config, launch, name
    self.originals, self._codes = originals, functools.cache(made)

  def record(self) -> None:
    """All rows; codes are made if one is missing."""
    c = self.config
    self._record('clean', 1, self._clean)
    for rate in c.rates:
      self._record(f'{rate:g}', 1, lambda rate=rate: self._rate(rate))
    self._record('parts', c.parts, self._parts)

  def _record(self, what: str, count: int, rows: Callable) -> None:
    label = f'{self.name}-{what}'
    if self.launch.stop.agreed():
      raise Interrupted(f'stopped before {label}')
    self.launch.record(label, count, rows)
    self.launch.progress.advance(1, label)

  def _rng(self, *numbers: int) -> np.random.Generator:
    """One for each codec and purpose."""
    root = map(int, jax.random.key_data(self.launch.key))
    return np.random.default_rng([*root, [*NAMES].index(self.name), *numbers])

  def _clean(self) -> Iterator[Row]:
    codes = self._codes()
    bits = float(np.mean(codes.bits))
    yield {
      'codec': self.name,
      'bits': bits,
      'bits_per_pixel': bits / math.prod(self.originals.shape[1:3]),
      'psnr': float(np.mean(psnr(codes.images, self.originals))),
    }

  def _received(self, every: list[Flips]) -> tuple[Received, np.ndarray]:
    """What arrives, and its PSNR [streams, images]."""
    found = self._codes().received(every)
    repeated = np.concatenate([self.originals] * len(every))
    return found, psnr(found.images, repeated).reshape(len(every), -1)

  def _rate(self, rate: float) -> Iterator[Row]:
    codes, number = self._codes(), self.config.rates.index(rate)
    every = [
      random_flips(codes.bits, rate, self._rng(number, seed))
      for seed in range(self.config.seeds)
    ]
    found, each = self._received(every)
    means = each.mean(axis=1)
    row = {
      'codec': self.name,
      'rate': rate,
      'psnr': float(means.mean()),
      'psnr_low': float(means.min()),
      'psnr_high': float(means.max()),
      'tenth': float(np.quantile(each, 0.1)),
      'loss': float(np.mean(psnr(codes.images, self.originals) - each)),
      'wrong': float(np.mean([np.any(x) for one in every for x in one])),
      'lost': float(found.lost.mean()),
    }
    if rate == self.config.pictured:
      shown = min(SHOWN, len(self.originals))  # Of the first stream.
      row |= as_strip(found.images[:shown])
    yield row

  def _parts(self) -> Iterator[Row]:
    """What a single wrong bit costs, by where it is."""
    codes, parts = self._codes(), self.config.parts
    clean = psnr(codes.images, self.originals)
    every = [
      one_flip(codes.bits, part, parts, self._rng(len(self.config.rates), part))
      for part in range(parts)
    ]
    found, each = self._received(every)
    lost = found.lost.reshape(each.shape)
    for part, (one, gone) in enumerate(zip(each, lost, strict=True)):
      loss = clean - one
      yield {
        'codec': self.name,
        'part': (part + 0.5) / parts,
        'loss': float(loss.mean()),
        'loss_error': float(np.std(loss, ddof=1) / math.sqrt(len(loss))),
        'lost': float(gone.mean()),
      }


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  plot_psnr(axes['psnr'], rows)
  plot_loss(axes['loss'], rows)
  plot_parts(axes['parts'], rows)
  plot_images(axes['images'], rows)
  axes['images'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """What each codec loses in the pictures, and what it tolerates."""
  lost = ', '.join(
    f'{NAMES[name]} {row["loss"]:.1f} dB'
    for name, row in numbers['at_pictured'].items()
  )
  kept = ', '.join(
    f'{NAMES[name]} {row["tolerated"]:.1e}'
    for name, row in numbers['codecs'].items()
    if row['tolerated'] is not None
  )
  return (
    f'lost at a bit-error rate of {numbers["pictured"]:g}: {lost};\n'
    f'the rate at which 1 dB is lost: {kept or "not among these"}; '
    f'{numbers["images"]} images of {numbers["dataset"]}'
  )
