"""What the momentum averages, and the ratio on synthetic rows that have one."""

import jax
import matplotlib.figure
import numpy as np
import optax
import pytest

from kexue.figures import momentum_ablation
from kexue.figures.momentum_ablation import (
  MOSAIC,
  Config,
  _total_steps,
  gradients_averaged,
  plot,
  run,
)

SPEED = {0.0: 0.5, 0.8: 0.9, 0.95: 1.0}


def synthetic():
  """Loss 3 - 0.1 log2(speed x steps x batch); the best rate is 0.1."""
  contestants = [('muon', mu, 1, 1.0) for mu in SPEED]
  contestants += [('muon', mu, 1, b) for mu in (0.0, 0.95) for b in (0.25, 0.5)]
  contestants += [('muon-plain', 0.95, 1, 1.0)]
  contestants += [('muon-larger-batch', 0.0, 2, 1.0)]
  rows = []
  for name, momentum, batch, budget in contestants:
    for rate, seed in ((0.05, 0), (0.1, 0), (0.2, 0), (0.1, 1)):
      for step in (round(50 * budget), round(100 * budget)):
        gain = SPEED[momentum] * step * batch
        loss = 3 - 0.1 * np.log2(gain) + (rate != 0.1)
        rows.append(
          {
            'run': f'{name}{momentum}{budget}{rate}{seed}',
            'step': step,
            'optimizer': name,
            'momentum': momentum,
            'batch_factor': batch,
            'budget': budget,
            'learning_rate': rate,
            'seed': seed,
            'val_loss': loss,
          }
        )
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  return plot(rows, figure.subplot_mosaic(MOSAIC)), figure


def test_half_the_speed_is_twice_the_steps_at_every_length():
  numbers, figure = draw(synthetic())
  figure.canvas.draw()
  for ratio in (
    numbers['steps_ratio_without_momentum'],
    *numbers['ratio_by_steps'].values(),
  ):
    assert ratio['mean'] == pytest.approx(2) and ratio['max'] < 2.001
  assert list(numbers['ratio_by_steps']) == ['25', '50', '100']
  by_momentum = numbers['by_momentum']
  assert by_momentum['0.8']['steps_ratio']['mean'] == pytest.approx(1 / 0.9)
  assert by_momentum['0.95, plain']['steps_ratio']['mean'] == pytest.approx(1)
  assert by_momentum['0']['final_loss']['learning_rate'] == 0.1
  assert '2.00 times the steps' in figure.get_suptitle()


def test_the_batch_that_a_momentum_is_worth():
  # Twice the speed is worth twice the batch here, and 0.8 a little less.
  at = draw(synthetic())[0]['by_momentum']
  assert at['0.95']['worth_a_batch_times'] == pytest.approx(2)
  assert at['0.8']['worth_a_batch_times'] == pytest.approx(1.8)
  assert at['0.95']['gradients_averaged'] == pytest.approx(32.9, abs=0.1)


@pytest.mark.parametrize('momentum', [0.0, 0.5, 0.95])
@pytest.mark.parametrize('nesterov', [True, False])
def test_gradients_averaged_by_the_recursion(momentum, nesterov):
  pulse, mean, weights = 1.0, 0.0, []
  for _ in range(2000):
    mean = momentum * mean + (1 - momentum) * pulse
    ahead = momentum * mean + (1 - momentum) * pulse
    weights.append(ahead if nesterov else mean)
    pulse = 0.0
  assert sum(weights) == pytest.approx(1)
  found = gradients_averaged(momentum, nesterov=nesterov)
  assert found == pytest.approx(1 / np.sum(np.square(weights)))


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(momenta=(0.0, 0.9)), 'config.momenta'),
    (dict(momenta=(0.0, 0.95, 1.0)), 'config.momenta'),
    (dict(budgets=(1.0,)), 'config.budgets'),
    (dict(batch_factor=1), 'config.batch_factor: got 1'),
    (dict(steps=10), 'config.steps: got 10'),
  ],
)
def test_what_cannot_run_is_refused_before_it_starts(change, message):
  Config.full().check()
  with pytest.raises(ValueError, match=message):
    Config(**change).check()


def test_it_runs_counts_its_steps_and_resumes(tmp_path, monkeypatch):
  # Muon trains in the tests of the sweep; here its compilation is spared.
  cheap = lambda rate, *, momentum, **_: optax.sgd(rate, momentum=momentum)
  monkeypatch.setattr(momentum_ablation, 'muon', cheap)
  (tmp_path / 'letters.txt').write_bytes(b'abcdefgh' * 500)
  config = Config(
    dataset='letters',
    length=8,
    steps=4,
    learning_rates=(0.05,),
    momenta=(0.0, 0.95),
    budgets=(0.5,),
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
  assert sum(ends.values()) == _total_steps(config)
  numbers, _ = draw(rows)
  assert set(numbers['by_momentum']) == {'0', '0.95', '0.95, plain'}
  assert numbers['larger_batch']['factor'] == 2
  assert len(train()) == len(rows)  # Recorded, not trained again.
