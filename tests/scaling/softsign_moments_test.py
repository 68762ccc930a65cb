"""Moments of SoftSign against the closed form, quadrature and Monte Carlo."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy import integrate, special, stats

from kexue.optimizers import softsign
from kexue.scaling import softsign_moments

# a, b, then mean and second moment: exact, clip, 10563, 11280.
TABLE = np.array(
  [
    [0, 0.1, 0, 0.88407376, 0, 0.94686083, 0, 0.99367407, 0, 0.99009901],
    [0, 1, 0, 0.34432046, 0, 0.51605855, 0, 0.61101547, 0, 0.5],
    [0.1, 0.1, 0.078636896, 0.88460792, 0.079523555, 0.94712534]
    + [0.079285307, 0.99371384, 0.099014754, 0.99019608],
    [0.5, 0.01, 0.38283868, 0.98901611, 0.38291905, 0.99530583]
    + [0.37053343, 0.99994508, 0.44719571, 0.99992001],
    [0.5, 0.5, 0.33387153, 0.59730422, 0.36874638, 0.76960986]
    + [0.3474572, 0.8792735, 0.40824829, 0.83333333],
    [1, 0.1, 0.67604314, 0.92672798, 0.68188373, 0.96773726]
    + [0.62247675, 0.99612523, 0.70534562, 0.99502488],
    [1, 1, 0.5134672, 0.47913756, 0.60954842, 0.67936531]
    + [0.52919711, 0.71995042, 0.57735027, 0.66666667],
    [1, 3, 0.28258913, 0.15110618, 0.33050548, 0.21591568]
    + [0.2939804, 0.22217972, 0.30151134, 0.18181818],
    [3, 1, 0.92516605, 0.86369942, 0.99151644, 0.98876994]
    + [0.8819412, 0.91357552, 0.90453403, 0.90909091],
    [3, 3, 0.67730811, 0.47755692, 0.86701924, 0.78959404]
    + [0.67813632, 0.54013113, 0.6882472, 0.52631579],
    [0.2, 10, 0.019706918, 0.010091545, 0.02, 0.0104]
    + [0.019840841, 0.01585261, 0.019896804, 0.010292953],
    [10, 10, 0.70444736, 0.4975384, 0.96010577, 0.92521154]
    + [0.70434623, 0.50389639, 0.70534562, 0.50248756],
  ]
)
METHODS = ('quadrature', 'clip', 'softsign', 'mean_field')

# b, slope of the mean at 0 for the first three, second moment at 0.
SLOPES = np.array(
  [
    [0.01, 0.79769082, 0.79787126, 0.79785916, 0.98756624],
    [0.1, 0.78765224, 0.79655675, 0.79535688, 0.88407376],
    [0.5, 0.69018342, 0.76584985, 0.74108721, 0.56181777],
    [1, 0.56489085, 0.68268949, 0.62368624, 0.34432046],
    [2, 0.39231218, 0.47724987, 0.42368331, 0.15726154],
    [5, 0.18947623, 0.19999989, 0.19399821, 0.035959476],
    [20, 0.049814233, 0.05, 0.049902113, 0.0024814804],
  ]
)


def standard(a, b, method='quadrature'):
  return softsign_moments(a, 1.0, b, 1, method=method)


def by_panels(a, b, function=lambda x, b: x / np.hypot(x, b)):
  """E[f] and E[f^2] by 40 nodes on each of many panels of x > 0."""
  t, weight = np.polynomial.legendre.leggauss(40)
  edges = np.unique(
    np.r_[
      0,
      b,
      np.geomspace(1e-9, a + 14, 120),
      np.linspace(max(0, a - 14), a + 14, 60),
    ]
  )
  low, high = edges[:-1, None], edges[1:, None]
  x = ((low + high) / 2 + (high - low) / 2 * t).ravel()
  density = ((high - low) / 2 * weight).ravel() * stats.norm.pdf(x - a)
  u = function(x, b)
  odd, even = -np.expm1(-2 * a * x), 1 + np.exp(-2 * a * x)
  return np.sum(density * odd * u), np.sum(density * even * u**2)


GRID = np.stack(
  np.meshgrid(
    np.r_[np.geomspace(1e-3, 50, 7), 8.9, 9.1, 500.0],
    np.r_[np.geomspace(1e-6, 100, 17), 8.9, 9.1, 3e4],
    indexing='ij',
  ),
  axis=-1,
).reshape(-1, 2)


@functools.cache
def grid_moments():
  return np.array([by_panels(*x) for x in GRID])


@pytest.mark.parametrize('column, method', list(enumerate(METHODS)))
def test_table(column, method, double):
  mean, second = standard(TABLE[:, 0], TABLE[:, 1], method)
  # A few entries are printed with less than eight digits.
  for ours, printed in zip(
    (mean, second), TABLE[:, 2 + 2 * column :].T, strict=False
  ):
    np.testing.assert_allclose(ours, printed, rtol=6e-8)


def test_table_of_slopes(double):
  b = SLOPES[:, 0]
  for column, method in enumerate(METHODS[:3], start=1):
    _, slope = jax.jvp(
      lambda a, method=method: standard(a, b, method).mean,
      (np.zeros(len(b)),),
      (np.ones(len(b)),),
    )
    np.testing.assert_allclose(slope, SLOPES[:, column], rtol=6e-8)
  np.testing.assert_allclose(
    standard(0.0, b).second_moment, SLOPES[:, 4], rtol=6e-8
  )
  q = b**2 / 4
  bessel = b**2 * (special.k1e(q) - special.k0e(q)) / np.sqrt(8 * np.pi)
  np.testing.assert_allclose(bessel, SLOPES[:, 1], rtol=6e-8)


def test_quadrature_is_accurate_to_nine_digits(double):
  a, b = GRID.T
  ours = np.stack(standard(a, b), axis=1)
  np.testing.assert_allclose(ours, grid_moments(), rtol=1e-9)
  # The closed form, in float64 and where it keeps its digits.
  closed = 1 - b * np.sqrt(np.pi / 2) * special.wofz((a + 1j * b) / 2**0.5).real
  np.testing.assert_allclose(ours[:, 1], closed, rtol=1e-9, atol=1e-13)
  # And an adaptive integration that shares nothing with the panels.
  for point in ((1.0, 0.03), (0.01, 2.0)):
    expected = [
      integrate.quad(
        lambda x, p=p, point=point: (
          softsign_numpy(x, point[1]) ** p * stats.norm.pdf(x - point[0])
        ),
        -12,
        12,
        points=[0, -point[1], point[1]],
        epsabs=1e-13,
        limit=400,
      )[0]
      for p in (1, 2)
    ]
    np.testing.assert_allclose(standard(*point), expected, rtol=1e-9)


def softsign_numpy(x, eps):
  return x / np.hypot(x, eps)


def test_float32_keeps_its_digits_at_large_epsilon():
  a, b = GRID.T.astype(np.float32)
  ours = np.stack(standard(a, b), axis=1)
  np.testing.assert_allclose(ours, grid_moments(), rtol=1e-5)
  # One minus a function near one, as the closed form has it, does not.
  w = special.wofz((a + 1j * b) / 2**0.5).real.astype(np.float32)
  closed = np.float32(1) - b * np.float32((np.pi / 2) ** 0.5) * w
  assert np.max(np.abs(closed / grid_moments()[:, 1] - 1)) > 0.01


def test_gauss_hermite_nodes_miss_a_small_epsilon(double):
  x, weight = np.polynomial.hermite_e.hermegauss(64)
  u = softsign_numpy(x, 0.1)
  naive = np.sum(weight * u**2) / np.sqrt(2 * np.pi)
  assert abs(naive / float(standard(0.0, 0.1).second_moment) - 1) > 0.02


@hypothesis.given(
  a=st.floats(-50, 50), b=st.floats(-6, 2), scale=st.floats(-9, 9)
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_invariants(a, b, scale):
  b, scale = 10**b, 10**scale
  with jax.enable_x64(True):
    mean, second = softsign_moments(a * scale, 2 * scale, b * scale, 4.0)
    expected = by_panels(abs(a), b)
    np.testing.assert_allclose(
      (mean, second), (np.sign(a) * expected[0], expected[1]), rtol=1e-8
    )
    assert float(mean) ** 2 <= float(second) * (1 + 1e-9) <= 1 + 2e-9


def test_approximations_err_by_what_is_said(double):
  a, b = np.meshgrid(np.linspace(0, 10, 81), np.geomspace(0.01, 30, 61))
  exact = standard(a, b)
  for method, errors in (
    ('clip', (0.25, 0.43)),
    ('softsign', (0.107, 0.31)),
    ('mean_field', (0.078, 0.24)),
  ):
    for ours, moment, error in zip(
      standard(a, b, method), exact, errors, strict=True
    ):
      largest = float(jnp.max(jnp.abs(ours - moment)))
      assert largest == pytest.approx(error, abs=0.006)


def test_small_epsilon_is_felt_at_first_order(double):
  a, b = 0.7, 1e-4
  slope = np.sqrt(np.pi / 2) * np.exp(-(a**2) / 2)
  exact = standard(a, b).second_moment
  np.testing.assert_allclose((1 - exact) / b, slope, rtol=1e-3)
  for method in ('softsign', 'mean_field'):
    assert float((1 - standard(a, b, method).second_moment) / b) < 1e-3


def test_monte_carlo():
  rng = np.random.default_rng(0)
  g, std, eps, batch = 0.3, 2.0, 0.5, 4
  draws = g + rng.normal(size=(100_000, batch)).mean(1) * std
  u = softsign_numpy(draws, eps)
  moments = softsign_moments(g, std, eps, batch)
  for values, moment in zip((u, u**2), moments, strict=True):
    error = values.std() / np.sqrt(len(u))
    assert abs(values.mean() - float(moment)) < 4 * error


@pytest.mark.parametrize('method', METHODS)
def test_zeros_of_each_kind(method, double):
  g = np.array([-2.0, 0.0, 0.5, 1e-290, 1e290])
  # Without noise it is the SoftSign, without epsilon the sign.
  silent = softsign_moments(g, 0.0, 0.5, 8, method=method)
  exact = np.clip(g / 0.5, -1, 1) if method == 'clip' else softsign(g, 0.5)
  np.testing.assert_allclose(silent.mean, exact, rtol=1e-12, atol=1e-15)
  np.testing.assert_allclose(
    silent.second_moment, exact**2, rtol=1e-12, atol=1e-15
  )
  sign = softsign_moments(g, 1.0, 0.0, 8, method=method)
  if method in ('quadrature', 'clip'):
    np.testing.assert_allclose(
      sign.mean, special.erf(g * 2), rtol=1e-11, atol=0
    )
  np.testing.assert_allclose(sign.second_moment, 1, rtol=1e-12)
  nothing = softsign_moments(g, 0.0, 0.0, 8, method=method)
  np.testing.assert_allclose(nothing.mean, np.sign(g), rtol=1e-12)
  np.testing.assert_allclose(nothing.second_moment, g != 0, rtol=1e-12)
  full = softsign_moments(g, 1.0, 0.5, jnp.inf, method=method)
  np.testing.assert_allclose(full.mean, exact, rtol=1e-12, atol=1e-15)


def test_finite_with_derivatives_at_every_scale_of_float32():
  scale = np.array([0, 1e-30, 1e-8, 1.0, 1e8, 1e30], np.float32)
  g, std, eps = (x.ravel() for x in np.meshgrid(scale, scale, scale))
  for method in METHODS:
    total = lambda *x, method=method: jnp.sum(
      sum(softsign_moments(*x, 8.0, method=method))
    )
    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(g, std, eps)
    assert np.isfinite(value)
    assert not np.any(np.isnan(slopes)), method


@pytest.mark.parametrize('method', METHODS)
def test_derivatives(method, double):
  # Away from zero, on both sides of every switch.
  a = np.array([0.3, -2.0, 0.02, 20.0, 1.0, 3.0])
  b = np.array([0.5, 1e-3, 2.0, 30.0, 60.0, 0.01])

  def both(g, std, eps):
    return jnp.stack(softsign_moments(g, std, eps, 4.0, method=method))

  point = (a / 2, np.ones_like(a), b / 2)
  for i in range(3):
    # With respect to the logarithm of one argument.
    at = lambda d, i=i: both(
      *(x * jnp.exp(d * (j == i)) for j, x in enumerate(point))
    )
    _, slope = jax.jvp(at, (0.0,), (1.0,))
    h = 1e-4
    step = (at(h) - at(-h)) / (2 * h)
    np.testing.assert_allclose(slope, step, rtol=1e-4, atol=1e-6)


def test_memory_is_that_of_the_arguments():
  n = 1000

  def shapes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (v.aval.shape for v in equation.outvars)
      for inner in jaxprs_in_params(equation.params):
        yield from shapes(inner)

  total = lambda g: sum(map(jnp.sum, softsign_moments(g, 1.0, 0.1, 8)))
  jaxpr = jax.make_jaxpr(jax.grad(total))(jnp.ones(n)).jaxpr
  assert max(np.prod(s, dtype=int) for s in shapes(jaxpr)) == n


def test_transforms_agree():
  g = np.linspace(-2, 2, 16, dtype=np.float32)
  call = lambda g: softsign_moments(g, 1.0, 0.3, 8)
  expected = np.stack(call(g))
  np.testing.assert_allclose(jax.vmap(call)(g), expected, rtol=1e-6, atol=1e-7)
  mesh = jax.make_mesh((8,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('i')
  split = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
  np.testing.assert_allclose(jax.jit(split)(g), expected, rtol=1e-6, atol=1e-7)
  half = softsign_moments(jnp.asarray(g, jnp.bfloat16), 1.0, 0.3, 8)
  assert half.mean.dtype == jnp.float32


@pytest.mark.parametrize(
  'arguments, method, message',
  [
    ((1.0, 1.0, 1.0, 0), 'clip', 'batch_size: got 0'),
    ((1.0, -1.0, 1.0, 1), 'clip', 'noise_std: got -1.0'),
    ((1.0, 1.0, -0.1, 1), 'clip', 'eps: got -0.1'),
    ((1.0, 1.0, 1.0, 1), 'exact', "method: got 'exact', expected one of"),
  ],
)
def test_wrong_arguments_are_named(arguments, method, message):
  with pytest.raises(ValueError, match=message):
    softsign_moments(*arguments, method=method)
