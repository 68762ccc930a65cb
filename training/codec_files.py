"""Pictures to streams and back: files of the same settings share batches."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm

from ..diffusion import (
  BitstreamError,
  Codes,
  Header,
  bits_per_pixel,
  ideal_bits,
  pack_bitstream,
  payload_bits,
  read_header,
  unpack_bitstream,
)
from .codec import Codec, output_crc, settings_of
from .codec_settings import settings_for
from .images import cut, from_planes, join, png_bytes, read_png, to_planes
from .result_files import ResultFiles

SUFFIX = '.kxd'
_WAVE = 1024  # Tiles that are on their way at a time.

Paths = Iterable[os.PathLike[str] | str]


class _Work(NamedTuple):
  """A file on its way: arrays with a row for each of its tiles."""

  source: pathlib.Path
  target: pathlib.Path
  header: Header
  rows: list[np.ndarray]

  @property
  def program(self) -> Any:
    """Works for which this is equal can be done together."""
    return settings_of(self.header), self.rows[0].shape[1:]


def _waves(works: Iterable[_Work]) -> Iterator[list[_Work]]:
  """Works that can be done together, of so many tiles at a time."""
  waiting: dict[Any, list[_Work]] = {}
  tiles = 0
  for work in works:
    waiting.setdefault(work.program, []).append(work)
    tiles += work.header.count
    if tiles >= _WAVE:
      yield from waiting.values()
      waiting, tiles = {}, 0
  yield from waiting.values()


def _work_off(
  sources: Paths,
  files: ResultFiles,
  prepare: Callable[[pathlib.Path], _Work],
  run: Callable[..., list[np.ndarray]],
  finish: Callable[..., None],
) -> None:
  """Prepares each file, runs many together, finishes each with its rows."""
  with tqdm.tqdm(unit='tile', total=0, disable=None, leave=False) as bar:

    def works():
      for source in map(pathlib.Path, sources):
        work = files.attempt(source, lambda s=source: prepare(s))
        if work is not None:
          bar.total += work.header.count
          yield work

    for wave in _waves(works()):
      rows = zip(*(work.rows for work in wave), strict=True)
      joined = [np.concatenate(parts) for parts in rows]
      whole = run(wave[0].header, *joined, advance=bar.update)
      start = 0
      for work in wave:
        stop = start + work.header.count
        own = [x[start:stop] for x in whole]
        start = stop
        files.attempt(work.source, lambda w=work, o=own: finish(w, *o))


def encode_files(
  sources: Paths,
  codec: Codec,
  files: ResultFiles,
  *,
  rate: float,
  packing: str = 'dense',
  strict: bool = False,
  split_colours: bool = False,
) -> None:
  """Makes a stream of every picture.

  Args:
    sources: PNG files.
    codec: with the model.
    files: where streams go; knows afterwards which failed.
    rate: most bits of payload for a pixel of each picture.
    packing: of the payload.
    strict: run the decoder too, and keep a check sum of its pixels.
    split_colours: whether a model of grey pictures may take colour ones.
  """
  *side, channels = codec.model.image_shape

  def prepare(source):
    planes = to_planes(read_png(source), channels, split=split_colours)
    picture, tiles = planes.shape[1:3], cut(planes, side)
    # Tiles may cover more than the picture, and all count for its pixels.
    covered = len(tiles) * math.prod(side)
    share = rate * math.prod(picture) / covered
    settings = settings_for(share, codec.model, packing=packing)
    header = codec.sign(
      settings, count=len(tiles), picture=picture, planes=len(planes)
    )
    return _Work(source, files.target(source, SUFFIX), header, [tiles])

  def run(header, tiles, advance):
    codes = codec.encode(tiles, header, advance=advance)
    return [*codes, codec.decode(codes, header)] if strict else [*codes]

  def finish(work, indices, coefficients, *decoded):
    header, quality = work.header, ''
    for tiles in decoded:
      header = dataclasses.replace(header, output_crc=output_crc(tiles))
      quality = f', {_psnr(header, work.rows[0], tiles):.2f} dB'
    stream = pack_bitstream(Codes(indices, coefficients), header)
    files.write(work.target, stream)
    files.say(f'{work.source} -> {work.target}: {_rates(header)}{quality}')

  _work_off(sources, files, prepare, run, finish)


def _psnr(header: Header, tiles: np.ndarray, decoded: np.ndarray) -> float:
  """Peak signal-to-noise ratio of what of the tiles is picture."""
  picture, found = (
    join(x.astype(np.float64), header.picture, header.planes)
    for x in (tiles, decoded)
  )
  error = np.mean((picture - found) ** 2)
  return 10 * math.log10(255**2 / error) if error else math.inf


def _rates(header: Header) -> str:
  whole = bits_per_pixel(header, with_header=True)
  return (
    f'{bits_per_pixel(header):.4g} bits a pixel, {whole:.4g} with the header'
  )


def decode_files(
  sources: Paths,
  codec: Codec,
  files: ResultFiles,
  *,
  steps: int | None = None,
  lenient: bool = False,
) -> None:
  """Makes a picture of every stream.

  Args:
    sources: streams.
    codec: with the model that they were made with.
    files: where pictures go; knows afterwards which failed.
    steps: decode so many steps only.
    lenient: also decode what is cut short or damaged, or comes out unlike what
      the encoder saw, and say so.
  """

  def prepare(source):
    (indices, coefficients), header, sound = _read(source, files, lenient)
    codec.check(header)
    if steps is not None and not 0 <= steps <= header.steps:
      raise ValueError(f'steps: got {steps}, expected 0 to {header.steps}')
    rows = [indices[:, :steps], coefficients[:, :steps]]
    if not sound or rows[0].shape[1] < header.steps:  # Nothing to compare with.
      header = dataclasses.replace(header, output_crc=None)
    return _Work(source, files.target(source, '.png'), header, rows)

  def run(header, indices, coefficients, advance):
    return [codec.decode(Codes(indices, coefficients), header, advance=advance)]

  def finish(work, tiles):
    header = work.header
    if header.output_crc not in (None, output_crc(tiles)):
      what = 'other pixels than where it was encoded come out'
      if not lenient:
        raise ValueError(f'{what}; --lenient takes them')
      files.note(work.source, what)
    planes = join(tiles, header.picture, header.planes)
    files.write(work.target, png_bytes(from_planes(planes)))
    height, width = header.picture
    files.say(f'{work.source} -> {work.target}: {width}x{height} pixels')

  _work_off(sources, files, prepare, run, finish)


def _read(source, files, lenient) -> tuple[Codes, Header, bool]:
  """Codes, header, and whether all is as it should be."""
  data = source.read_bytes()
  try:
    return *unpack_bitstream(data), True
  except BitstreamError as error:
    if not lenient:
      raise
    found = unpack_bitstream(data, allow_prefix=True, allow_damage=True)
    files.note(source, f'{error}; decoded all the same')
    return *found, False


def describe_files(sources: Paths, files: ResultFiles) -> None:
  """Says what streams say of themselves, and whether they are whole."""

  def describe(source):
    data = source.read_bytes()
    files.say(f'{source}: {about_stream(data)}')
    unpack_bitstream(data)

  for source in map(pathlib.Path, sources):
    files.attempt(source, lambda s=source: describe(s))


def _count(number: int, thing: str) -> str:
  return f'{number} {thing}' + 's' * (number != 1)


def about_stream(data: bytes) -> str:
  """What the header of a stream says, in lines.

  Raises:
    BitstreamError: if it has none.
  """
  h, length, _, _ = read_header(data)
  size, tile = f'{h.picture[1]}x{h.picture[0]}', 'x'.join(map(str, h.shape))
  colours = ' in three colours' if h.planes == 3 else ''
  shared = ', one for all steps' if h.shared else ''
  spent = f' of {h.millinats / 1000:g} nats' if h.millinats else ''
  bits = f' and {h.coefficient_bits} bits' if h.mode == 'ddcm' else ''
  steps, atoms = _count(h.steps, 'step'), _count(h.atoms, 'atom')
  best = f'{ideal_bits(h):.1f} at best'
  crc = 'none' if h.output_crc is None else f'{h.output_crc:08x}'
  lines = (
    f'{size} pixels{colours}, {_count(h.count, "tile")} of {tile}',
    f'  rate      {_rates(h)} ({length} bytes)',
    f'  payload   {payload_bits(h)} bits, {h.packing}; {best}',
    f'  codes     {h.mode}, {steps} of {atoms}{bits}, then {h.tail} without',
    f'  codebook  {h.kind}, {h.size} atoms, seed {h.seed}{shared}',
    f'  timesteps {h.rule}{spent}, hash {h.schedule_hash:08x}',
    f'  model     {h.fingerprint.hex()}',
    f'  pixels    CRC-32 {crc}',
  )
  return '\n'.join(lines)
