"""Restored images that are codes: a decoder needs neither measurement nor A.

Papers: Ohayon et al., arXiv 2502.01189, compressed posterior sampling (there of
photographs, four times smaller or without colours); article 10711.

What should be seen (32 held-out images of Fashion-MNIST, a model which is told
no class): at every step the atom that explains the measurement best leads to an
image that explains it, and looks like clothes. With K = 1024 and 50 steps,
0.625 bits a pixel, the root mean square of A x - y, of pixels in -1..1, is
0.019 for means of 4 x 4 pixels, 0.024 for a blur, and 0.07 where pixels are
missing, a box or three quarters of them: averages are met closer than pixels.
It is 1.6 to 3.0 times that with K = 32, 3.3 to 7.4 times with K = 4, and 1.5 to
2.1 times that with half the steps. PSNR rises by one to two decibels from K =
32 on but for the means, and ends at 17.2 dB for them, 20.2 for the box, 18.5
for the pixels and 20.5 for the blur. Codes of the originals of as many bits
have 28.8: they were chosen for all that is to be seen. With noise of 0.1 errors
tend to the noise where there are many entries, and below it (0.07) for the
means: codes explain noise as well.

Every restoration is packed into a stream, unpacked and decoded, which needs
neither measurement nor operator: of 1,204,224 values none differed from what
was restored. That is what is judged and shown.

How: `restore` with evenly spaced timesteps, which do better than equal-KL ones
here, by 1 dB (K = 64, 50 steps). Baselines are linear: the pseudo-inverse,
cubic splines for the means, and Wiener's filter of the covariance of training
images, the best of all linear maps for square errors. By PSNR it is ahead of
restorations by 1 to 2 dB, by 6.6 for a blur without noise, which a filter can
invert, and level for one with noise: one of many possible images has twice the
error of their mean. But its images are blurred.

What is not reproduced: colorisation, which is a task here where images have
colours, and those of Fashion-MNIST have none; distances in features.

Expected: errors of measurements falling with K and with the steps for every
task, from the smallest codebook to the largest by 1.8 or more; PSNR below that
of the filter or level, and, with noise, above that of the pseudo-inverse; not a
value changed by decoding. Cost on two CPU cores with a model that is there:
quick 1.5 minutes, full 4.5; training takes 1 and 12 more.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..diffusion import (
  Codebook,
  Header,
  Restored,
  pack_bitstream,
  payload_bits,
  restore,
  unpack_bitstream,
)
from ..training.batches import count_examples
from ..training.codec_settings import KIND, header_schedule
from ..training.loop import Interrupted
from ..training.pretrained import load_diffusion
from ..training.records import Row
from .codec_contest import Contest, psnr
from .diffusion_model import (
  FULL,
  DiffusionConfig,
  as_bytes,
  pretrained,
  signed,
)
from .measurements import (
  FACTOR,
  LinearMaps,
  Task,
  cubic,
  inconsistency,
  measure,
  tasks,
)
from .restoration_panels import (
  plot_consistency,
  plot_images,
  plot_methods,
  plot_psnr,
  plot_steps,
  results,
)
from .session import Session, session
from .token_measures import as_strip

MOSAIC = [
  ['consistency', 'psnr', 'steps'],
  ['methods', 'images', 'images'],
]
# Images of a strip.
SHOWN = 5


@dataclasses.dataclass
class Config(DiffusionConfig):
  """What is restored, and with how many bits.

  Args:
    coded: held-out images, the first ones.
    sizes: of codebooks, ascending.
    sampling_steps: of the diffusion where these differ.
    step_counts: of it with the largest one, ascending.
    noises: standard deviations of measurements' noise, ascending; pixels are in
      -1..1.
    known: training images, the first ones, of the linear filter.
  """

  coded: int = 16
  sizes: tuple[int, ...] = (16, 256)
  sampling_steps: int = 40
  step_counts: tuple[int, ...] = (20, 40)
  noises: tuple[float, ...] = (0.0, 0.1)
  known: int = 5_000

  @classmethod
  def full(cls) -> 'Config':
    """A larger model, more images and codebooks."""
    return cls(
      **FULL,
      coded=32,
      sizes=(4, 32, 256, 1024),
      sampling_steps=50,
      step_counts=(25, 50, 100),
      known=20_000,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    trained = load_diffusion(self.model).schedule.steps if self.model else None
    most = trained or self.timesteps
    for name in ('sampling_steps', 'step_counts'):
      good = lambda x: 2 <= x <= most
      self.require_every(name, good, f'2 to {most} timesteps')
    self.require_every('sizes', lambda x: 2 <= x < 2**20, 'two atoms or more')
    self.require_every('noises', lambda x: x >= 0, '0 or more')
    self.require_every('known', lambda x: x >= 2, '2 or more')
    for name in ('sizes', 'step_counts', 'noises'):
      values = getattr(self, name)
      rising = [*values] == sorted({*values})
      require(rising, f'config.{name}', values, 'ascending')
    data = self.data(data_dir)
    held_out = count_examples(data.validation)
    most = f'2 to the {held_out} held-out images'
    self.require_every('coded', lambda x: 2 <= x <= held_out, most)
    shape = data.train['image'].shape[1:]
    divides = all(n % FACTOR == 0 for n in shape[:2])
    require(divides, 'images', shape, f'sides that {FACTOR} divides')

  def headers(self, shape: tuple[int, ...]) -> list[Header]:
    """Of all codes: evenly spaced steps, as many codes but one."""
    pairs = [(size, self.sampling_steps) for size in self.sizes]
    pairs += [(self.sizes[-1], steps) for steps in self.step_counts]
    return [
      Header(
        mode='ddcm',
        kind=KIND,
        size=size,
        steps=steps - 1,
        shape=tuple(shape),
        count=self.coded,
        rule='even',
      )
      for size, steps in dict.fromkeys(pairs)
    ]


def run(
  config: Config,
  key: jax.Array,
  workdir: str,
  *,
  parallel: str = 'pmap',
  data_dir: str | None = None,
) -> list[Row]:
  """Measures, restores, and decodes what was restored from its bits alone."""
  c, data = config, config.data(data_dir)
  shape = data.train['image'].shape[1:]
  headers, every = c.headers(shape), tasks(shape)
  units = (len(headers) + 1) * len(every) * len(c.noises)
  with session(workdir, key, c.training_steps + units) as launch:
    model = pretrained(c, launch, parallel=parallel, data_dir=data_dir)
    originals = data.validation['image'][: c.coded]
    about = {'dataset': c.resolved(data_dir), 'images': c.coded}
    launch.record('real', 1, lambda: [about | as_strip(originals[:SHOWN])])
    x0 = signed(originals)
    measured = {
      (name, noise): measure(task, x0, noise, launch.key)
      for name, task in every.items()
      for noise in c.noises
    }
    maps = LinearMaps(np.asarray(signed(data.train['image'][: c.known])))
    for (name, noise), y in measured.items():
      _linear(launch, maps, (name, noise), every[name], y, originals)
      launch.progress.advance(1, name)
    contest = Contest.of(model, batch=c.coded)
    for header in headers:
      restorer = _Restorer(launch, contest, header, originals)
      restorer.record_code()
      for name, task in every.items():
        restorer.record(name, task, {n: measured[name, n] for n in c.noises})
        launch.progress.advance(len(c.noises), f'{label_of(header)}-{name}')
  return launch.records.rows


def label_of(header: Header) -> str:
  """Of rows of one codebook and number of steps.

  >>> label_of(Header(size=64, steps=49, mode='ddcm', shape=(8, 8, 1)))
  'K64-T50'
  """
  return f'K{header.size}-T{header.steps + 1}'


def _linear(launch, maps, place, task: Task, y, originals) -> None:
  """Rows of the measurement and of what is linear in it."""
  (name, noise), shape = place, originals.shape[1:]
  tags = {'task': name, 'noise': noise}
  methods: dict[str, Callable] = {
    'measured': lambda: task.shown(y),
    'pseudo-inverse': lambda: maps.pseudo_inverse(task, y),
    'linear': lambda: maps.filtered(task, y, noise),
  }
  if name == 'pooled':
    methods['cubic'] = lambda: cubic(y, shape)
  for method, made in methods.items():

    def rows(method=method, made=made):
      images = as_bytes(jnp.asarray(made()))
      row = tags | {'method': method} | judged(task, images, y, originals)
      return [row | as_strip(images[:SHOWN])]

    launch.record(f'{name}-{noise:g}-{method}', 1, rows)


def judged(
  task: Task, images: np.ndarray, y: jax.Array, originals: np.ndarray
) -> Row:
  """How well images explain a measurement, and how like the originals they are.

  Args:
    task: what was measured.
    images: bytes.
    y: measurements.
    originals: bytes.

  Returns:
    Of a row: `consistency`, see `inconsistency`; PSNR in dB, its mean over
    images and the standard error of that.
  """
  each = psnr(images, originals)
  return {
    'consistency': inconsistency(task, signed(images), y),
    'psnr': float(np.mean(each)),
    'psnr_error': float(np.std(each, ddof=1) / math.sqrt(len(each))),
  }


class _Restorer:
  """Restorations with one codebook and one number of steps."""

  def __init__(
    self,
    launch: Session,
    contest: Contest,
    header: Header,
    originals: np.ndarray,
  ):
    self.launch, self.contest, self.header = launch, contest, header
    self.originals, self.label = originals, label_of(header)
    bits = payload_bits(header) / header.count
    pixels = math.prod(header.shape[:2])
    self.tags = {'size': header.size, 'steps': header.steps + 1, 'bits': bits}
    self.tags['bits_per_pixel'] = bits / pixels

  def record_code(self) -> None:
    """The row of the code of the originals, of as many bits."""

    def rows():
      images = self.contest.rebuilt(self.header, self.originals)
      each = psnr(images, self.originals)
      yield self.tags | {'method': 'code', 'psnr': float(np.mean(each))}

    self.launch.record(f'code-{self.label}', 1, rows)

  def record(
    self, name: str, task: Task, measured: dict[float, jax.Array]
  ) -> None:
    """Rows of a task, one for each level of noise."""
    if self.launch.stop.agreed():
      raise Interrupted(f'stopped before {name} with {self.label}')
    run = f'{name}-{self.label}'
    rows = lambda: self._rows(name, task, measured)
    self.launch.record(run, len(measured), rows)

  def _rows(self, name, task, measured) -> Iterator[Row]:
    program = self._program(task)
    for noise, y in measured.items():
      restored = program(self.contest.params, y)
      x0, stream = self._through_bits(restored)
      images, same = as_bytes(x0), as_bytes(restored.x0)
      yield (
        self.tags
        | {'task': name, 'noise': noise, 'method': 'restored'}
        | judged(task, images, y, self.originals)
        | {
          'stream_bytes': len(stream),
          'values': images.size,
          'differ': int(np.sum(images != same)),
          'difference': float(np.max(np.abs(x0 - restored.x0))),
        }
        | as_strip(images[:SHOWN])
      )

  def _program(self, task: Task) -> Callable[..., Restored]:
    h, contest = self.header, self.contest
    schedule = header_schedule(h, contest)
    codebook = Codebook(h.size, math.prod(h.shape), kind=h.kind, seed=h.seed)
    return jax.jit(
      lambda params, y: restore(
        contest.denoise(params),
        task.operator,
        y,
        schedule,
        codebook,
        shape=h.shape,
      )
    )

  def _through_bits(self, restored: Restored) -> tuple[np.ndarray, bytes]:
    """What a decoder makes of the code: it gets the bits and nothing else."""
    stream = pack_bitstream(jax.device_get(restored.codes), self.header)
    codes, header = unpack_bitstream(stream)
    require(header == self.header, 'header', header, f'{self.header}')
    return self.contest.decode(header, codes), stream


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  plot_consistency(axes['consistency'], rows)
  plot_psnr(axes['psnr'], rows)
  plot_steps(axes['steps'], rows)
  plot_methods(axes['methods'], numbers)
  plot_images(axes['images'], rows)
  axes['images'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """Bits, what they explain, and what decodes without the measurement."""
  shown = ', '.join(
    f'{name} {row["consistency"]:.3f}'
    for name, row in numbers['restored'].items()
  )
  check = numbers['decoded']
  return (
    f'restored with {numbers["bits_per_pixel"]:.2f} bits a pixel (K = '
    f'{numbers["size"]}, {numbers["steps"]} steps), error of measurements '
    f'without noise: {shown};\ndecoded from the bits alone: {check["differ"]} '
    f'of {check["values"]} values differ; {numbers["images"]} images of '
    f'{numbers["dataset"]}'
  )
