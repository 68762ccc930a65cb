r"""Any prefix of a code is a code: what it decodes to, and what that costs.

Papers: Ohayon et al., arXiv 2502.01189 (DDCM) and Vaisman et al., arXiv
2511.06424 (Turbo), whose decoders can stop anywhere; Ho et al., arXiv
2006.11239, section 4.3 (progressive decoding); Vonderfecht and Liu, arXiv
2501.09815 (DiffC), which is progressive by construction; article 10711.

What should be seen (Fashion-MNIST, 64 held-out images; Turbo, 4 of 1024 atoms a
step, 40 codes of 2.0 bits a pixel in all): of timesteps of equal KL the first
5, 10, 20 and 30 codes have a PSNR of 22.9, 27.6, 33.3 and 37.7 dB, and all
41.3. A code that is made for as many bits, by the same rule, has 0.14, 0.30,
0.54 and 0.66 dB less (standard errors of 0.05 to 0.09), and prefixes that DDIM
finishes lose 0.18, 0.20, 0.16 and 0.10 dB to it (0.01 to 0.02): progressive
coding is free. Even timesteps pay for it: prefixes have 18.5, 21.9, 26.8 and
29.6 dB, 4.8, 4.6, 2.8 and 1.8 less than codes made for their bits, and all 40
codes 32.6. Of codes made for as many bits, those of equal KL have 32.8 dB at 1
bit a pixel and those of even timesteps 29.6, but at a quarter of a bit 22.8 and
23.3.

How: a single walk with all codes gives, for every prefix, the noisy image where
it ends and the image that the network expects from there; the first is also
taken to the end by DDIM, without noise. For the numbers of codes in `prefixes`
the same images are encoded again with so many steps in all: evenly spaced over
the whole schedule; or of as many nats, which are the timesteps of the prefix,
followed by a tail of steps without codes. That is why nothing is lost there:
the prefix of a code of equal KL is the code of its length, but for the tail.
`told` was tried at 0.2 to 0.7: 0.4 is best for 4 atoms, 0.6 for a single one;
steps that spend more nats than their atoms can tell end far off. PSNR is that
of each image after rounding to bytes, and the mean over images is drawn.

What is not reproduced: pictures of more than 28 x 28 pixels, and measures of
realism: the expected image has the better PSNR at every prefix, and looks
blurred where DDIM's has details that may be wrong.

Expected: prefixes of equal KL within 0.3 dB of codes made for their bits once
finished, and above them as expected images; those of even timesteps 1 dB or
more below. Cost on two CPU cores, of a model that is there: quick 1 minute,
full 1.5.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from ..checks import require
from ..diffusion import Header, ideal_bits
from ..training.batches import count_examples
from ..training.codec_settings import header_schedule
from ..training.loop import Interrupted
from ..training.pretrained import PretrainedDiffusion, load_diffusion
from ..training.records import Row
from .code_prefixes import finish, walk
from .codec_contest import Contest, psnr, spending
from .diffusion_model import (
  FULL,
  DiffusionConfig,
  as_bytes,
  pretrained,
  signed,
)
from .progressive_panels import (
  RULES,
  as_text,
  plot_curves,
  plot_differences,
  plot_images,
  results,
)
from .session import Session, session
from .token_measures import as_strip

MOSAIC = [
  ['even', 'equal_kl', 'differences'],
  ['images', 'images', 'images'],
]
# Images in a row at every prefix.
SHOWN = 4


@dataclasses.dataclass
class Config(DiffusionConfig):
  """What is trained and encoded.

  Args:
    mode: of the codes, "ddcm" or "turbo".
    kind: of the codebooks.
    size: atoms of a codebook.
    atoms: of a step.
    codes: steps that have codes, of the whole code.
    tail: steps without codes after those of equal KL.
    told: nats that a step of equal KL spends, of those its bits could tell.
    prefixes: numbers of codes at which the rest is also left to DDIM and the
      image also encoded by itself, ascending.
    encoded: held-out images, the last ones.
  """

  mode: str = 'turbo'
  kind: str = 'hadamard'
  size: int = 1024
  atoms: int = 4
  codes: int = 24
  tail: int = 8
  told: float = 0.4
  prefixes: tuple[int, ...] = (4, 8, 16)
  encoded: int = 32

  @classmethod
  def full(cls) -> 'Config':
    """A larger model and more images and codes."""
    return cls(**FULL, codes=40, prefixes=(5, 10, 20, 30), encoded=64)

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    self.require_every('tail', lambda x: x >= 0, '0 or more')
    self.require_every('told', lambda x: x > 0, 'a positive number')
    rising = [*self.prefixes] == sorted({*self.prefixes})
    good = lambda x: rising and 1 <= x <= self.codes
    few = f'ascending numbers, 1 to the {self.codes} codes'
    self.require_every('prefixes', good, few)
    data = self.data(data_dir)
    for rule in RULES:
      _ = self.header(data.train['image'].shape[1:], rule)
    trained = load_diffusion(self.model).schedule.steps if self.model else None
    most = (trained or self.timesteps) - 1 - self.tail
    few = f'at most {most}: {most + 1 + self.tail} timesteps, less the tail'
    require(self.codes <= most, 'config.codes', self.codes, few)
    held_out = count_examples(data.validation)
    good = lambda x: SHOWN <= x <= held_out
    self.require_every('encoded', good, f'{SHOWN} to {held_out} images')

  def header(self, shape: tuple[int, int, int], rule: str) -> Header:
    """Codes of images of a shape; the timesteps are even or of equal KL."""
    header = Header(
      mode=self.mode,
      kind=self.kind,
      size=self.size,
      atoms=self.atoms,
      steps=self.codes,
      shape=shape,
      rule='even',
    )
    if rule == 'even':
      return header
    return spending(dataclasses.replace(header, tail=self.tail), self.told)

  def evaluations(self, rule: str) -> int:
    """Of the network on a batch."""
    tail = self.tail if rule == 'equal_kl' else 0
    rest = [self.codes + tail + 1 - k for k in self.prefixes]
    alone = [2 * (k + tail + 1) for k in self.prefixes]
    return 2 * (self.codes + 1) + tail + sum(rest) + sum(alone)


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Trains the model unless it is there, encodes and decodes."""
  c, data = config, config.data(data_dir)
  images = data.validation['image'][-c.encoded :]
  total = c.training_steps + sum(map(c.evaluations, RULES))
  with session(workdir, key, total) as launch:
    model = pretrained(c, launch, parallel=parallel, data_dir=data_dir)
    about = {'dataset': c.resolved(data_dir), 'images': c.encoded}
    strip = lambda: as_strip(images[:SHOWN])
    launch.record('originals', 1, lambda: [about | strip()])
    for rule in RULES:
      Progressive(c, launch, model, images, rule).record()
      launch.progress.advance(c.evaluations(rule), rule)
  return launch.records.rows


