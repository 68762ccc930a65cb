"""Adam's update RMS: the printed table, simulated Adam, limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.scaling import adam_update_rms

# b1, noise alone, at a ratio of 0.1, at 1.
TABLE = """
0 1 1 1
0.3 0.73379939 0.76185273 0.87705802
0.5 0.57735027 0.62764591 0.81649658
0.7 0.42008403 0.50133512 0.76696499
0.8 0.33333333 0.43808583 0.74535599
0.9 0.22941573 0.37249964 0.72547625
0.95 0.16012815 0.33796318 0.71611487
0.98 0.10050378 0.31637292 0.71066905
0.99 0.070888121 0.30899415 0.70888121
"""


@pytest.mark.parametrize('row', TABLE.split('\n')[1:-1])
def test_table(row):
  b1, *expected = map(float, row.split())
  found = [adam_update_rms(b1, snr) for snr in (0.0, 0.1, 1.0)]
  assert [f'{x:.8g}' for x in found] == [f'{x:.8g}' for x in expected]


@pytest.mark.parametrize('snr', [0.0, 0.1, 1.0])
def test_simulated_adam(snr):
  """A second moment that hardly moves is what the formula assumes."""
  rng, b1, b2, entries = np.random.default_rng(0), 0.9, 0.9999, 20_000
  mean = math.sqrt(snr)
  mu, nu = np.full(entries, mean), np.full(entries, 1 + snr)
  for _ in range(80):
    g = mean + rng.normal(size=entries)
    mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
  square = mu**2 / nu
  error = square.std() / math.sqrt(entries)
  assert abs(square.mean() - adam_update_rms(b1, snr) ** 2) < 4 * error + 1e-4


def test_limits_and_arrays():
  assert adam_update_rms(0.9, math.inf) == 1
  assert type(adam_update_rms(0.9)) is float
  snr = jnp.array([0.0, 0.1, jnp.inf])
  found = jax.jit(adam_update_rms)(jnp.float32(0.9), snr)
  np.testing.assert_allclose(found, [0.22941573, 0.37249964, 1.0], rtol=1e-5)
  assert np.all(np.isfinite(jax.grad(adam_update_rms)(0.9, 0.1)))


def test_wrong_arguments_are_named():
  for name, arguments in {
    'b1: got 1.0': (1.0,),
    'snr: got -1': (0.9, -1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      adam_update_rms(*arguments)
