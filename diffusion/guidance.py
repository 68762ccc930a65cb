r"""Guidance, as a mixture of predictions and as a choice among atoms.

Classifier-free guidance extrapolates from what a network predicts without a
label to what it predicts with one. Compressed guidance needs no extrapolation:
the noise is the one, of a few drawn at random, that leads where the label would
or where a classifier's gradient points, and the sample is a code that decodes
without label or classifier.

References:
  Ho and Salimans, `Classifier-free diffusion guidance
  <https://arxiv.org/abs/2207.12598>`_, 2022;
  Ohayon et al., `Compressed Image Generation with Denoising Diffusion Codebook
  Models <https://arxiv.org/abs/2502.01189>`_, 2025.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ..checks import require
from .codebook import Codebook
from .codes import choose_codes
from .ddcm import DDCMSample
from .matching_pursuit import pursued
from .sampler import Denoise
from .schedule import Schedule

Direction = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def guided(
  conditional: Denoise,
  unconditional: Denoise,
  scale: ArrayLike,
  *,
  clip: bool = True,
) -> Denoise:
  r"""Classifier-free guidance, :math:`\hat x_u + w (\hat x_c - \hat x_u)`.

  The same mixture as that of predicted noises, before clipping.

  Args:
    conditional: `denoise` with the label.
    unconditional: `denoise` without.
    scale: `w`: 1 is the conditional one, 0 the unconditional.
    clip: whether the result is clipped to [-1, 1].

  Returns:
    A `denoise`.

  Example:
    >>> denoise = guided(lambda x, t: 0.5 * x, lambda x, t: 0 * x, 1.5)
    >>> print(denoise(jnp.array([0.4, 4.0]), 1))
    [0.3 1. ]
  """

  def denoise(x, t):
    base = unconditional(x, t)
    mixed = base + scale * (conditional(x, t) - base)
    return jnp.clip(mixed, -1.0, 1.0) if clip else mixed

  return denoise


def label_direction(conditional: Denoise, unconditional: Denoise) -> Direction:
  r"""Where a label leads: :math:`\hat x_c - \hat x_u`, for guidance by atoms.

  It points as :math:`\varepsilon_u - \varepsilon_c` does, the gradient of the
  log probability of the label given the noisy image.

  Example:
    >>> direction = label_direction(lambda x, t: 0.5 * x, lambda x, t: 0 * x)
    >>> print(direction(jnp.ones(2), None, 1))
    [0.5 0.5]
  """
  return lambda x, x0_hat, t: conditional(x, t) - unconditional(x, t)


def classifier_direction(
  log_probability: Callable[[jax.Array], jax.Array],
) -> Direction:
  r"""Where a classifier's gradient points at the prediction.

  Deviation: the gradient is taken in :math:`\hat x_0`, where a classifier of
  clean images is at home, not through the network in :math:`x_i`.

  Args:
    log_probability: of the wanted labels, of images [B, ...] to [B].

  Returns:
    The direction.

  Example:
    >>> towards = classifier_direction(lambda x: -jnp.sum(x**2, axis=1))
    >>> print(towards(None, jnp.array([[1.0, -2.0]]), 1))
    [[-2.  4.]]
  """
  total = lambda x: jnp.sum(log_probability(x))
  return lambda x, x0_hat, t: jax.grad(total)(x0_hat)


def compressed_guidance(
  denoise: Denoise,
  direction: Direction,
  schedule: Schedule,
  codebook: Codebook,
  key: jax.Array,
  *,
  count: int,
  shape: Sequence[int],
  candidates: int | None = None,
) -> DDCMSample:
  r"""Samples that follow a direction, as codes that tell nothing of it.

  Every step draws :math:`\tilde K` of the `K` atoms for each image and takes
  the one whose product with the direction is largest. One candidate is plain
  sampling; the more there are the stronger the guidance.

  Deviation: the candidates are drawn by a key, and not by the clock, with
  replacement. All samples begin at an atom drawn for them, as in `ddcm_sample`.

  Args:
    denoise: without a label; what a decoder will have.
    direction: `direction(x, x0_hat, t)` -> [B, *shape]; `label_direction` or
      `classifier_direction`.
    schedule: of S steps.
    codebook: of as many dimensions as an image has entries.
    key: draws the candidates; each device needs its own.
    count: images.
    shape: of one.
    candidates: :math:`\tilde K`; `None`: the whole codebook.

  Returns:
    `DDCMSample`, of S - 1 steps and a start.

  Raises:
    ValueError: if `count` or `candidates` is out of range.

  Example:
    >>> schedule, codebook = Schedule.cosine(20), Codebook(64, 4)
    >>> up = lambda x, x0_hat, t: jnp.ones_like(x)
    >>> sample = compressed_guidance(
    ...   lambda x, t: 0.5 * x,
    ...   up,
    ...   schedule,
    ...   codebook,
    ...   jax.random.key(0),
    ...   count=3,
    ...   shape=(4,),
    ... )
    >>> bool(sample.x0.mean() > 0.1), sample.codes.indices.shape
    (True, (3, 19, 1))

  References:
    Ohayon et al., `arXiv 2502.01189 <https://arxiv.org/abs/2502.01189>`_,
    2025.
  """
  require(count >= 1, 'count', count, '1 or more')
  if candidates is not None:
    good = 1 <= candidates <= codebook.size
    expected = f'1 to the {codebook.size} of the codebook'
    require(good, 'candidates', candidates, expected)

  def choose(x, x0_hat, i, t):
    del i
    towards = direction(x, x0_hat, t).reshape(count, -1)
    if candidates is None:
      index = codebook.best(towards, t)
    else:
      index = _best_candidate(codebook, towards, t, candidates, key)
    return index[:, None], jnp.zeros_like(index)[:, None]

  first = jax.random.fold_in(key, 0)
  start = jax.random.randint(first, (count,), 0, codebook.size)
  noise = lambda indices, codes, t: pursued(codebook, indices, codes, t)
  last = int(schedule.timesteps[-1]) + 1
  x0, codes = choose_codes(
    denoise,
    schedule,
    codebook,
    choose,
    noise,
    jnp.zeros((count, *shape)),
    start=codebook.atoms(start, last),
  )
  return DDCMSample(x0, codes, start)


def _best_candidate(codebook, towards, t, candidates, key):
  """The best of so many atoms, which are drawn for each image, int32 [B]."""
  drawn = jax.random.randint(
    jax.random.fold_in(key, t), (candidates, len(towards)), 0, codebook.size
  )

  def better(best, index):
    product = jnp.sum(codebook.atoms(index, t) * towards, axis=1)
    wins = product > best[1]
    kept = jnp.where(wins, index, best[0]), jnp.where(wins, product, best[1])
    return kept, None

  none = jnp.full_like(towards[:, 0], -jnp.inf)
  (best, _), _ = jax.lax.scan(better, (drawn[0], none), drawn)
  return best
