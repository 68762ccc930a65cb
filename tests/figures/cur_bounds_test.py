"""Numbers of made-up rows, one tiny run, and what is refused."""

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import cur_bounds
from kexue.figures.cur_bounds import (
  CROSSED,
  CROSSES,
  MATRICES,
  METHODS,
  MOSAIC,
  MULTIPLES,
  SAMPLED,
  SAMPLERS,
  Config,
  _matrix,
  _records,
  plot,
  run,
)


def synthetic():
  """Errors of twice the optimum and of a fifth of the bound, but one."""
  rows = []

  def add(label, **row):
    rows.append({'run': label, 'step': 1, 'seed': 0, **row})

  for name in MATRICES:
    for method in METHODS:
      for rank in (2, 4):
        error = 5.0 if (name, method, rank) == ('slow', 'deim', 4) else 2.0
        add(
          f'bounds-{name}-0',
          part='bounds',
          matrix=name,
          source='digits' if name == 'images' else 'drawn',
          rank=rank,
          method=method,
          error=error,
          optimum=1.0,
          eta_rows=6.0,
          eta_columns=8.0,
          bound=10.0,
        )
  for name in CROSSED:
    for ratio, variant in enumerate(CROSSES, start=1):
      for rank in (2, 4):
        tags = dict(part='cross', matrix=name, variant=variant)
        add(f'cross-{name}-0', rank=rank, ratio=ratio**2.0, **tags)
  for name in SAMPLED:
    for sampler in SAMPLERS:
      for multiple in MULTIPLES:
        ratio = (7.0 if sampler == 'leverage' else 20.0) / multiple
        tags = dict(part='sampled', matrix=name, sampler=sampler)
        add(f'sampled-{name}-0', multiple=multiple, ratio=ratio, **tags)
  for method, eta in (('deim', 1e11), ('q_deim', 1.5), ('maxvol', 1.5)):
    add('kahan', kahan=method, eta_columns=eta)
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  assert numbers['largest_error_over_bound'] == 0.5
  assert numbers['largest_error_over_that_of_paper'] == pytest.approx(5 / 14)
  whole = {'mean': 2.0, 'min': 2.0, 'max': 2.0}
  assert numbers['error_over_optimum']['osinsky'] == whole
  assert numbers['error_over_optimum']['deim']['max'] == 5.0
  assert numbers['error_over_bound']['deim']['mean'] == pytest.approx(
    (7 * 0.2 + 0.5) / 8
  )
  assert [*numbers['largest_cross_over_optimum'].values()] == [1.0, 4.0, 9.0]
  sampled = numbers['largest_leverage_over_optimum']
  assert sampled == {m: 7 / m for m in MULTIPLES}
  assert numbers['eta_of_kahan']['deim'] == 1e11
  assert 'at most 0.50 of its bound' in figure.get_suptitle()
  assert axes['images'].get_title().startswith('digits')
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title()
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  rows = [r for r in synthetic() if r.get('method') != 'deim']
  with pytest.raises(ValueError, match="'method': 'deim'"):
    draw(rows)


@pytest.mark.parametrize('name', MATRICES)
def test_matrices_have_norm_one_and_differ_by_seed(name):
  c = Config(rows=30)
  images = np.random.default_rng(0).random((60, 16))
  first, second = (_matrix(c, name, seed, images) for seed in (0, 1))
  s = np.linalg.svd(first, compute_uv=False)
  assert first.shape == (30, 16) and s[0] == pytest.approx(1)
  assert np.abs(first - second).max() > 1e-3
  if name == 'slow':
    np.testing.assert_allclose(s, 1 / np.arange(1, 17))
  if name == 'fast':
    np.testing.assert_allclose(s, 10.0 ** -(np.arange(16) / 15))


def test_run_records_once(tmp_path, monkeypatch):
  monkeypatch.setattr(cur_bounds, 'METHODS', {'osinsky': 'k'})
  monkeypatch.setattr(cur_bounds, 'MATRICES', ('slow',))
  monkeypatch.setattr(cur_bounds, 'MULTIPLES', (1, 3))
  monkeypatch.setattr(cur_bounds, 'KAHAN', 20)
  config = Config('digits', rows=70, ranks=(4,), seeds=1, sampled_rank=4)
  config.check()
  rows = run(config, jax.random.key(0), tmp_path)
  assert len(rows) == 1 + 3 + 4 + 3
  bounds = [r for r in rows if r.get('part') == 'bounds']
  for row in bounds:
    assert row['optimum'] == pytest.approx(1 / 5)
    assert row['optimum'] <= row['error'] <= row['bound']
    eta = np.hypot(row['eta_rows'], row['eta_columns'])
    assert row['bound'] == pytest.approx(eta / 5)
  best, given, apart = [r['ratio'] for r in rows if r.get('part') == 'cross']
  assert 1 <= best <= given and best <= apart
  sampled = {
    (r['sampler'], r['multiple']): r['ratio']
    for r in rows
    if r.get('part') == 'sampled'
  }
  assert all(sampled[x, 3] < sampled[x, 1] for x in SAMPLERS)
  # Nothing is computed again.
  monkeypatch.setattr(cur_bounds, 'cur', None)
  assert run(config, jax.random.key(0), tmp_path) == rows


def test_steps_are_what_is_recorded():
  config = Config('digits', rows=70, ranks=(4, 8), seeds=2)
  parts = [*_records(config, jax.random.key(0), None)]
  assert (
    sum(count for _, count, _ in parts)
    == 2 * (4 * 2 * 6 + 2 * 2 * 3 + 3 * 6 * 2) + 3
  )
  assert len({label for label, _, _ in parts}) == len(parts)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(seeds=0), 'config.seeds: got 0, expected 1 or more'),
    (dict(rows=1000), 'config.rows: got 1000, expected up to 809'),
    (dict(ranks=()), 'config.ranks'),
    (dict(ranks=(8, 4)), 'config.ranks'),
    (dict(ranks=(4, 33)), 'config.ranks: .* ascending ranks of 1 to 32'),
    (dict(sampled_rank=8), 'config.sampled_rank: got 8, expected up to 7'),
    (dict(images='kjv'), "config.images: got 'kjv'"),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  small = dict(images='digits', rows=70, ranks=(4,), seeds=2)
  Config(**small, sampled_rank=7).check()
  with pytest.raises(ValueError, match=message):
    Config(**small | {'sampled_rank': 7} | change).check()
