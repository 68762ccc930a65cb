"""The figure in small, a base run taken over, numbers from made-up rows."""

import json
import pathlib

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import advice
from kexue.figures.advice import RULES
from kexue.figures.batch_size_advisor import (
  MOSAIC,
  OPTIMIZERS,
  Config,
  excess,
  plot,
  run,
)
from kexue.figures.comparison import by_run

KEY = jax.random.key(0)
RATES = (0.01, 0.02, 0.04)
SMALL = dict(
  dataset='digits',
  width=4,
  population=128,
  batch_sizes=(16, 32),
  learning_rates=RATES,
  adam_rates=RATES,
  steps=32,
  seeds=1,
  new_batch_size=64,
  microbatches=2,
  memory=0.9,
  probed=4,
)


def identity(config, seed=0):
  """What `launch.py` writes to a config.json."""
  fields = json.loads(json.dumps(vars(config)))
  about = dict(preset='quick', seed=seed, parallel='jit', config=fields)
  return {'figure': 'batch_size_advisor', **about}


def unprobed(patch):
  """Both have tests of their own, and take long to compile."""
  patch.setattr(advice.Advisor, '_probe', lambda self, batch_size: 1.0)
  patch.setattr(advice.Advisor, '_surge_index', lambda self: 0.5)


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """The workdir and rows of a launch."""
  workdir = tmp_path_factory.mktemp('first')
  config = Config(**SMALL)
  (workdir / 'config.json').write_text(json.dumps(identity(config)))
  with pytest.MonkeyPatch.context() as patch:
    unprobed(patch)
    rows = run(config, KEY, workdir, parallel='jit')
  return workdir, rows


class TestSmallRun:
  """They share the workdir of the first launch."""

  def test_it_records_once(self, first, monkeypatch):
    workdir, rows = first
    monkeypatch.setattr(advice.Advisor, '__init__', None)  # Not called.
    again = run(Config(**SMALL), KEY, workdir, parallel='jit')
    np.testing.assert_equal(again, rows)  # Which has NaN equal to NaN.
    trained = [r for r in rows if 'trained' in r]
    # Twice the batch: twice the largest rate more. Malladi's: one rate.
    assert len(trained) == 2 * (3 + 4) + 1
    steps = {(r['batch_size'], r['step']) for r in trained}
    assert steps == {(16, 32), (32, 16)}

  def test_base_runs_are_tracked_and_saved(self, first):
    workdir, rows = first
    for name in OPTIMIZERS:
      base = by_run(rows)[f'base-{name}']
      assert len(base) == 16 and base[-1]['effective_samples'] > 5
      assert base[-1]['base_rate'] == pytest.approx(base[0]['base_rate'])
      assert (workdir / 'checkpoints' / f'base-{name}' / '32').exists()

  def test_advice_for_another_batch_takes_the_base_run_over(
    self, first, tmp_path, monkeypatch, capsys
  ):
    workdir, rows = first
    unprobed(monkeypatch)
    config = Config(**SMALL | dict(new_batch_size=128, base_run=str(workdir)))
    config.check()
    more = run(config, KEY, tmp_path, parallel='jit')
    np.testing.assert_equal(more[: len(rows)], rows)
    new = more[len(rows) :]
    assert [(r['advised'], r['batch_size']) for r in new] == [
      ('sgd', 128),
      ('adam', 128),
    ]
    said = capsys.readouterr().err
    for row in new:
      assert f'{row["advice"]:.3g} ({row["low"]:.3g} to' in said
    again = run(config, KEY, tmp_path, parallel='jit')
    np.testing.assert_equal(again, more)
    with pytest.raises(ValueError, match='seed'):
      run(config, jax.random.key(1), tmp_path / 'other', parallel='jit')


