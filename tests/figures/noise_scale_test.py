"""The figure in small, and its numbers from made-up rows."""

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures import noise_scale
from kexue.figures.noise_panels import parts_of
from kexue.figures.noise_scale import MOSAIC, Config, plot, run
from kexue.figures.noise_tracking import PARTS

KEY = jax.random.key(0)
SMALL = dict(
  width=32,
  layers=1,
  length=4,
  batch_size=16,
  other_batch=8,
  steps=4,
  log_points=2,
  draws=3,
  rows=PARTS,
)


def made_up_moments():
  names = ('gradient_sq_norm', 'noise', 'curvature', 'noise_curvature')
  names += ('aligned', 'noise_trace', 'trace')
  names += ('gradient_l1', 'noise_l1', 'cross_l1')
  return dict.fromkeys(names, jnp.array([1.0, 2.0, 3.0]))


def drawn(rows):
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_run_records_once_and_is_drawn(tmp_path, monkeypatch):
  seen = []

  def looked(task, params, batches, key):
    seen.append(batches)
    return made_up_moments()

  monkeypatch.setattr(noise_scale, 'moments_of', looked)
  config = Config(**SMALL)
  config.check()
  rows = run(config, KEY, tmp_path)
  assert run(config, KEY, tmp_path) == rows
  assert [row['step'] for row in rows] == [2, 4]
  for row in rows:
    assert row['training_low'] <= row['training'] <= row['training_high']
    assert row['batch_size'] == 16 and np.isfinite(row['val_loss'])
  # Four steps, of nearly equal weight.
  assert rows[1]['effective_samples'] == pytest.approx(4, rel=2e-2)
  parts = {'embedding', 'attention 0', 'mlp 0', 'norms', 'head'}
  assert {*parts_of(rows[0])} == parts
  assert [x.shape for x in seen] == [(3, 2 * PARTS, 5)] * 2
  assert np.any(seen[0] != seen[1])
  assert rows[0]['surge'] == pytest.approx(0.5) and rows[0]['simple'] == 1
  drawn(rows)


def made_up():
  """Grows from 10 to 40 sequences; the other batch says 10 % less."""
  rows = []
  for seed in (0, 1):
    for step, scale in ((100, 10.0), (200, 20.0), (300, 40.0)):
      row = dict(run=f'seed-{seed}', seed=seed, step=step)
      row |= dict(batch_size=64, other_batch=16, rows=32, one_step=-1.0)
      row |= dict(
        loss=2.0, val_loss=4 - step / 100, sign_scale=3.0, sign_scale_above=90.0
      )
      for name, value in (
        ('training', scale),
        ('simple', 1.25 * scale),
        ('other', 0.9 * scale),
        ('curvature_scale', scale / 2),
        ('part head', 3 * scale),
        ('surge', 0.2),
        ('article_surge', 100.0),
      ):
        ends = {f'{name}_low': 0.8 * value, f'{name}_high': 1.25 * value}
        row |= {name: value} | ends
      rows.append(row)
  return rows


def test_numbers_of_made_up_rows():
  numbers, figure, axes = drawn(made_up())
  assert numbers['growth']['mean'] == pytest.approx(4)
  assert numbers['noise_scale_at_the_end']['max'] == 40
  assert numbers['steps_with_overlapping_intervals'] == 1
  assert 0 < numbers['largest_difference_in_standard_errors'] < 1.96
  assert numbers['other_over_training']['mean'] == pytest.approx(0.9)
  assert numbers['curvature_scale_over_simple']['min'] == pytest.approx(0.4)
  assert numbers['tracked_over_fresh']['later']['max'] == pytest.approx(0.8)
  assert numbers['surge_index']['max'] == pytest.approx(0.2)
  assert numbers['part_over_total_at_the_end']['head']['min'] == 3
  title = figure.get_suptitle()
  assert 'grows 4.0 times' in title and 'at 100 % of' in title
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


def test_what_is_not_recorded_is_named():
  with pytest.raises(ValueError, match='records'):
    drawn([{'run': 'a', 'step': 1}])


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(steps=5), 'config.steps: got 5, expected a multiple of the 2'),
    (dict(batch_size=12), 'config.batch_size: got 12'),
    (dict(other_batch=0), 'config.other_batch: got 0'),
    (dict(microbatches=3), 'config.microbatches: got 3'),
    (dict(microbatches=1), 'config.microbatches: got 1'),
    (dict(rows=4), 'config.rows: got 4'),
    (dict(draws=2), 'config.draws: got 2'),
    (dict(decay=1.0), 'config.decay: got 1.0'),
    (dict(learning_rate=0.0), 'config.learning_rate'),
    (dict(dataset='nothing'), 'nothing'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**SMALL | change).check()


def test_the_presets_can_run():
  Config().check()
  Config.full().check()
