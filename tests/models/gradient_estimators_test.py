"""The family of estimators against its matrices, built in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from kexue.models import gradient_estimator, rotation_trick, straight_through
from kexue.models.gradient_estimators import KINDS

LINEAR = [kind for kind in KINDS if kind != 'diveq']
RNG = np.random.default_rng(0)
Z, Q, G = RNG.normal(size=(3, 64, 8)) * np.array([1.0, 2.0, 3.0])[:, None, None]


def unit(x):
  return x / np.linalg.norm(x)


def rotation(z, q):
  """Two reflections: first in the bisector's hyperplane, then in that of q."""
  z, q = unit(z), unit(q)
  r, eye = unit(z + q), np.eye(len(z))
  return (eye - 2 * np.outer(q, q)) @ (eye - 2 * np.outer(r, r))


def matrix(kind, z, q):
  """G of one row."""
  eye, scale = np.eye(len(z)), np.linalg.norm(q) / np.linalg.norm(z)
  if kind == 'reflection':
    a = unit(unit(z) - unit(q))
    return scale * (eye - 2 * np.outer(a, a))
  return {
    'ste': lambda: eye,
    'rotation': lambda: scale * rotation(z, q),
    'rotation_no_rescale': lambda: rotation(z, q),
    'scaled_rotation': lambda: rotation(z, q) / (8 * np.sum((q - z) ** 2)),
    'diveq': lambda: eye - np.outer(unit(q - z), unit(q - z)),
  }[kind]()


@functools.partial(jax.jit, static_argnames=('kind', 'max_scale'))
def pull(z, q, g, *, kind, max_scale=None):
  """The value, and the cotangents of z and q."""
  value, pullback = jax.vjp(
    lambda z, q: gradient_estimator(z, q, kind=kind, max_scale=max_scale), z, q
  )
  return value, *pullback(g)


