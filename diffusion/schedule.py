r"""Noise schedules: how much of an image is left after each step of noising.

After step `i` of `S` an image has become

.. math:: x_i = \sqrt{\bar\alpha_i} x_0 + \sqrt{1 - \bar\alpha_i} \varepsilon,

a signal-to-noise ratio of :math:`\bar\alpha_i / (1 - \bar\alpha_i)`. A schedule
is a table of :math:`\bar\alpha`, in float64 on the host; what runs on a device
gets coefficients made of it, rounded once.

References:
  Ho, Jain and Abbeel, `Denoising diffusion probabilistic models
  <https://arxiv.org/abs/2006.11239>`_, 2020.

  Nichol and Dhariwal, `Improved denoising diffusion probabilistic models
  <https://arxiv.org/abs/2102.09672>`_, 2021.

  Lin, Liu, Li and Yang, `Common diffusion noise schedules and sample steps are
  flawed <https://arxiv.org/abs/2305.08891>`_, 2023.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import numpy as np

from ..checks import require, require_rank, require_shape


def _constant(x: np.ndarray) -> np.ndarray:
  x = x.copy()
  x.setflags(write=False)
  return x


def _require_steps(steps: int) -> None:
  good = isinstance(steps, int | np.integer) and steps >= 1
  require(good, 'steps', steps, 'an integer of at least 1')


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
  r"""A table of :math:`\bar\alpha`, and the timesteps that it belongs to.

  Equal tables are equal schedules with equal hashes, so that a schedule can be
  a static argument of `jax.jit`; it is no pytree.

  Args:
    alpha_bar: [S + 1], from exactly 1 strictly down to more than 0.
    timesteps: [S], ascending: the number that each step had in the schedule
      that a network was trained with, which is what the network gets; 1 to `S`
      unless given.

  Raises:
    ValueError: for tables that are none of a schedule.

  Example:
    >>> schedule = Schedule.linear(1000)
    >>> schedule
    Schedule(steps=1000, timesteps=1..1000, alpha_bar=0.9999..4.036e-05)
    >>> schedule.respace(4).timesteps.tolist()
    [250, 500, 750, 1000]
    >>> schedule.respace(4).respace([500, 1000]) == schedule.respace(2)
    True
  """

  alpha_bar: np.ndarray
  timesteps: np.ndarray | None = None

  def __post_init__(self):
    """Checks the tables, and keeps copies that nobody can write to."""
    alpha_bar = np.asarray(self.alpha_bar, np.float64)
    require_rank('alpha_bar', alpha_bar, 1)
    require(alpha_bar.size >= 2, 'len(alpha_bar)', alpha_bar.size, '2 or more')
    require(alpha_bar[0] == 1, 'alpha_bar[0]', alpha_bar[0], '1')
    good = np.all(np.diff(alpha_bar) < 0) and alpha_bar[-1] > 0
    require(good, 'alpha_bar', alpha_bar, 'falling numbers above 0')
    timesteps = (
      np.arange(1, alpha_bar.size)
      if self.timesteps is None
      else np.asarray(self.timesteps)
    )
    require_shape('timesteps', timesteps, (alpha_bar.size - 1,))
    good = timesteps[0] >= 1 and np.all(np.diff(timesteps) > 0)
    require(good, 'timesteps', timesteps, 'ascending integers from 1')
    object.__setattr__(self, 'alpha_bar', _constant(alpha_bar))
    timesteps = _constant(timesteps.astype(np.int32))
    object.__setattr__(self, 'timesteps', timesteps)

  @classmethod
  def from_betas(cls, betas: Sequence[float]) -> Self:
    r"""The schedule of :math:`\bar\alpha_i = \prod_{j \le i} (1 - \beta_j)`.

    Args:
      betas: [S], in (0, 1).

    Returns:
      `Schedule` of `S` steps.

    Raises:
      ValueError: if a beta is not within (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    require_rank('betas', betas, 1)
    good = np.all((betas > 0) & (betas < 1))
    require(bool(good), 'betas', betas, 'numbers in (0, 1)')
    return cls(np.concatenate([[1.0], np.cumprod(1 - betas)]))

  @classmethod
  def linear(cls, steps: int) -> Self:
    r"""Betas evenly from 0.1 / S to 20 / S; of 1000 steps, that of the DDPM.

    Args:
      steps: `S`, 21 or more, as all betas are below 1; for fewer steps respace
        a longer schedule.

    Returns:
      `Schedule` of `S` steps.

    Raises:
      ValueError: if there are too few steps.
    """
    _require_steps(steps)
    require(steps > 20, 'steps', steps, '21 or more; respace a longer schedule')
    return cls.from_betas(np.linspace(0.1 / steps, 20 / steps, steps))

  @classmethod
  def cosine(cls, steps: int) -> Self:
    r"""A squared cosine, :math:`\cos^2(\frac{i/S + 0.008}{1.008}\frac\pi2)`.

    Divided by its value at 0, and betas kept at or below 0.999, equation 17 of
    Nichol and Dhariwal.

    Args:
      steps: `S`, 1 or more.

    Returns:
      `Schedule` of `S` steps.

    Raises:
      ValueError: if `steps` is not a positive integer.
    """
    _require_steps(steps)
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    signal = np.cos(angle) ** 2
    return cls.from_betas(np.minimum(1 - signal[1:] / signal[:-1], 0.999))

  @property
  def steps(self) -> int:
    """The number of steps, `S`."""
    return self.timesteps.size

  @property
  def betas(self) -> np.ndarray:
    r"""What each step adds [S], :math:`1 - \bar\alpha_i / \bar\alpha_{i-1}`."""
    return 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]

  @property
  def snr(self) -> np.ndarray:
    """Signal-to-noise ratios [S + 1], the first of which is infinite."""
    with np.errstate(divide='ignore'):
      return self.alpha_bar / (1 - self.alpha_bar)

  @property
  def is_respaced(self) -> bool:
    """Whether timesteps are anything but 1 to `S`."""
    return not np.array_equal(self.timesteps, np.arange(1, self.steps + 1))

  def respace(self, steps: int | Sequence[int]) -> Self:
    r"""A schedule of some of the timesteps, with their :math:`\bar\alpha`.

    An integer `n` takes the positions :math:`S j / n`, rounded, for j from 1 to
    n: evenly from the noisy end down, the last one included and the first one
    only if all are ("trailing" in Lin et al.).

    Args:
      steps: 1 to `S`; or ascending timesteps, among those of this schedule.

    Returns:
      `Schedule` of the chosen timesteps.

    Raises:
      ValueError: if there are not so many steps, or not such timesteps.
    """
    if isinstance(steps, int | np.integer):
      good = 1 <= steps <= self.steps
      require(good, 'steps', steps, f'1 to {self.steps}, or timesteps')
      every = 2 * np.arange(1, steps + 1) * self.steps
      positions = (every + steps) // (2 * steps)
    else:
      chosen = np.asarray(steps)
      require_rank('steps', chosen, 1)
      good = np.all(np.isin(chosen, self.timesteps)) and chosen.size
      require(bool(good), 'steps', steps, 'timesteps of the schedule')
      ascending = np.all(np.diff(chosen) > 0)
      require(bool(ascending), 'steps', steps, 'ascending timesteps')
      positions = np.searchsorted(self.timesteps, chosen) + 1
    alpha_bar = self.alpha_bar[np.concatenate([[0], positions])]
    return type(self)(alpha_bar, self.timesteps[positions - 1])

  @functools.cached_property
  def _content(self) -> tuple[bytes, bytes]:
    return self.alpha_bar.tobytes(), self.timesteps.tobytes()

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Schedule) and self._content == other._content

  def __hash__(self) -> int:
    return hash(self._content)

  def __repr__(self) -> str:
    first, last = self.timesteps[0], self.timesteps[-1]
    signal = f'{self.alpha_bar[1]:.4g}..{self.alpha_bar[-1]:.4g}'
    return (
      f'Schedule(steps={self.steps}, timesteps={first}..{last},'
      f' alpha_bar={signal})'
    )
