r"""A diffusion model from training to samples, with and without guidance.

Papers: Ho et al., arXiv 2006.11239 (DDPM; fig. 5 the rate and distortion of its
steps); Nichol and Dhariwal, arXiv 2102.09672 (cosine schedule, respacing, bits
per dimension); Song et al., arXiv 2010.02502 (DDIM); Ho and Salimans, arXiv
2207.12598 (guidance without a classifier).

What should be seen: half of the bits of an image are told by the last 1 % of
the steps, where the noise is three grey levels or fewer; those above t = 200
hold what the eye sees, in a fifteenth of them. A tenth of a bit per dimension,
an eightieth of the raw image, is worth 22.6 dB, one bit 39.5. The bound on the
likelihood is 3.55 bits per dimension by 1000 steps and 3.86 by ten, most of
which the decoder of pixels spends. DDIM is ahead of DDPM in few steps, 0.030
against 0.043 in ten, and level in 150, 0.008, where as many real images are at
0.004. Guidance moves samples to where the classifier knows them: 80 % without,
91 % at a scale of 1.5 at hardly more distance (0.013 for 0.010), 98 % at 4 at
twelve times as much; of real images it knows 86 %.

How: the class-conditional U-Net of `diffusion_model` is trained as said there,
or a model of another run is used (`--config.model=RUN`), then nothing is
trained. What each step tells is measured on held-out images with their classes,
one draw of noise each; its cumulative sum, from the noisy end, and the error of
the predicted image at each step are the rate and distortion that a code of the
steps would have which loses nothing. The bound on the likelihood is that of
8-bit pixels, its decoder a normal law with the deviation of the last step, by
schedules respaced to fewer steps, one in each of equal stretches of log SNR
evaluated. Samples of all sets begin with the same noise and the same classes,
those of the held-out images that they are compared with, by a classifier as in
`vq_prior`; as many other held-out images are the floor, which is the bias of
the count.

What is not reproduced: bits and distances of CIFAR-10 and ImageNet; a variance
that is learned. The network sees patches of 2 x 2 pixels, and small ones leave
their grid in flat regions.

Expected: bits rising as steps get fewer, all of it in the decoder's part; DDIM
ahead of DDPM at 10 steps; the share recognised rising with guidance, at first
almost for nothing. Cost on two CPU cores: quick 2 minutes; full 24, half of it
training.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require
from ..diffusion import Schedule, bits_per_dim, guided, sample
from ..training.batches import count_examples
from ..training.data import Dataset
from ..training.loop import Interrupted
from ..training.pretrained import PretrainedDiffusion, load_diffusion
from ..training.records import Row
from .ddpm_panels import (
  plot_bits,
  plot_guidance,
  plot_images,
  plot_information,
  plot_rate_distortion,
  plot_steps,
  plot_training,
  results,
)
from .diffusion_model import (
  FULL,
  DiffusionConfig,
  as_bytes,
  pretrained,
  signed,
)
from .image_model import CLASSES
from .session import Session, session
from .token_measures import as_strip
from .trained_judge import SETTINGS, trained_judge

MOSAIC = [
  ['training', 'information', 'distortion'],
  ['steps', 'guidance', 'bits'],
  ['images', 'images', 'images'],
]
# Samplers by name: `eta` of `sample`.
SAMPLERS = {'DDPM': None, 'DDIM': 0.0}
# Images of each class in a row, and points of a curve over the timesteps.
SHOWN, POINTS = 3, 100


@dataclasses.dataclass
class Config(DiffusionConfig):
  """What is trained, drawn and judged.

  Args:
    judged: images in each set that is judged; of the held-out ones the first so
      many are what they are compared with.
    batch: images drawn at once.
    step_counts: steps of both samplers, ascending.
    guided_steps: of DDIM where guidance is varied.
    guidance: scales besides 1.
    bound_images: held-out images of which bits are counted.
    bound_steps: steps of the schedules by which they are, descending.
    bound_timesteps: how many of them are evaluated, at most.
  """

  judged: int = 256
  batch: int = 64
  step_counts: tuple[int, ...] = (10, 30, 100)
  guided_steps: int = 30
  guidance: tuple[float, ...] = (2.0, 4.0)
  bound_images: int = 64
  bound_steps: tuple[int, ...] = (1000, 100)
  bound_timesteps: int = 50

  @classmethod
  def full(cls) -> 'Config':
    """A larger model, trained for longer, and more images."""
    return cls(
      **FULL,
      judged=1024,
      step_counts=(5, 10, 25, 50, 150),
      guided_steps=50,
      guidance=(1.5, 2.0, 4.0),
      bound_images=128,
      bound_steps=(1000, 250, 100, 30, 10),
      bound_timesteps=100,
    )

  def check(self, data_dir: str | None = None) -> None:
    """Raises `ValueError` for what could not run, before anything does."""
    super().check(data_dir)
    for name in ('batch', 'bound_images', 'bound_timesteps'):
      self.require_every(name, lambda x: x >= 1, '1 or more')
    most = self.timesteps
    if self.model:
      most = load_diffusion(self.model).schedule.steps
    for name in ('step_counts', 'guided_steps', 'bound_steps'):
      self.require_every(name, lambda x: 1 <= x <= most, f'1 to {most}')
    self.require_every('bound_steps', lambda x: x >= 2, '2 or more')
    self.require_every('guidance', lambda x: x > 1, 'scales above 1')
    held_out = count_examples(self.data(data_dir).validation)
    self.require_half('judged', held_out)
    whole = self.judged % self.batch == 0
    require(whole, 'config.judged', self.judged, f'{self.batch} at a time')

  @property
  def sets(self) -> list[tuple[str, int, float]]:
    """Sampler, steps and guidance of every set of images."""
    plain = [(name, n, 1.0) for n in self.step_counts for name in SAMPLERS]
    more = [('DDIM', self.guided_steps, scale) for scale in self.guidance]
    return list(
      dict.fromkeys([*plain, ('DDIM', self.guided_steps, 1.0), *more])
    )


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
  evaluations = [c.judged // c.batch * n * (1 + (g > 1)) for _, n, g in c.sets]
  total = c.training_steps + SETTINGS['steps'] + sum(evaluations)
  with session(workdir, key, total) as launch:
    model = pretrained(c, launch, parallel=parallel, data_dir=data_dir)
    judge = trained_judge(launch, data, c.judged, parallel=parallel)
    about = {'dataset': c.resolved(data_dir)}
    _record_information(c, launch, model, about)
    _record_bits(c, launch, model, data)
    labels = data.validation['label'][: c.judged]
    shown = _places(labels)
    strip = as_strip(data.validation['image'][shown])
    others = slice(c.judged, 2 * c.judged)
    real = lambda: judge.score(
      data.validation['image'][others], data.validation['label'][others]
    )
    launch.record('real', 1, lambda: [real() | strip])
    for (name, steps, scale), count in zip(c.sets, evaluations, strict=True):
      label = f'{name}-{steps}-{scale:g}'
      if not launch.records.of(label):
        images = _drawn(c, launch, model, labels, name, steps, scale)
        tags = {'sampler': name, 'steps': steps, 'guidance': scale}
        row = tags | judge.score(images, labels) | as_strip(images[shown])
        launch.record(label, 1, lambda row=row: [row])
      launch.progress.advance(count, label)
      if launch.stop.agreed():
        raise Interrupted(f'stopped after {label}')
  return launch.records.rows


def _places(labels: np.ndarray) -> np.ndarray:
  """Where some images of each class are."""
  places = (np.flatnonzero(labels == k) for k in range(CLASSES))
  return np.concatenate([place[:SHOWN] for place in places])


def _record_information(c, launch, model, about) -> None:
  """Nats of runs of steps; where each begins, bits before and the error."""
  schedule, kl = model.schedule, model.kl_per_step
  gain = schedule.snr[1:-1] - schedule.snr[2:]
  error = np.append(np.nan, 2 * kl[1:] / gain / math.prod(model.image_shape))
  edges = np.geomspace(1, schedule.steps, POINTS + 1)
  edges = np.unique(np.round(edges).astype(int))
  rows = lambda: [
    {
      **about,
      'timestep': int(low) + 1,
      'width': int(high - low),
      'nats': float(kl[low:high].sum()),
      'bits_above': float(kl[low + 1 :].sum() / math.log(2)),
      'error': float(error[low]),
      'dimensions': math.prod(model.image_shape),
      'parameters': _count(model.params),
    }
    for low, high in zip(edges[:-1], edges[1:], strict=True)
  ]
  launch.record('information', len(edges) - 1, rows)


def _count(params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def _record_bits(
  c: Config, launch: Session, model: PretrainedDiffusion, data: Dataset
) -> None:
  """Bits per dimension by schedules of several lengths."""
  held_out = {k: x[: c.bound_images] for k, x in data.validation.items()}
  denoise = model.denoise(np.int32(held_out['label']))
  x0 = signed(held_out['image'])
  for steps in c.bound_steps:
    schedule = model.schedule.respace(steps)
    few = min(steps - 1, c.bound_timesteps)
    bound = jax.jit(
      lambda x0, key, schedule=schedule, few=few: bits_per_dim(
        denoise, x0, schedule, key, timesteps=few
      )
    )
    means = lambda bound=bound: {
      name: float(jnp.mean(x))
      for name, x in bound(x0, launch.key)._asdict().items()
    }
    row = lambda steps=steps, means=means: [{'steps': steps, **means()}]
    launch.record(f'bits-{steps}', 1, row)


def _drawn(
  c: Config,
  launch: Session,
  model: PretrainedDiffusion,
  labels: np.ndarray,
  name: str,
  steps: int,
  scale: float,
) -> np.ndarray:
  """Bytes of one image for each label; all sets begin with the same noise."""
  schedule, eta = model.schedule.respace(steps), SAMPLERS[name]
  parts = [
    draw(model, schedule, eta, scale > 1, label, key, scale)
    for label, key in zip(
      np.int32(labels).reshape(-1, c.batch),
      jax.random.split(launch.key, len(labels) // c.batch),
      strict=True,
    )
  ]
  return as_bytes(np.concatenate(parts))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def draw(
  model: PretrainedDiffusion,
  schedule: Schedule,
  eta: float | None,
  is_guided: bool,
  label: jax.Array,
  key: jax.Array,
  scale: jax.Array,
) -> jax.Array:
  """Images in -1..1, one for each label.

  Args:
    model: of which the averages are used.
    schedule: its own, respaced.
    eta: see `kexue.diffusion.sample`.
    is_guided: whether the scale matters.
    label: int32 [B].
    key: of all noise.
    scale: of the guidance.

  Returns:
    [B, H, W, C].
  """
  denoise = model.denoise(label)
  if is_guided:
    denoise = guided(denoise, model.denoise(), scale)
  shape = (len(label), *model.image_shape)
  return sample(denoise, schedule, key, shape, eta=eta)


def plot(rows: list[Row], axes: dict) -> dict:
  """Draws the panels from the rows and returns the headline numbers."""
  numbers = results(rows)
  plot_training(axes['training'], rows)
  plot_information(axes['information'], rows)
  plot_rate_distortion(axes['distortion'], rows)
  plot_steps(axes['steps'], rows)
  plot_guidance(axes['guidance'], rows)
  plot_bits(axes['bits'], rows)
  plot_images(axes['images'], rows)
  axes['images'].figure.suptitle(_title(numbers))
  return numbers


def _title(numbers: dict) -> str:
  """How well it models, and what makes the best samples."""
  best, guided_best = numbers['best'], numbers['best_accuracy']
  return (
    f'{numbers["parameters"] / 1e6:.2f} million parameters: '
    f'{numbers["bits_per_dim"]["total"]:.2f} bits a dimension at most; '
    f'samples nearest to real images: {best["sampler"]} of {best["steps"]} '
    f'steps, guidance {best["guidance"]:g}, Fréchet distance '
    f'{best["frechet"]:.3f} (real images {numbers["real"]["frechet"]:.3f});\n'
    f'most recognised: {guided_best["accuracy"]:.0%} with guidance '
    f'{guided_best["guidance"]:g} (real images '
    f'{numbers["real"]["accuracy"]:.0%}); {numbers["dataset"]}'
  )