def test_the_rotation_matrix_of_the_oracle_is_one():
  for z, q in zip(Z, Q, strict=True):
    matrix = rotation(z, q)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-12)
    np.testing.assert_allclose(matrix @ unit(z), unit(q), atol=1e-12)
    # Nothing turns outside of the plane of both.
    aside = np.linalg.svd(np.stack([z, q]))[2][2:]
    np.testing.assert_allclose(matrix @ aside.T, aside.T, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_cotangent_is_the_transposed_matrix(kind):
  with jax.enable_x64(True):
    value, by_z, by_q = pull(Z, Q, G, kind=kind)
    np.testing.assert_array_equal(value, Q)
    matrices = np.stack([matrix(kind, *row) for row in zip(Z, Q, strict=True)])
    transposed = np.einsum('nij,ni->nj', matrices, G)
    np.testing.assert_allclose(by_z, transposed, atol=1e-12)
    if kind == 'diveq':  # The derivative of q is u u^T.
      np.testing.assert_allclose(by_q, G - transposed, atol=1e-12)
    else:
      np.testing.assert_array_equal(by_q, 0)
    if 'rotation' in kind:  # As the article prints it: no transpose.
      wrong = np.einsum('nij,nj->ni', matrices, G)
      assert np.abs(by_z - wrong).max() > 0.1
  single = pull(*np.float32([Z, Q, G]), kind=kind)
  np.testing.assert_allclose(single[1], transposed, atol=2e-4)


def test_rotation_keeps_angles_and_scales_norms():
  cos = lambda a, b: (
    np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
  )
  norm = lambda x: np.linalg.norm(x, axis=-1)
  with jax.enable_x64(True):
    for kind, ratio in (
      ('rotation', norm(Q) / norm(Z)),
      ('rotation_no_rescale', 1.0),
      ('reflection', norm(Q) / norm(Z)),
    ):
      _, by_z, _ = pull(Z, Q, G, kind=kind)
      np.testing.assert_allclose(cos(by_z, Z), cos(G, Q), atol=1e-12)
      np.testing.assert_allclose(norm(by_z), ratio * norm(G), rtol=1e-12)
    _, kept, _ = pull(Z, Q, G, kind='ste')
    assert np.abs(cos(kept, Z) - cos(G, Q)).max() > 0.5


def test_diveq_is_its_formula():
  def formula(z, q):
    length = jnp.linalg.norm(q - z, axis=-1, keepdims=True)
    return z + length * jax.lax.stop_gradient((q - z) / length)

  with jax.enable_x64(True):
    z, q, g = map(jnp.asarray, (Z, Q, G))
    value, pullback = jax.vjp(formula, z, q)
    exact, *cotangents = pull(z, q, g, kind='diveq')
    np.testing.assert_allclose(value, exact, atol=1e-12)
    for ours, theirs in zip(cotangents, pullback(g), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-12)


E = np.eye(8)[:2].astype(np.float32)
GENERIC = np.float32(Z[0]), np.float32(Q[0])
# Rows of the formulas' table of what breaks a published implementation.
DEGENERATE = {
  'generic': GENERIC,
  'the code itself': (GENERIC[0], GENERIC[0]),
  'antipodal': (E[0], -2 * E[0]),
  'antipodal but for 1e-4': (E[0], -E[0] + 1e-4 * E[1]),
  'antipodal but for 1e-6': (E[0], -E[0] + 1e-6 * E[1]),
  'z of 1e-3': (1e-3 * E[0], E[1]),
  'z of 1e-6': (1e-6 * E[0], E[1]),
  'z of 1e-8': (1e-8 * E[0], E[1]),
  'z of 1e-30': (1e-30 * E[0], E[1]),
  'z of 0': (0 * E[0], E[1]),
  'q of 0': (E[0], 0 * E[1]),
  'q of 1e-8': (E[0], 1e-8 * E[1]),
  'both 0': (0 * E[0], 0 * E[1]),
  'z of 1e30': (1e30 * E[0], E[1]),
  'z infinite': (np.where(E[0], np.float32(np.inf), 0), E[1]),
}


@pytest.mark.parametrize('kind', KINDS)
def test_degenerate_rows(kind):
  """Forward exact, gradient finite and at most the clip times the cotangent."""
  z, q = map(np.stack, zip(*DEGENERATE.values(), strict=True))
  g = np.float32(np.random.default_rng(1).normal(size=z.shape))
  norm = lambda x: np.linalg.norm(x, axis=-1)
  value, by_z, by_q = map(np.asarray, pull(z, q, g, kind=kind, max_scale=10))
  np.testing.assert_array_equal(value, q)
  assert np.isfinite(by_z).all() and np.isfinite(by_q).all()
  assert (norm(by_z) <= 10 * norm(g) * (1 + 1e-5)).all()
  rows = dict(zip(DEGENERATE, zip(by_z, g, strict=True), strict=True))
  straight = [
    'z of 1e-8',
    'z of 1e-30',
    'z of 0',
    'q of 0',
    'q of 1e-8',
    'both 0',
    'z of 1e30',
  ]
  if 'rotation' in kind:
    straight += [name for name in DEGENERATE if 'antipodal' in name]
  if kind != 'diveq':
    for name in straight:
      np.testing.assert_array_equal(*rows[name], err_msg=name)
  if kind in ('rotation', 'reflection'):
    by, g = rows['z of 1e-3']
    np.testing.assert_allclose(norm(by), 10 * norm(g), rtol=1e-5)
    np.testing.assert_allclose(*rows['the code itself'], atol=1e-6)
    free = pull(z, q, np.tile(g, (len(z), 1)), kind=kind)[1]
    names = list(DEGENERATE)
    ratio = norm(free[names.index('z of 1e-3')]) / norm(g)
    np.testing.assert_allclose(ratio, 1e3, rtol=1e-5)


def test_almost_antipodal_rotations_stay_rotations():
  """Just inside the threshold float32 still has the plane."""
  angle = np.pi - np.sqrt(2.1e-3)
  z = np.float32(E[0])
  q = np.float32(np.cos(angle) * E[0] + np.sin(angle) * E[1])
  g = np.float32(G[0])
  by_z = pull(z, q, g, kind='rotation_no_rescale')[1]
  exact = rotation(np.float64(z), np.float64(q)).T @ g
  np.testing.assert_allclose(by_z, exact, atol=1e-4)
  assert np.abs(exact - g).max() > 1


def test_far_from_the_origin_it_is_straight_through():
  far = np.full(8, 1e4)
  with jax.enable_x64(True):
    by_z = pull(Z + far, Q + far, G, kind='rotation')[1]
    near = pull(Z, Q, G, kind='rotation')[1]
  np.testing.assert_allclose(by_z, G, atol=5e-3)
  assert np.abs(np.asarray(near) - G).max() > 1


def test_second_derivatives_hold_the_matrix_constant():
  with jax.enable_x64(True):
    for kind in ('rotation', 'reflection', 'ste', 'diveq'):
      f = lambda z, kind=kind: jnp.sum(
        jnp.cos(gradient_estimator(z, Q[0], kind=kind))
      )
      hessian = jax.jacrev(jax.grad(f))(jnp.asarray(Z[0]))
      g_matrix = matrix(kind, Z[0], Q[0])
      exact = g_matrix.T @ np.diag(-np.cos(Q[0])) @ g_matrix
      np.testing.assert_allclose(hessian, exact, atol=1e-12)
    with pytest.raises(TypeError, match='custom_vjp'):
      jax.jvp(f, (Z[0],), (Z[0],))


def test_short_names():
  z, q, g = np.float32([Z, Q, G])
  for function, options in (
    (straight_through, dict(kind='ste')),
    (rotation_trick, dict(kind='rotation')),
    (
      functools.partial(rotation_trick, max_scale=0.5),
      dict(kind='rotation', max_scale=0.5),
    ),
  ):
    value, pullback = jax.vjp(lambda z, f=function: f(z, q), z)
    np.testing.assert_array_equal(value, q)
    expected = pull(z, q, g, **options)[1]
    np.testing.assert_allclose(pullback(g)[0], expected, atol=2e-6)


@settings(max_examples=10, deadline=None)
@given(
  kind=st.sampled_from(KINDS),
  shape=st.sampled_from([(1,), (3,), (2, 5), (0, 4), (2, 1, 3)]),
  dtypes=st.tuples(*[st.sampled_from(['bfloat16', 'float16', 'float32'])] * 2),
  seed=st.integers(0, 9),
)
def test_shapes_and_dtypes(kind, shape, dtypes, seed):
  """Half precision is that of the float32 result, rounded at the end."""
  draw = np.random.default_rng(seed).normal
  z, q = (jnp.asarray(draw(size=shape), d) for d in dtypes)
  g = jnp.asarray(draw(size=shape), q.dtype)
  value, by_z, by_q = pull(z, q, g, kind=kind, max_scale=4.0)
  assert (value.dtype, by_z.dtype, by_q.dtype) == (q.dtype, z.dtype, q.dtype)
  assert value.shape == by_z.shape == by_q.shape == shape
  np.testing.assert_array_equal(value, q)
  wide = pull(*(x.astype('float32') for x in (z, q, g)), kind=kind, max_scale=4)
  for narrow, exact in zip((by_z, by_q), wide[1:], strict=True):
    size = float(jnp.finfo(narrow.dtype).eps)
    np.testing.assert_allclose(
      np.float32(narrow), exact, rtol=size, atol=1e-5 * np.abs(g).max(initial=1)
    )


@pytest.mark.parametrize('kind', ['rotation', 'diveq', 'ste'])
def test_every_transformation_gives_the_same(kind):
  z, q, g = np.float32([Z, Q, G])
  expected = pull(z, q, g, kind=kind)
  by_row = jax.vmap(functools.partial(pull, kind=kind))(z, q, g)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  sharded = jax.jit(
    jax.shard_map(
      functools.partial(pull, kind=kind),
      mesh=mesh,
      in_specs=P('data'),
      out_specs=P('data'),
    )
  )(z, q, g)
  for other in (by_row, sharded):
    for ours, theirs in zip(other, expected, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize('spec', [(P('data'), P()), (P(), P('data'))])
def test_one_side_may_be_shared_by_all_devices(spec):
  """Its cotangent is then the sum over devices, the other's that of its own."""
  z, q, g = np.float32([Z, Q, G])
  z, q = (
    x if s == P('data') else x[:8] for x, s in zip((z, q), spec, strict=True)
  )
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  loss = lambda z, q, g: jnp.sum(g * gradient_estimator(z, q, kind='diveq'))
  ours = jax.jit(
    jax.shard_map(
      jax.grad(loss, (0, 1)),
      mesh=mesh,
      in_specs=(*spec, P('data')),
      out_specs=spec,
    )
  )(z, q, g)
  tiled = (np.tile(x, (len(g) // len(x), 1)) for x in (z, q))
  _, *exact = pull(*tiled, g, kind='diveq')
  for mine, whole, x in zip(ours, exact, (z, q), strict=True):
    summed = np.reshape(whole, (-1, *x.shape)).sum(0)
    np.testing.assert_allclose(mine, summed, atol=2e-5)


@pytest.mark.parametrize(
  'z, q, options, message',
  [
    (Z, Q, dict(kind='x'), "kind: got 'x', expected one of 'ste'"),
    (Z, Q[:3], dict(kind='ste'), r'q: got shape \(3, 8\)'),
    (1.0, 1.0, dict(kind='ste'), 'z: got shape'),
    (Z, np.arange(8), dict(kind='ste'), 'q: got shape'),
    (np.arange(8), Z[0], dict(kind='ste'), "z: got 'int32'"),
    (Z[0], np.arange(8), dict(kind='ste'), "q: got 'int32'"),
    (Z, Q, dict(kind='rotation', max_scale=0.0), 'max_scale: got 0.0'),
  ],
)
def test_wrong_arguments_are_named(z, q, options, message):
  with pytest.raises(ValueError, match=message):
    gradient_estimator(z, q, **options)
