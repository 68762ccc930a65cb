"""Fréchet distances against SciPy, their bias, and a judge by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from kexue.figures.image_features import (
  FEATURES,
  ClassifierTask,
  Judge,
  extrapolated,
  frechet,
)
from kexue.training import TrainState
from kexue.training.data import load

KEY = jax.random.key(0)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_distances_are_those_of_scipy(rng):
  a = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 1
  b = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
  first, second = (np.cov(x, rowvar=False) for x in (a, b))
  root = scipy.linalg.sqrtm(first @ second).real
  shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
  expected = shift + np.trace(first + second - 2 * root)
  assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
  assert frechet(b, a) == pytest.approx(expected, rel=1e-9)
  assert frechet(a, a) == pytest.approx(0, abs=1e-6)
  flat = np.pad(a, ((0, 0), (0, 2)))  # Features that never vary.
  assert frechet(flat, flat + 1) == pytest.approx(7, rel=1e-6)


def test_few_images_make_distances_too_large(rng):
  draw = lambda count: rng.normal(size=(count, 32))
  few, many = (frechet(draw(n), draw(n)) for n in (512, 2048))
  assert few == pytest.approx(4 * many, rel=0.15)  # Of the same law.
  corrected = [extrapolated(draw(1024), draw(1024)) for _ in range(4)]
  assert abs(np.mean(corrected)) < 0.1 * frechet(draw(1024), draw(1024))
  shifted = extrapolated(draw(1024), draw(1024) + 0.5)
  assert shifted == pytest.approx(32 / 4, rel=0.05)


def test_a_judge_by_hand():
  data = load('digits')
  task = ClassifierTask(data, batch_size=8, images=24)
  params, variables = task.init(KEY)
  assert variables == {}
  state = TrainState(step=jnp.zeros((), int), params=params)
  images, labels = data.validation['image'], data.validation['label']
  logits, features = task.classify(state, images)
  assert features.shape == (len(images), FEATURES)
  right = np.argmax(logits, axis=1) == labels
  scores = task.evaluate(state)
  assert float(scores['accuracy']) == pytest.approx(right.mean())
  log_p = np.float64(jax.nn.log_softmax(logits))
  loss = -np.mean(log_p[np.arange(len(labels)), labels])
  assert float(scores['val_loss']) == pytest.approx(loss, rel=1e-5)
  # What trains sees the same function, in another form.
  batch = {'image': images, 'label': labels}
  of_training, _ = task.loss(task.model, params, {}, batch, None)
  assert float(of_training) == pytest.approx(loss, rel=1e-4)
  (epoch,) = {x.shape for x in task.batches(KEY)(0, 3)['label'][None]}
  assert epoch == (3, 8)

  judge = Judge(task, state, images[:100])
  found = judge.score(images[100:200], labels[100:200])
  features = np.float64(features)
  variance = np.trace(np.cov(features[:100], rowvar=False, bias=True))
  for name, distance in (('frechet', frechet), ('extrapolated', extrapolated)):
    expected = distance(features[100:200], features[:100]) / variance
    assert found[name] == pytest.approx(expected, rel=1e-3)
  assert found['accuracy'] == pytest.approx(right[100:200].mean())
  assert judge.score(images[:100], labels[:100])['frechet'] < 1e-6
  upside_down = judge.score(images[100:200, ::-1], labels[100:200])
  assert upside_down['frechet'] > 2 * found['frechet']
