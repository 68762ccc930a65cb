"""The theory of the size of an update, its simulation and the numbers."""

import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest

from kexue.figures import language_model, update_rms
from kexue.figures.language_model import Task
from kexue.figures.update_rms import (
  B1,
  B2,
  MOSAIC,
  SIGNS,
  SNR,
  Config,
  _measure,
  _muon_by_shape,
  _simulated_adam,
  _total_steps,
  _train_all,
  plot,
  run,
)
from kexue.scaling import adam_update_rms

KEY = jax.random.key(0)


def trained(name, rms, rate, seed, loss):
  for step in (5, 10):
    yield {
      'run': f'{name}{rms}{rate}{seed}',
      'step': step,
      'optimizer': name,
      'learning_rate': rate,
      'seed': seed,
      'rms': rms,
      'val_loss': loss + 0.1 * (step == 5) + 0.01 * seed,
      'update_rms': 0.25,
      'snr_measured': 0.01,
      'momentum_cosine': -0.1,
    }


def synthetic():
  """Theory without error; AdamW is best at 0.1 with 2, Muon at 0.4."""
  settings = [(b1, b2, 0.0) for b2 in B2 for b1 in B1]
  settings += [(0.9, b2, snr) for b2 in B2 for snr in SNR]
  rows = [
    {
      'run': 'simulated',
      'b1': b1,
      'b2': b2,
      'snr': q,
      'rms': adam_update_rms(b1, q),
    }
    for b1, b2, q in settings
  ]
  sizes = {'rms': 0.19, 'theory': 0.19}
  rows += [
    {'run': 'shapes', 'sign': s, 'shape': '2 x 2', **sizes} for s in SIGNS
  ]
  for rate, seed in ((0.05, 0), (0.1, 0), (0.2, 0), (0.1, 1)):
    rows += trained('adamw', None, rate, seed, 2 + (rate != 0.1))
  for rms in (0.1, 0.2, 0.4, 0.8):
    for seed in (0, 1):
      loss = 1.5 + 0.1 * abs(np.log2(rms / 0.4))
      rows += trained('muon', rms, 0.1, seed, loss)
  return [{'step': i + 1} | row for i, row in enumerate(rows)]


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  assert numbers['best_rms'] == 0.4 and numbers['paper_best_rms'] == 0.4
  assert numbers['gain_over_adamw_at_0.2'] == pytest.approx(0.4)
  assert numbers['paper_gain_over_adamw_at_0.2'] == 0.354
  assert numbers['largest_error_of_adam_theory']['b2 = 0.95'] == 0
  assert numbers['muon_by_shape']['Keller, 5 steps']['mean'] == 0.19
  assert numbers['learning_rate'] == 0.1
  assert numbers['rms_in_training_adamw'] == 0.25
  assert numbers['rms_in_training_adamw_theory'] == adam_update_rms(0.9, 0.01)
  assert 'best at an RMS of 0.4' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  with pytest.raises(ValueError, match='no simulated'):
    draw([row for row in synthetic() if row['run'] != 'simulated'])
  with pytest.raises(ValueError, match='adamw'):
    draw([row for row in synthetic() if row.get('optimizer') != 'adamw'])


def test_adam_follows_the_theory():
  config = Config(entries=2000, simulated_steps=300)
  settings = [(0.9, 0.95, 0.0), (0.5, 0.95, 0.0), (0.9, 0.95, 1.0)]
  for row in _simulated_adam(config, KEY, settings):
    theory = adam_update_rms(row['b1'], row['snr'])
    assert row['rms'] == pytest.approx(theory, rel=0.05)


def test_muon_follows_the_maps_of_its_coefficients(monkeypatch):
  monkeypatch.setattr(update_rms, 'SHAPES', ((16, 64),))
  for row in _muon_by_shape(KEY):
    assert row['shape'] == '16 x 64'
    assert row['rms'] == pytest.approx(row['theory'], rel=1e-3)
  assert row['rms'] == pytest.approx(0.2, rel=1e-3)  # Eight steps converge.


class Quadratic:
  """A task whose gradient at any weights is the mean of the batch."""

  matrices = Task.matrices

  def __init__(self):
    self.shapes = {'kernel': jnp.zeros([2, 2]), 'bias': jnp.zeros(2)}
    self.model = types.SimpleNamespace(dimension_numbers=None)

  def loss(self, params, variables, batch, key):
    value = jnp.sum(params['kernel'] * batch) + 100 * jnp.sum(params['bias'])
    return value, (variables, {})


def test_what_is_measured_at_a_state():
  momentum = {'kernel': -jnp.ones([2, 2]), 'bias': jnp.ones(2)}
  state = types.SimpleNamespace(
    params=momentum,
    opt_state=types.SimpleNamespace(
      hyperparams={'setting': 3.0},
      inner_state=((optax.TraceState(momentum), optax.EmptyState()), None),
    ),
  )
  make = lambda rate, decay, scale: optax.chain(
    optax.trace(decay=0.5), optax.scale(-scale)
  )
  # Gradients 1 and 3: a mean of 2, a variance of 2, half of it in the mean.
  probes = jnp.ones([2, 2, 2]) * jnp.array([1.0, 3.0])[:, None, None]
  found = _measure(Quadratic(), make, probes, state)
  assert found['update_rms'] == pytest.approx(3 * (1 - 0.5))
  assert found['snr_measured'] == pytest.approx((2**2 - 2 / 2) / 2)
  assert found['momentum_cosine'] == pytest.approx(-1)


def test_muon_is_trained_at_the_learning_rate_of_adamw(monkeypatch):
  calls = []

  class Recorder:
    def __init__(self, task, make, name, **options):
      self.name = name

    def tune(self, launch, rates, **settings):
      calls.append((self.name, tuple(rates), settings.get('setting')))
      return {'learning_rate': 0.5}

  monkeypatch.setattr(language_model, 'Sweep', Recorder)
  config = Config(learning_rates=(0.1, 0.5, 0.7), rms=(0.2, 0.4))
  launch = types.SimpleNamespace(key=KEY)
  _train_all(config, config.task(), launch, 'jit')
  assert calls == [
    ('adamw', (0.1, 0.5, 0.7), None),
    ('muon', (0.5,), 0.2),
    ('muon', (0.5,), 0.4),
  ]


def test_what_is_simulated_is_recorded_once(tmp_path, monkeypatch):
  monkeypatch.setattr(update_rms, 'SHAPES', ((16, 16),))
  monkeypatch.setattr(update_rms, '_train_all', lambda *_: None)
  config = Config(entries=4, simulated_steps=2)
  again = lambda: run(config, KEY, tmp_path, parallel='jit')
  rows = again()
  assert len(rows) == len(B2) * (len(B1) + len(SNR)) + len(SIGNS)
  assert again() == rows


def test_steps_are_counted_for_the_progress_bar():
  config = Config(steps=10, learning_rates=(0.1, 0.2), seeds=3, rms=(0.2, 0.4))
  assert _total_steps(config) == (2 + 2 + 6) * 10


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(rms=(0.1,)), r'config.rms: got \(0.1,\), expected 0.2 among them'),
    (dict(rms=(0.2, 0.0)), 'config.rms'),
    (dict(probes=1), 'config.probes: got 1, expected 2 or more'),
    (dict(entries=0), 'config.entries'),
    (dict(simulated_steps=0), 'config.simulated_steps'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    Config(**change).check()
