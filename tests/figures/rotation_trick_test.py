"""A run in small that is recorded once, and the table of made-up rows."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.rotation_table import CENTRE
from kexue.figures.rotation_trick import (
  IMAGES,
  MOSAIC,
  Config,
  plot,
  run,
  scaled_codes,
)
from kexue.figures.tokenizer import make_quantizer

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits',
  width=4,
  latent=3,
  blocks=0,
  batch_size=8,
  steps=4,
  images=64,
  held_out=8,
  techniques=('ste', 'rotation', 'fsq'),
  num_codes=64,
  weights=(0.25,),
  ratios=(0.05, 1.0),
)


def test_a_run_is_recorded_once(tmp_path, monkeypatch):
  # A part of it: every technique and codebook costs a compilation.
  settings = [s for s in SMALL.settings if s.codebook != 'ema']
  settings = [s for s in settings if s.technique != 'rotation']
  monkeypatch.setattr(Config, 'settings', settings)
  rows = run(SMALL, KEY, tmp_path, parallel='jit')
  ends = [row for row in rows if row.get('step') == 4 and 'ratio' in row]
  found = [(row['technique'], row['ratio']) for row in ends]
  assert found == [('ste', 1.0), ('ste', 0.05), ('fsq', 1.0)]
  for row in ends:
    assert row['tokens'] == 4 * 8 * 4 and row['dataset'] == 'digits'
    assert row['commitment_weight'] == 0.25 and row['seed'] == 0
  assert ends[0]['val_loss'] != ends[1]['val_loss']
  shown = [row for row in rows if 'images' in row]
  assert len(shown) == 3 * IMAGES
  names = dict.fromkeys(row['images'] for row in shown)
  assert [*names] == ['ste, learned, 0.05', 'fsq, none, 1', 'originals']
  first = SMALL.data().validation['image'][0, ..., 0]
  assert shown[-IMAGES]['pixels'] == 'x' + first.tobytes().hex()
  monkeypatch.setattr('kexue.figures.tokenizer.fit', None)
  assert run(SMALL, KEY, tmp_path, parallel='jit') == rows


@pytest.mark.parametrize('name, book', [('ste', 'ema'), ('simvq', 'linear')])
def test_codes_are_scaled_and_nothing_else(name, book):
  task = SMALL.task(SMALL.data(), make_quantizer(name, 16, codebook=book))
  tokenizer = SMALL.tokenizer(task, 'jit')
  state = tokenizer.start(KEY, learning_rate=0.1)
  scaled = scaled_codes(state, 0.5)
  of = lambda state: task.model.apply(
    {'params': state.params, **state.variables},
    jnp.arange(16).reshape(1, 4, 4),
    method=lambda model, i: model.tokens.decode_indices(i),
  )
  np.testing.assert_allclose(of(scaled), 0.5 * of(state), rtol=1e-5)
  same = lambda a, b: bool(np.array_equal(a, b))
  alike = jax.tree.map(same, state, scaled)
  different = jax.tree.leaves_with_path(alike, is_leaf=lambda x: x is False)
  names = {
    jax.tree_util.keystr(path[-1:], simple=True)
    for path, equal in different
    if not equal
  }
  assert names == ({'codebook', 'sums'} if name == 'ste' else {'frozen'})


# Losses and usage that the made-up rows have.
LOSS = {'ste': 0.02, 'rotation': 0.015, 'fsq': 0.01, 'simvq': 0.03}


def made_up(seeds=2):
  rows = []
  for setting in Config.full().settings:
    technique, codebook, weight, ratio = setting
    loss = (
      LOSS.get(technique, 0.04) + 0.001 * (ratio != 1) + 0.002 * (weight > 1)
    )
    if (technique, codebook) == ('ste', 'ema'):
      loss = 0.012 if ratio < 1 else loss
    for seed in range(seeds):
      row = {'run': f'{setting.label}-s{seed}', 'seed': seed, 'step': 9}
      row |= {'technique': technique, 'codebook': codebook, 'ratio': ratio}
      row |= {'commitment_weight': weight, 'dataset': 'made up', 'tokens': 1000}
      row |= {'val_loss': loss + 0.0002 * seed, 'usage': 0.5 + 0.1 * seed}
      row |= {'perplexity': 7.0, 'latent_square': 0.5, 'seconds': 4.0 - seed}
      if technique != 'fsq':
        row['quantization_error'] = 0.05
      rows.append(row)
  for name in ('ste, learned', 'fsq, none', 'originals'):
    about = {'height': 2, 'columns': 3, 'pixels': 'x00ff00112233'}
    rows += [{'run': name, 'step': i, 'images': name, **about} for i in (1, 2)]
  return rows


def draw(rows):
  figure = matplotlib.figure.Figure(figsize=(18, 13))
  axes = figure.subplot_mosaic(MOSAIC)
  return plot(rows, axes), figure, axes


def test_numbers_of_made_up_rows():
  numbers, figure, axes = draw(made_up())
  table = numbers['table']
  assert len(table) == 2 * 4 + 3
  rotation = table['rotation learned']
  assert rotation['best']['val_loss']['mean'] == pytest.approx(0.0151)
  assert rotation['best']['val_loss']['max'] == pytest.approx(0.0152)
  assert rotation['worst']['val_loss']['mean'] == pytest.approx(0.0161)
  assert rotation['at_the_centre']['ratio'] == 1
  assert rotation['at_the_centre']['usage']['mean'] == pytest.approx(0.55)
  assert rotation['best']['relative_quantization_error']['mean'] == 0.1
  assert rotation['tokens_per_second'] == pytest.approx(1000 / 3)
  assert 'quantization_error' not in table['fsq none']['best']
  # Of running means the one with short codes is won by straight through.
  assert numbers['winners']['ema, weight 0.25, ratio 0.05'] == 'ste'
  assert numbers['winners']['learned, weight 0.25, ratio 0.05'] == 'rotation'
  assert table['ste ema']['wins'] == ['ema, weight 0.25, ratio 0.05']
  small = numbers['short_codes']['ema']
  assert small['ste']['val_loss']['mean'] == pytest.approx(0.0121)
  assert small['rotation']['ratio'] == 0.05
  assert numbers['long_codes']['learned']['ste']['ratio'] == 4
  assert numbers['runs_that_diverged'] == 0
  title = figure.get_suptitle()
  assert 'best of all: fsq none' in title and 'made up' in title
  assert '0.05 as long as vectors, error 21.1 to 16.1' in title
  for name, ax in axes.items():
    assert ax.get_title()
    assert name == 'images' or ax.get_xlabel()
  figure.canvas.draw()


def test_runs_that_diverged_are_infinite_and_one_run_has_no_speed():
  rows = made_up(seeds=1)
  for row in rows:
    if row.get('technique') == 'diveq' and row['ratio'] < 1:
      row['val_loss'] = np.inf
      for name in ('usage', 'perplexity', 'latent_square', 'seconds'):
        del row[name]
  numbers, figure, _ = draw(rows)
  assert numbers['runs_that_diverged'] == 1
  worst = numbers['table']['diveq learned']['worst']
  assert worst['val_loss']['mean'] == np.inf and 'usage' not in worst
  assert numbers['table']['fsq none']['tokens_per_second'] is None
  figure.canvas.draw()


def test_settings_are_a_cross_about_the_centre():
  settings = Config.full().settings
  assert len(settings) == len({*settings}) == 3 * 2 * 5 + 2 + 5 + 5 + 1
  for setting in settings:
    assert CENTRE[0] == setting.weight or CENTRE[1] == setting.ratio
  assert [s.label for s in settings][1] == 'ste-ema-b0.05-r1'


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(techniques=('ste', 'vq', 'rotation')), 'config.techniques'),
    (dict(techniques=('ste',)), 'ste and rotation among them'),
    (dict(weights=(1.0,)), 'config.weights: .* with 0.25'),
    (dict(ratios=(1.0, 0.05)), 'config.ratios: .* ascending'),
    (dict(ratios=(-1.0, 1.0)), 'config.ratios'),
    (dict(num_codes=1), 'config.num_codes: got 1'),
    (dict(num_codes=100), 'num_codes: got 100'),
    (dict(seeds=0), 'config.seeds: got 0'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
