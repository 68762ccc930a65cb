"""Images to logits, losses of the population, a sweep over batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.image_model import ImageConfig, ImageTask, Sizes
from kexue.figures.language_model import Sweep
from kexue.figures.session import session
from kexue.optimizers import softsign_sgd
from kexue.training import TrainState
from kexue.training.data import Dataset

KEY = jax.random.key(0)


def made_up(count=64):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (count, 3, 3, 1)).astype(np.uint8)
  label = (image[:, 0, 0, 0] // 26).astype(np.int64)
  arrays = {'image': image, 'label': label}
  return Dataset(arrays, {k: v[:8] for k, v in arrays.items()}, 'made up')


def test_the_loss_is_that_of_numpy():
  task = ImageTask(made_up(), Sizes(5, 2), batch_size=8, population=16)
  params = task.init(KEY)
  assert task.parameters == (9 * 5 + 5) + (5 * 5 + 5) + (5 * 10 + 10)
  assert task.step_flops == 6 * 8 * task.parameters
  batch = jax.tree.map(lambda x: x[0], task.batches(KEY)(0, 1))
  x = np.float64(batch['image']).reshape(8, -1) / 127.5 - 1
  dense = lambda x, i: (
    x @ np.float64(params[f'Dense_{i}']['kernel'])
    + np.float64(params[f'Dense_{i}']['bias'])
  )
  logits = dense(np.maximum(dense(np.maximum(dense(x, 0), 0), 1), 0), 2)
  right = logits[np.arange(8), batch['label']]
  expected = np.mean(np.log(np.exp(logits).sum(1)) - right)
  np.testing.assert_allclose(task.mean_loss(params, batch), expected, rtol=1e-5)
  assert task.loss(params, (), batch, None)[0] == task.mean_loss(params, batch)
  scores = task.evaluate(TrainState(step=jnp.zeros((), int), params=params))
  of_train = task.mean_loss(params, task.population)
  np.testing.assert_allclose(scores['train_loss'], of_train, rtol=1e-6)
  assert scores['val_loss'] != scores['train_loss']


def test_a_sweep_trains_it(tmp_path):
  task = ImageTask(made_up(), Sizes(8), batch_size=16)
  make = lambda rate, decay: softsign_sgd(rate, eps=0.0)
  options = dict(steps=6, log_every=3, parallel='pmap')
  sweep = Sweep(task, make, 'sign', tags={'batch_size': 16}, **options)
  with session(tmp_path, KEY, 12) as launch:
    rows = [
      sweep.train(launch, learning_rate=rate, weight_decay=0.0)
      for rate in (1e-6, 0.01)
    ]
  assert rows[1]['train_loss'] < rows[0]['train_loss'] - 0.03
  assert rows[1]['batch_size'] == 16 and rows[1]['width'] == 8


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(batch_sizes=(8, 12)), r'config.batch_sizes: got \(8, 12\)'),
    (dict(batch_sizes=(16, 8)), 'expected ascending'),
    (dict(learning_rates=(0.1, 0.0)), 'config.learning_rates'),
    (dict(seeds=0), 'config.seeds: got 0'),
    (dict(dataset='nothing'), 'nothing'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    ImageConfig(**{'dataset': 'digits'} | change).check()


def test_a_config_makes_its_task():
  config = ImageConfig(dataset='digits', width=8, layers=2, population=100)
  config.check()
  task = config.task(32)
  assert task.sizes == (8, 2) and task.batch_size == 32
  assert task.population['image'].shape == (100, 8, 8, 1)
