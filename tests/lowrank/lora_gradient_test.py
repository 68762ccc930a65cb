"""LoRA-Pro's steps against least squares, and where the factors degenerate."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

from kexue.lowrank import (
  LoraGradient,
  lora_equivalent_gradient,
  lora_pro_gradient,
)

FREE = ('sylvester', 'symmetric', 'zero')
SCALE = 2.0


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


def problem(fan_in=6, rank=2, fan_out=5, *, batch=(), seed=0, dtype=np.float64):
  """Factors, and the gradient of the weight, which the steps never see."""
  rng = np.random.default_rng(seed)
  shapes = (fan_in, rank), (rank, fan_out), (fan_in, fan_out)
  return [rng.normal(size=(*batch, *shape)).astype(dtype) for shape in shapes]


def factor_gradients(a, b, g, scale=SCALE):
  return scale * g @ b.mT, scale * a.mT @ g


@jax.jit
def _solve(a, b, g, scale, damping):
  grads = factor_gradients(a, b, g, scale)
  result = {}
  for free in FREE:
    step = lora_pro_gradient(
      a, b, *grads, scale=scale, free=free, damping=damping
    )
    result[free] = step, lora_equivalent_gradient(a, b, *step, scale=scale)
  return grads, result


def solve(a, b, g, *, scale=SCALE, damping=0.0):
  """Step and equivalent gradient by the choice of `X`, in one program."""
  return jax.device_get(_solve(a, b, g, scale, damping)[1])


def projections(a, b):
  return a @ np.linalg.pinv(a), np.linalg.pinv(b) @ b


def closest_steps(a, b, g, target_a, target_b):
  """The steps closest to a target among those that reach most of `g`.

  Of one linear system for both at once, whose solution of least norm
  `numpy.linalg.lstsq` returns; so it knows no formula of the paper.
  """
  fan_in, fan_out = g.shape
  system = SCALE * np.hstack(
    [np.kron(np.eye(fan_in), b.T), np.kron(a, np.eye(fan_out))]
  )
  target = np.concatenate([target_a.ravel(), target_b.ravel()])
  missing = g.ravel() - system @ target
  flat = target + np.linalg.lstsq(system, missing, rcond=1e-12)[0]
  return LoraGradient(
    flat[: a.size].reshape(a.shape), flat[a.size :].reshape(b.shape)
  )


@pytest.mark.parametrize('shape', [(6, 2, 5), (1, 1, 8)])
def test_the_residual_is_the_minimum(shape, double):
  a, b, g = problem(*shape)
  best = closest_steps(a, b, g, 0 * a, 0 * b)
  p_a, p_b = projections(a, b)
  corner = (np.eye(len(p_a)) - p_a) @ g @ (np.eye(len(p_b)) - p_b)
  for _, delta in solve(a, b, g).values():
    np.testing.assert_allclose(
      delta, SCALE * (best.a @ b + a @ best.b), atol=1e-9
    )
    np.testing.assert_allclose(g - delta, corner, atol=1e-9)


def test_sylvester_is_closest_to_the_gradients(double):
  a, b, g = problem()
  b *= 3  # The Gram matrices must not be of one size.
  step, _ = solve(a, b, g)['sylvester']
  grad_a, grad_b = factor_gradients(a, b, g)
  closest = closest_steps(a, b, g, grad_a, grad_b)
  chex.assert_trees_all_close(step, closest, atol=1e-10)
  # And as the paper has it.
  over_b = grad_a @ np.linalg.inv(b @ b.T) / SCALE**2
  x = scipy.linalg.solve_sylvester(a.T @ a, b @ b.T, -a.T @ over_b)
  np.testing.assert_allclose(step.a, over_b + a @ x, atol=1e-10)


def test_symmetric_and_zero_are_the_articles(double):
  a, b, g = problem()
  grad_a, grad_b = (x / SCALE**2 for x in factor_gradients(a, b, g))
  p_a, p_b = projections(a, b)
  over_a, over_b = np.linalg.inv(a.T @ a), np.linalg.inv(b @ b.T)
  for free, part_a, part_b in [('symmetric', 0.5, 0.5), ('zero', 0, 1)]:
    step, _ = solve(a, b, g)[free]
    expected = LoraGradient(
      (np.eye(6) - part_a * p_a) @ grad_a @ over_b,
      over_a @ grad_b @ (np.eye(5) - part_b * p_b),
    )
    chex.assert_trees_all_close(step, expected, atol=1e-10)


def test_equivalent_gradient_is_the_derivative_of_the_weight(double):
  (a, b, _), (step_a, step_b, _) = problem(), problem(seed=1)
  weight = lambda a, b: 7 + SCALE * a @ b
  _, expected = jax.jvp(weight, (a, b), (step_a, step_b))
  delta = lora_equivalent_gradient(a, b, step_a, step_b, scale=SCALE)
  np.testing.assert_allclose(delta, expected, rtol=1e-12)


@hypothesis.settings(deadline=None, max_examples=40, derandomize=True)
@hypothesis.given(
  shape=st.sampled_from([(6, 2, 5), (3, 5, 4)]),
  seed=st.integers(0, 2**31),
  scale=st.floats(1e-2, 1e2),
  sizes=st.tuples(*[st.sampled_from([0.0, 1e-5, 1.0, 1e5])] * 3),
  deficient=st.booleans(),
)
def test_every_step_descends(shape, seed, scale, sizes, deficient):
  arrays = problem(*shape, seed=seed, dtype=np.float32)
  a, b, g = (np.float32(s) * x for s, x in zip(sizes, arrays, strict=True))
  if deficient:
    b[0] = 0
  (grad_a, grad_b), result = _solve(a, b, g, scale, 1e-6)
  dot = lambda x, y: np.vdot(np.float64(x), np.float64(y))
  for step, delta in result.values():
    chex.assert_tree_all_finite(step)
    descent = dot(grad_a, step.a) + dot(grad_b, step.b)
    # That of a projection of the full gradient: |delta|^2, within |g|^2.
    assert 0 <= descent <= 1.01 * dot(g, g)
    np.testing.assert_allclose(
      descent, dot(delta, delta), rtol=1e-2, atol=1e-6 * dot(g, g)
    )


def test_a_factor_that_is_zero(double):
  a, b, g = problem()
  p_a, p_b = projections(a, b)
  least = np.linalg.solve(a.T @ a, a.T @ g) / SCALE
  for step, delta in solve(a, 0 * b, g).values():
    np.testing.assert_array_equal(step.a, 0)
    np.testing.assert_allclose(step.b, least, atol=1e-10)
    np.testing.assert_allclose(delta, p_a @ g, atol=1e-10)
  for step, delta in solve(0 * a, b, g).values():
    np.testing.assert_array_equal(step.b, 0)
    np.testing.assert_allclose(delta, g @ p_b, atol=1e-10)
  for step, _ in solve(0 * a, 0 * b, g, damping=1e-6).values():
    chex.assert_trees_all_equal(step, LoraGradient(0 * a, 0 * b))
  # Of a small factor the weight sees what it sees of a large one.
  small, large = solve(a, 1e-9 * b, g), solve(a, b, g)
  for free in FREE:
    np.testing.assert_allclose(small[free][1], large[free][1], atol=1e-10)


@pytest.mark.parametrize('seed', range(3))
def test_a_rank_that_is_too_high(seed):
  a, b, g = problem(3, 5, 4, seed=seed, dtype=np.float32)
  for step, delta in solve(a, b, g, damping=1e-6).values():
    np.testing.assert_allclose(delta, g, atol=1e-3)
    # Nothing grows in the direction that is lacking.
    lacking = scipy.linalg.null_space(b.T)
    assert lacking.shape == (5, 1)
    np.testing.assert_allclose(step.a @ lacking, 0, atol=1e-3)


def test_a_change_of_basis_between_the_factors(double):
  a, b, g = problem()
  r, q = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[0.6, 0.8], [-0.8, 0.6]])
  moved, turned = (solve(a @ m, np.linalg.inv(m) @ b, g) for m in (r, q))
  for free, (step, delta) in solve(a, b, g).items():
    np.testing.assert_allclose(moved[free][1], delta, atol=1e-10)
    carried = LoraGradient(step.a @ q, q.T @ step.b)
    chex.assert_trees_all_close(turned[free][0], carried, atol=1e-10)
    carried = LoraGradient(step.a @ r, np.linalg.inv(r) @ step.b)
    if free == 'sylvester':  # It alone sees how the product is shared out.
      assert np.abs(moved[free][0].a - carried.a).max() > 1e-2
    else:
      chex.assert_trees_all_close(moved[free][0], carried, atol=1e-10)


@pytest.mark.parametrize('power', [-40, 40])
def test_no_scale_matters(power):
  a, b, g = problem(dtype=np.float32)
  size = np.float32(2.0**power)  # About 1e12, and exact.
  run = lambda *arrays: solve(*arrays, damping=1e-6)
  plain = run(a, b, g)
  steps = lambda result: {free: step for free, (step, _) in result.items()}
  deltas = lambda result: {free: delta for free, (_, delta) in result.items()}
  times = lambda size, tree: jax.tree.map(lambda x: size * x, tree)
  chex.assert_trees_all_equal(
    steps(run(a, b, size * g)), times(size, steps(plain))
  )
  both = run(size * a, size * b, g)
  chex.assert_trees_all_equal(times(size, steps(both)), steps(plain))
  # Unequal factors: the squares of these leave the range of float32.
  unequal = run(size * size * a, b / size, g)
  chex.assert_tree_all_finite(unequal)
  chex.assert_trees_all_close(deltas(unequal), deltas(plain), atol=1e-5)


def test_half_precision_is_computed_in_single():
  a, b, g = problem(dtype=np.float32)
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in (a, b, g @ b.T, a.T @ g)]
  run = jax.jit(lambda *x: lora_pro_gradient(*x, scale=1.0))
  step = run(*arrays)
  assert step.a.dtype == step.b.dtype == jnp.float32
  wide = [x.astype(jnp.float32) for x in arrays]
  chex.assert_trees_all_close(step, run(*wide), rtol=1e-6)
  delta = lora_equivalent_gradient(*arrays, scale=1.0)
  assert delta.dtype == jnp.float32


def test_batches_are_vmapped():
  a, b, g = problem(batch=(2, 3), dtype=np.float32)
  a[0, 0] = b[1, 2] = 0
  run = lambda a, b, g: lora_pro_gradient(
    a, b, *factor_gradients(a, b, g), scale=SCALE
  )
  together = jax.jit(run)(a, b, g)
  mapped = jax.jit(jax.vmap(jax.vmap(run)))(a, b, g)
  chex.assert_trees_all_close(together, mapped, atol=1e-5)
  for i in np.ndindex(2, 3):
    alone, _ = solve(a[i], b[i], g[i], damping=1e-6)['sylvester']
    np.testing.assert_allclose(together.a[i], alone.a, atol=1e-5)
    np.testing.assert_allclose(together.b[i], alone.b, atol=1e-5)


def test_wrong_arguments_are_named():
  a, b, g = problem()
  grad_a, grad_b = factor_gradients(a, b, g)
  run, reach = lora_pro_gradient, lora_equivalent_gradient
  for name, call in {
    'a: got shape': lambda: run(a[0], b, grad_a, grad_b, scale=1.0),
    'b: got shape': lambda: run(a, b.T, grad_a, grad_b, scale=1.0),
    'grad_a: got shape': lambda: run(a, b, grad_b, grad_b, scale=1.0),
    'grad_b: got shape': lambda: run(a, b, grad_a, grad_a, scale=1.0),
    "free: got 'x'": lambda: run(a, b, grad_a, grad_b, scale=1.0, free='x'),
    'scale: got 0': lambda: run(a, b, grad_a, grad_b, scale=0),
    'damping: got -1': lambda: run(a, b, grad_a, grad_b, scale=1.0, damping=-1),
    'step_a: got shape': lambda: reach(a, b, b, b, scale=1.0),
    'step_b: got shape': lambda: reach(a, b, a, a, scale=1.0),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
