"""Models survive the disk to the bit; what is not whole is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import Schedule, UNet, UNetConfig, predict_x0
from kexue.training.checkpoint import CorruptCheckpoint
from kexue.training.pretrained import (
  PretrainedDiffusion,
  is_saved,
  load_diffusion,
  save_diffusion,
)

KEY = jax.random.key(0)
SHAPE = (4, 8, 3)


@pytest.fixture(scope='module')
def model():
  config = UNetConfig(channels=3, width=4, multipliers=(1,), heads=1)
  network = UNet(config)
  some = jnp.zeros((1, *SHAPE)), jnp.ones(1, int)
  shapes = jax.eval_shape(network.init, KEY, *some)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)), shapes
  )
  schedule = Schedule.cosine(50)
  return PretrainedDiffusion(
    config, params, schedule, 'v', SHAPE, np.linspace(2, 1 / 3, 50)
  )


@pytest.fixture
def saved(model, tmp_path):
  save_diffusion(tmp_path / 'run' / 'model', model)
  return tmp_path / 'run' / 'model'


def test_it_comes_back_to_the_bit(model, saved):
  for place in (saved, saved.parent):
    assert is_saved(place)
    again = load_diffusion(place)
    assert again.fingerprint == model.fingerprint
    assert len(again.fingerprint) == 8
  assert again.config == model.config and again.schedule == model.schedule
  assert (again.prediction, again.image_shape) == ('v', SHAPE)
  np.testing.assert_array_equal(again.kl_per_step, model.kl_per_step)
  assert again.kl_per_step.dtype == np.float64
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_denoise_is_the_network_clipped(model):
  x = jax.random.normal(KEY, (2, *SHAPE))
  t, label = jnp.array([7, 7]), jnp.array([1, 4])
  variables = {'params': model.params}
  output = jax.jit(UNet(model.config).apply)(variables, x, t, label)
  x0 = predict_x0(model.schedule, output, x, t, prediction='v')
  assert np.any(np.abs(x0) > 1)
  found = jax.jit(model.denoise(label))(x, 7)
  np.testing.assert_allclose(found, np.clip(x0, -1, 1), atol=1e-5)
  denoise = jax.jit(lambda k: model.denoise(k)(x, 7))
  np.testing.assert_allclose(denoise(1)[0], found[0], atol=1e-5)
  none = jax.jit(model.denoise())(x, 7)
  assert np.all(np.any(none != found, axis=(1, 2, 3)))
  last = denoise(model.config.num_classes)
  np.testing.assert_allclose(none, last, atol=1e-5)


def test_the_fingerprint_knows_everything(model):
  seen = {model.fingerprint}
  changes = [
    dict(prediction='eps'),
    dict(schedule=Schedule.linear(50)),
    dict(image_shape=(8, 4, 3)),
    dict(kl_per_step=np.ones(50)),
    dict(params=jax.tree.map(lambda x: x * (1 + 1e-6), model.params)),
  ]
  for change in changes:
    seen.add(dataclasses.replace(model, **change).fingerprint)
  assert len(seen) == 6
  same = jax.tree.map(np.asarray, dict(reversed(model.params.items())))
  again = dataclasses.replace(model, params=same)
  assert again.fingerprint == model.fingerprint


def test_it_is_not_overwritten(model, saved):
  with pytest.raises(ValueError, match='directory.* one that holds nothing'):
    save_diffusion(saved, model)
  assert load_diffusion(saved).fingerprint == model.fingerprint


def test_what_a_killed_process_left_may_go(model, saved):
  (saved / 'model.json').unlink()
  (saved / 'weights.orbax-checkpoint-tmp').mkdir()
  assert not is_saved(saved)
  save_diffusion(saved, model)
  names = sorted(x.name for x in saved.iterdir())
  assert names == ['model.json', 'weights']
  assert load_diffusion(saved).fingerprint == model.fingerprint


def test_no_model(tmp_path):
  for place in (tmp_path, tmp_path / 'nowhere'):
    assert not is_saved(place)
    with pytest.raises(ValueError, match=f'model: got .{place}.* a run'):
      load_diffusion(place)


def edit(saved, **fields):
  path = saved / 'model.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(prediction='eps'), 'checksum'),
    (dict(sha256='0' * 64), 'checksum'),
    (dict(kl_per_step=[1.0] * 50), 'checksum'),
    (dict(prediction='w'), 'cannot be read'),
    (dict(config={'width': 4}), 'cannot be read'),
    (dict(alpha_bar=[1, 2]), 'cannot be read'),
  ],
)
def test_what_has_rotted_is_refused(saved, fields, message):
  edit(saved, **fields)
  with pytest.raises(CorruptCheckpoint, match=f'{saved}: .*{message}'):
    load_diffusion(saved)


def test_damaged_weights(saved):
  files = [x for x in (saved / 'weights').rglob('*') if x.is_file()]
  largest = max(files, key=lambda x: x.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  with pytest.raises(CorruptCheckpoint):
    load_diffusion(saved)


def test_another_format(saved):
  edit(saved, format=2)
  with pytest.raises(ValueError, match='format: got 2, expected 1'):
    load_diffusion(saved)
  (saved / 'model.json').write_text('[')
  with pytest.raises(CorruptCheckpoint, match='cannot be read'):
    load_diffusion(saved)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(prediction='w'), 'prediction'),
    (dict(schedule=Schedule.cosine(100).respace(50)), 'the original one'),
    (dict(kl_per_step=np.ones(49)), 'kl_per_step'),
    (dict(image_shape=(4, 7, 3)), 'image_shape'),
    (dict(image_shape=(4, 8, 1)), 'image_shape'),
    (dict(image_shape=(4, 3)), 'image_shape'),
  ],
)
def test_parts_that_do_not_fit(model, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(model, **change)
