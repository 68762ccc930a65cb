r"""Walking down a diffusion with codes in the place of noise.

The step of DDPM from position `i` to `i - 1`,
:math:`x_{i-1} = \mu_i(x_i, \hat x_0) + s_i z`, takes a `z` that a code stands
for. Whoever chooses codes and whoever replays them take the same step; what
differs by rounding stays as small as rounding, since codes are not chosen
again. The step from 1 has no noise, and so may the steps of a `tail` before it:
these are DDIM's. Hence S steps have S - 1 - tail codes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..checks import require, require_rank, require_shape
from ..mapped_axes import vary_together
from .codebook import Codebook
from .process import ddim_step, ddpm_step
from .sampler import Denoise
from .schedule import Schedule

# noise(indices [B, M], coefficients [B, M], t) -> [B, D]
Noise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Codes(NamedTuple):
  """What stands for `B` images: int32 [B, steps, M] each, largest t first.

  Attributes:
    indices: of atoms; of a set in ascending order.
    coefficients: of matching pursuit (0: no atom), or signs (0: minus).

  Example:
    >>> codes = Codes(jnp.zeros((2, 9, 1), int), jnp.zeros((2, 9, 1), int))
    >>> codes.indices.shape
    (2, 9, 1)
  """

  indices: jax.Array
  coefficients: jax.Array


def coded_positions(schedule: Schedule, tail: int = 0) -> jax.Array:
  """The positions that have codes, S .. tail + 2."""
  most = schedule.steps - 1
  require(0 <= tail <= most, 'tail', tail, f'0 to {most} for this schedule')
  return jnp.arange(schedule.steps, tail + 1, -1)


def _require_dim(codebook: Codebook, shape: Sequence[int]) -> None:
  entries = math.prod(shape)
  expected = f'{entries}, the entries of an image {tuple(shape)}'
  require(codebook.dim == entries, 'codebook.dim', codebook.dim, expected)


def _timestep(schedule: Schedule, i: jax.Array) -> jax.Array:
  return jnp.asarray(schedule.timesteps)[i - 1]


def _start(codebook, start, shape):
  start = codebook.start() if start is None else start
  return jnp.broadcast_to(start, (shape[0], codebook.dim)).reshape(shape)


def _advance(schedule, x0_hat, x, i, noise):
  """The step all take, kept from what a compiler would merge it with.

  Fused with the network, or with a search that only one side has, the same sum
  may be rounded otherwise.
  """
  x0_hat, x, noise = lax.optimization_barrier((x0_hat, x, noise))
  moved = ddpm_step(schedule, x0_hat, x, i, noise.reshape(x.shape))
  return lax.optimization_barrier(moved)


def choose_codes(
  denoise: Denoise,
  schedule: Schedule,
  codebook: Codebook,
  choose: Callable[..., tuple[jax.Array, jax.Array]],
  noise: Noise,
  like: jax.Array,
  *,
  start: jax.Array | None = None,
  tail: int = 0,
) -> tuple[jax.Array, Codes]:
  """Walks down and chooses a code at every step.

  Args:
    denoise: `denoise(x, t) -> x0_hat`.
    schedule: of S steps.
    codebook: whose `start` it sets out from.
    choose: `choose(x, x0_hat, i, t)` -> indices and coefficients, [B, M] each.
    noise: what they stand for.
    like: [B, ...], the shape of the images, varying over devices as they do.
    start: [B, D] to set out from instead.
    tail: steps at the end without codes.

  Returns:
    The images where all steps have led, and the `Codes`.
  """
  _require_dim(codebook, like.shape[1:])

  def body(x, i):
    t = _timestep(schedule, i)
    x0_hat = denoise(x, t)
    codes = choose(x, x0_hat, i, t)
    return _advance(schedule, x0_hat, x, i, noise(*codes, t)), codes

  x, _ = vary_together(_start(codebook, start, like.shape), like)
  x, codes = lax.scan(body, x, coded_positions(schedule, tail))
  codes = Codes(*(jnp.moveaxis(x, 0, 1) for x in codes))
  return _finished(denoise, schedule, x, tail), codes


def replay_codes(
  denoise: Denoise,
  codes: Codes,
  schedule: Schedule,
  codebook: Codebook,
  noise: Noise,
  *,
  shape: Sequence[int],
  start: jax.Array | None = None,
  steps: int | None = None,
  tail: int = 0,
) -> jax.Array:
  """Walks down with the noise of given codes.

  Args:
    denoise: `denoise(x, t) -> x0_hat`.
    codes: of all steps or of the first ones.
    schedule: of S steps.
    codebook: whose `start` it sets out from.
    noise: what codes stand for.
    shape: of one image.
    start: [B, D] to set out from instead.
    steps: how many of the codes to use; `None`: all there are.
    tail: steps at the end without codes.

  Returns:
    [B, *shape]: the images, or `x0_hat` where the codes end.

  Raises:
    ValueError: for codes that do not fit, or arguments out of range.
  """
  positions = coded_positions(schedule, tail)
  _require_dim(codebook, shape)
  require_rank('codes.indices', codes.indices, 3)
  require_shape('codes.coefficients', codes.coefficients, codes.indices.shape)
  given = codes.indices.shape[1]
  expected = f'{len(positions)} steps at most, for this schedule and tail'
  require(given <= len(positions), 'codes', f'{given} steps', expected)
  steps = given if steps is None else steps
  require(0 <= steps <= given, 'steps', steps, f'0 to the {given} of the codes')

  def body(x, one):
    i, *code = one
    t = _timestep(schedule, i)
    x0_hat = denoise(x, t)
    return _advance(schedule, x0_hat, x, i, noise(*code, t)), None

  start = _start(codebook, start, (len(codes.indices), *shape))
  x, _ = vary_together(start, codes.indices)
  used = [jnp.moveaxis(part[:, :steps], 1, 0) for part in codes]
  x, _ = lax.scan(body, x, (positions[:steps], *used))
  if steps < len(positions):
    return denoise(x, _timestep(schedule, positions[steps]))
  return _finished(denoise, schedule, x, tail)


def _finished(denoise, schedule, x, tail):
  """Steps of DDIM without noise, from position tail + 1 on."""

  def body(x, i):
    x0_hat = denoise(x, _timestep(schedule, i))
    return ddim_step(schedule, x0_hat, x, i, jnp.zeros_like(x), eta=0.0), None

  x, _ = lax.scan(body, x, jnp.arange(tail + 1, 1, -1))
  return denoise(x, _timestep(schedule, jnp.array(1)))


def encode_by(
  select: Callable[..., tuple[jax.Array, jax.Array]],
  denoise: Denoise,
  x0: jax.Array,
  schedule: Schedule,
  codebook: Codebook,
  noise: Noise,
  *,
  tail: int = 0,
  weights: jax.Array | None = None,
) -> Codes:
  """Codes of images: `select(residual [B, D], i, t)` after what is missing."""
  x0 = jnp.asarray(x0, jnp.float32)
  require_rank('x0', x0, 2, at_least=True)
  weights = jnp.ones(x0.shape[1:]) if weights is None else jnp.asarray(weights)
  fits = weights.shape in (x0.shape[1:], x0.shape)
  expected = f'shape {x0.shape[1:]}, or {x0.shape}'
  require(fits, 'weights', weights.shape, expected)

  def choose(x, x0_hat, i, t):
    del x
    return select((weights * (x0 - x0_hat)).reshape(len(x0), -1), i, t)

  return choose_codes(
    denoise, schedule, codebook, choose, noise, x0, tail=tail
  )[1]