class Progressive:
  """The codes of one rule for timesteps, all of them and the first ones."""

  def __init__(
    self,
    config: Config,
    launch: Session,
    model: PretrainedDiffusion,
    images: np.ndarray,
    rule: str,
  ):
    self.config, self.launch, self.images = config, launch, images
    self.model, self.rule = model, rule
    self.contest = Contest.of(model, batch=len(images))
    self.header = config.header(model.image_shape, rule)
    self.schedule = header_schedule(self.header, model)

  def record(self) -> None:
    """Measures what an earlier launch has not."""
    c = self.config
    count = c.codes + 1 + len(c.prefixes)
    self.launch.record(self.rule, count, self._of_prefixes)
    for k in c.prefixes:
      if self.launch.stop.agreed():
        raise Interrupted(f'stopped before {self.rule}-{k}')
      alone = lambda k=k: [self._row('alone', k, self._alone(k))]
      self.launch.record(f'{self.rule}-{k}', 1, alone)

  def _of_prefixes(self) -> Iterator[Row]:
    """What is expected after every code, and DDIM's images after some."""
    denoise, schedule = self.model.denoise(), self.schedule
    codes = self.contest.encode(self.header, signed(self.images))
    replay = lambda codes: walk(denoise, codes, schedule, self.header)
    noisy, expected = jax.jit(replay)(codes)
    for k, x in enumerate(expected):
      yield self._row('expected', k, as_bytes(x))
    to_the_end = jax.jit(lambda x, i: finish(denoise, x, schedule, i))
    for k in self.config.prefixes:
      x = to_the_end(noisy[k], schedule.steps - k)
      yield self._row('finished', k, as_bytes(x))

  def _alone(self, k: int) -> np.ndarray:
    """Images out of a code of so many steps, made for them."""
    header = dataclasses.replace(self.header, steps=k)
    return self.contest.rebuilt(header, self.images)

  def _row(self, kind: str, k: int, images: np.ndarray) -> Row:
    header, found = self.header, psnr(images, self.images)
    bits = k * ideal_bits(header) / header.steps / header.pixels
    row = {
      'rule': self.rule,
      'kind': kind,
      'codes': k,
      'bits_per_pixel': bits,
      'psnr': float(found.mean()),
      'error': float(found.std(ddof=1) / np.sqrt(len(found))),
    }
    if kind != 'alone':
      row['timestep'] = int(self.schedule.timesteps[-1 - k])
    if k in self.config.prefixes:
      row |= {'psnrs': as_text(found)} | as_strip(images[:SHOWN])
    return row


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  most = max(row['psnr'] for row in rows if 'psnr' in row)
  for rule in RULES:
    plot_curves(axes[rule], rows, rule, most)
  plot_differences(axes['differences'], numbers)
  plot_images(axes['images'], rows)
  axes['images'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """What the prefix in the middle costs, by both rules."""
  said = []
  for rule, prefixes in numbers['rules'].items():
    entry = prefixes[len(prefixes) // 2]
    lost = entry['finished_less_alone']
    said.append(
      f'{RULES[rule]}: {entry["bits_per_pixel"]:.2f} of '
      f'{entry["whole_bits_per_pixel"]:.2f} bits a pixel are '
      f'{entry["expected"]:.1f} dB, finished {entry["finished"]:.1f}, '
      f'a code of these bits {entry["alone"]:.1f} '
      f'({lost["mean"]:+.2f} ± {lost["error"]:.2f})'
    )
  about = f'{numbers["images"]} held-out images, {numbers["dataset"]}'
  return '\n'.join([f'the first codes of images; {about}', *said])
