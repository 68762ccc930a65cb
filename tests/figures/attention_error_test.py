"""Errors of attention by landmarks, and the heads they are measured on."""

import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.attention_error import (
  BATCH,
  METHODS,
  errors,
  plot_errors,
  trained_heads,
)
from kexue.training.progress import Progress


def test_errors_end_at_nothing_and_the_best_is_least():
  q, k = jax.random.normal(jax.random.key(0), (2, 4, 12, 4))
  v = jnp.broadcast_to(jnp.eye(12), (4, 12, 12))  # The output is the matrix.
  rows = [*errors(q, k, v, (3, 12))]
  assert [r['method'] for r in rows] == [*METHODS] * 2
  found = {(r['method'], r['landmarks']): r for r in rows}
  for row in rows:
    assert row['error_low'] <= row['error'] <= row['error_high']
  few, all_ = ({n: found[n, m]['error'] for n in METHODS} for m in (3, 12))
  assert few['best'] < min(few['pooled'], few['iterative'], few['exact'])
  assert max(all_['pooled'], all_['exact'], all_['best']) < 1e-3
  s = np.linalg.svd(jax.nn.softmax(q @ k.mT / 2), compute_uv=False)
  tails = np.linalg.norm(s[:, 3:], axis=1) / np.linalg.norm(s, axis=1)
  assert few['best'] == pytest.approx(np.median(tails), rel=1e-4)


def test_heads_are_those_of_the_model():
  """Queries and keys of RMS one, as many heads as layers, heads, sequences."""
  text = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8)
  launch = types.SimpleNamespace(
    key=jax.random.key(0), progress=Progress(1, show=False), stop=None
  )
  text = types.SimpleNamespace(train=text, validation=text)
  heads = trained_heads(text, launch, 'jit', tokens=16, steps=1)
  for x in heads:
    assert x.shape == (2 * 2 * BATCH, 16, 32)
  for x in heads[:2]:
    rms = jnp.sqrt(jnp.mean(x**2, -1))
    assert float(jnp.abs(rms - 1).max()) < 0.05


def test_plot_draws_every_method():
  rows = [
    {
      'method': name,
      'landmarks': m,
      'error': 1 / m,
      'error_low': 0.0,
      'error_high': 2 / m,
    }
    for name in METHODS
    for m in (2, 4)
  ]
  figure = matplotlib.figure.Figure()
  ax = figure.subplots()
  plot_errors(rows, ax)
  figure.canvas.draw()
  assert len(ax.lines) == len(METHODS) and ax.get_ylabel() and ax.get_title()
  np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.5, 0.25])
