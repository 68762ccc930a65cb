"""The scalar iteration, what it predicts, and the numbers of the figure."""

import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import msign_convergence
from kexue.figures.language_model import Task
from kexue.figures.msign_convergence import (
  BINS,
  MOSAIC,
  SETS,
  Config,
  _errors,
  _gaussian,
  _spread_spectrum,
  _total_steps,
  plot,
  run,
  scalar_map,
  sup_error,
)


def synthetic(gain=0.058):
  """Errors of 2^-k; the best learning rate is 0.1, Keller's loss 2 there."""
  rows = []
  for name in SETS:
    for source in ('spread', 'square', 'wide', 'momentum'):
      for step in range(1, 11):
        error = 0.3 if name == 'keller' else 2.0**-step
        sizes = ('error', 'error_min', 'error_max', 'theory', 'largest_error')
        rows.append(
          {
            'run': f'error-{source}-{name}',
            'step': step,
            'source': source,
            'coefficients': name,
            **dict.fromkeys(sizes, error),
          }
        )
    for rate, seed in ((0.05, 0), (0.1, 0), (0.2, 0), (0.1, 1)):
      loss = 2 - gain * (name == 'polar_express') + seed / 8
      rows.append(
        {
          'run': f'{name}{rate}{seed}',
          'step': 10,
          'optimizer': name,
          'learning_rate': rate,
          'seed': seed,
          'iterations': 5,
          'val_loss': loss + (rate != 0.1),
        }
      )
  for i, (left, right) in enumerate(zip(BINS, BINS[1:], strict=False)):
    bin_ = {'left': left, 'right': right, 'share': 1 / (len(BINS) - 1)}
    rows.append({'run': 'spectrum', 'step': i + 1, **bin_})
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  assert numbers['gain_of_polar_express']['mean'] == pytest.approx(0.058)
  assert numbers['keller_plateau'] == 0.3
  assert numbers['polar_express_after_8'] == 2.0**-8
  assert numbers['products_to_1e-3']['polar_express'] == 30
  assert numbers['products_to_1e-3']['keller'] is None
  assert numbers['largest_ratio_to_theory'] == 1.0
  assert numbers['optimum'] == dict.fromkeys(SETS, 0.1)
  assert numbers['final_loss']['keller'] == {
    'mean': 2.0625,
    'min': 2.0,
    'max': 2.125,
  }
  assert 'changes by -0.058 from Keller' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  rows = [r for r in synthetic() if r.get('source') != 'momentum']
  with pytest.raises(ValueError, match='on momentum'):
    draw(rows)


def test_the_known_errors_of_the_scalar_iteration():
  assert sup_error('keller', 16) == pytest.approx(0.318, abs=1e-3)
  assert sup_error('polar_express', 5) == pytest.approx(0.16, abs=1e-2)
  assert sup_error('polar_express', 8) < 1e-3
  assert scalar_map('classic', 1, np.array([0.5]))[0] == pytest.approx(
    15 / 16 - 10 / 64 + 3 / 256
  )
  assert sup_error('su', 16) > 1  # Its last triple may not be repeated.


@pytest.mark.parametrize('name', ['keller', 'polar_express'])
def test_matrices_follow_the_scalar_iteration(name):
  for matrices in (_gaussian(2, 16, 4), _spread_spectrum(16)):
    for row in _errors('x', matrices, name, 5):
      assert row['error'] == pytest.approx(row['theory'], rel=1e-3)
      assert row['error_min'] <= row['error'] <= row['error_max']


def test_the_spread_spectrum_has_norm_one_and_reaches_down():
  (x,) = _spread_spectrum(32)
  s = np.linalg.svd(x, compute_uv=False)
  assert np.linalg.norm(s) == pytest.approx(1, abs=1e-5)
  assert s[-1] == pytest.approx(1e-3, rel=1e-3)


class Quadratic:
  """A task that compiles at once: the distance of a matrix to each batch."""

  shapes = {'kernel': jnp.zeros([8, 16]), 'bias': jnp.zeros(16)}
  model = types.SimpleNamespace(dimension_numbers=None)
  matrices = Task.matrices
  init = staticmethod(lambda key: Quadratic.shapes)

  def loss(self, params, variables, batch, key):
    sums = params['kernel'] + params['bias']
    return jnp.mean((sums - batch) ** 2), (variables, {})

  def batches(self, key):
    draw = lambda size: jax.random.normal(key, size)
    return lambda step, count: np.asarray(draw([count, 8, 8, 16]))


def test_run_records_once(tmp_path, monkeypatch):
  monkeypatch.setattr(msign_convergence, 'SETS', ('keller',))
  monkeypatch.setattr(Config, 'task', lambda *_: Quadratic())
  # The sweep is language_model's, and has its tests there.
  monkeypatch.setattr(msign_convergence, '_train_all', lambda *_: 0.01)
  config = Config(steps=10, iterations=8, side=8, matrices=1)
  again = lambda: run(config, jax.random.key(0), tmp_path, parallel='jit')
  rows = again()
  assert len(rows) == 4 * 8 + len(BINS) - 1
  assert sum(r.get('share', 0) for r in rows) == pytest.approx(1)
  momenta = [r for r in rows if r.get('source') == 'momentum']
  assert momenta[4]['error'] == pytest.approx(momenta[4]['theory'], rel=0.01)
  assert again() == rows  # Nothing is computed again.


def test_steps_are_counted_for_the_progress_bar():
  config = Config(steps=10, learning_rates=(0.1, 0.2), seeds=3)
  assert _total_steps(config) == len(SETS) * (2 + 2) * 10 + 5


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(iterations=7), 'config.iterations: got 7, expected 8 or more'),
    (dict(side=1), 'config.side'),
    (dict(matrices=0), 'config.matrices'),
    (dict(muon_iterations=0), 'config.muon_iterations'),
    (dict(learning_rates=()), 'config.learning_rates'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    Config(**change).check()
