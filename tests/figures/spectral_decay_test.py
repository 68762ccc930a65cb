"""The theory of the spectra, and the numbers of synthetic sweeps."""

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import spectral_decay
from kexue.figures.spectral_decay import (
  DECAYS,
  MOSAIC,
  POSITIONS,
  Config,
  _total_steps,
  clipped,
  plot,
  run,
)

RATES, STRENGTHS = (0.1, 0.2, 0.4), (0.5, 1.0, 2.0)
BASE = np.array([4.0 / i for i in POSITIONS])
LOSSES = {'L2': 2.0, 'Schatten-4': 1.9, 'Schatten-8': 1.8, 'spectral': 1.7}


def synthetic():
  """Spectra that the theory makes exactly; each best at the middle pair."""
  rows = []

  def add(name, rate, strength, seed, loss, spectrum):
    rows.append(
      {
        'run': f'{name}-{rate}-{strength}-{seed}',
        'step': 10,
        'decay': name,
        'learning_rate': rate,
        'weight_decay': strength,
        'seed': seed,
        'loss': loss - 0.25,
        'val_loss': loss + 0.01 * seed,
        **{f'sigma_{i}': x for i, x in zip(POSITIONS, spectrum, strict=True)},
      }
    )

  far = lambda value, middle: abs(np.log2(value / middle))
  for rate in RATES:
    seeds = (0, 1) if rate == 0.2 else (0,)
    for seed in seeds:
      add('L2', rate, 0.0, seed, 2.5 + far(rate, 0.2), BASE)
    for name, decay in DECAYS.items():
      for strength in STRENGTHS:
        best = (rate, strength) == (0.2, 1.0)
        worse = far(rate, 0.2) + far(strength, 1.0)
        spectrum = clipped(BASE, decay.order, 2.0)
        for seed in (0, 1) if best else (0,):
          loss = LOSSES[name] + worse
          add(name, rate, strength * decay.factor, seed, loss, spectrum)
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


@pytest.mark.parametrize('order', [1, 2, 4, None])
def test_the_theory_follows_its_differential_equation(order):
  # d sigma / dt = -sigma^(2 k - 1), by small steps; the limit clips.
  sigma = np.array([2.0, 1.3, 0.7])
  if order is None:
    expected = np.minimum(sigma, 1.5)
  else:
    expected = sigma.copy()
    while expected[0] > 1.5:
      expected = expected - 1e-5 * expected ** (2 * order - 1)
  np.testing.assert_allclose(clipped(sigma, order, 1.5), expected, atol=1e-3)


def test_a_high_order_clips_like_the_spectral_norm():
  sigma = np.array([2.0, 1.3, 0.7])
  np.testing.assert_allclose(
    clipped(sigma, 200, 1.5), clipped(sigma, None, 1.5), atol=0.02
  )


def test_the_numbers_of_known_sweeps():
  numbers, figure, axes = draw(synthetic())
  at = numbers['by_decay']
  for name, loss in LOSSES.items():
    assert at[name]['final_loss']['min'] == pytest.approx(loss)
    assert at[name]['final_loss']['max'] == pytest.approx(loss + 0.01)
    assert at[name]['learning_rate'] == 0.2
    assert at[name]['weight_decay'] == DECAYS[name].factor
    assert not at[name]['at_the_edge_of_the_grid']
    assert at[name]['spectrum_error_of_theory'] < 1e-6
    assert at[name]['spectral_norm']['mean'] == pytest.approx(2.0)
  assert at['none']['final_loss']['min'] == pytest.approx(2.5)
  gap = at['L2']['validation_less_training']
  assert gap['min'] == pytest.approx(0.25) and gap['max'] < 0.27
  gain = numbers['gain_over_L2']
  assert gain['spectral']['mean'] == pytest.approx(0.3)
  assert gain['none']['mean'] == pytest.approx(-0.5)
  assert 'spectral +0.300 (+0.300 to +0.300)' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title()


def test_an_optimum_at_the_edge_is_told():
  rows = [r for r in synthetic() if r['learning_rate'] < 0.4]
  numbers, _, _ = draw(rows)
  assert numbers['by_decay']['spectral']['at_the_edge_of_the_grid']


def test_a_diverged_run_is_no_optimum_and_a_missing_decay_is_named():
  rows = synthetic()
  for row in rows:
    if row['learning_rate'] == 0.4:
      row['val_loss'] = float('inf')
  _, figure, _ = draw(rows)
  figure.canvas.draw()
  with pytest.raises(ValueError, match='none of spectral'):
    draw([row for row in rows if row['decay'] != 'spectral'])


def test_the_smallest_sweep_runs_from_end_to_end(tmp_path, monkeypatch):
  two = {name: DECAYS[name] for name in ('L2', 'spectral')}
  monkeypatch.setattr(spectral_decay, 'DECAYS', two)
  config = Config(
    layers=1,
    length=8,
    batch_size=8,
    steps=2,
    log_points=2,
    learning_rates=(0.01,),
    weight_decays=(0.5,),
    validation_windows=8,
  )
  config.check()
  rows = run(config, jax.random.key(0), tmp_path, parallel='jit')
  assert len({row['run'] for row in rows}) == 1 + len(two)
  assert _total_steps(config) == 2 * (1 + len(two))
  numbers, _, _ = draw(rows)
  norms = [v['spectral_norm']['mean'] for v in numbers['by_decay'].values()]
  assert all(0.1 < norm < 100 for norm in norms)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(weight_decays=(0.0,)), r'config.weight_decays: got \(0.0,\)'),
    (dict(train_bytes=64), 'config.train_bytes: got 64, expected more than'),
    (dict(seeds=0), 'config.seeds: got 0'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**change).check()
