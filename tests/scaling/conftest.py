"""P1, the problem of four parameters that the reference tables are about."""

import jax
import numpy as np
import pytest

V = np.array([1.0, 1.0, -1.0, 1.0])


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='session')
def problem():
  return {
    'gradient': np.array([1.0, 0.5, -0.25, 0.8]),
    'noise_std': np.array([2.0, 4.0, 1.0, 3.0]),
    'hessian': np.diag([1.0, 2.0, 0.5, 1.5]) + 2 * np.outer(V, V),
  }


@pytest.fixture(scope='session')
def correlation():
  """Of the noise, for the rows of P1 where it is not independent."""
  return np.where(np.eye(4, dtype=bool), 1.0, 0.5 * np.outer(V, V))
