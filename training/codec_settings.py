r"""Which codes for how many bits a pixel: one ladder for all rates.

A rung is a number of atoms and a range of steps; the finer the rung the more
atoms, and on it the more steps the more bits. Among all of them the one is
taken whose payload is the largest that fits.

Timesteps spend equal nats of the model's own bound (`equal_kl_timesteps`): each
step a part of those that its bits could tell, and what is left below them is
for a tail of steps without codes.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..diffusion import (
  BitstreamError,
  Header,
  Schedule,
  equal_kl_timesteps,
  ideal_bits,
  payload_bits,
  schedule_hash,
)


class Rung(NamedTuple):
  """Codes of so many atoms of so many blocks, in some numbers of steps."""

  atoms: int
  blocks: int
  least: int
  most: int


# Each rung begins where the one before ends. Of equal bits more steps of fewer
# atoms are better, by 1 to 3 dB for twice the steps (Fashion-MNIST, 0.5 to 1.8
# bits a pixel), and dearer: 70 are what one waits for.
LADDER = (
  Rung(1, 16, 2, 70),
  Rung(2, 16, 34, 70),
  Rung(4, 16, 38, 45),
  Rung(8, 1, 35, 45),
  Rung(16, 1, 26, 64),
  Rung(32, 1, 36, 64),
  Rung(64, 1, 36, 64),
)
KIND = 'hadamard'
TAIL = 2


def told_share(atoms: int) -> float:
  """Of the nats that a step's bits could tell, what it is to spend.

  Best for 1, 2, 4, 8, 16 and 32 atoms were 0.55 to 0.6, 0.5, 0.45, 0.35, 0.3
  and 0.2 (Fashion-MNIST, 64 images, 20 to 70 steps); a tenth more or less is
  within half a decibel up to four atoms, and 2 to 4 worse from 16 on.
  """
  return 0.6 * atoms**-0.27


def ladder(model: Any, packing: str = 'dense') -> Iterator[Header]:
  """Everything that could be chosen for a tile of this model.

  Not more steps than it has, nor a set with most of the atoms in it, nor more
  bits than the tile itself.
  """
  values = math.prod(model.image_shape)
  block = 1 << (values - 1).bit_length()
  for atoms, blocks, least, most in LADDER:
    size = blocks * block
    for steps in range(least, most + 1):
      if 4 * atoms > size or steps + 1 + TAIL > model.schedule.steps:
        continue
      header = Header(
        packing=packing,
        kind=KIND,
        size=size,
        atoms=atoms,
        steps=steps,
        tail=TAIL,
        shape=model.image_shape,
      )
      if payload_bits(header) <= 8 * values:
        yield header


def settings_for(rate: float, model: Any, *, packing: str = 'dense') -> Header:
  """The settings with the largest payload that is not above a rate.

  Args:
    rate: bits of payload for a pixel of a tile.
    model: `PretrainedDiffusion`.
    packing: of the payload.

  Returns:
    `Header` of one tile, the model's fingerprint left out.

  Raises:
    BitstreamError: if there is nothing that small, or the rate is above the
      most that the ladder has; names both.
  """
  pixels = math.prod(model.image_shape[:2])
  # As many bits twice: the later rung, with more atoms in fewer steps.
  rungs = {payload_bits(header): header for header in ladder(model, packing)}
  least, most = min(rungs), max(rungs)
  if not least <= rate * pixels <= most:
    raise BitstreamError(
      f'rate: got {rate:.4g} bits a pixel, expected {least / pixels:.4g} to '
      f'{most / pixels:.4g} for this model'
    )
  best = rungs[max(bits for bits in rungs if bits <= rate * pixels)]
  return on_schedule(best, model)


def on_schedule(header: Header, model: Any) -> Header:
  """The header with equal-KL timesteps of a model, and their hash.

  As many nats as the codes can tell, if the model's bound has as many.
  """
  told = told_share(header.atoms) * math.log(2)
  told *= ideal_bits(header) / header.steps / header.count
  whole = float(sum(model.kl_per_step[1:]))
  millinats = int(1000 * told) if told * (header.steps + 1) < whole else 0
  header = dataclasses.replace(header, rule='equal_kl', millinats=millinats)
  schedule = header_schedule(header, model)
  return dataclasses.replace(header, schedule_hash=schedule_hash(schedule))


def header_schedule(header: Header, model: Any) -> Schedule:
  """The model's schedule at the timesteps that a header says.

  Raises:
    ValueError: if the model's has no such timesteps.
  """
  count = header.steps + 1
  if header.rule == 'listed':
    return model.schedule.respace(header.timesteps)
  if header.rule == 'even':
    return model.schedule.respace(count + header.tail)
  nats = header.millinats / 1000 or None
  timesteps = equal_kl_timesteps(
    model.schedule, model.kl_per_step, count, nats=nats, tail=header.tail
  )
  return model.schedule.respace(timesteps)
