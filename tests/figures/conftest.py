"""A diffusion model of random weights, and a judge that is not trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import Schedule, UNet, UNetConfig
from kexue.figures.image_features import Classified, Judge
from kexue.figures.image_model import CLASSES
from kexue.training.pretrained import PretrainedDiffusion, save_diffusion


@pytest.fixture(scope='session')
def random_model():
  """Of 20 steps that tell 100 nats, fewer and fewer."""
  config = UNetConfig(width=4, multipliers=(1,), heads=1)
  some = jnp.zeros((1, 8, 8, 1)), jnp.ones(1, int)
  shapes = jax.eval_shape(UNet(config).init, jax.random.key(0), *some)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)), shapes['params']
  )
  nats = np.linspace(9, 1, 20)
  return PretrainedDiffusion(
    config, params, Schedule.cosine(20), 'v', (8, 8, 1), nats
  )


@pytest.fixture(scope='session')
def random_run(random_model, tmp_path_factory):
  """The directory of a run that has this model."""
  directory = tmp_path_factory.mktemp('random')
  save_diffusion(directory / 'model', random_model)
  return str(directory)


@pytest.fixture
def quick_network(monkeypatch):
  """Denoisers that compile at once: some of the image, and a shade by class."""

  def denoise(self, label=None):
    shade = jnp.reshape(5.0 if label is None else label, (-1, 1, 1, 1)) / 5 - 1
    return lambda x, t: 0.5 * x + 0.3 * shade

  monkeypatch.setattr(PretrainedDiffusion, 'denoise', denoise)


class ColumnMeans:
  """In the place of a trained classifier: features are means of columns."""

  def classify(self, state, images):
    """The class is the first of ten columns with the largest mean."""
    features = np.float64(images).mean(axis=(1, 3))
    return Classified(features[:, :CLASSES], features)


@pytest.fixture
def quick_judge(monkeypatch):
  """Replaces the judge that a figure trains by one that needs no training."""

  def judge(launch, data, count, *, parallel):
    return Judge(ColumnMeans(), None, data.validation['image'][:count])

  def replace(figure):
    monkeypatch.setattr(figure, 'trained_judge', judge)

  return replace
