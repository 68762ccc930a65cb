"""Expected errors: by enumeration of all choices, and by Monte Carlo."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.lowrank import (
  column_row,
  column_row_expected_error,
  column_row_matmul,
)
from kexue.lowrank.column_row_error import EXACT
from kexue.lowrank.term_sampling import UNBIASED, inclusion_probabilities

KEY = jax.random.key(0)
DRAWS = 10_000
EXPECTED = jax.jit(
  column_row_expected_error, static_argnames=('rank', 'method')
)


def matrices(m=6, l=12, n=4, dtype=np.float64):
  """Column norms of different sizes, one of them zero."""
  random = np.random.default_rng(0)
  x, y = random.normal(size=(m, l)), random.normal(size=(l, n))
  if np.issubdtype(dtype, np.complexfloating):
    x, y = x + 1j * x[::-1], y - 2j * y[:, ::-1]
  x = x * np.geomspace(0.3, 5, l)
  x[:, 2:3] = 0
  return x.astype(dtype), y.astype(dtype)


def sizes_of(x, y):
  return np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=1)


def outcomes(method, sizes, rank):
  """All choices as weights of every term [l], with their probabilities."""
  length = len(sizes)
  eye = np.eye(length)
  if method == 'uniform':
    every = [*itertools.combinations(range(length), rank)]
    return [(1 / len(every), eye[[*s]].sum(0) * length / rank) for s in every]
  if method == 'norm_iid':
    p = sizes / sizes.sum()
    some = np.flatnonzero(p)
    return [
      (np.prod(p[[*s]]), (eye[[*s]] / p[[*s], None]).sum(0) / rank)
      for s in itertools.product(some, repeat=rank)
    ]
  q = np.asarray(inclusion_probabilities(jnp.asarray(sizes), rank))
  return [
    (
      np.prod(np.where(z, q, 1 - q)),
      np.array(z) / np.where(q > 0, q, 1),
    )
    for z in itertools.product([0, 1], repeat=length)
  ]


@pytest.mark.parametrize(
  'method, dtype',
  [
    ('norm_iid', np.complex128),
    ('uniform', np.float64),
    ('bernoulli', np.float64),
  ],
)
def test_mean_and_error_over_all_choices(method, dtype):
  x, y = matrices(dtype=dtype)
  with jax.enable_x64(True):
    every = outcomes(method, sizes_of(x, y), 4)
    found = float(EXPECTED(x, y, 4, method=method))
  chances = np.array([chance for chance, _ in every])
  estimates = np.array([(x * weights) @ y for _, weights in every])
  assert chances.sum() == pytest.approx(1)
  mean = np.tensordot(chances, estimates, 1)
  np.testing.assert_allclose(mean, x @ y, rtol=1e-9)
  errors = np.linalg.norm(estimates - x @ y, axis=(1, 2)) ** 2
  assert found == pytest.approx(chances @ errors, rel=1e-9)


@functools.partial(jax.jit, static_argnums=(2, 3))
def sampled(x, y, rank, method):
  estimate = lambda key: column_row_matmul(x, y, rank, method=method, key=key)
  return jax.vmap(estimate)(jax.random.split(KEY, DRAWS))


@pytest.mark.parametrize('method', UNBIASED)
def test_samples_have_the_mean_and_the_error(method):
  x, y = matrices(dtype=np.float32)
  found = np.float64(sampled(x, y, 4, method))
  z = (found.mean(0) - x @ y) / (found.std(0) / DRAWS**0.5)
  assert np.abs(z).max() < 4.5
  errors = np.linalg.norm(found - x @ y, axis=(1, 2)) ** 2
  if method in EXACT:
    exact = float(EXPECTED(x, y, 4, method=method))
    z = (errors.mean() - exact) / (errors.std() / DRAWS**0.5)
    assert abs(z) < 4
    assert errors.mean() == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
  'method, shape', [('greedy', (6, 12, 4)), ('top_norm', (24, 6, 24))]
)
def test_error_of_methods_without_chance(method, shape):
  x, y = matrices(*shape, dtype=np.float32)
  approximation = column_row_matmul(x, y, 4, method=method)
  error = np.linalg.norm(approximation - x @ y) ** 2
  found = EXPECTED(x, y, 4, method=method)
  assert float(found) == pytest.approx(error, rel=1e-3)


def test_order_of_the_errors():
  """Of the unbiased kinds: by size beats blindly, without beats with."""
  x, y = matrices(dtype=np.float32)
  iid, uniform, bernoulli, top = (
    float(EXPECTED(x, y, 4, method=m))
    for m in ('norm_iid', 'uniform', 'bernoulli', 'top_norm')
  )
  assert top < bernoulli < iid < uniform


def test_nothing_is_wrong_with_everything():
  x, y = matrices(dtype=np.float32)
  for method in ('uniform', 'bernoulli'):
    found = EXPECTED(x, y, 12, method=method)
    assert found == pytest.approx(0, abs=1e-9 * float(np.sum((x @ y) ** 2)))


def test_a_single_term():
  x, y = matrices(l=1, dtype=np.float32)
  found = EXPECTED(x, y, 1, method='uniform')
  assert found == pytest.approx(0, abs=1e-6 * float(np.sum((x @ y) ** 2)))


@pytest.mark.parametrize('method', EXACT)
def test_scale_and_zeros(method):
  x, y = matrices(dtype=np.float32)
  plain = EXPECTED(x, y, 4, method=method)
  scaled = EXPECTED(x * np.float32(1e15), y, 4, method=method)
  np.testing.assert_allclose(scaled, plain * 1e30, rtol=1e-5)
  assert EXPECTED(0 * x, y, 4, method=method) == 0
  assert np.isinf(EXPECTED(x * np.float32(1e20), y, 4, method=method))


def test_batches():
  x, y = matrices(dtype=np.float32)
  stacked = np.stack([x, 2 * x, 0 * x]), np.stack([y] * 3)
  found = EXPECTED(*stacked, 4, method='bernoulli')
  plain = EXPECTED(x, y, 4, method='bernoulli')
  np.testing.assert_allclose(found, plain * np.array([1, 4, 0]), rtol=1e-5)


@pytest.mark.parametrize('method', ['uniform', 'bernoulli'])
def test_gradients_against_differences(method):
  with jax.enable_x64(True):
    x, y = matrices()
    f = functools.partial(EXPECTED, y=y, rank=4, method=method)
    direction = np.random.default_rng(1).normal(size=x.shape)
    direction[:, 2] = 0  # A norm has no derivative at zero.
    _, slope = jax.jit(lambda x, d: jax.jvp(f, (x,), (d,)))(x, direction)
    step = 1e-6 * direction
    difference = (f(x + step) - f(x - step)) / 2e-6
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)


def test_what_has_no_closed_form_is_refused():
  x, y = matrices()
  with pytest.raises(
    ValueError, match="method: got 'norm_systematic', exp.*clo"
  ):
    column_row_expected_error(x, y, 2, method='norm_systematic')
  with pytest.raises(ValueError, match='method'):
    column_row_expected_error(x, y, 2, method='best')
  with pytest.raises(ValueError, match='rank: got 13'):
    column_row_expected_error(x, y, 13, method='uniform')
  with pytest.raises(ValueError, match='y: got shape'):
    column_row_expected_error(x, y[1:], 2, method='uniform')
  assert column_row(x, y, 2, method='top_norm').indices.shape == (2,)
