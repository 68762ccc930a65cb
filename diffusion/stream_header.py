"""What a bitstream says of itself.

With the model and these fields a decoder needs nothing else.
"""

import dataclasses
import hashlib
import math

from .codebook import KINDS
from .schedule import Schedule

MODES = ('ddcm', 'turbo')
PACKINGS = ('step', 'dense', 'independent')
RULES = ('listed', 'even', 'equal_kl')

# No stream asks for more than this, whatever its bytes say.
_MOST = {
  'seed': 2**32 - 1,
  'size': 2**24,
  'atoms': 1024,
  'steps': 2**14,
  'tail': 2**14,
  'count': 2**20,
  'millinats': 2**40,
}
_MOST_SIDE = 2**16
_MOST_TIMESTEP = 2**20
_MOST_VALUES = 2**28  # Of all tiles.
_MOST_CODES = 2**22


class BitstreamError(ValueError):
  """The bytes are no bitstream that can be read, or a header cannot be.

  Example:
    >>> try:
    ...   Header(size=0, steps=1, shape=(8, 8, 1))
    ... except BitstreamError as error:
    ...   print(error)
    size: got 0, expected 1 to 16777216
  """


def check(condition: bool, message: str) -> None:
  """Raises `BitstreamError`."""
  if not condition:
    raise BitstreamError(message)


