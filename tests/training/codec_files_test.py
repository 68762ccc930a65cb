"""Pictures to streams and back on disk, and what becomes of bad files."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from kexue.diffusion import bits_per_pixel, read_header
from kexue.training import codec_files
from kexue.training.codec import Codec
from kexue.training.codec_files import decode_files, describe_files
from kexue.training.images import cut, join, read_png
from kexue.training.result_files import ResultFiles

encode_files = functools.partial(codec_files.encode_files, rate=1.0)


@pytest.fixture(scope='module')
def codec(gaussian_model):
  return Codec(gaussian_model, devices=jax.devices()[:1])


@pytest.fixture
def sources(tmp_path, pictures):
  """Three pictures: a tile, several of them cut off, a tile."""
  (first,), (second,), (third,) = (
    pictures(1, *size, seed=i)
    for i, size in enumerate([(8, 8), (16, 24), (8, 8)])
  )
  paths = [tmp_path / f'{name}.png' for name in 'abc']
  for path, picture in zip(paths, (first, second[:, :23], third), strict=True):
    Image.fromarray(picture[..., 0]).save(path)
  return paths


@pytest.fixture
def said():
  return []


@pytest.fixture
def files(tmp_path, said):
  """`files(name)`: results in a directory of that name."""
  return lambda name, **options: ResultFiles(
    tmp_path / name, say=said.append, warn=said.append, **options
  )


def read(stream):
  return read_header(stream.read_bytes()).header


def test_pictures_of_any_size_there_and_back(
  sources, codec, files, said, tmp_path, monkeypatch
):
  there, back = files('there'), files('back')
  encode_files(sources, codec, there, strict=True)
  streams = [tmp_path / 'there' / f'{name}.kxd' for name in 'abc']
  assert not there.failed and all(p.exists() for p in streams)
  headers = [read(p) for p in streams]
  assert [h.count for h in headers] == [1, 6, 1]
  assert [h.picture for h in headers] == [(8, 8), (16, 23), (8, 8)]
  for header, line in zip(headers, sorted(said), strict=True):
    assert 0.75 < bits_per_pixel(header) <= 1.0
    assert header.output_crc is not None and ' dB' in line
  decode_files(streams, codec, back)
  assert not back.failed
  for source in sources:
    picture, decoded = (
      read_png(source),
      read_png(tmp_path / 'back' / source.name),
    )
    assert picture.shape == decoded.shape
    error = np.mean((picture - decoded.astype(float)) ** 2)
    assert error < np.mean((picture - 127.5) ** 2) / 2
  # One at a time, and a tile at a time, they come out the same.
  monkeypatch.setattr(codec_files, '_WAVE', 1)
  for stream in streams:
    decode_files([stream], codec, files('one'))
    name = f'{stream.stem}.png'
    whole = (tmp_path / 'back' / name).read_bytes()
    assert (tmp_path / 'one' / name).read_bytes() == whole
  encode_files(sources[::-1], codec, files('again'), strict=True)
  for stream in streams:
    same = (tmp_path / 'again' / stream.name).read_bytes()
    assert same == stream.read_bytes()


def test_bad_files_are_named_and_the_others_done(
  sources, codec, files, said, tmp_path
):
  bad = tmp_path / 'bad.png'
  bad.write_bytes(b'GIF89a')
  colour = tmp_path / 'colour.png'
  Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(colour)
  there = files('there')
  none = tmp_path / 'none.png'
  encode_files([bad, none, sources[0], colour], codec, there)
  assert there.failed == [bad, none, colour]
  assert [p.name for p in (tmp_path / 'there').iterdir()] == ['a.kxd']
  wanted = [
    'bad.png: is no PNG file',
    'none.png: No such file',
    'colour.png: is',
  ]
  for line, part in zip(said, wanted, strict=False):
    assert part in line
  assert len(said) == 4
  # The same of streams.
  data = (tmp_path / 'there' / 'a.kxd').read_bytes()
  for name, wrong in (
    ('short', data[:-1]),
    ('long', data + b'.'),
    ('flipped', data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]),
    ('newer', data[:3] + b'\3' + data[4:]),
    ('other', b'\x89PNG' + data),
  ):
    (tmp_path / f'{name}.kxd').write_bytes(wrong)
  names = ('short', 'long', 'flipped', 'newer', 'other')
  back = files('back')
  streams = [
    *(tmp_path / f'{n}.kxd' for n in names),
    tmp_path / 'there' / 'a.kxd',
  ]
  said.clear()
  decode_files(streams, codec, back)
  assert [p.stem for p in back.failed] == list(names)
  reasons = ('cut short', 'follow', 'check sum', 'newer', 'no stream')
  for line, part in zip(said, reasons, strict=False):
    assert part in line
  assert [p.name for p in (tmp_path / 'back').iterdir()] == ['a.png']


def test_nothing_is_overwritten_unasked(sources, codec, files, tmp_path):
  (tmp_path / 'there').mkdir()
  (tmp_path / 'there' / 'a.kxd').write_text('mine')
  there = files('there')
  encode_files(sources[:1], codec, there)
  assert there.failed == sources[:1]
  assert (tmp_path / 'there' / 'a.kxd').read_text() == 'mine'
  encode_files(sources[:1], codec, files('there', overwrite=True))
  assert read(tmp_path / 'there' / 'a.kxd').count == 1


def test_the_beginning_of_a_stream(sources, codec, files, said, tmp_path):
  encode_files(sources, codec, files('there'), strict=True)
  stream = tmp_path / 'there' / 'b.kxd'
  cut_short = tmp_path / 'cut.kxd'
  data = stream.read_bytes()
  length = read_header(data).length
  cut_short.write_bytes(data[: (len(data) + length) // 2])
  refused = files('no')
  decode_files([cut_short], codec, refused)
  assert refused.failed == [cut_short]
  decode_files([cut_short], codec, files('cut'), lenient=True)
  assert 'cut short' in said[-2] and 'decoded all the same' in said[-2]
  part = read_png(tmp_path / 'cut' / 'cut.png')
  steps = read(stream).steps // 2
  decode_files([stream], codec, files('steps'), steps=steps - 1)
  decode_files([stream], codec, files('more'), steps=steps)
  same = [
    np.array_equal(part, read_png(tmp_path / name / 'b.png'))
    for name in ('steps', 'more')
  ]
  assert any(same)
  wrong = files('wrong')
  decode_files([stream], codec, wrong, steps=99)
  assert wrong.failed == [stream] and 'steps: got 99, expected 0 to' in said[-1]


def test_wrong_bits_are_refused_or_decoded_as_far_as_they_go(
  sources, codec, files, said, tmp_path
):
  encode_files(sources[1:2], codec, files('there'), strict=True, packing='step')
  stream = tmp_path / 'there' / 'b.kxd'
  data = bytearray(stream.read_bytes())
  data[-1] ^= 0x10
  wrong = tmp_path / 'wrong.kxd'
  wrong.write_bytes(data)
  strict, lenient = files('strict'), files('lenient')
  decode_files([wrong], codec, strict)
  assert strict.failed == [wrong] and not (tmp_path / 'strict').exists()
  decode_files([wrong, stream], codec, lenient, lenient=True)
  assert not lenient.failed
  spoilt, sound = (
    read_png(tmp_path / 'lenient' / f'{n}.png') for n in ('wrong', 'b')
  )
  # The last step of one tile, or of two that share the byte.
  tiles = [cut(x[None], (8, 8)) for x in (spoilt, sound)]
  assert (tiles[0] != tiles[1]).any(axis=(1, 2, 3)).sum() <= 1
  # The header must be sound.
  data[12] ^= 1
  wrong.write_bytes(data)
  decode_files([wrong], codec, strict, lenient=True)
  assert strict.failed == [wrong, wrong]  # The name was not taken yet.
  assert 'header is damaged' in said[-1]


def test_other_pixels_than_the_encoder_saw_are_refused(
  sources, codec, files, said, tmp_path, monkeypatch
):
  encode_files(sources[:1], codec, files('there'), strict=True)
  stream = tmp_path / 'there' / 'a.kxd'
  decode = codec.decode
  differ = lambda *args, **options: decode(*args, **options) ^ 1
  monkeypatch.setattr(codec, 'decode', differ)
  strict, lenient = files('strict'), files('lenient')
  decode_files([stream], codec, strict)
  assert strict.failed == [stream]
  assert 'other pixels than where it was encoded' in said[-1]
  decode_files([stream], codec, lenient, lenient=True)
  assert not lenient.failed and (tmp_path / 'lenient' / 'a.png').exists()


def test_another_model_is_refused(sources, codec, files, said, tmp_path):
  encode_files(sources[:1], codec, files('there'))
  other = dataclasses.replace(codec.model, fingerprint=b'another!')
  back = files('back')
  decode_files(
    [tmp_path / 'there' / 'a.kxd'],
    Codec(other, devices=jax.devices()[:1]),
    back,
  )
  assert len(back.failed) == 1
  assert 'was encoded with model 6761757373' in said[-1]


def test_colours_as_three_pictures(codec, files, said, tmp_path, pictures):
  planes = pictures(3, 8, 16)
  colour = np.moveaxis(planes[..., 0], 0, -1)
  Image.fromarray(colour).save(tmp_path / 'colour.png')
  source = [tmp_path / 'colour.png']
  encode_files(source, codec, files('there'), split_colours=True, rate=3.0)
  header = read(tmp_path / 'there' / 'colour.kxd')
  assert header.planes == 3 and header.count == 6
  assert 2.0 < bits_per_pixel(header) <= 3.0
  decode_files([tmp_path / 'there' / 'colour.kxd'], codec, files('back'))
  decoded = read_png(tmp_path / 'back' / 'colour.png')
  error = lambda x: np.mean((x - colour.astype(float)) ** 2)
  assert error(decoded) < error(127.5) / 2
  assert error(decoded) < error(decoded[..., ::-1])


def test_what_a_stream_says_of_itself(sources, codec, files, said, tmp_path):
  encode_files(sources[1:2], codec, files('there'), strict=True)
  stream = tmp_path / 'there' / 'b.kxd'
  damaged, empty = tmp_path / 'damaged.kxd', tmp_path / 'empty.kxd'
  damaged.write_bytes(stream.read_bytes()[:-1])
  empty.write_bytes(b'')
  said.clear()
  seen = files('x')
  describe_files([stream, damaged, empty], seen)
  assert seen.failed == [damaged, empty]
  first, second, reason, third = said
  header = read(stream)
  for part in (
    f'{stream}: 23x16 pixels, 6 tiles of 8x8x1',
    f'turbo, {header.steps} steps of 1 atom, then 2 without',
    'codebook  hadamard, 1024 atoms, seed 0',
    f'equal_kl of {header.millinats / 1000:g} nats',
    'model     6761757373',
    f'CRC-32 {header.output_crc:08x}',
  ):
    assert part in first
  assert (
    '23x16 pixels, 6' in second
    and 'cut short' in reason
    and 'no stream' in third
  )


def test_join_is_what_decoding_uses():
  """Tiles of the picture that PSNR leaves out are those past its edges."""
  tiles = cut(np.arange(6.0).reshape(1, 2, 3, 1), (2, 2))
  tiles[1, :, 1] = 1e9
  np.testing.assert_array_equal(
    join(tiles, (2, 3))[0, ..., 0], np.arange(6.0).reshape(2, 3)
  )
