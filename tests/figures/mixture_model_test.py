"""One program for all numbers, experts over devices, runs recorded once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.mixture_model import MixtureConfig
from kexue.figures.session import session
from kexue.models import TransformerConfig, max_violation
from kexue.training import data_mesh, parallelize
from kexue.training.data import Dataset

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
TEXT = Dataset(
  *(rng.choice(9, size).astype(np.uint8) ** 2 for size in (2000, 300)),
  'made up',
)
SMALL = MixtureConfig(
  width=32,
  layers=1,
  length=8,
  batch_size=8,
  steps=20,
  learning_rate=0.01,
  log_points=1,
  validation_windows=0,
)
SETTINGS = dict(learning_rate=0.01, balance_weight=0.5, bias_rate=0.01)


def mixture(parallel='pmap', change=None, **options):
  options = {'rule': 'rms', 'balance_weight': 1.0, 'hidden': 8} | options
  config = dataclasses.replace(SMALL, **change or {})
  return config.mixture(TEXT, config.sizes(**options), parallel)


def steps_of(program, own):
  state = own.start(KEY, **SETTINGS)
  return program(state, own.task.batches(KEY)(0, 20), KEY)


@pytest.fixture(scope='module')
def on_all_devices():
  return mixture()


@pytest.fixture(scope='module')
def one_device(on_all_devices):
  step, device = on_all_devices.step, data_mesh(jax.devices()[:1])
  return steps_of(parallelize(step, 'jit', device), on_all_devices)


def assert_equal_runs(metrics, expected):
  assert expected['loss'].shape == (20,)
  assert expected['loss'][-1] < expected['loss'][0] - 0.5
  np.testing.assert_allclose(metrics['loss'], expected['loss'], atol=1e-4)
  np.testing.assert_allclose(metrics['violation'], expected['violation'])


def test_copies_on_all_devices_have_the_losses_of_one(
  one_device, on_all_devices
):
  _, metrics = steps_of(on_all_devices.program, on_all_devices)
  assert_equal_runs(metrics, one_device[1])


def test_experts_over_devices_have_the_losses_of_one(one_device):
  split = mixture('shard_map', dict(expert_devices=8))
  state, metrics = steps_of(split.program, split)
  assert_equal_runs(metrics, one_device[1])
  kernel = state.params['layers_0']['moe']['expert_up']['kernel']
  assert kernel.addressable_shards[0].data.shape == (1, 32, 8)
  one, same = (
    split.task.read_held_out(x, [1])[-1] for x in (one_device[0], state)
  )
  assert same['val_loss'] == pytest.approx(one['val_loss'], abs=1e-4)
  assert same['violation'] == pytest.approx(one['violation'], abs=0.05)


def test_experts_over_devices_need_their_program():
  for parallel in ('pmap', 'jit'):
    with pytest.raises(ValueError, match='parallel: got .* shard_map for exp'):
      mixture(parallel, dict(expert_devices=8))


def test_the_loss_is_that_of_the_text_alone(on_all_devices):
  own = on_all_devices
  batch = jnp.asarray(own.task.batches(KEY)(0, 1)[0])

  @jax.jit
  def gradient_of(params, variables):
    loss = lambda p: own.task.loss(own.task.model, p, variables, batch, None)
    return jax.value_and_grad(loss, has_aux=True)(params)

  def of(weight):
    return gradient_of(*own.task.init(KEY, balance_weight=weight))

  ((loss, (changed, metrics)), gradient), (other, of_one), (_, of_two) = map(
    of, (0.0, 1.0, 2.0)
  )
  assert loss == other[0]
  router = lambda g: g['layers_0']['moe']['router']
  one, two = (router(g) - router(gradient) for g in (of_one, of_two))
  assert jnp.abs(one).max() > 1e-4
  np.testing.assert_allclose(two, 2 * one, rtol=1e-3, atol=1e-7)
  assert changed['settings'] == {'balance_weight': 0, 'bias_rate': 0}
  load = changed['balance']['layers_0']['moe']['state'].load
  assert load.sum() == 8 * 8 * 2
  assert metrics['violation'] == max_violation(load)
  settings = {'balance_weight': 0.0, 'bias_rate': jnp.float32(0.5)}
  moved = own.task.after(changed | {'settings': settings})['balance']
  bias = moved['layers_0']['moe']['state'].bias
  assert np.sqrt(np.mean(bias**2)) == pytest.approx(0.5)
  assert not np.any(moved['layers_0']['moe']['state'].load)


def test_a_dense_model_is_the_same_task(tmp_path):
  sizes = TransformerConfig(layers=1, width=32, heads=1)
  own = SMALL.mixture(TEXT, sizes, 'pmap')
  with session(tmp_path, KEY, 20) as launch:
    row = own.train(launch, 'dense', {}, seed=0, sizes=[1], learning_rate=0.01)
  assert row['windows'] == 300 // 8 and row['tokens'] == 8 * (300 // 8)
  assert 1 < row['val_loss'] < 3 and 'violation' not in row
  assert 'violation' not in launch.records.of('dense')[-1]


def test_runs_are_recorded_once(on_all_devices, tmp_path, monkeypatch):
  own = on_all_devices
  with session(tmp_path, KEY, 80) as launch:
    train = lambda label, **options: own.train(
      launch, label, {'name': 'a'}, seed=0, sizes=[1, 4], **SETTINGS | options
    )
    first, other = train('first'), train('other', bias_rate=0.0)
    rows = launch.records.of('first')
    assert [row['step'] for row in rows] == [20]
    assert rows[0]['bias_rate'] == 0.01 and rows[0]['name'] == 'a'
    loss = launch.records.of('other')[0]['loss']
    assert rows[0]['loss'] == pytest.approx(loss, abs=0.1)
    assert first['val_loss'] != other['val_loss'] and first['bias_rate'] == 0.01
    held_out = launch.records.of('first-held-out')
    assert [row['windows'] for row in held_out] == [1, 4, 37]
    lost = train('lost', learning_rate=float('nan'))
    assert lost['val_loss'] == np.inf and lost['step'] == 1
    assert not [*(tmp_path / 'checkpoints').glob('*')]
    # A launch killed between the last step and the reading.
    monkeypatch.setattr(own.task, 'read_held_out', None)
    with pytest.raises(TypeError):
      train('killed')
    monkeypatch.undo()
    assert train('killed')['val_loss'] == first['val_loss']
    assert len(launch.records.of('killed')) == len(rows)
    # Everything is there.
    monkeypatch.setattr(own, 'program', None)
    assert train('first') == first and train('lost') == lost


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(seeds=0), 'config.seeds: got 0'),
    (dict(chosen=8), 'config.chosen: got 8, expected 1 or more, fewer than'),
    (dict(batch_size=12), 'a multiple of the 8 devices'),
    (dict(steps=5, log_points=2), 'a multiple of the 2 log points'),
    (dict(learning_rate=0.0), 'config.learning_rate'),
    (dict(validation_windows=-1), 'config.validation_windows'),
    (dict(expert_devices=3), 'config.expert_devices: got 3, .* 8 devices and'),
    (dict(expert_devices=8, experts=4), 'config.expert_devices: got 8'),
    (dict(width=33), 'width: got 33'),
    (dict(dataset='nothing'), 'nothing'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
