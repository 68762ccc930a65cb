"""A run in small that is recorded once, codes that start anew, refusals."""

import dataclasses

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.codebook_usage import (
  MOSAIC,
  TECHNIQUES,
  Config,
  Setting,
  plot,
  run,
  unfit_codes,
)
from kexue.figures.tokenizer import make_quantizer
from kexue.models import CodebookState

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
  log_points=2,
  fit=('ste', 'fsq'),
  unfit=('ste',),
  sizes=(64,),
)


def test_a_run_is_recorded_once_and_drawn(tmp_path, monkeypatch):
  rows = run(SMALL, KEY, tmp_path, parallel='jit')
  found = [
    (r['technique'], r['start'], r['num_codes'], r['step']) for r in rows
  ]
  assert found == [
    (*setting, step) for setting in SMALL.settings for step in (2, 4)
  ]
  fit, unfit, fsq = (row for row in rows if row['step'] == 4)
  assert fit['val_loss'] != unfit['val_loss']
  assert fit['usage'] > unfit['usage']
  assert fsq['learning_rate'] == 4 * fit['learning_rate']
  assert {row['dataset'] for row in rows} == {'digits'}
  monkeypatch.setattr('kexue.figures.tokenizer.fit', None)
  assert run(SMALL, KEY, tmp_path, parallel='jit') == rows
  figure = matplotlib.figure.Figure(figsize=(18, 9))
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert f'ste {unfit["usage"]:.0%}' in figure.get_suptitle()
  assert numbers['most']['fit']['fsq']['val_loss'] == fsq['val_loss']
  assert all(ax.get_title() for ax in axes.values())
  figure.canvas.draw()


def test_codes_that_start_anew():
  task = SMALL.task(SMALL.data(), make_quantizer('balanced', 16))
  state = SMALL.tokenizer(task, 'jit').start(KEY, learning_rate=0.1)
  changed = unfit_codes(state, key=KEY)
  is_state = lambda x: isinstance(x, CodebookState)
  leaves = lambda x: jax.tree.leaves(x, is_leaf=is_state)
  pairs = zip(leaves(state), leaves(changed), strict=True)
  different = [(a, b) for a, b in pairs if is_state(a)]
  ((old, new),) = different
  assert old.codebook.shape == new.codebook.shape == (16, 3)
  assert 0.05 < np.abs(new.codebook).max() <= 1 / 16
  np.testing.assert_allclose(new.counts, 1)
  np.testing.assert_allclose(new.sums, new.codebook)
  for a, b in zip(leaves(state), leaves(changed), strict=True):
    assert is_state(a) or np.array_equal(a, b)
  other = unfit_codes(state, key=jax.random.key(1))
  (other,) = filter(is_state, leaves(other))
  assert not np.array_equal(other.codebook, new.codebook)


def test_settings_of_the_full_preset():
  settings = Config.full().settings
  assert len(settings) == len({*settings}) == 4 * (len(TECHNIQUES) + 4)
  assert Setting('fsq', 'none', 64) in settings
  assert Setting('rotation', 'unfit', 4096).label == 'rotation-unfit-4096'
  assert {s.start for s in settings if s.technique == 'simvq'} == {'fit'}


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(fit=('ste', 'vq')), 'config.fit: .* different ones of ste'),
    (dict(fit=('ste', 'ste')), 'config.fit'),
    (dict(fit=()), 'config.fit'),
    (dict(unfit=('fsq',)), 'config.unfit: .* different ones of ste$'),
    (dict(unfit=('revival',)), 'config.unfit'),
    (dict(sizes=(256, 64)), 'config.sizes: .* ascending'),
    (dict(sizes=(100,)), 'config.sizes: got .100'),
    (dict(sizes=(2**14,)), 'config.sizes'),
    (dict(steps=0), 'config.steps: got 0'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
