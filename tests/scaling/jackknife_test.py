"""The interval of a ratio: textbook, weights, coverage and empty groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kexue.scaling.jackknife import jackknife_ratio, student_quantile


@pytest.mark.parametrize('confidence', [0.8, 0.95, 0.99])
def test_quantile_is_students(confidence):
  degrees = np.array([2.0, 3, 5, 9.5, 19, 1000])
  found = student_quantile(degrees, confidence=confidence)
  exact = stats.t.ppf((1 + confidence) / 2, degrees)
  tight = 2e-3 if confidence < 0.99 else 2e-2
  np.testing.assert_allclose(found[2:], exact[2:], rtol=tight)
  np.testing.assert_allclose(found[:2], exact[:2], rtol=0.1)
  assert student_quantile(1.0, confidence=confidence) == np.inf


def groups(k, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(2.0, 1.0, k), rng.normal(5.0, 1.0, k)


def test_equal_weights_are_the_textbook_jackknife():
  with jax.enable_x64(True):
    a, b = groups(12)
    ratio, low, high = jackknife_ratio(jnp.asarray(a), jnp.asarray(b))
  out = [np.delete(a, k).sum() / np.delete(b, k).sum() for k in range(12)]
  error = np.sqrt(11 / 12 * np.sum((np.array(out) - a.sum() / b.sum()) ** 2))
  np.testing.assert_allclose(ratio, a.sum() / b.sum())
  half = stats.t.ppf(0.975, 11) * error
  ends = float(ratio) + half * np.array([-1, 1])
  np.testing.assert_allclose([low, high], ends, rtol=1e-4)


def test_weights_give_the_variance_of_a_weighted_mean():
  """Group means of variance 1: that of sum w x is sum w^2, on average."""
  rng = np.random.default_rng(1)
  w = 0.8 ** np.arange(9)
  w /= w.sum()
  x = rng.normal(size=(9, 20_000)).astype(np.float32)
  found = jackknife_ratio(w[:, None] * x, w[:, None] * np.ones_like(x), w)
  quantile = student_quantile(1 / np.sum(w**2) - 1, confidence=0.95)
  variance = ((found.high - found.ratio) / quantile) ** 2
  np.testing.assert_allclose(np.mean(variance), np.sum(w**2), rtol=0.02)
  assert np.sum(w**2) > 1.3 / 9  # What equal weights would have.
  inside = (found.low < 0) & (found.high > 0)
  assert 0.945 < np.mean(inside) < 0.97


def test_empty_groups_do_not_count():
  a, b = (np.float32(x) for x in groups(5))
  pad = lambda x: np.append(x, np.zeros(3, np.float32))
  found = jackknife_ratio(pad(a), pad(b), pad(np.ones(5)))
  np.testing.assert_allclose(found, jackknife_ratio(a, b), rtol=1e-5)


def test_where_nothing_can_be_said():
  line = (-np.inf, np.inf)
  one = jnp.ones(1)
  assert jackknife_ratio(one, one)[1:] == line
  assert jackknife_ratio(jnp.ones(2), jnp.ones(2))[1:] == line
  nothing = jackknife_ratio(jnp.zeros(4), jnp.zeros(4), jnp.zeros(4))
  assert np.isnan(nothing.ratio) and nothing[1:] == line
  exact = jackknife_ratio(jnp.ones(4), jnp.zeros(4))
  assert exact == (np.inf, np.inf, np.inf)
  alone = jackknife_ratio(jnp.eye(4)[0], jnp.eye(4)[0])
  assert alone[1:] == line
  for wrong in (0.0, 1.0, 95):
    with pytest.raises(ValueError, match='confidence: got'):
      jackknife_ratio(jnp.ones(4), jnp.ones(4), confidence=wrong)
