"""The sweep in small, the first step against theory, what is refused."""

import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest

from kexue.figures import lora_alignment
from kexue.figures.adaptation import Adaptation
from kexue.figures.comparison import by_run
from kexue.figures.lora_alignment import (
  MOSAIC,
  Config,
  Contest,
  _first_steps,
  _total_steps,
  plot,
  run,
)
from kexue.figures.lora_contest import (
  CONTESTANTS,
  SETTINGS,
  STARTS,
  names_in,
  tuned_runs,
)
from kexue.figures.session import Session

KEY = jax.random.key(0)
SMALL = dict(
  steps=4,
  digits_steps=4,
  log_points=2,
  rank=2,
  ranks=(1, 2),
  learning_rates=(0.01,),
  sgd_rates=(0.01, 0.02),
  digits_rates=(0.01,),
  seeds=2,
)


def quadratic():
  """The distance of a stack of two matrices to a target that batches move."""
  rng = np.random.default_rng(0)
  start, target = jnp.asarray(rng.normal(size=(2, 2, 8, 6)), jnp.float32)

  def loss(matrices, batch):
    far = jnp.sum((matrices['w'] - target) ** 2)
    return far * (1 + jnp.mean(batch)) / 2

  draw = lambda key, size: np.asarray(jax.random.uniform(key, size))
  return Adaptation(
    {'w': start},
    loss,
    jax.jit(jax.grad(loss)),
    lambda key: lambda step, count: draw(key, (count, 8)),
    lambda matrices: loss(matrices, jnp.zeros(1)),
  )


def with_other_settings(rows):
  """SGD's rows also as Adam's, LoRA-Pro's as those of its other variant."""
  copies = []
  for row in rows:
    if row.get('setting') == 'sgd':
      for setting in ('adam', 'digits'):
        other = {'setting': setting, 'run': setting + row['run']}
        copies.append(row | other)
        if row['contestant'] == 'LoRA-Pro':
          name = 'LoRA-Pro efficient'
          other |= {'contestant': name, 'run': setting + name + row['run']}
          copies.append(row | other)
  return rows + copies


def test_the_sweep_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  both = {'text': quadratic(), 'digits': quadratic()}
  monkeypatch.setattr(lora_alignment, '_tasks', lambda *_: both)
  config = Config(**SMALL)
  with monkeypatch.context() as patch:
    patch.setattr(lora_alignment, 'SETTINGS', {'sgd': SETTINGS['sgd']})
    again = lambda: run(config, KEY, tmp_path, parallel='jit')
    rows = again()
    assert again() == rows  # Nothing is trained again.
    total = _total_steps(config)
  # Both rates with the first seed, the better with the other; two log points.
  ends = [r for r in rows if r.get('step') == 4 and 'score' in r]
  assert len(rows) == len(STARTS) * 2 + 2 * len(ends)
  assert 4 * len(ends) >= total - 2 * config.pretraining_steps
  for name in names_in('sgd'):
    best = tuned_runs(by_run(rows), 'sgd', name)
    assert [r[0]['seed'] for r in best] == [0, 1]
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(with_other_settings(rows), axes)
  assert set(numbers['by_setting']['adam']) == set(CONTESTANTS)
  assert numbers['largest_ratio_to_theory'] == pytest.approx(1, abs=1e-3)
  assert 'text, SGD' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_a_rate_that_leads_is_run_with_all_seeds():
  ends = {0.1: [2.0, 2.1, 2.2], 0.2: [1.0, 9.0, 1.0], 0.4: [3.0, 1.0, 1.0]}
  trained, expected = [], []
  progress = types.SimpleNamespace(expect=expected.append)

  class Faked(Contest):
    def _train(self, name, rate, seed):
      trained.append((rate, seed))
      return {'score': ends[rate][seed]}

  launch = Session(None, progress, None, None, KEY)
  config = Config(sgd_rates=tuple(ends), seeds=3, steps=10)
  Faked(config, launch, None, 'sgd', 'jit').tune('LoRA')
  first = [(rate, 0) for rate in ends]
  assert trained == [*first, (0.2, 1), (0.2, 2), (0.1, 1), (0.1, 2)]
  assert expected == [20]  # The others were foreseen.


def test_contestants_share_their_start_and_batches(tmp_path, monkeypatch):
  both = {'text': quadratic(), 'digits': quadratic()}
  monkeypatch.setattr(lora_alignment, '_tasks', lambda *_: both)
  still = {'sgd': SETTINGS['sgd']._replace(direction=optax.set_to_zero())}
  monkeypatch.setattr(lora_alignment, 'SETTINGS', still)
  some = lambda _: ['full', 'LoRA', 'LoRA-GA']
  monkeypatch.setattr(lora_alignment, 'names_in', some)
  rows = run(Config(**SMALL), KEY, tmp_path, parallel='jit')
  losses = {0: [], 1: []}
  for row in rows:
    if row.get('step') == 2 and 'loss' in row:
      losses[row['seed']].append(row['loss'])
  for of_seed in losses.values():
    np.testing.assert_allclose(of_seed, of_seed[0], rtol=1e-5)
  assert losses[0][0] != losses[1][0]


def test_the_first_step_misses_what_the_theory_says():
  rows = [*_first_steps(Config(ranks=(1, 2)), quadratic(), KEY)]
  assert len(rows) == 2 * len(STARTS)
  for row in rows:
    missed, theory = float(row['missed']), row['theory']
    if row['start'] == 'LoRA-GA':
      assert missed == pytest.approx(theory, rel=1e-4)
      # The quadratic's gradients of all batches are parallel.
      assert float(row['missed_of_fresh']) == pytest.approx(theory, rel=1e-4)
    else:
      assert missed > 1.01 * theory
      assert float(row['missed_at_best_rate']) >= theory * (1 - 1e-4)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(rank=11), 'config.rank: got 11, expected in 1..10'),
    (dict(ranks=(4, 33)), r'config.ranks: got \(4, 33\), expected in 1..32'),
    (dict(sgd_rates=(0.0,)), r'config.sgd_rates: got \(0.0,\)'),
    (dict(digits_rates=()), r'config.digits_rates: got \(\)'),
    (dict(pretraining_rate=-1.0), 'config.pretraining_rate: got -1.0'),
    (dict(digits_steps=4), 'config.digits_steps: got 4, expected at least'),
    (dict(pretraining_steps=1), 'config.pretraining_steps: got 1'),
    (dict(gradient_batches=0), 'config.gradient_batches: got 0'),
    (dict(target='nothing'), 'nothing'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**change).check()


def test_the_presets_can_run():
  Config().check()
  full = Config.full()
  full.check()
  assert full.seeds == 5 and full.sizes.scan_layers
