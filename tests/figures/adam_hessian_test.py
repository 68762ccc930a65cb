"""What is refused, a run that is recorded once, numbers of made-up rows."""

import dataclasses

import jax
import matplotlib.figure
import pytest

from kexue.figures.adam_hessian import MOSAIC, Config, plot, run
from kexue.figures.hessian_panels import MEASURES

KEY = jax.random.key(0)
SMALL = dict(
  dataset='digits',
  width=4,
  population=64,
  batch_sizes=(8,),
  steps=8,
  looks=2,
  probes=2,
  perturbations=2,
  entries=5,
  control_steps=20,
  control_draws=10,
)


def look(batch, seed, step):
  """Slopes 1 and 1/2 for row norms and diagonal, one more a seed."""
  row = {'batch_size': batch, 'seed': seed, 'trained': step, 'loss': 0.5}
  row |= {'noise_share': 0.9, 'centred_over_row': 1.1}
  row |= {'adam_estimated_slope': 0.25}
  for name in MEASURES:
    for kind in ('slope', 'correlation'):
      row |= {f'{name}_row_{kind}': 1 + seed, f'{name}_diagonal_{kind}': 0.5}
  return row


def synthetic():
  rows = []
  for i in range(1, 9):
    row = {'diagonal': i, 'row': 2 * i, 'eigenvalue': i, 'isotropic': 2.0 * i}
    row |= {'isotropic_eigen': i, 'noise': i**0.5, 'noise_eigen': i**0.5}
    row |= {'adam': 2 * i**0.5, 'descent': i**0.9, 'descent_theory': i**0.9}
    rows.append({'run': 'regression', 'step': i} | row)
  for batch in (8, 16):
    for seed in (0, 1):
      for step in (4, 16):
        label = f'B{batch}-s{seed}-step{step}'
        rows.append({'run': label, 'step': 1} | look(batch, seed, step))
  entry = {'batch_size': 8, 'seed': 0, 'trained': 16}
  for i in range(1, 9):
    row = {'diagonal': i, 'row': 9 * i, 'centred': i, 'adam': i**0.5}
    rows.append({'run': 'B8-s0-step16', 'step': 1 + i} | entry | row)
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  of = numbers['regression']
  assert of['isotropic']['row'] == pytest.approx(1, rel=1e-5)
  assert of['adam']['diagonal'] == pytest.approx(0.5, rel=1e-5)
  eigen = numbers['regression_in_eigenbasis']
  assert eigen['noise'] == pytest.approx(0.5, rel=1e-5)
  ratio = numbers['regression_over_theory']
  assert ratio["Adam's v over noise"]['mean'] == pytest.approx(2)
  network = numbers['network']['16']
  assert {*numbers['network']} == {'8', '16'}
  slopes = network['slopes']['adam']
  assert slopes['row'] == {'mean': 1.5, 'min': 1, 'max': 2}
  assert slopes['diagonal']['mean'] == 0.5
  assert network['adam_estimated_slope']['mean'] == 0.25
  assert 'batches of 8' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_a_run_is_recorded_once(tmp_path, monkeypatch):
  config = Config(**SMALL, seeds=1)
  config.check()
  again = lambda: run(config, KEY, tmp_path, parallel='jit')
  rows = again()
  looks = [row for row in rows if 'loss' in row]
  assert [(r['batch_size'], r['trained']) for r in looks] == [
    (8, 2),
    (8, 8),
  ]
  assert sum('centred' in row for row in rows) == 5
  fitted = []
  monkeypatch.setattr(
    'kexue.figures.adam_hessian.fit', lambda *a, **k: fitted.append(a)
  )
  assert again() == rows and not fitted
  draw(rows)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(steps=10), 'config.steps: got 10, expected a multiple of 4'),
    (dict(looks=0), 'config.looks: got 0'),
    (dict(size=0.0), 'config.size: got 0.0'),
    (dict(population=60), 'config.population: got 60'),
    (dict(batch_sizes=(12,)), r'config.batch_sizes: got \(12,\)'),
    (dict(control_draws=1), 'config.control_draws: got 1'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  dataclasses.replace(Config.full(), dataset='digits').check()
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()
