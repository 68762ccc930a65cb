"""Steps, budgets and optima of curves that are known."""

import numpy as np
import pytest

from kexue.figures.sgd_curves import (
  Curves,
  budgets,
  curves_of,
  exponents,
  losses_after,
  steps_to,
  tradeoff,
)

RATES = np.array([0.125, 0.25, 0.5, 1.0])
STEPS = np.array([2, 4, 8, 16, 32, 64])


def test_rows_become_arrays():
  rows = [
    dict(batch_size=b, seed=s, learning_rate=r, steps=t, train_loss=v)
    for v, (b, s, r, t) in enumerate(
      (b, s, r, t)
      for b in (16, 8)
      for s in (0, 1)
      for r in (0.2, 0.1)
      for t in (3, 6)
    )
  ]
  curves = curves_of([*rows, {'run': 'another'}])
  assert [*curves] == [8, 16]
  at = curves[16]
  assert at.steps.tolist() == [3, 6] and at.rates.tolist() == [0.1, 0.2]
  np.testing.assert_array_equal(at.losses, [[[2, 3], [0, 1]], [[6, 7], [4, 5]]])


def test_steps_are_interpolated_in_their_logarithm():
  falling = 3 - np.log2(STEPS) / 2
  noisy = falling + np.array([0, 0, 0, 0.5, 0, 0])
  losses = np.array([[falling, falling + 9, np.full(6, np.inf), noisy]])
  curves = Curves(STEPS, RATES, losses)
  found = steps_to(curves, 1.25)[0]
  assert found[0] == pytest.approx(2**3.5)
  # Not reached, diverged; a bump is waited for.
  assert np.isinf(found[1:3]).all() and found[3] > 2**4
  assert steps_to(curves, 2.75)[0, 0] == pytest.approx(2**0.5)
  assert losses_after(curves, 2**3.5)[0, 0] == pytest.approx(1.25)
  assert losses_after(curves, 64)[0, 0] == pytest.approx(0)


def made_up(batches=(8, 32, 128, 512), least=20.0, critical=64.0):
  """Steps on a hyperbola at the third rate, twice that elsewhere."""
  curves = {}
  for batch in batches:
    to = least * (1 + critical / batch)
    wait = to * np.array([2, 2, 1, 2])
    losses = 1 + np.log(wait[:, None] / STEPS) / 4
    curves[batch] = Curves(STEPS, RATES, np.stack([losses, losses]))
  return curves


def test_the_hyperbola_is_found():
  found = tradeoff(made_up(), 1.0)
  assert found['min_steps'] == pytest.approx(20, rel=1e-3)
  assert found['critical_batch_size'] == pytest.approx(64, rel=1e-3)
  assert found['min_examples'] == pytest.approx(20 * 64, rel=1e-3)
  assert found['rms'] < 1e-3
  at = found['steps'][32]
  assert at['mean'] == pytest.approx(60, rel=1e-6) and not at['at_edge']
  assert at['learning_rate'] == 0.5
  # Losses end at 64 steps: 180 of them, at the other rates, are not reached.
  assert found['steps'][8]['mean'] == np.inf
  assert at['by_rate'][0] == np.inf


def test_optima_of_both_budgets():
  place = lambda batch, steps: 0.3 * np.sqrt(batch / 8) * (steps / 16) ** -0.5
  curves = {}
  for batch in (8, 16):
    best = place(batch, STEPS)[None]
    losses = np.exp(0.1 * np.log(RATES[:, None] / best) ** 2)
    curves[batch] = Curves(STEPS, RATES, np.stack([losses, 1.1 * losses]))
  found = budgets(curves, 16, 256)
  rates = [at['rate'] for at in found['steps']['optima'].values()]
  np.testing.assert_allclose(rates, [0.3, 0.3 * np.sqrt(2)], rtol=1e-5)
  assert found['steps']['exponents'] == pytest.approx([0.5], rel=1e-4)
  assert found['examples']['exponents'] == pytest.approx([1.0], rel=1e-4)
  assert not found['examples']['optima'][8]['at_edge']


def test_exponents_are_slopes():
  assert exponents([1, 4, 8], [1, 2, 4]) == pytest.approx([0.5, 1])
