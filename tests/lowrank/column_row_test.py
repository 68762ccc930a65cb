"""Choices and products: who is kept, weighted how, under every transformation.

Unbiasedness and variance by counting are in `column_row_error_test`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.lowrank import column_row, column_row_matmul
from kexue.lowrank.column_row import METHODS

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
# Programs take long to compile, so that not every weighting has every test.
EVERY = [
  *((method, 'unbiased') for method in METHODS),
  ('norm_iid', 'optimal'),
  ('top_norm', 'optimal'),
  ('greedy', 'optimal'),
]
REAL = [(*how, np.float32) for how in EVERY]
COMPLEX = [
  ('norm_systematic', 'optimal', np.complex64),
  ('bernoulli', 'optimal', np.complex64),
]


def matrices(*batch, m=6, l=8, n=5, dtype=np.float32):
  x, y = RANDOM.normal(size=(2, *batch, 8, 8))
  if np.issubdtype(dtype, np.complexfloating):
    x, y = x + 1j * RANDOM.normal(size=x.shape), y * (1 + 1j)
  return x[..., :m, :l].astype(dtype), y[..., :l, :n].astype(dtype)


def assembled(x, y, choice):
  x, y, indices, weights = map(np.asarray, (x, y, *choice))
  return (x[:, indices] * weights) @ y[indices]


@pytest.mark.parametrize('method, weights, dtype', REAL + COMPLEX)
def test_the_product_is_that_of_the_choice(method, weights, dtype):
  x, y = matrices(dtype=dtype)
  options = dict(method=method, weights=weights, key=KEY)
  choice = column_row(x, y, 3, **options)
  assert choice.indices.shape == choice.weights.shape
  assert len(choice.indices) == (8 if method == 'bernoulli' else 3)
  assert choice.indices.dtype == jnp.int32
  found = column_row_matmul(x, y, 3, **options)
  assert found.dtype == dtype and found.shape == (6, 5)
  expected = assembled(x, y, choice)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'method, dtype',
  [(m, d) for m, weights, d in REAL + COMPLEX if weights == 'optimal'],
)
def test_optimal_weights_are_those_of_least_squares(method, dtype):
  x, y = matrices(dtype=dtype)
  options = dict(method=method, key=KEY)
  indices, weights = column_row(x, y, 3, weights='optimal', **options)
  kept = np.asarray(indices)[np.asarray(weights) != 0]
  vectors = np.einsum('ml,ln->mnl', x, y).reshape(-1, 8)
  target = vectors.sum(1)
  best = np.linalg.lstsq(vectors[:, kept], target)[0]
  best = np.linalg.norm(vectors[:, kept] @ best - target)
  error = np.linalg.norm(assembled(x, y, (indices, weights)) - x @ y)
  assert error == pytest.approx(best, rel=1e-4)
  # The choice of "greedy" depends on the weights.
  if (method, 'unbiased', dtype) in REAL and method != 'greedy':
    plain = column_row(x, y, 3, **options)
    assert error <= np.linalg.norm(assembled(x, y, plain) - x @ y)
    np.testing.assert_array_equal(plain.indices, indices)


@pytest.mark.parametrize(
  'method, weights',
  [
    ('norm_systematic', 'unbiased'),
    ('uniform', 'unbiased'),
    ('greedy', 'optimal'),
  ],
)
def test_all_terms_make_the_product(method, weights):
  x, y = matrices()
  found = column_row_matmul(x, y, 8, method=method, weights=weights, key=KEY)
  np.testing.assert_allclose(found, x @ y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
  'method, weights', [('norm_systematic', 'optimal'), ('uniform', 'unbiased')]
)
def test_one_term_is_always_exact(method, weights):
  x, y = matrices(l=1)
  found = column_row_matmul(x, y, 1, method=method, weights=weights, key=KEY)
  np.testing.assert_allclose(found, x @ y, rtol=1e-5)


def test_largest_norms():
  x, y = matrices()
  sizes = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=1)
  choice = column_row(x, y, 3, method='top_norm')
  np.testing.assert_array_equal(choice.indices, np.argsort(-sizes)[:3])
  np.testing.assert_array_equal(choice.weights, 1)


@pytest.mark.parametrize('method, weights', EVERY)
@pytest.mark.parametrize('case', ['zeros', 'huge column', 'duplicates', 'tiny'])
def test_edges_are_finite(method, weights, case):
  x, y = matrices()
  if case == 'zeros':
    x = 0 * x
  elif case == 'huge column':
    x[:, 2] *= 1e30
  elif case == 'duplicates':
    x, y = np.tile(x[:, :1], 8), np.tile(y[:1], (8, 1))
  else:
    x, y = x * np.float32(1e-30), y * np.float32(1e-5)
  options = dict(method=method, weights=weights, key=KEY)
  choice = column_row(x, y, 3, **options)
  assert np.isfinite(choice.weights).all()
  found = column_row_matmul(x, y, 3, **options)
  assert np.isfinite(found).all()
  if case == 'huge column' and method != 'uniform':
    assert 2 in np.asarray(choice.indices)[np.asarray(choice.weights) != 0]
    np.testing.assert_allclose(found, x @ y, rtol=1e-3)
  if case == 'zeros':
    assert not found.any()
  if case == 'duplicates' and weights == 'optimal':
    np.testing.assert_allclose(found, x @ y, rtol=1e-3)


def test_a_huge_column_against_a_zero_row():
  """What is large on one side only counts for what it is."""
  x, y = matrices()
  x[:, [1, 4, 5]], y[[1, 4, 5]], x[:, [3, 7]], y[[3, 7]] = 1e30, 0, 0, 1e30
  found = column_row_matmul(x, y, 3, method='norm_systematic', key=KEY)
  exact = x[:, [0, 2, 6]] @ y[[0, 2, 6]]
  np.testing.assert_allclose(found, exact, rtol=1e-5)


@given(
  st.sampled_from(EVERY),
  st.sampled_from([0, 1e-30, 1e-6, 1, 1e18]),
  st.sampled_from([jnp.bfloat16, jnp.float16, jnp.int32, jnp.float32]),
)
@settings(max_examples=15, deadline=None)
def test_any_scale_and_type(how, scale, dtype):
  x, y = matrices()
  x = jnp.asarray(x * scale).astype(dtype)
  y = jnp.asarray(y).astype(dtype)
  method, weights = how
  options = dict(method=method, weights=weights, key=KEY)
  found = column_row_matmul(x, y, 3, **options)
  assert found.dtype == jnp.float32
  wide = column_row(x.astype(jnp.float32), y.astype(jnp.float32), 3, **options)
  np.testing.assert_array_equal(column_row(x, y, 3, **options)[0], wide[0])


@pytest.mark.parametrize(
  'method, weights', [('norm_systematic', 'unbiased'), ('greedy', 'optimal')]
)
def test_doubles_stay(method, weights):
  with jax.enable_x64(True):
    x, y = matrices(dtype=np.float64)
    options = dict(method=method, weights=weights, key=KEY)
    choice = column_row(x, y, 8, **options)
    assert choice.weights.dtype == np.float64
    assert choice.indices.dtype == np.int32
    found = column_row_matmul(x, y, 8, **options)
    np.testing.assert_allclose(found, x @ y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
  'method, weights',
  [
    ('norm_iid', 'optimal'),
    ('norm_systematic', 'unbiased'),
    ('bernoulli', 'unbiased'),
    ('top_norm', 'unbiased'),
    ('greedy', 'unbiased'),
    ('greedy', 'optimal'),
  ],
)
def test_transformations_agree(method, weights):
  x, y = matrices(8)
  run = functools.partial(
    column_row_matmul, rank=3, method=method, weights=weights
  )
  expected = [run(a, b, key=KEY) for a, b in zip(x, y, strict=True)]
  devices = jax.devices()[:4]  # Of two products each, which `vmap` maps.
  mesh = jax.make_mesh(
    (4,), ('d',), (jax.sharding.AxisType.Auto,), devices=devices
  )
  shard = jax.shard_map(
    lambda x, y, key: run(x, y, key=key),
    mesh=mesh,
    in_specs=(jax.P('d'), jax.P('d'), jax.P()),
    out_specs=jax.P('d'),
  )
  found = jax.jit(shard)(x, y, KEY)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
  'method, weights, dtype', [COMPLEX[0], ('greedy', 'unbiased', np.float32)]
)
def test_gradients_are_those_of_the_smaller_product(method, weights, dtype):
  x, y = matrices(dtype=dtype)
  options = dict(method=method, weights=weights, key=KEY)
  i, w = column_row(x, y, 3, **options)
  product = lambda x, y: jnp.sum(jnp.abs((x[:, i] * w) @ y[i]) ** 2)
  estimate = lambda x, y: jnp.sum(
    jnp.abs(column_row_matmul(x, y, 3, **options)) ** 2
  )
  for a, b in zip(
    jax.jit(jax.grad(estimate, (0, 1)))(x, y),
    jax.jit(jax.grad(product, (0, 1)))(x, y),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


def test_gradients_of_an_unbiased_estimate_are_unbiased():
  x, y = matrices()
  g = np.float32(RANDOM.normal(size=(6, 5)))

  def gradients(key):
    loss = lambda x, y: jnp.sum(
      g * column_row_matmul(x, y, 3, method='norm_systematic', key=key)
    )
    return jax.grad(loss, (0, 1))(x, y)

  found = jax.jit(jax.vmap(gradients))(jax.random.split(KEY, 5000))
  for a, exact in zip(found, (g @ y.T, x.T @ g), strict=True):
    deviation = np.std(a, axis=0) / 5000**0.5
    assert (np.abs(np.mean(a, 0) - exact) < 5 * deviation + 1e-5).all()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(rank=0), r'rank: got 0, expected an integer in 1..8'),
    (dict(rank=9), r'rank: got 9, expected an integer in 1..8'),
    (dict(rank=2.0), 'rank: got 2.0'),
    (dict(method='best'), "method: got 'best', expected one of 'norm_iid'"),
    (dict(weights='equal'), "weights: got 'equal'"),
    (dict(key=None), "key: got None, expected one for 'uniform'"),
    (dict(x=np.ones(8)), 'x: got shape'),
    (dict(y=np.ones((7, 5))), r'y: got shape \(7, 5\), expected \(8, None\)'),
    (dict(y=np.ones((2, 8, 5))), 'y: got shape'),
    (dict(x=np.ones((6, 0)), y=np.ones((0, 5))), 'x: got'),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  x, y = matrices()
  arguments = dict(x=x, y=y, rank=3, method='uniform', key=KEY) | change
  for function in (column_row, column_row_matmul):
    with pytest.raises(ValueError, match=message):
      function(**arguments)
