"""Newton-Schulz against the SVD, the published tables and a numpy loop."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.optimizers import (
  NEWTON_SCHULZ_COEFFICIENTS,
  msign,
  newton_schulz,
  polar_express_coefficients,
)

# The tables as the authors print them, arXiv 2505.16932 and nanochat.
POLAR_EXPRESS = [
  (8.28721201814563, -23.595886519098837, 17.300387312530933),
  (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
  (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
  (3.3184196573706015, -2.488488024314874, 0.51004894012372),
  (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
  (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
]
NANOCHAT = [
  (8.156554524902461, -22.48329292557795, 15.878769915207462),
  (4.042929935166739, -2.808917465908714, 0.5000178451051316),
  (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
  (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
  (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def gaussian(*shape, seed=0, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def singular_values(x):
  return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def numpy_newton_schulz(x, triples):
  """Float64, one matrix, no tricks: the formula and nothing else."""
  x = np.asarray(x, np.float64)
  x = x / np.linalg.norm(x)
  for a, b, c in triples:
    gram = x @ x.T
    x = a * x + b * gram @ x + c * gram @ gram @ x
  return x


def test_generator_reproduces_the_published_tables():
  ours = polar_express_coefficients(10)
  np.testing.assert_allclose(ours[:7], POLAR_EXPRESS, rtol=1e-10)
  np.testing.assert_allclose(ours[7:], [(1.875, -1.25, 0.375)] * 3, rtol=1e-8)
  np.testing.assert_allclose(
    polar_express_coefficients(5, cushion=0.02, safety=0.02),
    NANOCHAT,
    rtol=1e-12,
  )


def test_table_is_guarded_on_all_but_its_last():
  table = NEWTON_SCHULZ_COEFFICIENTS['polar_express']
  f = 1.01 ** np.array([1, 3, 5])
  np.testing.assert_allclose(table[:7], POLAR_EXPRESS / f, rtol=1e-10)
  np.testing.assert_allclose(table[7], (1.875, -1.25, 0.375), rtol=1e-8)


@pytest.mark.parametrize('shape', [(24, 24), (12, 40), (40, 12)])
@pytest.mark.parametrize('name', NEWTON_SCHULZ_COEFFICIENTS)
def test_equals_a_numpy_loop(name, shape):
  x = gaussian(*shape)
  triples = NEWTON_SCHULZ_COEFFICIENTS[name]
  np.testing.assert_allclose(
    newton_schulz(x, coefficients=name),
    numpy_newton_schulz(x, triples),
    atol=2e-5,
  )


def test_polar_express_is_the_sign_down_to_a_thousandth():
  # From the Frobenius start nothing better is possible.
  u, v = (np.linalg.qr(gaussian(32, 32, seed=s))[0] for s in (1, 2))
  s = np.geomspace(1e-3, 1, 32)
  s[0] = 1e-3 * np.linalg.norm(s)
  result = newton_schulz(jnp.asarray((u * s) @ v), steps=8)
  assert np.abs(singular_values(result) - 1).max() < 1e-3
  np.testing.assert_allclose(result, u @ v, atol=1e-3)


@pytest.mark.parametrize(
  'name, low, high', [('keller', 0.66, 1.15), ('su', 0.93, 1.06)]
)
def test_bands_of_the_inexact_sets(name, low, high):
  s = singular_values(newton_schulz(gaussian(256, 1024), coefficients=name))
  assert low < s.min() and s.max() < high


@pytest.mark.parametrize('scale', [1e-30, 1e-8, 1e8, 1e30])
def test_any_scale_gives_the_same(scale):
  x = gaussian(16, 24)
  np.testing.assert_allclose(
    newton_schulz(x * scale), newton_schulz(x), atol=1e-5
  )


def test_transposes_and_batches():
  x = gaussian(2, 3, 8, 20)
  each = jnp.stack([jnp.stack([newton_schulz(m) for m in row]) for row in x])
  np.testing.assert_allclose(newton_schulz(x), each, atol=1e-5)
  np.testing.assert_allclose(newton_schulz(x.mT), each.mT, atol=1e-5)


def test_zero_gives_zero_and_its_neighbours_are_untouched():
  x = jnp.stack([jnp.zeros((4, 6)), gaussian(4, 6)])
  result = newton_schulz(x)
  assert not np.any(result[0])
  assert np.abs(singular_values(result[1]) - 1).max() < 1e-3
  assert not np.any(msign(jnp.zeros((3, 3))))


def test_rank_one_is_exact():
  u, v = gaussian(10, seed=1), gaussian(7, seed=2)
  expected = np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
  for function in (newton_schulz, msign):
    np.testing.assert_allclose(function(jnp.outer(u, v)), expected, atol=1e-3)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
  x = gaussian(64, 128)
  result = newton_schulz(x.astype(dtype))
  assert result.dtype == dtype
  error = np.linalg.norm(np.asarray(result, np.float32) - msign(x))
  assert error < 0.08 * 8  # Of the norm sqrt(64).
  assert newton_schulz(x, dtype=dtype).dtype == dtype


def test_double_and_complex_precision():
  with jax.enable_x64(True):
    x = gaussian(12, 20, dtype=jnp.float64)
    np.testing.assert_allclose(newton_schulz(x, steps=12), msign(x), atol=1e-12)
    z = x + 1j * gaussian(12, 20, seed=1, dtype=jnp.float64)
    np.testing.assert_allclose(newton_schulz(z, steps=12), msign(z), atol=1e-12)
    u, _, vh = np.linalg.svd(z, full_matrices=False)
    np.testing.assert_allclose(msign(z), u @ vh, atol=1e-12)


def test_first_k_triples_then_the_last_again():
  x, triples = gaussian(6, 9), NEWTON_SCHULZ_COEFFICIENTS['you']
  np.testing.assert_allclose(
    newton_schulz(x, coefficients='you', steps=2),
    numpy_newton_schulz(x, triples[:2]),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    newton_schulz(x, coefficients=triples[:3], steps=5),
    numpy_newton_schulz(x, [*triples[:3], triples[2], triples[2]]),
    atol=1e-5,
  )


def test_number_of_steps_may_be_traced():
  x = gaussian(6, 9)
  traced = jax.jit(lambda x, k: newton_schulz(x, steps=k))(x, 3)
  np.testing.assert_allclose(traced, newton_schulz(x, steps=3), atol=1e-5)


@pytest.mark.parametrize('shape', [(12, 40), (40, 12), (2, 12, 40)])
@pytest.mark.parametrize('name', NEWTON_SCHULZ_COEFFICIENTS)
def test_the_gram_form_is_the_standard_one(name, shape):
  x = gaussian(*shape)
  for steps in (1, 3, 4, 5):
    standard, gram = (
      newton_schulz(x, coefficients=name, steps=steps, gram=g)
      for g in (False, True)
    )
    np.testing.assert_allclose(gram, standard, atol=2e-5)


def test_the_gram_form_is_taken_where_it_is_cheaper():
  products = lambda *shape: str(
    jax.make_jaxpr(lambda x: newton_schulz(x, coefficients='keller'))(
      jnp.ones(shape)
    )
  ).count('dot_general')
  assert products(12, 18) == 15 and products(12, 19) == 18
  assert products(19, 12) == 18


@pytest.mark.parametrize('condition', [1e2, 1e4, 1e6])
def test_the_gram_form_holds_on_ill_conditioned_matrices(condition):
  # The rounding of the Gram matrix is magnified; without a restart the error
  # is 1e-1 of the result or the iteration blows up, see `_by_gram`.
  u = np.linalg.qr(gaussian(64, 64, seed=1))[0]
  v = np.linalg.qr(gaussian(256, 64, seed=2))[0]
  x = jnp.asarray((u * np.geomspace(1, 1 / condition, 64)) @ v.T)
  exact = numpy_newton_schulz(x, NEWTON_SCHULZ_COEFFICIENTS['polar_express'])
  error = np.abs(newton_schulz(x) - exact).max() / np.abs(exact).max()
  assert error < 5e-4


@pytest.mark.parametrize('shape', [(300, 300), (200, 400), (400, 200)])
def test_large_matrices_take_a_branch_of_their_own(shape):
  x = gaussian(*shape)
  np.testing.assert_allclose(
    newton_schulz(x), newton_schulz(x[None])[0], atol=1e-5
  )
  assert not np.any(newton_schulz(jnp.zeros(shape)))
  gradient = jax.grad(lambda x: newton_schulz(x, steps=2).sum())(x)
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize('kind', ['schatten', 'spectral', 'aol'])
@pytest.mark.parametrize('shape', [(24, 24), (12, 40), (40, 12)])
def test_better_starts_come_closer_in_as_many_steps(kind, shape):
  u, _, vh = np.linalg.svd(gaussian(*shape), full_matrices=False)
  s = np.geomspace(1, 0.1, min(shape))
  x = jnp.asarray((u * s) @ vh)
  options = dict(coefficients='classic', steps=4)
  values = lambda kind: singular_values(
    newton_schulz(x, preconditioning=kind, **options)
  )
  plain, better = values('frobenius'), values(kind)
  assert better.max() < 1.0001
  assert np.abs(1 - better).mean() < 0.8 * np.abs(1 - plain).mean()
  scaled = newton_schulz(x * 1e-25, preconditioning=kind, **options)
  assert np.abs(singular_values(scaled) - better).max() < 1e-4
  zero = newton_schulz(jnp.zeros(shape), preconditioning=kind)
  assert not np.any(zero)


def test_starts_are_those_of_their_papers():
  x = np.asarray(gaussian(5, 8))
  gram = x @ x.T
  starts = {
    'frobenius': x / np.linalg.norm(x),
    'schatten': x / np.sum(np.linalg.svd(x)[1] ** 4) ** 0.25,
    'spectral': x / np.linalg.norm(x, 2),
    'aol': x / np.sqrt(np.abs(gram).sum(axis=1))[:, None],
  }
  one = [(1.0, 0.0, 0.0)]  # Steps that change nothing.
  for kind, start in starts.items():
    for tall in (False, True):
      ours = newton_schulz(
        x.T if tall else x, coefficients=one, preconditioning=kind
      )
      np.testing.assert_allclose(ours.T if tall else ours, start, atol=1e-6)


def test_differentiates():
  with jax.enable_x64(True):
    x = gaussian(4, 6, dtype=jnp.float64)
    direction = gaussian(4, 6, seed=1, dtype=jnp.float64)
    f = lambda t: jnp.sum(newton_schulz(x + t * direction, steps=5) ** 3)
    numeric = (f(1e-6) - f(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(f)(0.0), numeric, rtol=1e-6)


@hypothesis.given(
  # Lines, squares, and both forms of the products.
  shape=st.sampled_from(
    [(1, 1), (1, 7), (6, 1), (9, 9), (7, 9), (5, 11), (12, 5)]
  ),
  log_condition=st.floats(0, 2.5),
  seed=st.integers(0, 2**31 - 1),
)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
def test_is_the_sign_for_any_shape(shape, log_condition, seed):
  generator = np.random.default_rng(seed)
  (m, n), r = shape, min(shape)
  u = np.linalg.qr(generator.normal(size=(m, r)))[0]
  v = np.linalg.qr(generator.normal(size=(n, r)))[0]
  x = (u * np.geomspace(1, 10**-log_condition, r)) @ v.T
  x = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(newton_schulz(x), u @ v.T, atol=3e-3)
  np.testing.assert_allclose(msign(x), u @ v.T, atol=3e-3)


def test_works_under_vmap_and_pmap():
  x = gaussian(8, 5, 7)
  expected = newton_schulz(x)
  np.testing.assert_allclose(jax.vmap(newton_schulz)(x), expected, atol=1e-6)
  np.testing.assert_allclose(jax.pmap(newton_schulz)(x), expected, atol=1e-6)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: newton_schulz(jnp.ones(3)), r'x: got shape \(3,\), expected 2 or'),
    (lambda: msign(jnp.ones(3)), r'x: got shape \(3,\)'),
    (
      lambda: newton_schulz(jnp.eye(2), coefficients='kellr'),
      "coefficients: got 'kellr', expected one of 'classic'",
    ),
    (lambda: newton_schulz(jnp.eye(2), coefficients=()), 'coefficients: got'),
    (
      lambda: newton_schulz(jnp.eye(2), coefficients=[(1, 2)]),
      'nonempty sequence of triples',
    ),
    (lambda: newton_schulz(jnp.eye(2), steps=0), 'steps: got 0'),
    (
      lambda: newton_schulz(jnp.eye(2), preconditioning='x'),
      "preconditioning: got 'x', expected one of 'frobenius'",
    ),
    (lambda: polar_express_coefficients(0), 'steps: got 0'),
    (lambda: polar_express_coefficients(3, lower=1.0), 'lower: got 1.0'),
    (lambda: polar_express_coefficients(3, cushion=-1.0), 'cushion: got -1.0'),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
