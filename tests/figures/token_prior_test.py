"""Sequences, the prior's loss by hand, and sampling against the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kexue.figures.token_prior import (
  PriorTask,
  next_logits,
  no_cache,
  sample,
  sequences,
)
from kexue.models import Transformer, TransformerConfig
from kexue.training import TrainState

KEY = jax.random.key(0)
CODES, CLASSES, LENGTH = 5, 3, 6
MODEL = Transformer(
  TransformerConfig(vocab_size=CODES + CLASSES, layers=2, width=8, heads=2)
)


@pytest.fixture(scope='module')
def task():
  rng = np.random.default_rng(0)
  tokens = rng.integers(CODES, size=(32, 2, 3))
  train = sequences(tokens, rng.integers(CLASSES, size=32), CODES)
  return PriorTask(MODEL, train, train[:7], batch_size=8)


@pytest.fixture(scope='module')
def params(task):
  params, variables = task.init(KEY)
  assert variables == {}
  # Norms that scale by one would hide one that is left out.
  noise = lambda path, x: (
    x
    + 0.3
    * jax.random.normal(
      jax.random.fold_in(KEY, len(jax.tree_util.keystr(path))), x.shape
    )
  )
  return jax.tree_util.tree_map_with_path(noise, params)


def test_classes_come_first_and_after_the_codes(task):
  assert task.held_out.shape == (7, 1 + LENGTH)
  assert task.held_out.dtype == np.int32
  first, rest = task.held_out[:, 0], task.held_out[:, 1:]
  assert first.min() >= CODES and rest.max() < CODES


def test_the_loss_is_that_of_tokens_given_what_is_before(task, params):
  state = TrainState(step=jnp.zeros((), int), params=params)
  logits = np.float64(MODEL.apply({'params': params}, task.held_out[:, :-1]))
  log_sum = np.log(np.sum(np.exp(logits), axis=-1))
  picked = np.take_along_axis(logits, task.held_out[:, 1:, None], 2)[..., 0]
  expected = np.mean(log_sum - picked)
  found = float(task.evaluate(state)['val_loss'])
  assert found == pytest.approx(expected, rel=1e-5)
  batch = {'sequence': task.held_out}
  loss, (variables, metrics) = task.loss(MODEL, params, {}, batch, None)
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  assert (variables, metrics) == ({}, {})
  batches = task.batches(KEY)(0, 4)['sequence']
  assert batches.shape == (4, 8, 1 + LENGTH)
  whole = sorted(map(tuple, batches.reshape(32, -1)))
  assert whole == sorted(map(tuple, task._train))  # An epoch.


def test_one_at_a_time_as_all_at_once(task, params):
  tokens = jnp.asarray(task.held_out[:, :-1])

  def step(caches, position):
    token = tokens[:, position]
    logits, caches = next_logits(MODEL, params, caches, token, position)
    return caches, logits

  start = no_cache(MODEL, len(tokens), LENGTH)
  _, found = lax.scan(step, start, jnp.arange(LENGTH))
  expected = MODEL.apply({'params': params}, tokens)
  np.testing.assert_allclose(
    found.swapaxes(0, 1), expected, rtol=2e-4, atol=2e-5
  )


def test_samples_follow_the_model(params):
  count = 20_000
  draw = lambda key: sample(
    MODEL,
    params,
    jnp.full(count, CODES + 1),
    key,
    length=3,
    num_codes=CODES,
  )
  drawn = draw(KEY)
  assert drawn.shape == (count, 3) and drawn.dtype == jnp.int32
  np.testing.assert_array_equal(drawn, draw(KEY))
  assert not np.array_equal(drawn, draw(jax.random.key(1)))
  # The law of all triples, by the model on each of them.
  triples = np.stack(np.meshgrid(*[np.arange(CODES)] * 3, indexing='ij'), -1)
  triples = triples.reshape(-1, 3)
  inputs = np.insert(triples[:, :2], 0, CODES + 1, axis=1)
  logits = MODEL.apply({'params': params}, inputs)[..., :CODES]
  log_p = np.float64(jax.nn.log_softmax(logits))
  p = np.exp(np.take_along_axis(log_p, triples[..., None], 2).sum((1, 2)))
  assert p.sum() == pytest.approx(1, rel=1e-4)
  places = np.asarray(drawn) @ [CODES**2, CODES, 1]
  seen = np.bincount(places, minlength=CODES**3)
  z = (seen - count * p) / np.sqrt(count * p * (1 - p))
  assert np.abs(z).max() < 5 and 0.7 < np.std(z) < 1.3
