"""A model is trained once, and used by whoever names it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import UNet
from kexue.figures import diffusion_model
from kexue.figures.diffusion_model import (
  DiffusionConfig,
  DiffusionTask,
  as_bytes,
  pretrained,
  signed,
)
from kexue.figures.session import session
from kexue.optimizers import parameter_average
from kexue.training import init_state
from kexue.training.loop import Interrupted

KEY = jax.random.key(0)
SMALL = DiffusionConfig(
  dataset='digits',
  width=4,
  multipliers=(1,),
  heads=1,
  timesteps=20,
  batch_size=16,
  steps=4,
  images=64,
  held_out=16,
  kl_images=4,
  log_points=2,
)


def launch(config, workdir):
  with session(workdir, KEY, config.training_steps) as opened:
    model = pretrained(config, opened, parallel='jit')
    return model, opened.records.rows


@pytest.fixture(scope='module')
def task():
  """One for all, which is compiled once."""
  return DiffusionTask(SMALL, SMALL.data())


@pytest.fixture(scope='module')
def trained(task, tmp_path_factory):
  """A run that was stopped at its first log point, and went on."""
  workdir = tmp_path_factory.mktemp('run')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(diffusion_model, 'DiffusionTask', lambda *_: task)
    with session(workdir, KEY, SMALL.steps) as opened:
      opened.stop.requested = True
      with pytest.raises(Interrupted):
        pretrained(SMALL, opened, parallel='jit')
    assert not (workdir / 'model').exists()
    return workdir, *launch(SMALL, workdir)


def test_a_model_is_trained_once(trained, monkeypatch):
  workdir, model, rows = trained
  assert [(row['run'], row['step']) for row in rows] == [
    ('model', 2),
    ('model', 4),
  ]
  assert all(row['val_loss'] > 0 for row in rows)
  assert model.image_shape == (8, 8, 1) and model.schedule.steps == 20
  assert model.kl_per_step.shape == (20,) and model.kl_per_step.min() > 0
  assert not (workdir / 'checkpoints' / 'model').exists()
  # Neither the same run nor another one trains again.
  monkeypatch.setattr(diffusion_model, 'DiffusionTask', None)
  again, same_rows = launch(SMALL, workdir)
  assert again.fingerprint == model.fingerprint and same_rows == rows


def test_another_run_names_it(trained, tmp_path, monkeypatch):
  workdir, model, _ = trained
  config = DiffusionConfig(dataset='digits', model=str(workdir))
  config.check()
  monkeypatch.setattr(diffusion_model, 'DiffusionTask', None)
  again, rows = launch(config, tmp_path)
  assert again.fingerprint == model.fingerprint and rows == []
  assert config.training_steps == 0 and not (tmp_path / 'model').exists()
  with pytest.raises(ValueError, match='model: got .*nowhere'):
    dataclasses.replace(config, model='nowhere').check()
  data = config.data()
  wide = {k: np.repeat(x, 2, axis=0) for k, x in data.train.items()}
  wide['image'] = np.repeat(wide['image'], 2, axis=2)
  monkeypatch.setattr(config, 'data', lambda _: data._replace(train=wide))
  with pytest.raises(ValueError, match=r'config.model: got \(8, 8, 1\)'):
    config.check()


def test_the_model_is_the_average_of_a_run_never_stopped(task, trained):
  _, model, rows = trained
  params, variables = task.init(KEY)
  state = init_state(params, task.optimizer(), variables)
  for step in (0, 2):
    state, metrics = task.program('jit')(state, task.batches(KEY)(step, 2), KEY)
  assert rows[-1]['loss'] == pytest.approx(float(jnp.mean(metrics['loss'])))
  average = parameter_average(state.opt_state)
  for a, b, c in zip(
    *map(jax.tree.leaves, (model.params, average, state.params)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.any(a != c)


def test_the_loss_is_that_of_the_noise(task):
  """At the start v is taken for 0: the noise's error is the signal's part."""
  params, _ = task.init(KEY)
  images = np.repeat(SMALL.data().train['image'][:40], 20, axis=0)
  label = jnp.zeros(800, int)
  found = task.score(params, images, label, KEY)
  a = task.schedule.alpha_bar[1:]
  # v = 0 means x0_hat = sqrt(a) x: an error sqrt(1 - a) v, of which the noise
  # has SNR times the square.
  square = float(jnp.mean(jnp.square(signed(images))))
  expected = np.mean(a * (a + (1 - a) * square))
  assert found == pytest.approx(expected, rel=0.02)
  assert not math.isclose(expected, np.mean(a + (1 - a) * square), rel_tol=0.1)


def test_labels_are_left_out(monkeypatch):
  seen = []

  def apply(self, variables, x, t, label):
    jax.debug.callback(lambda y: seen.append(y), label)
    return x

  config = dataclasses.replace(SMALL, label_dropout=0.25)
  task = DiffusionTask(config, config.data())
  params, _ = task.init(KEY)
  monkeypatch.setattr(UNet, 'apply', apply)
  label = np.arange(1000) % 10
  batch = {'image': np.zeros((1000, 8, 8, 1), np.uint8), 'label': label}
  task.loss(params, (), batch, KEY)
  jax.effects_barrier()
  left_out = seen[0] == 10
  assert 0.2 < left_out.mean() < 0.3
  np.testing.assert_array_equal(seen[0][~left_out], label[~left_out])


def test_devices_that_must_agree(task):
  params, _ = task.init(KEY)
  state = init_state(params, task.optimizer())
  batches = task.batches(KEY)(0, 1)
  _, metrics = task.program('shard_map')(state, batches, KEY)
  assert 0 < metrics['loss'][0] < 1


def test_bytes_there_and_back():
  image = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(as_bytes(signed(image)), image)
  assert as_bytes(np.array([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(dataset='photos'), 'config.dataset: .* labels'),
    (dict(width=0), 'width: got 0'),
    (dict(heads=3), 'heads: got 3'),
    (dict(multipliers=(1, 2, 4, 8)), 'images: .* sides that 16 divides'),
    (dict(prediction='noise'), 'config.prediction'),
    (dict(schedule='sigmoid'), 'config.schedule: .* cosine, linear'),
    (dict(schedule='linear', timesteps=20), 'steps: got 20'),
    (dict(timesteps=0), 'config.timesteps'),
    (dict(learning_rate=0.0), 'config.learning_rate'),
    (dict(decay=1.0), 'config.decay'),
    (dict(label_dropout=-0.1), 'config.label_dropout'),
    (dict(batch_size=12), 'a multiple of the 8 devices'),
    (dict(batch_size=72), '64 at most'),
    (dict(steps=5), 'a multiple of the 2 log points'),
    (dict(kl_images=0), 'config.kl_images'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
