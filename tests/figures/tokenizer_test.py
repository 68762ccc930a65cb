"""Quantisers by name, scores by hand, runs that are recorded once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.session import session
from kexue.figures.tokenizer import (
  LEVELS,
  QUANTIZERS,
  TokenizerConfig,
  make_quantizer,
  pixels,
)
from kexue.models import VectorQuantizer

KEY = jax.random.key(0)
SMALL = TokenizerConfig(
  dataset='digits',
  width=4,
  latent=2,
  blocks=0,
  batch_size=8,
  steps=4,
  log_points=2,
  images=64,
  held_out=16,
)


@pytest.fixture(scope='module')
def data():
  return SMALL.data()


@pytest.fixture(scope='module')
def tokenizer(data):
  task = SMALL.task(data, make_quantizer('ste', 16))
  return SMALL.tokenizer(task, 'pmap')


def test_names_give_quantizers():
  for name in QUANTIZERS:
    quantizer = make_quantizer(name, 64)
    assert quantizer is make_quantizer(name, 64)
    assert quantizer.num_codes == 64
    if name != 'fsq':
      assert quantizer.commitment_weight == 1
  learned = make_quantizer('rotation', 8, codebook='learned')
  assert learned == VectorQuantizer(
    8,
    estimator='rotation',
    codebook='learned',
    commitment_weight=1.0,
    decay=0.95,
  )
  assert make_quantizer('diveq', 8).codebook == 'learned'
  for count, levels in LEVELS.items():
    assert 0.85 < np.prod(levels) / count < 1.15
  with pytest.raises(ValueError, match="name: got 'vq'"):
    make_quantizer('vq', 64)
  with pytest.raises(ValueError, match='num_codes: got 100'):
    make_quantizer('fsq', 100)
  with pytest.raises(ValueError, match='options'):
    make_quantizer('fsq', 64, codebook='ema')


def test_scores_by_hand(tokenizer):
  task = tokenizer.task
  assert task.positions == (2, 2) and task.num_codes == 16
  state = tokenizer.start(KEY, learning_rate=0.1)
  scores = {k: float(v) for k, v in task.evaluate(state).items()}
  images = task.held_out
  tokens = task.tokens(state, images)
  assert tokens.shape == (16, 2, 2) and tokens.dtype == np.int32
  variables = {'params': state.params, **state.variables}
  decoded = task.model.apply(variables, tokens, method='decode_indices')
  error = np.float64(decoded) - np.float64(images) / 255
  assert scores['val_loss'] == pytest.approx(np.mean(error**2), rel=1e-5)
  share = np.bincount(tokens.ravel(), minlength=16) / tokens.size
  assert scores['usage'] == pytest.approx(np.mean(share > 0))
  some = share[share > 0]
  entropy = -np.sum(some * np.log(some))
  assert scores['perplexity'] == pytest.approx(np.exp(entropy), rel=1e-5)
  z = task.model.apply(
    variables, pixels(images), method=lambda model, x: model.encoder(x)
  )
  square = np.mean(np.float64(z) ** 2)
  assert scores['latent_square'] == pytest.approx(square, rel=1e-5)
  codes = state.variables['codebook']['tokens']['state'].codebook[tokens]
  distance = np.mean(np.float64(z - codes) ** 2)
  assert scores['quantization_error'] == pytest.approx(distance, rel=1e-4)
  seen = task.reconstruct(state, images)
  assert seen.dtype == np.uint8 and seen.shape == images.shape
  np.testing.assert_array_equal(seen, task.images_of(state, tokens))
  assert np.abs(seen - 255 * np.clip(np.float64(decoded), 0, 1)).max() <= 0.51


def test_weights_are_numbers_of_the_state(tokenizer):
  task = tokenizer.task
  params, variables = task.init(KEY, 0.5)
  assert variables['weights']['commitment'] == 0.5
  batch = jax.tree.map(lambda x: x[0], task.batches(KEY)(0, 1))
  loss = lambda weight: task.loss(
    task.model,
    params,
    variables | {'weights': {'commitment': jnp.float32(weight)}},
    batch,
    None,
  )
  of_zero, of_one, of_two = (float(loss(weight)[0]) for weight in (0, 1, 2))
  assert of_one - of_zero > 1e-5
  assert of_two - of_one == pytest.approx(of_one - of_zero, rel=1e-3)
  changed = loss(0)[1][0]
  assert changed['weights']['commitment'] == 0
  moved = changed['codebook']['tokens']['state'].counts
  assert not np.allclose(moved, variables['codebook']['tokens']['state'].counts)


def test_runs_are_recorded_once(tokenizer, tmp_path, monkeypatch):
  settings = dict(learning_rate=0.01, commitment_weight=0.5)
  with session(tmp_path, KEY, 12) as launch:
    train = lambda label, **options: tokenizer.train(
      launch, label, {'name': 'a'}, **{'seed': 1} | settings | options
    )
    kept = train('kept', keep=True)
    assert train('other', seed=2) is None
    rows = launch.records.of('kept')
    assert [row['step'] for row in rows] == [2, 4]
    assert rows[0]['commitment_weight'] == 0.5 and rows[0]['name'] == 'a'
    assert rows[1]['loss'] < rows[0]['loss']
    assert rows[1]['val_loss'] == float(
      tokenizer.task.evaluate(kept)['val_loss']
    )
    assert launch.records.of('other')[1]['val_loss'] != rows[1]['val_loss']
    lost = lambda state: state._replace(
      params=jax.tree.map(lambda x: x * np.nan, state.params)
    )
    assert train('lost', change=lost, keep=True) is None
    (row,) = launch.records.of('lost')
    assert row['val_loss'] == np.inf and row['step'] == 4
    # Everything is there: nothing is trained, and what is kept comes back.
    monkeypatch.setattr(tokenizer, 'program', None)
    assert train('other', seed=2) is None and train('lost', keep=True) is None
    assert sorted(x.name for x in (tmp_path / 'checkpoints').iterdir()) == [
      'kept'
    ]
    monkeypatch.undo()
    monkeypatch.setattr(tokenizer.program, '__call__', None, raising=False)
    again = train('kept', keep=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, kept.params)
    assert launch.records.of('kept') == rows


def test_latents_fit_their_quantizer(data):
  assert SMALL.task(data, make_quantizer('fsq', 256)).model.config.latent == 3
  assert SMALL.task(data, make_quantizer('ste', 256)).model.config.latent == 2
  # A start holds a vector for each code, however small the batch.
  task = SMALL.task(data, make_quantizer('simvq', 128))
  _, variables = task.init(KEY)
  assert variables['codebook']['tokens']['frozen'].shape == (128, 2)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(seeds=0), 'config.seeds: got 0'),
    (dict(blocks=-1), 'config.blocks: got -1'),
    (dict(learning_rate=0.0), 'config.learning_rate'),
    (dict(batch_size=12), 'a multiple of the 8 devices'),
    (dict(batch_size=72), '64 at most'),
    (dict(steps=5), 'a multiple of the 2 log points'),
    (dict(dataset='nothing'), 'nothing'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  SMALL.check()
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change).check()