def made_up():
  """Optima 0.02, 0.025 and 0.025; the advice is that, or half of it."""
  rows = []
  for name in OPTIMIZERS:
    for fixed, batch, best in (
      ('base', 16, 0.02),
      ('examples', 64, 0.025),
      ('steps', 64, 0.025),
    ):
      for rate in RATES:
        row = dict(run=f'{name}{fixed}{batch}{rate}', step=9, seed=0)
        row |= dict(trained=name, fixed=fixed, batch_size=batch)
        loss = float(np.exp(np.log2(rate / best) ** 2))
        rows.append(row | dict(learning_rate=rate, train_loss=loss))
    for fixed, off in (('examples', 1.0), ('steps', 2.0)):
      for batch in (64, 256):
        row = dict(run=f'advice-{name}-B{batch}', step=1, advised=name)
        row |= dict(fixed=fixed, batch_size=batch, base_batch_size=16)
        row |= dict.fromkeys(RULES, 0.025) | dict(advice=0.025 / off, sqrt=0.04)
        row |= dict(low=0.02, high=0.04, past_critical=1, past_surge=0)
        row |= dict(noise_scale=9.0, surge_index=0.5, decay=0.3)
        rows.append(row | dict(base_rate=0.02))
    for step in (1, 2):
      row = dict(run=f'base-{name}', step=step, noise_scale=9.0, noise_low=8.0)
      rows.append(row | dict(noise_high=np.inf))
  row = dict(run='malladi', trained='malladi', fixed='examples', batch_size=64)
  rows.append(row | dict(learning_rate=0.04, seed=0, train_loss=3.0))
  return rows


def test_numbers_of_made_up_rows():
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(made_up(), axes)
  at = numbers['advice']['adam']['examples']
  assert at[64]['over_measured']['advice'] == pytest.approx(1, rel=1e-4)
  assert at[64]['past_critical'] == 1
  assert 'measured' not in at[256] and at[256]['advice'] == 0.025
  largest = numbers['largest_factor']['advice']
  assert largest['sgd']['steps'] == pytest.approx(2, rel=1e-4)  # Below it.
  root = numbers['largest_factor']['sqrt']['sgd']['examples']
  assert root == pytest.approx(1.6, rel=1e-4)
  assert numbers['base']['sgd']['rate'] == pytest.approx(0.02)
  best = np.exp(np.log2(1.25) ** 2)
  assert at[64]['excess_loss']['malladi'] == pytest.approx(3 / best - 1)
  assert 'advice sgd 2.0, adam 2.0' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_excess_is_between_points_and_not_outside():
  runs = by_run(made_up())
  wanted = dict(trained='sgd', fixed='base')
  between = float(excess(runs, 0.02 * 2**0.5, **wanted))
  assert between == pytest.approx(np.exp(0.5) - 1)  # Half of the logarithm.
  assert excess(runs, 0.02, **wanted) == pytest.approx(0)
  assert np.isnan(excess(runs, 0.05, **wanted))


def test_a_budget_that_was_not_run_has_no_axes():
  rows = [row for row in made_up() if row.get('fixed') != 'steps']
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert {*numbers['largest_factor']['linear']['sgd']} == {'examples'}
  assert not axes['sgd-steps'].axison and axes['sgd-examples'].axison


def test_the_grid_and_the_plan_follow_the_batch():
  config = Config(**SMALL | dict(batch_sizes=(16, 64), budgets=('steps',)))
  assert config.rates('sgd', 4) == pytest.approx([*RATES, 0.08, 0.16])
  assert config.rates('adam', 3) == pytest.approx([*RATES, 0.08, 0.16])
  assert config.rates('adam') == [*RATES]
  assert config.plan() == [('base', 16, 32), ('steps', 64, 32)]


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(batch_sizes=(16, 40)), r'config.batch_sizes: got \(16, 40\)'),
    (dict(learning_rates=(0.1, 0.2)), 'config.learning_rates'),
    (dict(adam_rates=(0.1, 0.3, 0.2)), 'config.adam_rates'),
    (dict(adam_rates=(0.0, 0.1, 0.2)), 'config.adam_rates'),
    (dict(steps=31), 'config.steps: got 31, expected 32 or more'),
    (dict(budgets=('time',)), r"config.budgets: got \('time',\)"),
    (dict(budgets=()), r'config.budgets: got \(\)'),
    (dict(new_batch_size=32), 'config.new_batch_size: got 32'),
    (dict(microbatches=3), 'config.microbatches: got 3'),
    (dict(memory=1.0), 'config.memory: got 1.0'),
    (dict(probed=3), 'config.probed: got 3'),
    (dict(base_run='nowhere'), 'there is no run'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()


def test_a_base_run_of_another_config_is_refused(tmp_path):
  path = pathlib.Path(tmp_path) / 'config.json'
  config = Config(**SMALL | dict(base_run=str(tmp_path), new_batch_size=128))
  path.write_text(json.dumps(identity(Config(**SMALL))))
  config.check()
  path.write_text(json.dumps(identity(Config(**SMALL | dict(width=5)))))
  with pytest.raises(ValueError, match='config.width: got 4, expected 5 as in'):
    config.check()
  path.write_text(json.dumps({**identity(config), 'figure': 'surge'}))
  with pytest.raises(ValueError, match='config.base_run'):
    config.check()
