"""The matrices have the properties they are there for."""

import jax
import numpy as np
import pytest

from kexue.figures.column_matrices import SHAPE, haar, kahan, matrices, spectra
from kexue.lowrank import pivoted_qr


def test_kinds():
  found = matrices('digits', 'none')
  assert [*found] == ['fast', 'slow', 'kernel', 'sparse', 'digits']
  for kind, make in found.items():
    a, again, other = (make(np.random.default_rng(s)) for s in (0, 0, 1))
    assert a.shape == (SHAPE if kind != 'digits' else (64, SHAPE[1]))
    assert a.dtype == float and np.isfinite(a).all()
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - other).max() > 0
    if kind == 'sparse':
      assert (np.linalg.norm(a, axis=0) > 0).sum() > 100


def test_singular_values_are_as_told():
  for s in spectra(9).values():
    a = haar(np.random.default_rng(0), (12, 10), s)
    np.testing.assert_allclose(
      np.linalg.svd(a, compute_uv=False)[:9], s, atol=1e-12
    )


def test_kahan_defeats_pivots():
  a = kahan(20)
  with jax.enable_x64(True):
    assert pivoted_qr(a, 19).indices.tolist() == list(range(19))
  assert np.tril(a, -1).max() == 0
  s = np.linalg.svd(a, compute_uv=False)
  assert a[-1, -1] > 50 * s[-1]


def test_unknown_sets_are_refused():
  with pytest.raises(ValueError, match='config.weights: got'):
    matrices('digits', 'gpt')
  with pytest.raises(ValueError, match='config.images: got'):
    matrices('kjv', 'none')
