r"""Restoration by codes: the noise that explains a measurement is a file.

Of an image only :math:`y = A x_0 + n` is known, for a linear `A`: a smaller,
blurred, grey or incomplete picture. Every step takes the atom after which the
prediction explains `y` best,

.. math::
  k = \operatorname{argmin}_k |A (\hat x_0 + a z_k) - y|^2, \qquad
  a = s_i / \sqrt{\bar\alpha_{i-1}},

and what comes out is a restored image together with its code, which decodes
with neither `y` nor `A`.

References:
  Ohayon et al., `Compressed Image Generation with Denoising Diffusion Codebook
  Models <https://arxiv.org/abs/2502.01189>`_, 2025, compressed posterior
  sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require, require_rank
from .codebook import Codebook
from .codes import Codes, choose_codes
from .linear_operators import Operator
from .matching_pursuit import pursued
from .process import posterior
from .sampler import Denoise
from .schedule import Schedule


class Restored(NamedTuple):
  """Restored images [B, *shape], and the `Codes` that decode to them.

  Example:
    >>> none = jnp.zeros((2, 0, 1), int)
    >>> Restored(jnp.zeros((2, 4)), Codes(none, none)).x0.shape
    (2, 4)
  """

  x0: jax.Array
  codes: Codes


def restore(
  denoise: Denoise,
  operator: Operator,
  y: jax.Array,
  schedule: Schedule,
  codebook: Codebook,
  *,
  shape: Sequence[int],
  tail: int = 0,
) -> Restored:
  r"""Images that explain measurements, as codes.

  The square is expanded, :math:`2 a \langle z_k, A^T (A \hat x_0 - y) \rangle +
  a^2 |A z_k|^2`, so that a batch takes one pass over the codebook and its
  second term is computed once for all images.

  Args:
    denoise: `denoise(x [B, *shape], t) -> x0_hat`.
    operator: `A`, linear, of images [B, *shape] to [B, ...]; `average_pooling`,
      `grey`, `blur` and `masked` are some.
    y: measurements [B, ...], with noise or without.
    schedule: of S steps.
    codebook: of as many dimensions as an image has entries.
    shape: of one image.
    tail: steps at the end that have no codes.

  Returns:
    `Restored`; `ddcm_decode` with the same denoiser, schedule, codebook and
    tail gives the same images.

  Raises:
    ValueError: if the operator does not lead from images to `y`.

  Example:
    >>> schedule, codebook = Schedule.cosine(20), Codebook(64, 4)
    >>> y = jnp.array([[0.7], [-0.2]])
    >>> mean = lambda x: x.mean(1, keepdims=True)
    >>> half = lambda x, t: 0.5 * x
    >>> restored = restore(half, mean, y, schedule, codebook, shape=(4,))
    >>> restored.x0.shape, restored.codes.indices.shape
    ((2, 4), (2, 19, 1))

  References:
    Ohayon et al., `arXiv 2502.01189 <https://arxiv.org/abs/2502.01189>`_,
    2025.
  """
  y = jnp.asarray(y, jnp.float32)
  require_rank('y', y, 1, at_least=True)
  image = jax.ShapeDtypeStruct((len(y), *shape), jnp.float32)
  measured = jax.eval_shape(operator, image).shape
  expected = f'{measured}, what the operator makes of images {image.shape}'
  require(measured == y.shape, 'y', y.shape, expected)

  def explained(atoms):
    seen = operator(atoms.reshape(-1, *shape))
    return jnp.sum(jnp.square(seen).reshape(len(atoms), -1), axis=1)

  def choose(x, x0_hat, i, t):
    del x
    missing, adjoint = jax.vjp(operator, x0_hat)
    (pull,) = adjoint(missing - y)
    products = codebook.products(pull.reshape(len(y), -1), t)
    a = _reach(schedule, i)
    error = 2 * a * products + a**2 * codebook.over_atoms(explained, t)
    index = jnp.argmin(error, axis=1)[:, None].astype(jnp.int32)
    return index, jnp.zeros_like(index)

  noise = lambda indices, codes, t: pursued(codebook, indices, codes, t)
  like = jnp.zeros_like(y, shape=image.shape)
  restored = choose_codes(
    denoise, schedule, codebook, choose, noise, like, tail=tail
  )
  return Restored(*restored)


def _reach(schedule: Schedule, i: jax.Array) -> jax.Array:
  """How far the noise of a step moves the prediction that comes after it."""
  zero = jnp.zeros([])
  before = np.sqrt(schedule.alpha_bar[:-1]).astype(np.float32)
  return (
    posterior(schedule, zero, zero, i).deviation / jnp.asarray(before)[i - 1]
  )
