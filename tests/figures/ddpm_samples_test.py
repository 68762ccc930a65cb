"""A run in small that is recorded once, and sets that are what they say."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.diffusion import UNet, predict_x0, sample
from kexue.figures import ddpm_samples
from kexue.figures.ddpm_samples import MOSAIC, SHOWN, Config, draw, plot, run
from kexue.figures.rotation_panels import image_of
from kexue.training.loop import Interrupted, StopSignal

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits',
  judged=40,
  batch=20,
  step_counts=(2,),
  guided_steps=2,
  guidance=(3.0,),
  bound_images=8,
  bound_steps=(5,),
  bound_timesteps=2,
)


@pytest.fixture
def model(random_model):
  return random_model


@pytest.fixture
def config(random_run, quick_judge, quick_network):
  quick_judge(ddpm_samples)
  return dataclasses.replace(SMALL, model=random_run)


def test_a_run_is_recorded_once(config, model, tmp_path, monkeypatch):
  config.check()
  with monkeypatch.context() as patch:

    def draw_and_stop(*args):
      patch.setattr(StopSignal, 'agreed', lambda _: True)
      return draw(*args)

    patch.setattr(ddpm_samples, 'draw', draw_and_stop)
    with pytest.raises(Interrupted, match='stopped after DDPM-2-1'):
      run(config, KEY, tmp_path / 'run', parallel='jit')
  rows = run(config, KEY, tmp_path / 'run', parallel='jit')
  sets = {row['run']: row for row in rows if 'sampler' in row}
  assert [*sets] == ['DDPM-2-1', 'DDIM-2-1', 'DDIM-2-3']
  for row in sets.values():
    assert row['frechet'] > 0 and 0 <= row['accuracy'] <= 1
    assert row['columns'] <= 10 * SHOWN * 8
  assert sets['DDIM-2-3']['guidance'] == 3
  held_out = config.data().validation
  (real,) = (row for row in rows if row['run'] == 'real')
  assert real['frechet'] > 1e-3  # Others than those compared with.
  labels = held_out['label'][:40]
  first = held_out['image'][np.flatnonzero(labels == 0)[0], ..., 0]
  np.testing.assert_array_equal(image_of(real)[:, :8], first)
  (bits,) = (row for row in rows if row['run'] == 'bits-5')
  parts = bits['prior'] + bits['kl'] + bits['decoder']
  assert bits['total'] == pytest.approx(parts, rel=1e-5)
  told = [row for row in rows if row['run'] == 'information']
  assert sum(row['nats'] for row in told) == pytest.approx(
    model.kl_per_step[1:].sum()
  )
  assert told[0]['timestep'] == 2
  assert told[0]['bits_above'] == pytest.approx(
    model.kl_per_step[2:].sum() / math.log(2)
  )
  # From the error of the image back to the information of its step.
  snr = model.schedule.snr
  nats = (snr[1] - snr[2]) / 2 * 64 * told[0]['error']
  assert nats == pytest.approx(model.kl_per_step[1])
  monkeypatch.setattr(ddpm_samples, 'draw', None)
  monkeypatch.setattr(ddpm_samples, 'bits_per_dim', None)
  assert run(config, KEY, tmp_path / 'run', parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert len(numbers['sets']) == 3 and numbers['val_loss'] is None
  assert 'digits' in axes['images'].figure.get_suptitle()


def test_a_drawn_set_is_the_sampler_of_the_library(model):
  label, steps = jnp.array([3, 10]), model.schedule.respace(2)
  variables = {'params': model.params}

  def denoise(x, t):
    t = jnp.full(2, t)
    x0 = [
      predict_x0(
        model.schedule,
        UNet(model.config).apply(variables, x, t, k),
        x,
        t,
        prediction='v',
      ).clip(-1, 1)
      for k in (label, jnp.full(2, 10))
    ]
    return jnp.clip(x0[1] + 3 * (x0[0] - x0[1]), -1, 1)

  expected = jax.jit(lambda: sample(denoise, steps, KEY, (2, 8, 8, 1), eta=0))()
  found = draw(model, steps, 0.0, True, label, KEY, 3.0)
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sets():
  config = dataclasses.replace(SMALL, step_counts=(5, 2), guided_steps=2)
  assert config.sets == [
    ('DDPM', 5, 1.0),
    ('DDIM', 5, 1.0),
    ('DDPM', 2, 1.0),
    ('DDIM', 2, 1.0),
    ('DDIM', 2, 3.0),
  ]
  config = dataclasses.replace(SMALL, guided_steps=7)
  assert config.sets[2:] == [('DDIM', 7, 1.0), ('DDIM', 7, 3.0)]


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(judged=1), 'config.judged: got 1'),
    (dict(judged=1000), 'at most half of the .* held-out'),
    (dict(judged=30), 'config.judged: got 30, expected 20 at a time'),
    (dict(step_counts=(0,)), 'config.step_counts'),
    (dict(step_counts=(2000,)), '1 to 20'),
    (dict(guided_steps=21), 'config.guided_steps'),
    (dict(guidance=(1.0,)), 'config.guidance'),
    (dict(bound_steps=(1,)), 'config.bound_steps'),
    (dict(bound_timesteps=0), 'config.bound_timesteps'),
    (dict(dataset='photos'), 'config.dataset'),
  ],
)
def test_what_cannot_run_is_refused(config, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **change).check()
