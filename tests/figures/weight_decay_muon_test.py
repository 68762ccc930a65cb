"""Where weights settle, and the gaps of synthetic rows."""

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest

from kexue.figures.momentum_ablation import gradients_averaged
from kexue.figures.weight_decay_muon import (
  MOSAIC,
  Config,
  _total_steps,
  plot,
  run,
  weight_rms,
)
from kexue.optimizers import muon

GAPS = {25: -0.01, 50: 0.03, 75: 0.02, 100: -0.02}


def synthetic():
  """Loss 2 without decay, the gaps above with it; the best rate is 0.1."""
  rows = []
  for decay in (0.0, 0.1):
    for rate, seed in ((0.05, 0), (0.1, 0), (0.2, 0), (0.1, 1)):
      for step, gap in GAPS.items():
        loss = 2 + seed + gap * (1 + seed) * (decay > 0)
        rows.append(
          {
            'run': f'{decay}{rate}{seed}',
            'step': step,
            'optimizer': 'muon',
            'weight_decay': decay,
            'learning_rate': rate,
            'seed': seed,
            'weight_rms': 0.5,
            'norm_query': 2.0,
            'norm_up': 3.0 + step / 100,
            'val_loss': loss + (rate != 0.1),
          }
        )
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_gaps_are_taken_within_a_seed():
  numbers, figure, axes = draw(synthetic())
  figure.canvas.draw()
  assert numbers['final_gap'] == {
    'mean': pytest.approx(-0.03),
    'min': pytest.approx(-0.04),
    'max': pytest.approx(-0.02),
  }
  assert numbers['largest_gap'] == pytest.approx(0.045)
  decayed = numbers['by_decay']['0.1']
  assert decayed['last_step_behind'] == 75
  assert decayed['learning_rate'] == 0.1
  assert decayed['largest_norm_times_decay'] == pytest.approx(0.4)
  assert numbers['by_decay']['0']['final_gap']['max'] == 0
  assert '-0.030 at the end' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_legend()


def test_the_theory_is_drawn_from_the_first_log_point():
  numbers, _, axes = draw(synthetic())
  ratio = numbers['by_decay']['0']['theory_over_weight_rms']
  # Without decay V grows by r^2 K times the sum of the squared rates.
  turn = np.pi * (np.arange(25, 100) - 10) / 90
  rates = 0.1 * (1 + np.cos(turn)) / 2
  grown = 0.04 * gradients_averaged(0.95) * np.sum(rates**2)
  assert ratio == pytest.approx(np.sqrt(0.25 + grown) / 0.5, rel=1e-4)
  dashed = axes['rms'].lines[1]
  assert dashed.get_xdata()[0] == 26


def test_weights_under_noise_settle_where_the_theory_says():
  # Wide, where msign is nearly linear in its noise.
  rate, decay, momentum, shape = 0.05, 0.2, 0.8, (8, 64)
  optimizer = muon(rate, momentum=momentum, weight_decay=decay)
  params = {'w': jnp.zeros(shape)}

  @jax.jit
  def train(key):
    def step(carry, key):
      params, state = carry
      noise = {'w': jax.random.normal(key, shape)}
      updates, state = optimizer.update(noise, state, params)
      params = optax.apply_updates(params, updates)
      return (params, state), jnp.mean(params['w'] ** 2)

    keys = jax.random.split(key, 1500)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

  square = np.asarray(train(jax.random.key(0)))
  theory = weight_rms(
    0.0, [rate] * 1500, decay, square=0.04 * gradients_averaged(momentum)
  )
  measured = np.sqrt(square[500:].mean())
  assert theory[-1] == pytest.approx(measured, rel=0.2)
  settled = np.sqrt(0.04 * gradients_averaged(momentum) * rate / (2 * decay))
  assert theory[-1] == pytest.approx(settled, rel=0.01)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(weight_decays=(0.1,)), 'config.weight_decays'),
    (dict(weight_decays=(0.0, 0.3)), 'config.weight_decays'),
    (dict(weight_decays=(0.0, 0.1, -1.0)), 'config.weight_decays'),
    (dict(learning_rates=()), 'config.learning_rates'),
  ],
)
def test_what_cannot_run_is_refused_before_it_starts(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    Config(**change).check()


def test_it_runs_counts_its_steps_and_resumes(tmp_path):
  (tmp_path / 'letters.txt').write_bytes(b'abcdefgh' * 500)
  config = Config(
    dataset='letters',
    layers=1,
    length=8,
    batch_size=8,
    steps=4,
    learning_rates=(0.05,),
    log_points=2,
    validation_windows=8,
  )
  train = lambda: run(
    config,
    jax.random.key(0),
    str(tmp_path / 'run'),
    parallel='jit',
    data_dir=str(tmp_path),
  )
  rows = train()
  ends = {row['run']: row['step'] for row in rows}
  assert sum(ends.values()) == _total_steps(config) == 8
  kinds = {name for name in rows[0] if name.startswith('norm_')}
  assert kinds == {
    f'norm_{kind}'
    for kind in ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
  }
  numbers, _, _ = draw(rows)
  assert numbers['by_decay']['0.1']['weight_rms']['mean'] > 0
  assert len(train()) == len(rows)  # Recorded, not trained again.
