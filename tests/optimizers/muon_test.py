"""Muon against numpy trajectories in float64, optax's, and its own laws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from kexue.optimizers import (
  FusedDimensionNumbers,
  msign,
  muon,
  newton_schulz,
  scale_by_muon,
)

KELLER = (3.4445, -4.7750, 2.0315)


def gaussian(*shape, seed=0, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def numpy_sign(x, steps=5):
  """Keller Jordan's `zeropower_via_newtonschulz5`, in float64."""
  a, b, c = KELLER
  transposed = x.shape[0] > x.shape[1]
  x = x.T if transposed else x
  x = x / np.linalg.norm(x)
  for _ in range(steps):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x.T if transposed else x


def heavy_ball(w, grads, *, lr, scale, decay=0.0, mu=0.95, nesterov=True):
  """Muon as the post writes it: heavy ball, then decay with the plain lr."""
  m = np.zeros_like(w)
  for g in grads:
    m = mu * m + g
    n = g + mu * m if nesterov else m
    w = w - lr * (scale * numpy_sign(n) + decay * w)
  return w


def apply(optimizer, params, grads):
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize('nesterov', [True, False])
@pytest.mark.parametrize('shape', [(8, 12), (12, 8)])
@pytest.mark.parametrize(
  'scale, factor',
  [
    ('none', lambda i, o: 1),
    ('keller', lambda i, o: max(1, o / i) ** 0.5),
    ('mup', lambda i, o: (o / i) ** 0.5),
    ('moonlight', lambda i, o: 0.2 * max(i, o) ** 0.5),
  ],
)
def test_ten_steps_equal_numpy(shape, scale, factor, nesterov):
  with jax.enable_x64(True):
    w = gaussian(*shape, dtype=jnp.float64)
    grads = gaussian(10, *shape, seed=1, dtype=jnp.float64)
    optimizer = muon(
      0.02, scale=scale, weight_decay=0.1, nesterov=nesterov, steps=5
    )
    ours = apply(optimizer, {'w': w}, [{'w': g} for g in grads])['w']
    expected = heavy_ball(
      np.asarray(w),
      np.asarray(grads),
      lr=0.02,
      scale=factor(*shape),
      decay=0.1,
      nesterov=nesterov,
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_bias_correction_is_that_of_optax():
  with jax.enable_x64(True):
    params = {'w': gaussian(6, 9, dtype=jnp.float64)}
    grads = gaussian(6, 6, 9, seed=1, dtype=jnp.float64)
    ours = scale_by_muon(scale='none', bias_correction=True)
    theirs = optax.contrib.scale_by_muon(
      ns_coeffs=(KELLER,) * 5,
      eps=1e-30,
      weight_dimension_numbers={'w': MuonDimensionNumbers()},
    )
    plain = scale_by_muon(scale='none')
    states = [t.init(params) for t in (ours, theirs, plain)]
    for i, g in enumerate(grads):
      results = [
        t.update({'w': g}, s, params)
        for t, s in zip((ours, theirs, plain), states, strict=True)
      ]
      (a, b, c), states = zip(*results, strict=True)
      np.testing.assert_allclose(a['w'], b['w'], atol=1e-9)
      if i == 1:
        assert np.abs(a['w'] - c['w']).max() > 1e-3  # It does matter.


@pytest.mark.parametrize('factor', [1e-20, 1e20])
def test_scale_of_the_gradient_does_not_matter(factor):
  params, g = {'w': gaussian(6, 9)}, gaussian(6, 9, seed=1)
  tx = scale_by_muon()
  plain, _ = tx.update({'w': g}, tx.init(params))
  scaled, _ = tx.update({'w': g * factor}, tx.init(params))
  chex.assert_trees_all_close(plain, scaled, atol=1e-5)


def test_zero_gradient_moves_nothing():
  params = {'w': gaussian(6, 9), 'bias': jnp.ones(3)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  chex.assert_trees_all_equal(apply(muon(0.1), params, [zeros]), params)


@pytest.mark.parametrize('shape', [(64, 64), (64, 256), (256, 64)])
@pytest.mark.parametrize('coefficients', ['keller', 'polar_express'])
def test_moonlight_updates_have_the_rms_of_adamw(shape, coefficients):
  tx = scale_by_muon(coefficients=coefficients)
  g = {'w': gaussian(*shape)}
  updates, _ = tx.update(g, tx.init(g))
  rms = float(jnp.sqrt(jnp.mean(updates['w'] ** 2)))
  assert 0.165 < rms < 0.21  # Keller's set overshoots and falls short.


def test_spectral_norm_stays_bounded():
  # ||W|| <= max(||W_0||, s c / lambda), c = 1.21 the most Keller's set gives.
  optimizer = muon(0.1, scale='none', weight_decay=1.0)
  params = {'w': 3.0 * jnp.eye(8)}
  state, key = optimizer.init(params), jax.random.key(0)

  def body(carry, k):
    params, state = carry
    g = {'w': jax.random.normal(k, (8, 8)) + 2 * params['w'].mT}
    updates, state = optimizer.update(g, state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), jnp.linalg.norm(params['w'], 2)

  _, norms = jax.lax.scan(body, (params, state), jax.random.split(key, 500))
  assert float(jnp.max(norms)) <= 3.0
  assert float(jnp.max(norms[-100:])) <= 1.21


def test_dimension_numbers_make_batches_of_matrices():
  w, g = gaussian(2, 6, 3, 4), gaussian(2, 6, 3, 4, seed=1)
  numbers = {'w': MuonDimensionNumbers((1,), (2, 3))}
  tx = scale_by_muon(scale='keller', dimension_numbers=numbers)
  updates, _ = tx.update({'w': g}, tx.init({'w': w}))
  single = scale_by_muon(scale='keller')
  for i in range(2):
    flat = {'w': g[i].reshape(6, 12)}
    expected, _ = single.update(flat, single.init(flat))
    np.testing.assert_allclose(
      updates['w'][i].reshape(6, 12), expected['w'], atol=1e-5
    )


def directions(numbers, g, **options):
  tx = scale_by_muon(dimension_numbers={'w': numbers}, **options)
  return tx.update({'w': g}, tx.init({'w': g}))[0]['w']


def test_fused_heads_and_experts_are_matrices_of_their_own():
  g = gaussian(16, 24)
  fused = directions(FusedDimensionNumbers((12, 8, 4)), g)
  apart = [
    directions(MuonDimensionNumbers(), part)
    for part in jnp.split(g, [12, 20], axis=1)
  ]
  np.testing.assert_allclose(fused, jnp.concatenate(apart, 1), atol=1e-5)
  heads = directions(MuonDimensionNumbers(0, 2), g.reshape(16, 4, 6))
  each = [
    directions(MuonDimensionNumbers(), g[:, 6 * h : 6 * h + 6])
    for h in range(4)
  ]
  np.testing.assert_allclose(heads, jnp.stack(each, 1), atol=1e-5)
  experts = gaussian(3, 4, 8, 12)
  ours = directions(MuonDimensionNumbers(2, 3), experts)
  one = directions(MuonDimensionNumbers(), experts[2, 1])
  np.testing.assert_allclose(ours[2, 1], one, atol=1e-5)


def test_scales_of_convolutions_are_those_of_the_flattened_matrix():
  # A fault of several peers: the raw shape gives up to 512 times too little.
  g, numbers = gaussian(3, 3, 4, 8), MuonDimensionNumbers((0, 1, 2), 3)
  exact = msign(g.reshape(36, 8)).reshape(g.shape)
  for scale, factor in [
    ('none', 1),
    ('keller', 1),
    ('mup', (8 / 36) ** 0.5),
    ('moonlight', 0.2 * 6),
    (0.3, 0.3 * 6),
  ]:
    ours = directions(
      numbers, g, scale=scale, coefficients='polar_express', steps=8
    )
    np.testing.assert_allclose(ours, factor * exact, atol=2e-3)


def test_a_number_for_the_scale_may_be_traced():
  g = {'w': gaussian(6, 9)}
  tx = scale_by_muon(scale=0.2)
  expected, _ = tx.update(g, tx.init(g))
  injected = optax.inject_hyperparams(scale_by_muon)(scale=0.2)
  ours, _ = jax.jit(injected.update)(g, injected.init(g))
  chex.assert_trees_all_close(ours, expected, atol=1e-5)


def test_any_function_may_take_the_place_of_newton_schulz():
  g = {'a': gaussian(6, 9), 'b': gaussian(6, 9, seed=1)}
  tx = scale_by_muon(msign=msign, scale='none')
  for strategy in ('loop', 'batched'):
    tx = scale_by_muon(msign=msign, scale='none', strategy=strategy)
    ours, _ = tx.update(g, tx.init(g))
    chex.assert_trees_all_close(ours, jax.tree.map(msign, g), atol=1e-5)
  half = muon(0.1, msign=msign, ns_dtype=jnp.bfloat16)
  updates, _ = half.update(g, half.init(g), g)
  assert updates['a'].dtype == jnp.float32


def test_half_precision_iterations_see_no_scale():
  g = gaussian(16, 24)
  expected = directions(MuonDimensionNumbers(), g, scale='none')
  for dtype in (jnp.float16, jnp.bfloat16):
    for factor in (1e-20, 1e20):
      ours = directions(
        MuonDimensionNumbers(), g * factor, scale='none', ns_dtype=dtype
      )
      assert jnp.linalg.norm(ours - expected) < 0.1 * jnp.linalg.norm(expected)


def test_preconditioning_reaches_the_iteration():
  g = gaussian(6, 9)
  ours = directions(
    MuonDimensionNumbers(), g, scale='none', preconditioning='spectral', steps=2
  )
  expected = newton_schulz(
    g, coefficients='keller', steps=2, preconditioning='spectral'
  )
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_clipping_comes_before_the_momentum():
  params = {'w': gaussian(6, 9), 'bias': jnp.ones(9)}
  grads = jax.tree.map(lambda x: 1e6 * x, params)
  clipped, plain = muon(0.1, max_norm=1.0), muon(0.1)
  ours, _ = clipped.update(grads, clipped.init(params), params)
  theirs, _ = plain.update(grads, plain.init(params), params)
  # The first step does not see the factor; later ones weigh steps by it.
  chex.assert_trees_all_close(ours, theirs, atol=1e-4)
  by_hand = optax.chain(optax.clip_by_global_norm(1.0), plain)
  small = jax.tree.map(lambda x: 1e-3 * x, params)
  sequence = [grads, small, grads]
  chex.assert_trees_all_close(
    apply(clipped, params, sequence), apply(by_hand, params, sequence)
  )


def test_another_optimizer_for_what_is_no_matrix():
  params = {'w': gaussian(6, 9), 'bias': jnp.ones(9)}
  tx = muon(0.1, others=optax.lion(0.01, weight_decay=0.0))
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(updates['bias'], -0.01 * np.ones(9), rtol=1e-6)


def test_equals_torch_where_it_is_installed():
  torch = pytest.importorskip('torch')
  w, grads = np.asarray(gaussian(8, 12)), np.asarray(gaussian(5, 8, 12, seed=1))
  for scale, theirs in [
    ('keller', 'original'),
    ('moonlight', 'match_rms_adamw'),
  ]:
    # torch's weights are [out, in].
    weight = torch.nn.Parameter(torch.tensor(w.T.copy()))
    optimizer = torch.optim.Muon(
      [weight], lr=0.02, weight_decay=0.1, adjust_lr_fn=theirs
    )
    for g in grads:
      weight.grad = torch.tensor(g.T.copy())
      optimizer.step()
    ours = apply(
      muon(0.02, weight_decay=0.1, scale=scale),
      {'w': jnp.asarray(w)},
      [{'w': jnp.asarray(g)} for g in grads],
    )['w']
    # Its iterations are in bfloat16.
    np.testing.assert_allclose(ours, weight.detach().numpy().T, atol=5e-3)


@pytest.mark.parametrize('strategy', ['loop', 'batched', 'auto'])
def test_strategies_agree(strategy):
  params = {
    'a': gaussian(3, 8, 5),
    'b': gaussian(8, 5, seed=1),
    'c': gaussian(4, 4, seed=2),
  }
  numbers = {
    'a': MuonDimensionNumbers(1, 2),
    'b': MuonDimensionNumbers(),
    'c': MuonDimensionNumbers(),
  }
  expected = scale_by_muon(dimension_numbers=numbers, strategy='loop')
  ours = scale_by_muon(dimension_numbers=numbers, strategy=strategy)
  chex.assert_trees_all_close(
    ours.update(params, ours.init(params))[0],
    expected.update(params, expected.init(params))[0],
    atol=1e-5,
  )


def test_the_rest_goes_to_adamw_and_not_nadamw():
  params = {'embedding': gaussian(9, 4), 'bias': jnp.ones(4)}
  grads = [jax.tree.map(lambda x, i=i: x * (i + 1), params) for i in range(3)]
  ours = muon(0.1, adamw_learning_rate=0.03, adamw_weight_decay=0.2)
  theirs = optax.adamw(0.03, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.2)
  chex.assert_trees_all_close(
    apply(ours, params, grads), apply(theirs, params, grads), atol=1e-6
  )


def test_adamw_inherits_rate_decay_and_schedule():
  params, g = {'bias': jnp.ones(4)}, {'bias': jnp.arange(4.0)}
  rate = optax.linear_schedule(0.1, 0.0, 5)
  ours = muon(rate, weight_decay=0.3)
  theirs = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.3)
  chex.assert_trees_all_close(
    apply(ours, params, [g] * 3), apply(theirs, params, [g] * 3), atol=1e-6
  )


@pytest.mark.parametrize('as_tree', [True, False])
def test_mask_says_what_decays(as_tree):
  params = {'w': jnp.eye(4), 'v': 2 * jnp.eye(4), 'bias': jnp.ones(4)}
  mask = {'w': True, 'v': False, 'bias': False}
  zeros = jax.tree.map(jnp.zeros_like, params)
  optimizer = muon(
    0.1, weight_decay=1.0, mask=mask if as_tree else lambda params: mask
  )
  after = apply(optimizer, params, [zeros])
  np.testing.assert_allclose(after['w'], 0.9 * jnp.eye(4))
  np.testing.assert_allclose(after['v'], params['v'])
  np.testing.assert_allclose(after['bias'], params['bias'])


def test_inject_hyperparams_traces_them_all():
  params = {'w': gaussian(4, 6), 'bias': jnp.ones(6)}
  injected = optax.inject_hyperparams(muon)(learning_rate=0.1)
  state = injected.init(params)
  assert {'learning_rate', 'momentum', 'steps'} <= set(state.hyperparams)
  plain = muon(0.1)
  expected, _ = plain.update(params, plain.init(params), params)
  updates, state = jax.jit(injected.update)(params, state, params)
  chex.assert_trees_all_close(updates, expected, atol=1e-6)
  state.hyperparams['learning_rate'] = jnp.asarray(0.2)
  updates, _ = jax.jit(injected.update)(params, injected.init(params), params)


def test_dtypes_are_kept_and_state_is_stable():
  params = {'w': gaussian(4, 6).astype(jnp.bfloat16)}
  optimizer = muon(0.1, mu_dtype=jnp.float32, ns_dtype=jnp.bfloat16)
  state = optimizer.init(params)
  updates, after = optimizer.update(params, state, params)
  assert updates['w'].dtype == jnp.bfloat16
  chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
  assert state.inner_states['muon'].inner_state[0].momentum['w'].dtype == (
    jnp.float32
  )


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: muon(0.1, scale='big'), "scale: got 'big', expected one of"),
    (lambda: muon(0.1, strategy='fast'), "strategy: got 'fast'"),
    (lambda: muon(0.1, stack_size=0), 'stack_size: got 0'),
    (lambda: muon(0.1, preconditioning='x'), "preconditioning: got 'x'"),
    (lambda: muon(0.1, max_norm=0.0), 'max_norm: got 0.0'),
    (lambda: muon(0.1, momentum=1.0), 'momentum: got 1.0'),
    (lambda: muon(0.1, steps=0), 'steps: got 0'),
    (lambda: muon(0.1, coefficients='x'), "coefficients: got 'x'"),
    (lambda: muon(0.1, weight_decay=-1.0), 'weight_decay: got -1.0'),
    (
      lambda: muon(0.1, adamw_weight_decay=-1.0),
      'adamw_weight_decay: got -1.0',
    ),
    (
      lambda: scale_by_muon().init({'b': jnp.ones(3)}),
      r"leaf \['b'\]: got \(3,\), expected two axes or dimension numbers",
    ),
    (
      lambda: scale_by_muon(
        dimension_numbers={'b': MuonDimensionNumbers(0, 0)}
      ).init({'b': jnp.ones((3, 4))}),
      'distinct axes',
    ),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
