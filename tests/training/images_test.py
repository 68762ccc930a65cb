"""PNG in and out, planes and tiles."""

import numpy as np
import pytest
from PIL import Image

from kexue.training.images import (
  cut,
  from_planes,
  join,
  png_bytes,
  read_png,
  to_planes,
)

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (5, 7, 1), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize('picture', [GREY, COLOUR, GREY[:1, :1]])
def test_pixels_come_back(picture, tmp_path):
  data = png_bytes(picture)
  assert data == png_bytes(picture.copy())
  (tmp_path / 'a.png').write_bytes(data)
  found = read_png(tmp_path / 'a.png')
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, picture)


def saved(path, picture, mode=None, **options):
  image = Image.fromarray(picture) if mode is None else picture.convert(mode)
  image.save(path, options.pop('format', 'PNG'), **options)
  return path


def test_palettes_and_black_and_white_are_eight_bits(tmp_path):
  few = np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8)
  path = saved(tmp_path / 'p.png', Image.fromarray(few).quantize(2), 'P')
  np.testing.assert_array_equal(read_png(path), few)
  checks = Image.fromarray(np.array([[0, 255]], np.uint8))
  path = saved(tmp_path / '1.png', checks, '1')
  assert read_png(path).tolist() == [[[0], [255]]]


def test_what_would_be_lost_is_refused(tmp_path):
  alpha = np.concatenate([COLOUR, COLOUR[..., :1]], -1)
  deep = (GREY[..., 0].astype(np.uint16)) << 7
  cases = {
    'transparency': saved(tmp_path / 'a.png', alpha),
    'has transparency': saved(tmp_path / 't.png', GREY[..., 0], transparency=3),
    'eight bits': saved(tmp_path / 'd.png', deep),
    'is no PNG': saved(tmp_path / 'j.png', COLOUR, format='JPEG'),
    'is animated': saved(
      tmp_path / 'm.png',
      COLOUR,
      save_all=True,
      append_images=[Image.fromarray(COLOUR[::-1].copy())],
    ),
  }
  for message, path in cases.items():
    with pytest.raises(ValueError, match=message):
      read_png(path)
  with pytest.raises(FileNotFoundError):
    read_png(tmp_path / 'none.png')


@pytest.mark.parametrize('size', [(20_000, 4_000), (40_000, 40_000)])
def test_bombs_are_refused_before_they_are_unpacked(size, tmp_path):
  """The size is that of the header alone; there are no pixels."""
  data = bytearray(png_bytes(GREY))
  data[16:24] = b''.join(n.to_bytes(4, 'big') for n in size)
  crc = __import__('zlib').crc32(bytes(data[12:29]))
  data[29:33] = crc.to_bytes(4, 'big')
  (tmp_path / 'b.png').write_bytes(data)
  with pytest.raises(ValueError, match='too large|bomb|exceeds'):
    read_png(tmp_path / 'b.png')


def test_damaged_files_are_value_errors(tmp_path):
  whole = png_bytes(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
  path, errors = tmp_path / 'x.png', 0
  for at in range(0, len(whole), 37):
    for data in (whole[:at], whole[:at] + b'????' + whole[at + 4 :]):
      path.write_bytes(data)
      try:
        read_png(path)
      except (ValueError, OSError):
        errors += 1
  assert errors > 100


def test_planes():
  grey = np.repeat(GREY, 3, axis=-1)
  np.testing.assert_array_equal(to_planes(GREY, 1), GREY[None])
  np.testing.assert_array_equal(to_planes(grey, 1), GREY[None])
  np.testing.assert_array_equal(to_planes(GREY, 3), grey[None])
  np.testing.assert_array_equal(to_planes(COLOUR, 3), COLOUR[None])
  with pytest.raises(ValueError, match='is a colour picture.*--split_colours'):
    to_planes(COLOUR, 1)
  planes = to_planes(COLOUR, 1, split=True)
  assert planes.shape == (3, 5, 7, 1)
  np.testing.assert_array_equal(planes[1, ..., 0], COLOUR[..., 1])
  for whole, channels in ((COLOUR, 1), (COLOUR, 3), (GREY, 1)):
    planes = to_planes(whole, channels, split=True)
    np.testing.assert_array_equal(from_planes(planes), whole)
  with pytest.raises(ValueError, match='channels: got 2'):
    to_planes(GREY, 2)


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 1), (8, 6), (9, 13)])
def test_tiles_cover_and_come_back(size):
  planes = rng.integers(0, 256, (3, *size, 1), dtype=np.uint8)
  tiles = cut(planes, (4, 3))
  rows, columns = -(-size[0] // 4), -(-size[1] // 3)
  assert tiles.shape == (3 * rows * columns, 4, 3, 1)
  np.testing.assert_array_equal(join(tiles, size, 3), planes)
  # Row by row, the edge going on.
  for y in range(rows):
    for x in range(columns):
      tile = tiles[rows * columns + y * columns + x]
      ys = np.minimum(np.arange(4 * y, 4 * y + 4), size[0] - 1)
      xs = np.minimum(np.arange(3 * x, 3 * x + 3), size[1] - 1)
      np.testing.assert_array_equal(tile, planes[1][ys][:, xs])
