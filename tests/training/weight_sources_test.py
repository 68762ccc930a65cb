import json

import numpy as np
import pytest

from kexue.training import weight_sources


def write_safetensors(path, dtype='F32'):
  array = np.arange(6, dtype=np.float32)
  header = json.dumps(
    {
      '__metadata__': {'format': 'pt'},
      'a': {'dtype': 'I64', 'shape': [1], 'data_offsets': [0, 8]},
      'b': {'dtype': dtype, 'shape': [2, 3], 'data_offsets': [8, 32]},
    }
  ).encode()
  path.write_bytes(
    len(header).to_bytes(8, 'little')
    + header
    + np.array([-5]).tobytes()
    + array.tobytes()
  )


def test_safetensors(tmp_path):
  path = tmp_path / 'model.safetensors'
  write_safetensors(path)
  arrays = weight_sources.read_safetensors(path)
  assert arrays['a'].tolist() == [-5]
  assert arrays['b'].tolist() == [[0, 1, 2], [3, 4, 5]]
  good = path.read_bytes()
  for bad in (good[:-1], good[:20], b''):
    path.write_bytes(bad)
    with pytest.raises(ValueError, match='is corrupt'):
      weight_sources.read_safetensors(path)
  write_safetensors(path, dtype='F8_E4M3')
  with pytest.raises(ValueError, match='is corrupt'):
    weight_sources.read_safetensors(path)
