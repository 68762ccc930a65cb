"""Statistics of steps by hand, a run that is recorded once, the powers."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.clip_norm import (
  MOSAIC,
  OPTIMIZERS,
  Config,
  plot,
  run,
  statistics,
)
from kexue.figures.image_model import ImageConfig

KEY = jax.random.key(0)
SMALL = dict(
  dataset='digits',
  widths=(2, 4, 8),
  batch_size=8,
  population=64,
  learning_rates=(0.01, 0.02, 0.04),
  descent_rates=(0.1, 0.2, 0.4),
  steps=16,
  doublings=1,
  seeds=1,
)
SIZES = {4: 400, 8: 1600, 16: 6400}


def synthetic():
  """Best at N^-1/2 but for SGD; what a step wins goes with N^1/2."""
  rows = []
  for width, size in SIZES.items():
    for name in OPTIMIZERS:
      best = 0.01 if name == 'sgd' else size**-0.5
      about = {'width': width, 'parameters': size}
      for seed in (0, 1):
        for i in range(5):
          row = {'run': f'{name}-{width}-{i}-{seed}', 'step': 10}
          row |= {'optimizer': name, 'seed': seed} | about
          row |= {'learning_rate': best * 2.0 ** (i - 2)}
          loss = {'train_loss': 0.5 * np.exp((i - 2) ** 2)}
          rows.append(row | (loss if i < 4 else {}))  # The last diverged.
        for step in (5, 10, 20):
          row = {'run': f'{name}-{width}-{seed}-followed', 'step': step}
          row |= {'followed': name, 'seed': seed} | about
          row |= {'norm': 0.5, 'sign_cosine': 0.6}
          row |= {'clipped': {5: 1.0, 10: 0.25, 20: 0.0}[step]}
          row |= {'norm_l1': size**0.5, 'won': size**0.5}
          rows.append(row | {'steps': step})
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_synthetic_rows():
  numbers, figure, axes = draw(synthetic())
  assert numbers['parameters'] == {'4': 400, '8': 1600, '16': 6400}
  for name, power in (('adam', -0.5), ('sign', -0.5), ('sgd', 0)):
    found = numbers[name]
    assert found['power'] == pytest.approx(power, abs=1e-5)
    assert found['power_of_seeds']['max'] == pytest.approx(power, abs=1e-5)
    assert found['power_of_article'] == power
    assert found['power_of_won'] == pytest.approx(0.5)
    assert found['power_of_won_at_best'] == pytest.approx(power + 0.5, abs=1e-5)
    # Means over 5 and 10 steps; the rows behind are not of the tuned run.
    assert found['clipped'] == pytest.approx(
      dict.fromkeys(('4', '8', '16'), 0.5)
    )
    assert found['clipped_at_the_end'] == {'4': 0.0, '8': 0.0, '16': 0.0}
    assert not any(best['at_edge'] for best in found['by_width'].values())
  assert numbers['sign']['won_at_best']['8'] == pytest.approx(1, rel=1e-5)
  assert 'adam -0.50 (-0.5)' in figure.get_suptitle()
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_statistics_by_hand():
  task = ImageConfig(dataset='digits', width=4, population=64).task(8)
  params = task.init(KEY)
  draw = lambda seed: jax.tree.map(
    jnp.asarray, task.batches(jax.random.key(seed))(0, 2)
  )
  batches, other = draw(0), draw(1)
  flat = lambda tree: np.float64(jax.flatten_util.ravel_pytree(tree)[0])
  gradient = lambda p, xs, i: jax.grad(task.mean_loss)(
    p, jax.tree.map(lambda x: x[i], xs)
  )
  found = statistics(task, 'sgd', params, batches, other, 0.5)
  moved = params
  for i in (0, 1):
    g, fresh = gradient(moved, batches, i), gradient(moved, other, i)
    assert found['norm'][i] == pytest.approx(np.linalg.norm(flat(g)), rel=1e-5)
    assert found['descent'][i] == pytest.approx(flat(g) @ flat(g), rel=1e-5)
    assert found['won'][i] == pytest.approx(flat(g) @ flat(fresh), rel=1e-4)
    assert found['clipped'][i] == (np.linalg.norm(flat(g)) > 1)
    moved = jax.tree.map(lambda x, g: x - 0.5 * g, moved, g)
  found = statistics(task, 'sign', params, batches, other, 0.5)
  g, fresh = (flat(gradient(params, xs, 0)) for xs in (batches, other))
  assert found['descent'][0] == pytest.approx(abs(g).sum(), rel=1e-5)
  assert found['won'][0] == pytest.approx(np.sign(g) @ fresh, rel=1e-4)
  cosine = abs(g).sum() / np.sqrt((g != 0).sum()) / np.linalg.norm(g)
  assert found['sign_cosine'][0] == pytest.approx(cosine, rel=1e-5)


def test_a_run_is_recorded_once(tmp_path, monkeypatch):
  config = Config(**SMALL)
  config.check()
  one = {'sgd': OPTIMIZERS['sgd']}
  monkeypatch.setattr('kexue.figures.clip_norm.OPTIMIZERS', one)
  again = lambda: run(config, KEY, tmp_path, parallel='jit')
  rows = again()
  trained, followed = 3 * 3, 3 * len(config.ends)
  assert len(rows) == trained + followed
  one = [row for row in rows if row['run'] == 'sgd-d4-s0-followed']
  assert [row['step'] for row in one] == [1, 2, 4, 8, 16, 32]
  assert [row['steps'] for row in one] == [1, 1, 2, 4, 8, 16]
  # At the best of the grid.
  losses = {
    row['learning_rate']: row['train_loss']
    for row in rows
    if (row.get('optimizer'), row['width']) == ('sgd', 4)
  }
  assert one[0]['learning_rate'] == min(losses, key=losses.get)
  monkeypatch.setattr('kexue.figures.clip_norm.statistics', None)
  monkeypatch.setattr('kexue.figures.language_model.fit', None)
  assert again() == rows


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(widths=(4, 8)), r'config.widths: got \(4, 8\), expected 3 or more'),
    (dict(widths=(4, 2, 8)), 'config.widths'),
    (dict(descent_rates=(0.1, 0.2, 0.2)), 'config.descent_rates'),
    (dict(learning_rates=(0.0, 0.1, 0.2)), 'config.learning_rates'),
    (dict(steps=24), 'config.steps: got 24, expected a multiple of 16'),
    (dict(doublings=-1), 'config.doublings: got -1'),
    (dict(batch_size=12), r'config.batch_sizes: got \(12,\)'),
    (dict(seeds=0), 'config.seeds: got 0'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  dataclasses.replace(Config.full(), dataset='digits').check()
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()