def _integer(name: str, value: int, least: int, most: int) -> None:
  good = isinstance(value, int) and least <= value <= most
  check(good, f'{name}: got {value!r}, expected {least} to {most}')


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
  listing = ', '.join(allowed)
  check(value in allowed, f'{name}: got {value!r}, expected one of {listing}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """How `count` images became codes, and codes bits.

  Args:
    mode: "ddcm", matching pursuit, or "turbo", sets with signs.
    packing: "dense": all steps of an image as one number, within a bit of what
      is possible; "step": every step by itself, so that a wrong bit spoils one
      step; "independent", of Turbo: every index by itself, so that it spoils
      one atom.
    kind: of the codebook, as are `seed`, `shared` and `size`.
    seed: 0 .. 2^32 - 1.
    shared: one codebook for all timesteps.
    size: `K`.
    atoms: `M`.
    coefficient_bits: `C`, of matching pursuit.
    steps: that have codes.
    tail: steps without codes at the end.
    shape: (H, W, C) of a tile, what the model knows as an image.
    count: `B`, tiles of all pictures and planes.
    picture: height and width of a picture, of which tiles are cut row by row;
      `None`: those of a tile.
    planes: 3 if colours are pictures of their own, else 1.
    rule: how the timesteps follow from the model's schedule: "listed" (see
      `timesteps`), "even" or "equal_kl".
    timesteps: steps + 1 + tail of them, ascending, of rule "listed".
    millinats: what a step spends by rule "equal_kl", in thousandths of a nat;
      0: its part of all.
    schedule_hash: that of `schedule_hash`.
    fingerprint: of the model, 8 bytes.
    output_crc: CRC-32 of the decoded tiles as bytes, or `None`.

  Raises:
    BitstreamError: for what cannot be, or is absurdly large.

  Example:
    >>> header = Header(size=1024, atoms=16, steps=20, shape=(28, 28, 1))
    >>> header.mode, header.picture, header.tiles, header.pixels
    ('turbo', (28, 28), (1, 1), 784)
  """

  mode: str = 'turbo'
  packing: str = 'dense'
  kind: str = 'gaussian'
  seed: int = 0
  shared: bool = False
  size: int
  atoms: int = 1
  coefficient_bits: int = 1
  steps: int
  tail: int = 0
  shape: tuple[int, int, int]
  count: int = 1
  picture: tuple[int, int] | None = None
  planes: int = 1
  rule: str = 'equal_kl'
  timesteps: tuple[int, ...] = ()
  millinats: int = 0
  schedule_hash: int = 0
  fingerprint: bytes = bytes(8)
  output_crc: int | None = None

  def __post_init__(self):
    if self.picture is None:
      object.__setattr__(self, 'picture', self.shape[:2])
    for name in ('shape', 'picture', 'timesteps'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    _one_of('mode', self.mode, MODES)
    _one_of('packing', self.packing, PACKINGS)
    _one_of('kind', self.kind, KINDS)
    _one_of('rule', self.rule, RULES)
    least = {'seed': 0, 'tail': 0, 'millinats': 0}
    for name, most in _MOST.items():
      _integer(name, getattr(self, name), least.get(name, 1), most)
    _integer('coefficient_bits', self.coefficient_bits, 1, 8)
    check(len(self.shape) == 3, f'shape: got {self.shape}, expected (H, W, C)')
    check(len(self.picture) == 2, f'picture: got {self.picture}, expected two')
    for name in ('shape', 'picture'):
      for side in getattr(self, name):
        _integer(name, side, 1, _MOST_SIDE)
    _integer('schedule_hash', self.schedule_hash, 0, 2**32 - 1)
    check(isinstance(self.shared, bool), f'shared: got {self.shared!r}')
    good = isinstance(self.fingerprint, bytes) and len(self.fingerprint) == 8
    check(good, f'fingerprint: got {self.fingerprint!r}, expected 8 bytes')
    if self.output_crc is not None:
      _integer('output_crc', self.output_crc, 0, 2**32 - 1)
    self._check_together()

  def _check_together(self):
    if self.mode == 'turbo':
      most = f'at most the {self.size} of the codebook'
      good = self.atoms <= self.size
      check(good, f'atoms: got {self.atoms}, expected {most}')
      good = self.coefficient_bits == 1
      check(good, 'coefficient_bits: Turbo has one, for the sign')
    else:
      check(self.packing != 'independent', 'packing: independent is of Turbo')
    check(self.planes in (1, 3), f'planes: got {self.planes}, expected 1 or 3')
    parts = self.planes * math.prod(self.tiles)
    wanted = f'{parts} for each picture of {self.picture}'
    good = self.count % parts == 0
    check(good, f'count: got {self.count}, expected {wanted}')
    values = self.count * math.prod(self.shape)
    good = values <= _MOST_VALUES
    check(good, f'tiles: got {values} values, expected {_MOST_VALUES} at most')
    codes = self.count * self.steps * self.atoms
    good = codes <= _MOST_CODES
    check(good, f'codes: got {codes} of them, expected {_MOST_CODES} at most')
    good = self.rule == 'equal_kl' or self.millinats == 0
    check(good, f'millinats: got {self.millinats}, but the rule is {self.rule}')
    self._check_timesteps()

  def _check_timesteps(self):
    listed = self.steps + 1 + self.tail if self.rule == 'listed' else 0
    got = len(self.timesteps)
    check(got == listed, f'timesteps: got {got}, expected {listed}')
    for t in self.timesteps:
      _integer('timesteps', t, 1, _MOST_TIMESTEP)
    pairs = zip(self.timesteps, self.timesteps[1:], strict=False)
    check(all(a < b for a, b in pairs), 'timesteps: expected ascending ones')

  @property
  def tiles(self) -> tuple[int, int]:
    """Rows and columns of tiles in a picture."""
    sides = zip(self.picture, self.shape, strict=False)
    return tuple(-(-whole // part) for whole, part in sides)

  @property
  def pixels(self) -> int:
    """Of all pictures, whatever their channels."""
    pictures = self.count // (self.planes * math.prod(self.tiles))
    return pictures * math.prod(self.picture)


def schedule_hash(schedule: Schedule) -> int:
  """A number of 32 bits for timesteps and their alpha_bar as float32.

  Args:
    schedule: the one that is walked, respaced.

  Returns:
    The first four bytes of a SHA-256.

  Example:
    >>> f'{schedule_hash(Schedule.linear(1000).respace(4)):08x}'
    'e8d3d5f6'
  """
  tables = schedule.alpha_bar.astype('<f4'), schedule.timesteps.astype('<i4')
  digest = hashlib.sha256(b''.join(t.tobytes() for t in tables)).digest()
  return int.from_bytes(digest[:4], 'little')
