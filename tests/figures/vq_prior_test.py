"""A run in small that is recorded once, and measures by hand."""

import dataclasses
import math

import jax
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.rotation_panels import image_of
from kexue.figures.vq_prior import (
  CLASSIFIER,
  MOSAIC,
  SHOWN,
  Config,
  plot,
  run,
)

KEY = jax.random.key(0)
SMALL = Config(
  dataset='digits',
  width=4,
  latent=2,
  blocks=0,
  batch_size=8,
  steps=4,
  images=64,
  held_out=16,
  tokenizers=('fsq-64',),
  num_codes=128,
  prior_width=8,
  prior_layers=1,
  prior_batch=8,
  prior_steps=4,
  prior_log_points=2,
  judged=40,
)


@pytest.fixture
def short_classifier(monkeypatch):
  monkeypatch.setitem(CLASSIFIER, 'steps', 2)


@pytest.mark.usefixtures('short_classifier')
def test_a_run_is_recorded_once(tmp_path, monkeypatch):
  rows = run(SMALL, KEY, tmp_path, parallel='jit')
  real, row = (row for row in rows if 'pixels' in row)
  assert real['run'] == 'real' and real['frechet'] > 0
  priors = [row for row in rows if row['run'].startswith('prior-')]
  assert [row['step'] for row in priors] == [2, 4]
  assert row['run'] == 'judged-fsq-64-s0' and row['tokenizer'] == 'fsq-64'
  assert row['capacity'] == 6 and row['dataset'] == 'digits'
  assert 0 <= row['entropy'] <= 6
  nats = row['bits_per_token'] * math.log(2)
  assert nats == pytest.approx(priors[1]['val_loss'], rel=1e-6)
  assert row['bits'] == pytest.approx(4 * row['bits_per_token'])
  assert row['description'] == row['bits'] + row['residual_bits']
  assert min(row['samples_frechet'], row['reconstructions_frechet']) > 0
  assert row['columns'] <= 10 * SHOWN * 8 and row['height'] == 8
  held_out = SMALL.data().validation
  labels = held_out['label'][40:80]
  first = held_out['image'][40:][np.flatnonzero(labels == 0)[0], ..., 0]
  np.testing.assert_array_equal(image_of(real)[:, :8], first)
  # Nothing but the judge stays, and nothing is trained again.
  kept = [x.name for x in (tmp_path / 'checkpoints').iterdir()]
  assert kept == ['classifier']
  monkeypatch.setattr(Config, 'quantizer', None)
  assert run(SMALL, KEY, tmp_path, parallel='jit') == rows
  axes = matplotlib.figure.Figure().subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert [*numbers['table']] == ['fsq-64']
  title = axes['images'].figure.get_suptitle()
  assert 'best samples' in title and 'digits' in title


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(tokenizers=('vq',)), 'config.tokenizers: .* names of ste'),
    (dict(tokenizers=('ste-few',)), 'such as "ste-64"'),
    (dict(tokenizers=('ste-129',)), 'at most the 128 codes'),
    (dict(tokenizers=('fsq-8',)), 'num_codes: got 8'),
    (dict(tokenizers=()), 'config.tokenizers'),
    (dict(num_codes=1), 'config.num_codes: got 1'),
    (dict(prior_width=6, prior_layers=0), 'config.prior_layers: got 0'),
    (dict(prior_width=7), 'width: got 7, .* twice the 1 heads'),
    (dict(prior_rate=0.0), 'config.prior_rate'),
    (dict(prior_steps=5), 'a multiple of the 2 log points'),
    (dict(prior_batch=12), 'a multiple of the 8 devices'),
    (dict(prior_batch=72), '64 at most'),
    (dict(judged=1), 'config.judged: got 1'),
    (dict(judged=1000), 'at most half of the .* held-out'),
    (dict(dataset='photos'), 'config.dataset'),
    (dict(seeds=0), 'config.seeds: got 0'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
