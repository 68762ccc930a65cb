"""The figure in small, its mean field, and its numbers from made-up rows."""

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import epsilon_scaling
from kexue.figures.epsilon_scaling import (
  MOSAIC,
  THEORIES,
  Config,
  growth,
  plot,
  root_mean_squares,
  run,
  softened,
)
from kexue.figures.one_step_search import Moments
from kexue.scaling import SignLaw, SoftsignLaw

KEY = jax.random.key(0)
RATES = (0.001, 0.002, 0.004)
SMALL = dict(
  dataset='digits',
  width=4,
  population=128,
  batch_sizes=(8,),
  learning_rates=RATES,
  steps=2,
  seeds=2,
  eps=(0.0, 1.0),
  stage=3,
  stage_batch=8,
  one_step_batches=(8,),
  searched=4,
  probed=4,
  signs=2,
)
UNIT = {'run': 'unit', 'step': 1, 'gradient_rms': 0.1, 'noise_rms': 2.0}


def test_run_records_once_and_is_drawn(tmp_path, monkeypatch):
  # They have tests of their own, and take long to compile.
  found = lambda *args, eps, **options: {'probe': 0.1 + eps, 'measured': 0.1}
  law = SignLaw(1.0, 9.0, 5.0, 1.0)
  monkeypatch.setattr(epsilon_scaling, 'search', found)
  monkeypatch.setattr(epsilon_scaling, 'theory', lambda *args: 0.1)
  monkeypatch.setattr(epsilon_scaling, 'noise_signs', lambda *args: None)
  monkeypatch.setattr(epsilon_scaling, 'article_law', lambda *args: law)
  config = Config(**SMALL)
  rows = run(config, KEY, tmp_path, parallel='jit')
  assert run(config, KEY, tmp_path, parallel='jit') == rows
  looks = [row for row in rows if 'probe' in row]
  assert [row['eps'] for row in looks] == [0, 1]
  # A softer sign has its epsilon and sees less of a surge.
  assert looks[1]['probe'] == pytest.approx(0.1 + rows[0]['noise_rms'])
  assert looks[0]['surge_index'] > looks[1]['surge_index']
  unit = rows[0]
  trained = [row for row in rows if 'seed' in row]
  assert len(trained) == 2 * 3 * 2
  for eps in (0.0, 1.0):
    tried = {r['learning_rate'] for r in trained if r['eps'] == eps}
    scale = growth(eps, 8, unit)
    assert sorted(tried) == pytest.approx([rate * scale for rate in RATES])
  losses = {r['train_loss'] for r in trained if r['seed'] == 0}
  assert len(losses) == 6  # Epsilon reaches the optimizer.


def test_growth_follows_the_gradient_of_a_batch():
  assert growth(0.0, 16, UNIT) == 1
  of_batch = np.sqrt(0.1**2 + 2.0**2 / 16)
  expected = np.sqrt(1 + (3 * 2.0 / of_batch) ** 2)
  assert growth(3.0, 16, UNIT) == pytest.approx(expected)


def test_the_mean_field_is_that_of_the_moments(monkeypatch):
  rng = np.random.default_rng(0)
  root = rng.normal(size=(6, 6))
  hessian = jnp.array(root @ root.T, jnp.float32)
  g, s = (jnp.array(rng.lognormal(size=6), jnp.float32) for _ in range(2))
  trees = ({'a': x[:2], 'b': x[2:]} for x in (g, s))
  flat = lambda v: jnp.concatenate([v['a'][0], v['b'][0]])
  monkeypatch.setattr(
    epsilon_scaling,
    'curvatures',
    lambda task, params, v: (flat(v) @ hessian @ flat(v))[None],
  )
  moments = Moments(*trees)
  of_sign = SignLaw.from_moments(gradient=g, noise_std=s, hessian=hessian)
  law = softened(of_sign, None, None, moments, 0.7)
  expected = SoftsignLaw.from_moments(
    gradient=g, noise_std=s, hessian=hessian, eps=0.7
  )
  for name in ('rate', 'curvature_ratio', 'noise_scale', 'gradient_l1'):
    np.testing.assert_allclose(
      getattr(law, name), getattr(expected, name), rtol=1e-5
    )
  of = root_mean_squares(moments)
  rms = lambda x: np.sqrt(np.mean(np.float64(x) ** 2))
  assert of['gradient_rms'] == pytest.approx(rms(g), rel=1e-6)
  assert of['noise_rms'] == pytest.approx(rms(s), rel=1e-6)


def made_up():
  """One step: growth 4 at epsilon 0, 16 at 1; training: a surge, then none."""
  rows = [dict(UNIT)]
  for eps in (0.0, 1.0):
    for batch, measured in ((16, 0.001), (64, 0.002), (256, 0.004)):
      measured *= 1 + eps * batch / 64
      row = dict(run=f'one-step-B{batch}', eps=eps, batch_size=batch)
      row |= dict(surge_index=100.0 - 99 * eps, at_edge=0)
      row |= dict.fromkeys(('measured', 'measured_low'), measured)
      row |= dict(measured_high=measured, probe=1.1 * measured)
      row |= dict(article=0.01 / batch, independent=2 * measured)
      rows.append(row | dict(correlated=0.9 * measured))
    for batch, best in ((16, 0.002), (256, 0.002 * 2 ** (0.8 * eps - 0.4))):
      scale = growth(eps, batch, UNIT)
      for rate in RATES:
        for seed in range(2):
          row = dict(run=f'{eps}-{batch}-{rate}-{seed}', step=9, seed=seed)
          row |= dict(batch_size=batch, eps=eps, learning_rate=rate * scale)
          loss = float(np.exp(np.log2(rate / best) ** 2 / 9))
          rows.append(row | dict(train_loss=loss))
  return rows


def test_numbers_of_made_up_rows():
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(made_up(), axes)
  of = numbers['by_batch']
  assert of['measured'][0.0]['largest_over_smallest'] == pytest.approx(4)
  assert of['measured'][1.0]['largest_over_smallest'] == pytest.approx(16)
  assert of['article'][0.0]['overshoot'] == pytest.approx(15)
  surge = of['trained'][0.0]['overshoot']
  assert surge == pytest.approx(2**0.4 - 1, rel=1e-4)
  ends = [growth(1.0, batch, UNIT) for batch in (16, 256)]
  rises = of['trained'][1.0]['largest_over_smallest']
  assert rises == pytest.approx(2**0.4 * ends[1] / ends[0], rel=1e-4)
  over = numbers['over_search']
  assert set(over) == set(THEORIES)
  assert over['probe'][1.0]['max'] == pytest.approx(1.1)
  # Not the batch of 16.
  assert over['article'][0.0]['max'] == pytest.approx(0.01 / 64 / 0.002)
  assert numbers['searches_at_an_edge'] == 0
  assert '4.00 times at epsilon 0, 16.00 times at epsilon 1' in (
    figure.get_suptitle()
  )
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(eps=(0.1, 1.0)), r'config.eps: got \(0.1, 1.0\)'),
    (dict(eps=(0.0, 2.0, 1.0)), 'config.eps'),
    (dict(eps=()), r'config.eps: got \(\)'),
    (dict(stage=-1), 'config.stage: got -1'),
    (dict(stage_rate=0.0), 'config.stage_rate: got 0.0'),
    (dict(one_step_batches=()), r'config.one_step_batches: got \(\)'),
    (dict(probed=3), 'config.probed: got 3'),
    (dict(learning_rates=(0.1, 0.2)), 'config.learning_rates'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()


def test_the_presets_can_run():
  # Eight devices share each batch.
  Config().check()
  Config.full().check()
