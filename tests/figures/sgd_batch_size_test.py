"""The figure in small, and its numbers from made-up rows."""

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.image_model import ImageTask, Sizes
from kexue.figures.one_step_search import draws
from kexue.figures.sgd_batch_size import MOSAIC, Config, descend, plot, run
from kexue.figures.sgd_curves import curves_of
from kexue.training.data import Dataset

KEY = jax.random.key(0)
RATES = (0.01, 0.02, 0.04)
SMALL = dict(
  dataset='digits',
  width=4,
  population=128,
  batch_sizes=(8, 16, 32),
  learning_rates=RATES,
  steps=2,
  seeds=2,
  examples=32,
  points=2,
  target=2.4,
  stages=(0, 2),
  stage_batch=8,
  one_step_batches=(8,),
  searched=8,
  probed=8,
  draws=4,
)


def drawn(rows):
  figure = matplotlib.figure.Figure(figsize=(24, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_run_records_once(tmp_path):
  config = Config(**SMALL)
  config.check()
  rows = run(config, KEY, tmp_path, parallel='jit')
  assert run(config, KEY, tmp_path, parallel='jit') == rows
  looks = [row for row in rows if 'probe' in row]
  assert [row['stage'] for row in looks] == [0, 2]
  assert looks[0]['loss_at_stage'] != looks[1]['loss_at_stage']
  curves = curves_of(rows)
  assert [*curves] == [8, 16, 32]
  # 32 images are four steps of 8; two steps at the least.
  assert curves[8].steps.tolist() == [2, 4]
  assert curves[32].steps.tolist() == [1, 2]
  losses = curves[8].losses
  assert losses.shape == (2, 3, 2) and np.isfinite(losses).all()
  assert np.all(losses[0] != losses[1]) and np.all(np.diff(losses, axis=1) != 0)


def test_descent_is_that_of_numpy():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (32, 2, 2, 1)).astype(np.uint8)
  arrays = {'image': image, 'label': np.arange(32) % 3}
  task = ImageTask(Dataset(arrays, arrays, ''), Sizes(3), batch_size=8)
  params = task.init(KEY)
  batches = jax.tree.map(
    lambda x: x.reshape(2, 2, *x.shape[1:]), draws(task, KEY, 4, 8)
  )
  losses = descend(
    task, task.population, params, jnp.array([0.0, 0.5]), batches
  )
  start = float(task.mean_loss(params, task.population))
  np.testing.assert_allclose(losses[:, 0], start, rtol=1e-6)
  for i in range(4):
    batch = jax.tree.map(lambda x, i=i: x[i // 2, i % 2], batches)
    gradient = jax.grad(task.mean_loss)(params, batch)
    params = jax.tree.map(lambda x, g: x - 0.5 * g, params, gradient)
    if i % 2:
      expected = task.mean_loss(params, task.population)
      np.testing.assert_allclose(losses[i // 2, 1], expected, rtol=1e-5)


def made_up():
  """A law of noise scale 32, found 10 % too high; S = 20 (1 + 64 / B)."""
  rows = []
  for stage in (0, 60):
    for batch in (8, 128):
      row = dict(run=f'stage-{stage}', stage=stage, batch_size=batch, step=1)
      row |= dict(loss_at_stage=2.5 - stage / 40, lr_max=0.1, at_edge=0)
      law = 0.1 / (1 + 32 / batch)
      for name, value in (
        ('law', 1.1 * law),
        ('probe', 0.9 * law),
        ('measured', law),
        ('noise_scale', 32.0 + stage),
        ('simple', 40.0),
      ):
        ends = {f'{name}_low': 0.9 * value, f'{name}_high': 1.1 * value}
        row |= {name: value} | ends
      decrease = dict(decrease=law, decrease_error=0.1 * law, law_decrease=law)
      rows.append(row | decrease)
  for batch in (8, 32, 128):
    for seed in (0, 1):
      for rate in RATES:
        to = 20 * (1 + 64 / batch) * (1 if rate == 0.02 else 2)
        for steps in (10, 40, 160, 640):
          rows.append(
            dict(
              run=f'B{batch}-s{seed}',
              batch_size=batch,
              seed=seed,
              learning_rate=rate,
              steps=steps,
              train_loss=2 + np.log(to / steps) / 4,
              fixed_steps=40,
              fixed_examples=1280,
              target=2.0,
            )
          )
  return rows


def test_numbers_of_made_up_rows():
  numbers, figure, axes = drawn(made_up())
  over = numbers['over_search']
  assert over['law']['0']['mean'] == pytest.approx(1.1)
  assert over['probe']['60']['max'] == pytest.approx(0.9)
  assert over['law_decrease']['60']['min'] == pytest.approx(1)
  assert numbers['noise_scales']['60']['noise_scale']['_high'] == 1.1 * 92
  fit = numbers['tradeoff']
  assert fit['critical_batch_size'] == pytest.approx(64, rel=1e-3)
  assert fit['min_steps'] == pytest.approx(20, rel=1e-3)
  assert fit['steps'][8]['learning_rate'] == 0.02
  assert numbers['fixed']['steps']['exponents'] == pytest.approx([0, 0])
  assert numbers['searches_at_an_edge'] == 0 and numbers['target'] == 2
  title = figure.get_suptitle()
  assert '1.10 to 1.10' in title and 'training 64' in title
  assert '32 to 92' in title
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(batch_sizes=(8, 16)), 'config.batch_sizes.*three or more, ascending'),
    (dict(learning_rates=(0.2, 0.1, 0.3)), 'config.learning_rates'),
    (dict(points=1), 'config.points: got 1'),
    (dict(steps=3), 'config.steps: got 3, expected a multiple of the 2 points'),
    (dict(examples=40), 'config.examples: got 40'),
    (dict(target=0.0), 'config.target'),
    (dict(stages=(-1,)), 'config.stages'),
    (dict(searched=0), 'config.searched'),
    (dict(draws=3), 'config.draws: got 3'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()


def test_the_presets_can_run():
  Config(dataset='digits').check()
  full = Config.full()
  full.dataset = 'digits'
  full.check()
  assert full.steps_of(8) == 1024 and full.steps_of(1024) == 64
