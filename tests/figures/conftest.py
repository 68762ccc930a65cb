"""A diffusion model of random weights, for images of digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import Schedule, UNet, UNetConfig
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
