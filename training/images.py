"""PNG files as arrays, and arrays as tiles of the size that a model knows.

Shapes: `P` planes (1, or 3 where colours are pictures of their own), `h w` the
picture, `H W C` a tile.
"""

import io
import os
import pathlib
import warnings

import numpy as np
from PIL import Image

_MODES = {'1': 'L', 'L': 'L', 'P': 'RGB', 'RGB': 'RGB'}
_MOST_PIXELS = 2**26


def read_png(path: os.PathLike[str] | str) -> np.ndarray:
  """A picture of eight bits a channel.

  Args:
    path: a PNG file.

  Returns:
    uint8 [h, w, 1] or [h, w, 3].

  Raises:
    ValueError: if it cannot be read, or is not kept whole by eight bits of grey
      or of red, green and blue.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      return _read(pathlib.Path(path).read_bytes())
  except (OSError, ValueError):
    raise
  except Exception as error:  # Whatever Pillow raises at damaged files.
    raise ValueError(f'cannot be read as PNG ({error})') from error


def _read(data: bytes) -> np.ndarray:
  try:
    picture = Image.open(io.BytesIO(data), formats=('PNG',))
  except Image.UnidentifiedImageError:
    raise ValueError('is no PNG file') from None
  width, height = picture.size
  if width * height > _MOST_PIXELS:
    raise ValueError(f'is too large: {width}x{height} pixels')
  if getattr(picture, 'n_frames', 1) > 1:
    raise ValueError('is animated; only single pictures are coded')
  if 'A' in picture.mode or 'transparency' in picture.info:
    raise ValueError('has transparency, which is not coded; flatten it first')
  if picture.mode not in _MODES:
    raise ValueError('has more than eight bits a channel')
  pixels = np.asarray(picture.convert(_MODES[picture.mode]))
  return pixels.reshape(height, width, -1)


def png_bytes(picture: np.ndarray) -> bytes:
  r"""The file of a picture, uint8 [h, w, 1] or [h, w, 3].

  The same pixels are the same bytes.

  >>> png_bytes(np.zeros((2, 3, 1), np.uint8))[:4]
  b'\x89PNG'
  """
  buffer = io.BytesIO()
  whole = picture[..., 0] if picture.shape[-1] == 1 else picture
  Image.fromarray(whole).save(buffer, 'PNG', optimize=True)
  return buffer.getvalue()


def to_planes(
  picture: np.ndarray, channels: int, *, split: bool = False
) -> np.ndarray:
  """A picture as a model with so many channels can take it.

  Args:
    picture: uint8 [h, w, 1] or [h, w, 3].
    channels: 1 or 3.
    split: whether a model of one channel may take colours one by one.

  Returns:
    uint8 [P, h, w, channels].

  Raises:
    ValueError: for a colour picture and one channel, unless `split`.

  Example:
    >>> colour = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    >>> to_planes(colour, 1, split=True).shape
    (3, 1, 2, 1)
  """
  if channels == 3:
    return np.broadcast_to(picture, (1, *picture.shape[:2], 3))
  if channels != 1:
    raise ValueError(f'channels: got {channels}, expected 1 or 3')
  if (picture == picture[..., :1]).all():  # Grey, however it is stored.
    return picture[None, ..., :1]
  if not split:
    raise ValueError(
      'is a colour picture, and the model knows grey ones; --split_colours '
      'codes three of them'
    )
  return np.moveaxis(picture, -1, 0)[..., None]


def from_planes(planes: np.ndarray) -> np.ndarray:
  """The picture [h, w, 1 or 3] of `to_planes`."""
  return planes[0] if len(planes) == 1 else np.moveaxis(planes[..., 0], 0, -1)


def cut(planes: np.ndarray, side: tuple[int, int]) -> np.ndarray:
  """Tiles, row by row; those at the edges go on as the edge.

  Args:
    planes: [P, h, w, C].
    side: (H, W) of a tile.

  Returns:
    [P rows columns, H, W, C].

  Example:
    >>> cut(np.arange(3).reshape(1, 1, 3, 1), (1, 2))[..., 0].tolist()
    [[[0, 1]], [[2, 2]]]
  """
  height, width = side
  below, beside = -planes.shape[1] % height, -planes.shape[2] % width
  padding = (0, 0), (0, below), (0, beside), (0, 0)
  padded = np.pad(planes, padding, mode='edge')
  count, rows, columns = (
    len(planes),
    padded.shape[1] // height,
    padded.shape[2] // width,
  )
  split = padded.reshape(count, rows, height, columns, width, -1)
  return split.swapaxes(2, 3).reshape(-1, height, width, planes.shape[-1])


def join(tiles: np.ndarray, picture: tuple[int, int], planes: int = 1):
  """The inverse of `cut`.

  Args:
    tiles: [P rows columns, H, W, C].
    picture: (h, w).
    planes: `P`.

  Returns:
    [P, h, w, C].

  Example:
    >>> tiles = cut(np.arange(35).reshape(1, 5, 7, 1), (2, 4))
    >>> tiles.shape, join(tiles, (5, 7)).shape
    ((6, 2, 4, 1), (1, 5, 7, 1))
  """
  _, height, width, channels = tiles.shape
  rows, columns = -(-picture[0] // height), -(-picture[1] // width)
  split = tiles.reshape(planes, rows, columns, height, width, channels)
  whole = split.swapaxes(2, 3)
  whole = whole.reshape(planes, rows * height, columns * width, channels)
  return whole[:, : picture[0], : picture[1]]
