"""Cosines of SoftSign's ends, the theory of both axes, and the numbers."""

import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import language_model, softsign_epsilon
from kexue.figures.softsign_epsilon import (
  MOSAIC,
  PROBED,
  STAGES,
  Config,
  _adam,
  _descent,
  _directions,
  _total_steps,
  plot,
  run,
)

CONFIG = Config(learning_rates=(0.05, 0.1, 0.2), eps=(0.0, 1e-3, 1.0), unit=0.1)


def trained(name, eps, rate, seed, loss):
  row = {
    'run': f'{name}{eps}{rate}{seed}',
    'step': 10,
    'optimizer': name,
    'learning_rate': rate,
    'seed': seed,
    'val_loss': loss + seed / 8,
  }
  return row if eps is None else row | {'eps': eps}


def synthetic():
  """Optima at the middle of the grid, loss 2 + eps, gradient descent at 3."""
  rows = []
  for eps in CONFIG.eps:
    for i, rate in enumerate(CONFIG.rates(eps)):
      rows.append(trained('softsign_adam', eps, rate, 0, 2 + eps + (i != 1)))
    rows.append(trained('softsign_adam', eps, CONFIG.rates(eps)[1], 1, 2 + eps))
  for rate in CONFIG.learning_rates:
    loss = 3 + (rate != 0.1)
    rows.append(trained('descent', None, rate / CONFIG.unit, 0, loss))
  random = np.random.default_rng(0)
  g, m = random.normal(size=(2, 1000))
  for stage in range(STAGES):
    for step, row in enumerate(_directions(g, m, np.full(1000, 10.0))):
      label = f'stage-{stage + 1}'
      rows.append({'run': label, 'step': step, 'trained': 50, **row})
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  assert numbers['loss_by_eps'][0.0] == {'mean': 2.0625, 'min': 2, 'max': 2.125}
  assert numbers['loss_descent']['mean'] == 3
  assert numbers['largest_eps_less_descent'] == pytest.approx(0.0625)
  # The grid follows the theory, so its middle is the theory.
  assert numbers['crossover_eps'] == pytest.approx(CONFIG.unit)
  factor = numbers['largest_factor_between_rate_and_theory']
  assert factor == pytest.approx(1)
  assert numbers['largest_error_of_cosine_theory'] < 0.05
  assert 'factor of 1.0' in figure.get_suptitle()
  for name in axes:
    ax = axes[name]
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  with pytest.raises(ValueError, match='stages'):
    draw([row for row in synthetic() if row['run'] != 'stage-1'])


def test_cosines_at_the_ends_of_epsilon():
  random = np.random.default_rng(0)
  v = random.lognormal(size=20_000)
  m = 0.2 * np.sqrt(v) * random.normal(size=len(v))
  rows = [*_directions(m, m, v)]
  first, last = rows[0], rows[-1]
  assert first['softsign_cosine_sign'] == pytest.approx(1)
  assert first['cosine_sign'] == pytest.approx((2 / np.pi) ** 0.5, abs=0.01)
  assert last['cosine_momentum'] == pytest.approx(1, abs=0.02)
  assert first['below'] == 0 and last['below'] == 1
  for row in rows:
    for name in ('cosine_sign', 'cosine_momentum'):
      assert row[name] == pytest.approx(row[f'{name}_theory'], abs=0.02)


def test_entries_without_gradient_do_not_count():
  g = np.array([0.0, 1.0])
  rows = [*_directions(g, g, g**2)]
  assert rows[0]['below'] == 0.0


def test_a_large_epsilon_is_descent():
  g, eps = jnp.array([3.0, -4.0]), 1e6
  adam, descent = _adam(0.1 * eps, 0.0, eps), _descent(0.1, 0.0)
  states = [adam.init(g), descent.init(g)]
  for _ in range(3):
    one, states[0] = adam.update(g, states[0], g)
    other, states[1] = descent.update(g, states[1], g)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_the_grid_follows_the_limits():
  config = Config(learning_rates=(0.1, 0.2), unit=0.01)
  assert config.rates(0.0) == [0.1, 0.2]
  assert config.rates(1e3) == pytest.approx([1e4, 2e4])


class Quadratic:
  """A task whose loss is that of the distance to each batch."""

  def loss(self, params, variables, batch, key):
    return jnp.mean((params['w'] - batch) ** 2), (variables, {})

  def init(self, key):
    return {'w': jnp.zeros(3)}

  def batches(self, key):
    return lambda step, count: np.ones([count, 8, 3], np.float32) + step


def test_stages_are_recorded_once(tmp_path, monkeypatch):
  trained = []
  monkeypatch.setattr(Config, 'task', lambda *_: Quadratic())
  monkeypatch.setattr(
    softsign_epsilon, '_train_all', lambda *_: trained.append(1) or 0.1
  )
  config = Config(steps=9)
  again = lambda: run(config, jax.random.key(0), tmp_path, parallel='jit')
  rows = again()
  assert len(rows) == STAGES * len(PROBED) and len(trained) == 1
  assert [r['trained'] for r in rows[:: len(PROBED)]] == [3, 6, 9]
  assert rows[0]['cosine_sign'] > 0.9  # One direction all along.
  assert again() == rows


def test_descent_is_tuned_over_the_same_grid(monkeypatch):
  calls = []

  class Recorder:
    def __init__(self, task, make, name, **options):
      self.name = name

    def tune(self, launch, rates, **settings):
      calls.append((self.name, settings.get('setting'), tuple(rates)))
      return {'learning_rate': rates[1]}

  monkeypatch.setattr(language_model, 'Sweep', Recorder)
  launch = types.SimpleNamespace(key=jax.random.key(0))
  rate = softsign_epsilon._train_all(CONFIG, None, launch, 'jit')
  assert rate == 0.1
  assert calls[-1] == ('descent', None, (0.5, 1.0, 2.0))
  assert [call[1] for call in calls[:-1]] == [*CONFIG.eps]
  assert calls[2][2] == pytest.approx(np.array(calls[-1][2]) * 1.005, rel=1e-3)


def test_steps_are_counted_for_the_progress_bar():
  config = Config(steps=10, learning_rates=(0.1, 0.2), eps=(0.0, 1.0), seeds=3)
  assert _total_steps(config) == 3 * (2 + 2) * 10 + 9


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(eps=(1.0, 2.0)), r'config.eps: got \(1.0, 2.0\), expected 0 and'),
    (dict(eps=(0.0, -1.0)), 'config.eps'),
    (dict(unit=0.0), 'config.unit'),
    (dict(weight_decay=0.1), 'config.weight_decay: got 0.1'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    Config(**change).check()
