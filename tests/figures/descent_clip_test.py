"""The ramp, the limiter of its first step, and the numbers of the figure."""

import itertools
import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest

from kexue.figures import descent_clip
from kexue.figures.descent_clip import (
  CONTESTANTS,
  MOSAIC,
  Config,
  _limited,
  _measure,
  _total_steps,
  _warmed_up,
  plot,
)

SETTINGS = {'neither': (0.0,), 'warmup': (0.1, 0.2), 'limiter': (1.0, 9.0)}


def synthetic():
  """Losses 2 at 0.1 for all; at 0.2 3, 2.5 and 2.25; second settings worse."""
  rows = []
  at_large = {'neither': 3.0, 'warmup': 2.5, 'limiter': 2.25}
  for name, settings in SETTINGS.items():
    for i, rate, seed in itertools.product((0, 1), (0.05, 0.1, 0.2), (0, 1)):
      if i >= len(settings):
        continue
      loss = {0.05: 2.1, 0.1: 2.0, 0.2: at_large[name]}[rate] + 0.5 * i
      row = {
        'run': f'{name}{settings[i]}{rate}{seed}',
        'step': 100,
        'optimizer': name,
        'setting': settings[i],
        'learning_rate': rate,
        'seed': seed,
        'val_loss': loss + 0.25 * seed,
      }
      rows.append(row)
      for step in range(1, 11):
        early = {
          'run': f'early-{row["run"]}',
          'optimizer': f'early-{name}',
          'step': step,
          'of_steps': 100,
          'loss': loss,
          'descent': 100 / step,
          'factor': 0.5 if name == 'limiter' and step <= 2 else 1.0,
        }
        rows.append(row | early)
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  choice = numbers['choice']['best']
  assert choice['limiter'] == {'setting': 1.0, 'learning_rate': 0.1}
  assert numbers['choice']['largest']['warmup']['learning_rate'] == 0.2
  assert numbers['loss']['best']['limiter'] == {
    'mean': 2.125,
    'min': 2.0,
    'max': 2.25,
  }
  assert numbers['gain_over_neither'] == {
    'best': {'warmup': 0.0, 'limiter': 0.0},
    'largest': {'warmup': 0.5, 'limiter': 0.75},
  }
  assert numbers['first_descent']['mean'] == 100
  assert numbers['last_early_descent']['mean'] == 10
  assert numbers['limited_steps']['mean'] == 2
  assert 'limiter +0.750, warmup +0.500' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_a_diverged_run_does_not_break_the_picture():
  rows = [
    row
    for row in synthetic()
    if row['run'] not in ('early-neither0.00.20', 'early-neither0.00.21')
  ]
  for row in rows:
    if row['optimizer'] == 'neither' and row['learning_rate'] == 0.2:
      row['val_loss'] = float('inf')
  numbers, figure, _ = draw(rows)
  assert numbers['loss']['largest']['neither']['mean'] == float('inf')
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  with pytest.raises(ValueError, match='no warmup'):
    draw([row for row in synthetic() if row['optimizer'] != 'warmup'])


def steps_of(optimizer, gradient, count):
  state, sizes = optimizer.init(gradient), []
  for _ in range(count):
    update, state = optimizer.update(gradient, state, gradient)
    sizes.append(float(-update[0]))
  return np.array(sizes), state


def test_the_ramp_is_linear_and_none_at_zero():
  g, rate = jnp.array([3.0, -4.0]), lambda count: 0.5
  none, _ = steps_of(_warmed_up(10, rate, 0.0, 0.0), g, 8)
  ramp, _ = steps_of(_warmed_up(10, rate, 0.0, 0.4), g, 8)
  np.testing.assert_allclose(none, 0.5, rtol=1e-5)
  factor = np.minimum(1, np.arange(1, 9) / 4)
  np.testing.assert_allclose(ramp, 0.5 * factor, rtol=1e-5)


def test_the_limiter_sees_the_norm_of_the_gradient():
  # Adam's first update is the sign, so <u, g> is the sum of |g|, here 7.
  g, rate = jnp.array([3.0, -4.0]), lambda count: 1.0
  sizes, state = steps_of(_limited(rate, 0.0, 3.5), g, 1)
  assert sizes[0] == pytest.approx(0.5, rel=1e-4)
  found = _measure(types.SimpleNamespace(opt_state=state))
  assert found['descent'] == pytest.approx(7.0, rel=1e-4)
  assert found['factor'] == pytest.approx(0.5, rel=1e-4)


def test_measured_inside_injected_hyperparameters():
  tx = optax.inject_hyperparams(lambda x: _limited(lambda _: x, 0.0, 1.0))(0.1)
  state = types.SimpleNamespace(opt_state=tx.init(jnp.ones(2)))
  assert _measure(state)['factor'] == 1.0


class Quadratic:
  """A task that compiles at once: the distance to each batch."""

  sizes = types.SimpleNamespace(width=32)
  step_flops = 1
  init = staticmethod(lambda key: {'w': jnp.zeros(3)})
  evaluate = staticmethod(
    lambda state: {'val_loss': -jnp.sum(state.params['w'])}
  )

  def loss(self, params, variables, batch, key):
    return jnp.mean((params['w'] - batch) ** 2), (variables, {})

  def batches(self, key):
    return lambda step, count: np.full([count, 8, 3], 9.0, np.float32)


def test_run_trains_and_resumes(tmp_path, monkeypatch):
  monkeypatch.setattr(Config, 'task', lambda *_: Quadratic())
  config = Config(
    steps=4,
    learning_rates=(0.01, 0.1),
    seeds=2,
    warmups=(0.5,),
    thresholds=(1.0, 9.0),
    early=2,
  )
  again = lambda: descent_clip.run(
    config, jax.random.key(0), tmp_path, parallel='jit'
  )
  rows = again()
  ends = [row for row in rows if row['step'] == 4]
  assert len(ends) == (1 + 1 + 2) * 2 * 2
  assert {row['optimizer'] for row in ends} == set(CONTESTANTS)
  early = [row for row in rows if row['optimizer'] == 'early-limiter']
  # The largest learning rate is the best here, so that both are one.
  assert [(r['seed'], r['step']) for r in early] == [
    (seed, step) for seed in (0, 1) for step in (1, 2)
  ]
  for row in early:
    limit = row['factor'] * row['descent']
    assert limit == pytest.approx(row['setting'], rel=1e-4)
  plain = [row for row in rows if row['optimizer'] == 'early-neither']
  assert all(r['factor'] == 1 and r['descent'] > 9 for r in plain)
  assert again() == rows
  draw(rows)


def test_steps_are_counted_for_the_progress_bar():
  config = Config(
    steps=100,
    learning_rates=(0.1, 0.2),
    seeds=2,
    warmups=(0.1,),
    thresholds=(1.0, 2.0),
    early=10,
  )
  assert _total_steps(config) == 2 * (4 * 2 * 100 + 3 * 2 * 10)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(warmups=(1.0,)), r'config.warmups: got \(1.0,\), expected fractions'),
    (dict(warmups=()), 'config.warmups'),
    (dict(thresholds=(0.0,)), 'config.thresholds'),
    (dict(early=1), 'config.early: got 1, expected 2 or more'),
    (dict(width=33), 'width: got 33'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    Config(**change).check()


def test_queries_and_keys_are_not_normalised():
  assert not Config().sizes.qk_norm
