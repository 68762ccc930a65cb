"""What figures on codecs enter, run and measure.

A contestant is a `Header`: with a model and a schedule it says all of a codec,
and its payload is counted without forming it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..diffusion import (
  Codebook,
  Codes,
  Header,
  Schedule,
  ddcm_decode,
  ddcm_encode,
  ideal_bits,
  turbo_decode,
  turbo_encode,
)
from ..diffusion.sampler import Denoise
from ..training.codec_settings import header_schedule
from ..training.pretrained import PretrainedDiffusion
from .diffusion_model import as_bytes, signed

# A third less time to compile for programs that are no slower: every schedule
# is a program of its own, which runs a few times.
_OPTIONS = {'xla_llvm_disable_expensive_passes': True}


def spending(header: Header, told: float) -> Header:
  """The header with timesteps of equal nats, and no other ones.

  Args:
    header: of a codec.
    told: nats that a step spends, of those that its bits could tell.

  Returns:
    `Header` of rule "equal_kl".

  Example:
    >>> header = Header(size=1024, steps=9, shape=(8, 8, 1), mode='ddcm')
    >>> spending(header, 0.5).millinats
    3465
  """
  step_bits = ideal_bits(header) / (header.steps * header.count)
  millinats = int(1000 * told * math.log(2) * step_bits)
  return dataclasses.replace(header, rule='equal_kl', millinats=millinats)


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
  """Of every image, in dB; a hundred if nothing is wrong.

  Args:
    images: bytes [N, H, W, C].
    originals: like them.

  Returns:
    float64 [N].

  Example:
    >>> original = np.zeros((1, 2, 2, 1), np.uint8)
    >>> print(psnr(original + np.uint8(51), original).round(2))
    [13.98]
  """
  wrong = (np.float64(images) - np.float64(originals)) / 255
  error = np.mean(np.square(wrong), axis=(1, 2, 3))
  return -10 * np.log10(np.maximum(error, 1e-10))


def label_of(header: Header) -> str:
  """Of a codec's row.

  >>> label_of(Header(size=64, steps=50, mode='ddcm', shape=(8, 8, 1)))
  'ddcm-K64-M1-C1-T50-equal_kl-gaussian'
  """
  h = header
  sizes = f'K{h.size}-M{h.atoms}-C{h.coefficient_bits}-T{h.steps}'
  return f'{h.mode}-{sizes}-{h.rule}-{h.kind}'


class Contest:
  """Codes of images and images of codes, by whatever header.

  Args:
    denoise: of parameters, `denoise(params)(x, t) -> x0_hat`.
    params: these.
    schedule: the original one.
    kl_per_step: nats of each of its steps.
    batch: images at once.
  """

  def __init__(
    self,
    denoise: Callable[[Any], Denoise],
    params: Any,
    schedule: Schedule,
    kl_per_step: np.ndarray,
    *,
    batch: int,
  ):
    self.denoise, self.params, self.batch = denoise, params, batch
    self.schedule, self.kl_per_step = schedule, kl_per_step
    self._programs = functools.lru_cache(maxsize=1)(self._compiled)

  @classmethod
  def of(cls, model: PretrainedDiffusion, *, batch: int) -> 'Contest':
    """Those of a trained model, which is told no class."""
    having = lambda params: dataclasses.replace(model, params=params).denoise()
    tables = model.schedule, model.kl_per_step
    return cls(having, model.params, *tables, batch=batch)

  def encode(self, header: Header, x0: jax.Array) -> Codes:
    """Codes of x0 [N, H, W, C], NumPy's."""
    return self._in_batches(self._programs(header)[0], x0)

  def decode(self, header: Header, codes: Codes) -> np.ndarray:
    """float32 [N, H, W, C]."""
    return self._in_batches(self._programs(header)[1], codes)

  def rebuilt(self, header: Header, images: np.ndarray) -> np.ndarray:
    """Bytes [N, H, W, C] out of the codes of bytes."""
    return as_bytes(self.decode(header, self.encode(header, signed(images))))

  def _compiled(self, header: Header) -> tuple[Callable, Callable]:
    h, schedule = header, header_schedule(header, self)
    codebook = Codebook(
      h.size, math.prod(h.shape), kind=h.kind, seed=h.seed, shared=h.shared
    )
    to, back, more = turbo_encode, turbo_decode, {}
    if h.mode == 'ddcm':
      to, back = ddcm_encode, ddcm_decode
      more = {'coefficient_bits': h.coefficient_bits}
    both = {'tail': h.tail, **more}

    def encode(params, x0):
      denoise = self.denoise(params)
      return to(denoise, x0, schedule, codebook, atoms=h.atoms, **both)

    def decode(params, codes):
      denoise = self.denoise(params)
      return back(denoise, codes, schedule, codebook, shape=h.shape, **both)

    quick = functools.partial(jax.jit, compiler_options=_OPTIONS)
    return quick(encode), quick(decode)

  def _in_batches(self, program: Callable, rows: Any) -> Any:
    """The program on so many rows at a time, the last ones filled up."""
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for start in range(0, count, self.batch):
      places = np.minimum(np.arange(start, start + self.batch), count - 1)
      some = jax.tree.map(lambda x, at=places: jnp.asarray(x)[at], rows)
      parts.append(jax.device_get(program(self.params, some)))
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)
