r"""What codebooks cost where all is known: the exact law of a sampler's images.

With independent normal coordinates the best denoiser is linear, and an image is
a sum of the start and the noise of all steps, each with its own weight of every
coordinate:

.. math:: x_0 = \sum_s w_s \odot z_s.

DDPM draws :math:`z_s \sim N(0, I)`. Out of codebooks it is one of `K` atoms of
mean :math:`m_s` and covariance :math:`C_s`: the mean and the covariance of all
images,

.. math:: \sum_s w_s \odot m_s, \qquad \sum_s w_s w_s^\top \odot C_s,

are finite sums, and the distance to a normal law needs no image. Means of `K`
atoms have the variance 1/K, hence the means of images are :math:`\frac1K \sum_d
\sum_s w_{sd}^2` off, 1/K of the variance of all coordinates; with one codebook
for all steps they add up, to :math:`\frac1K \sum_d (\sum_s w_{sd})^2`.

References:
  Ohayon et al., `arXiv 2502.01189 <https://arxiv.org/abs/2502.01189>`_, 2025.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..diffusion import Codebook, Schedule, gaussian_denoiser, posterior
from .image_features import frechet_of_moments


class Weights(NamedTuple):
  """Of the start and of the noise of each step but the last, S in all.

  Attributes:
    timesteps: int32 [S] of their codebooks, descending.
    weights: [S, D].
  """

  timesteps: np.ndarray
  weights: np.ndarray


def noise_weights(variances: np.ndarray, schedule: Schedule) -> Weights:
  """How much of each noise is in a coordinate of an image.

  Args:
    variances: of coordinates [D].
    schedule: the original one, respaced to the steps that are taken.

  Returns:
    `Weights`.

  Example:
    >>> weights = noise_weights(np.ones(1), Schedule.linear(1000))
    >>> print(f'{np.sum(weights.weights**2):.2f}')
    0.99
  """
  positions = np.arange(schedule.steps, 0, -1)
  # The same steps without what they left out: positions are its timesteps.
  denoise = gaussian_denoiser(variances, Schedule(schedule.alpha_bar))
  ones = jnp.ones((schedule.steps, len(variances)))
  x0_hat = denoise(ones, positions)
  gains, deviations = map(
    np.float64, posterior(schedule, x0_hat, ones, positions)
  )
  after = np.cumprod(gains[::-1], axis=0)[::-1]
  weights = np.concatenate([after[:1], deviations[:-1] * after[1:]])
  last = schedule.timesteps[-1]
  return Weights(np.append(last + 1, schedule.timesteps[:0:-1]), weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def image_moments(
  codebook: Codebook,
  sizes: tuple[int, ...],
  timesteps: jax.Array,
  weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Mean and covariance of all images that codebooks can make.

  Args:
    codebook: the largest.
    sizes: ascending; the codebooks are the first so many atoms of it.
    timesteps: [S], see `Weights`.
    weights: [S, D].

  Returns:
    [len(sizes), D] and [len(sizes), D, D].
  """

  def add(total, one):
    t, w = one
    moments = _atom_moments(codebook, sizes, t)
    parts = w * moments[0], jnp.outer(w, w) * moments[1]
    return jax.tree.map(jnp.add, total, parts), None

  count, dim = len(sizes), codebook.dim
  start = jnp.zeros((count, dim)), jnp.zeros((count, dim, dim))
  return lax.scan(add, start, (timesteps, weights))[0]


def _atom_moments(codebook, sizes, t):
  """Mean and covariance of the first atoms, for every size."""
  atoms = codebook.atoms(jnp.arange(max(sizes)), t)
  parts = jnp.split(atoms, sizes[:-1])
  exact = functools.partial(jnp.matmul, precision='highest')
  sums = jnp.cumsum(jnp.stack([p.sum(0) for p in parts]), axis=0)
  squares = jnp.cumsum(jnp.stack([exact(p.T, p) for p in parts]), axis=0)
  sizes = jnp.array(sizes)[:, None]
  mean = sums / sizes
  return mean, squares / sizes[..., None] - mean[:, :, None] * mean[:, None]


def excess(
  variances: np.ndarray,
  schedule: Schedule,
  sizes: Sequence[int],
  *,
  seed: int,
  shared: bool,
) -> list[float]:
  """Fréchet distances of images to those of DDPM, over their variance.

  Args:
    variances: of the source [D].
    schedule: the original one, respaced to the steps that are taken.
    sizes: of codebooks, ascending.
    seed: 0 or more, of codebooks.
    shared: whether all steps have the same one.

  Returns:
    One for each size.

  Example:
    >>> schedule = Schedule.cosine(1000).respace(20)
    >>> variances = np.arange(1.0, 17) ** -1.2
    >>> few, many = excess(variances, schedule, (4, 64), seed=0, shared=False)
    >>> 8 < few / many < 32
    True
  """
  timesteps, weights = noise_weights(variances, schedule)
  # Of one program: codebooks of other timesteps are other codebooks, and a
  # shared one is that of a single timestep.
  timesteps = seed * (timesteps[0] + 1) + (0 if shared else timesteps)
  timesteps = np.broadcast_to(np.int32(timesteps), len(weights))
  codebook = Codebook(max(sizes), len(variances))
  moments = jax.device_get(
    image_moments(codebook, tuple(sizes), timesteps, weights)
  )
  ddpm = np.sum(weights**2, axis=0)
  distance = lambda mean, covariance: frechet_of_moments(
    np.float64(mean), np.float64(covariance), 0 * ddpm, np.diag(ddpm)
  )
  total = float(np.sum(ddpm))
  return [distance(*m) / total for m in zip(*moments, strict=True)]


def law(variances: np.ndarray, schedule: Schedule, *, shared: bool) -> float:
  r"""The distance that `excess` tends to, times K.

  To means it adds what the spread of covariances costs, to second order in it,
  :math:`\frac12 \sum_{de} \mathrm{Var}[C_{de}] / (\lambda_d + \lambda_e)`.

  Args:
    variances: of the source [D].
    schedule: the original one, respaced to the steps that are taken.
    shared: whether all steps have the same codebook.

  Returns:
    A number above 1, which is what means cost without sharing.

  Example:
    >>> schedule = Schedule.cosine(1000).respace(20)
    >>> round(law(np.ones(1), schedule, shared=False), 3)
    1.032
  """
  weights = noise_weights(variances, schedule).weights
  ddpm = np.sum(weights**2, axis=0)
  if shared:
    means, spread = np.sum(weights, axis=0) ** 2, (weights.T @ weights) ** 2
  else:
    means, spread = ddpm, (weights**2).T @ weights**2
  spread = spread * (1 + np.eye(len(ddpm)))
  covariances = np.sum(spread / (ddpm + ddpm[:, None])) / 2
  return float((np.sum(means) + covariances) / np.sum(ddpm))
