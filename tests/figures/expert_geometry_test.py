"""A layer that adds up again, clusters that are found, errors by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.figures.expert_geometry import (
  DenseLayer,
  clusters,
  cosines,
  dense_layers,
  fit_router,
  geometry,
  kept_errors,
  numbers_kept,
  vectors_of,
)
from kexue.models import Transformer, TransformerConfig

KEY = jax.random.key(0)
SIZES = TransformerConfig(layers=2, width=8, heads=1, hidden=16, vocab_size=11)


def planted(tokens=60, n=4, size=4, width=6):
  """Units of which one cluster is active at a time, in a random order."""
  rng = np.random.default_rng(0)
  cluster = rng.permutation(np.repeat(np.arange(n), size))
  active = rng.integers(0, n, tokens)
  strength = np.where(cluster == active[:, None], 1.0, 0.05)
  units = strength * rng.normal(1, 0.2, (tokens, n * size))
  inputs = np.eye(n)[active] + 0.1 * rng.normal(size=(tokens, n))
  down = rng.normal(size=(n * size, width))
  layer = DenseLayer(*(jnp.float32(x) for x in (inputs, units, down)))
  return layer, cluster


def test_layers_are_those_of_the_model():
  model = Transformer(SIZES)
  tokens = jnp.arange(10).reshape(2, 5)
  params = model.init(KEY, tokens)['params']
  layers = dense_layers(model, params, tokens)
  _, seen = model.apply(
    {'params': params},
    tokens,
    capture_intermediates=lambda module, _: module.name == 'mlp',
    mutable=['intermediates'],
  )
  for i, layer in enumerate(layers):
    (y,) = seen['intermediates'][f'layers_{i}']['mlp']['__call__']
    found = vectors_of(layer, jax.random.permutation(KEY, 16), 4).sum(axis=1)
    np.testing.assert_allclose(found, y.reshape(10, 8), atol=1e-5)
  assert not np.allclose(layers[0].inputs, layers[1].inputs)


def test_clusters_are_found_and_of_one_size():
  layer, cluster = planted()
  order = np.array(jax.jit(clusters, static_argnums=1)(layer, 4, KEY))
  np.testing.assert_array_equal(np.sort(order), np.arange(16))
  found = cluster[order].reshape(4, 4)
  assert np.all(found == found[:, :1])
  # Neighbours as they are say nothing.
  assert np.any(cluster.reshape(4, 4) != cluster.reshape(4, 4)[:, :1])


def test_a_router_predicts_lengths():
  layer, _ = planted()
  order = clusters(layer, 4, KEY)
  lengths = jnp.linalg.norm(vectors_of(layer, order, 4), axis=2)
  kernel, bias = jax.jit(fit_router)(layer.inputs, lengths)
  scores = jax.nn.softplus(layer.inputs @ kernel + bias) * lengths.mean()
  rest = np.square(scores - lengths).sum()
  assert rest < 0.2 * np.square(lengths - lengths.mean(axis=0)).sum()
  assert np.mean(np.argmax(scores, 1) == np.argmax(lengths, 1)) > 0.95


def test_errors_by_hand():
  rng = np.random.default_rng(1)
  vectors, scores = rng.normal(size=(7, 4, 3)), rng.random((7, 4))
  vectors = vectors.astype(np.float32)
  found = kept_errors(vectors, scores, 2)
  total = np.square(vectors.sum(1)).sum()
  lost = {
    s: np.square(vectors.sum(1) - vectors[:, list(s)].sum(1)).sum(1)
    for s in itertools.combinations(range(4), 2)
  }
  every = np.array([*lost.values()])
  lengths = np.linalg.norm(vectors, axis=2)

  def by(score):
    chosen = [tuple(sorted(row)) for row in np.argsort(-score, 1)[:, :2]]
    return sum(lost[s][t] for t, s in enumerate(chosen))

  squares = np.sort(lengths**2, axis=1)
  for name, expected in {
    'norm': by(lengths) / total,
    'router': by(scores) / total,
    'best': every.min(0).sum() / total,
    'random': every.mean(0).sum() / total,
    'orthogonal': squares[:, :2].sum() / squares.sum(),
  }.items():
    assert found[name] == pytest.approx(expected**0.5, rel=1e-5), name
  assert found['best'] < found['norm']


def test_many_subsets_are_not_tried():
  vectors = jnp.ones((2, 32, 1))
  assert 'best' not in kept_errors(vectors, jnp.ones((2, 32)), 8)
  assert numbers_kept(32) == [1, 2, 4, 8, 16, 24]


def test_cosines():
  counts, size = cosines(jnp.array([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]]))
  assert counts.sum() == 3 and counts[20] == 1  # One pair is at right angles.
  assert size == pytest.approx((1 / 3) ** 0.5)


def test_rows_of_a_layer():
  layer, _ = planted()
  *rows, last = geometry(layer, layer, 8, 'clusters', KEY)
  assert [row['k'] for row in rows] == [1, 2, 4, 6]
  for row in rows:
    assert row['best'] <= row['norm'] + 1e-6 and row['norm'] < row['random']
    assert row['group'] == 'clusters' and row['n'] == 8
  plain = [*geometry(layer, layer, 8, 'neighbours', KEY)][1]
  assert rows[1]['norm'] < 0.5 * plain['norm']
  density = np.array(last['density'].split(), float)
  assert density.sum() * 2 / len(density) == pytest.approx(1, abs=1e-2)
  assert 0 < last['cosine'] < 1 and last['width'] == 6
