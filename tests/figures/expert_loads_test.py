"""Losses and loads of windows by hand, and violations of their batches."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.expert_loads import loads_by_batch, score_windows
from kexue.models import MoEConfig, Transformer, TransformerConfig

SIZES = dict(vocab_size=16, layers=2, width=8, heads=1)
rng = np.random.default_rng(0)
WINDOWS = rng.integers(0, 16, (7, 6)).astype(np.uint8)


@pytest.mark.parametrize('moe', [None, MoEConfig(experts=4, hidden=8)])
def test_windows_are_scored_one_by_one(moe, monkeypatch):
  monkeypatch.setattr('kexue.figures.expert_loads._TOGETHER', 3)
  model = Transformer(TransformerConfig(**SIZES, moe=moe))
  variables = dict(
    jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5), int))
  )
  params = variables.pop('params')
  if moe is not None:  # A bias that matters.
    bias = lambda x: jnp.array([9.0, 0, 0, 0]) if x.dtype == 'float32' else x
    is_bias = lambda x: bias(x) if x.shape == (4,) else x
    variables = jax.tree.map(is_bias, variables)
  state = types.SimpleNamespace(params=params, variables=variables)
  losses, loads = score_windows(model, state, WINDOWS)
  read = functools.partial(model.apply, mutable=['intermediates'])
  inputs = jnp.asarray(WINDOWS[:, :-1], int)
  logits, sown = jax.jit(read)({'params': params, **variables}, inputs)
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  picked = np.take_along_axis(log_p, WINDOWS[:, 1:, None].astype(int), -1)
  np.testing.assert_allclose(losses, -picked[..., 0].mean(1), rtol=1e-5)
  if moe is None:
    assert loads.shape == (7, 0, 0)
    return
  for layer in range(2):
    own = sown['intermediates'][f'layers_{layer}']['moe']['routing'][0].indices
    for window in range(7):
      counts = np.bincount(np.ravel(own[window]), minlength=4)
      np.testing.assert_array_equal(loads[window, layer], counts)
  assert np.all(loads[..., 0] == 5) and np.all(loads.sum(-1) == 10)


def test_violations_of_batches_by_hand():
  loads = rng.integers(0, 9, (12, 2, 4))
  rows = loads_by_batch(loads, [1, 5, 12, 64], 10)
  assert [row['windows'] for row in rows] == [1, 5, 12]
  assert [row['tokens'] for row in rows] == [10, 50, 120]
  of = lambda x: x.max(-1) / x.mean(-1) - 1
  assert rows[0]['violation'] == pytest.approx(of(loads).mean(), rel=1e-5)
  total = loads.sum(0)
  assert rows[-1]['violation'] == pytest.approx(of(total).mean(), rel=1e-5)
  layers = [np.array(x.split(), float) for x in rows[-1]['loads'].split(';')]
  share = total / total.sum(-1, keepdims=True)
  np.testing.assert_allclose(layers, share, atol=1e-5)
  assert 'loads' not in rows[0]


def test_batches_are_of_any_windows():
  # The first half chooses one expert, the second the other: as random batches
  # of a half they are near balance, in order they are far from it.
  loads = np.repeat(np.array([[[8, 0]], [[0, 8]]]), 64, axis=0)
  assert loads_by_batch(loads, [64], 8)[0]['violation'] < 0.5
