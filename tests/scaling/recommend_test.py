"""Recommendations against the laws, exact runs, and simulated Adam."""

import functools
import math
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from kexue.scaling import (
  NoiseScale,
  SignLaw,
  TrackedNoiseScale,
  adascale_gain,
  recommend_learning_rate,
)

OPTIMIZERS = ('sgd', 'sign', 'softsign', 'adam')
POSITIVE = st.floats(1e-2, 1e5)


def noise(scale, low=None, high=None, trace=1.0):
  low, high = (scale if x is None else x for x in (low, high))
  return SimpleNamespace(scale=scale, low=low, high=high, trace=trace)


def ratio(old, new, scale, optimizer='sgd', **options):
  found = recommend_learning_rate(
    1.0, old, new, statistics=noise(scale), optimizer=optimizer, **options
  )
  return float(found.learning_rate)


# What the laws say.


def test_sgd_by_the_printed_table():
  """P1: the best learning rates at B = 1, 2, 4, 16, 1024 and 65536."""
  v = np.array([1.0, 1, -1, 1])
  hessian = np.diag([1, 2, 0.5, 1.5]) + 2 * np.outer(v, v)
  g, std = np.array([1, 0.5, -0.25, 0.8]), np.array([2.0, 4, 1, 3])
  scale = std**2 @ np.diag(hessian) / (g @ hessian @ g)
  assert f'{scale:.8g}' == '7.0984916'
  table = {
    1: 0.015558234,
    2: 0.027696509,
    4: 0.045410937,
    16: 0.087277197,
    1024: 0.1251308,
    65536: 0.12598458,
  }
  for batch, rate in table.items():
    np.testing.assert_allclose(
      table[1] * ratio(1, batch, scale), rate, rtol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(old=POSITIVE, new=POSITIVE, scale=POSITIVE, index=st.floats(0.01, 20))
def test_the_laws_and_the_flags(old, new, scale, index):
  found = recommend_learning_rate(
    0.3, old, new, statistics=noise(scale), optimizer='sgd'
  )
  expected = 0.3 * adascale_gain(old, new, noise_scale=scale)
  np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-5)
  assert (found.past_critical, found.past_surge) == (new > scale, False)
  for optimizer, c in (('sign', math.pi / 2), ('adam', 1.0)):
    law = SignLaw(rate=1.0, curvature_ratio=2 * index, noise_scale=c * scale)
    found = recommend_learning_rate(
      0.3,
      old,
      new,
      statistics=noise(scale),
      optimizer=optimizer,
      surge_index=index,
    )
    expected = 0.3 * law.optimal_lr(new) / law.optimal_lr(old)
    np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-4)
    assert bool(found.past_critical) == (new > law.critical_batch_size)
    assert bool(found.past_surge) == (law.surge is not None and new > law.surge)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_far_below_the_noise_scale_and_far_above(optimizer):
  power = 1 if optimizer == 'sgd' else 0.5
  np.testing.assert_allclose(ratio(4, 64, 1e8, optimizer), 16**power, rtol=1e-4)
  far = ratio(1e6, 4e6, 1.0, optimizer, surge_index=0.5)
  np.testing.assert_allclose(far, 1, rtol=1e-4)
  # There and back.
  there, back = ratio(64, 512, 99.0, optimizer), ratio(512, 64, 99.0, optimizer)
  np.testing.assert_allclose(there * back, 1, rtol=1e-5)
  # What is infinite or cannot be told from it, and what is zero.
  for scale in (math.inf, -3.0):
    assert ratio(4, 64, scale, optimizer) == pytest.approx(16**power, rel=1e-5)
  none = ratio(4, 64, 0.0, optimizer, surge_index=0.5)
  assert none == pytest.approx(1, rel=1e-5)
  assert math.isnan(ratio(4, 64, math.nan, optimizer))


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_only_one_unit(optimizer):
  """Batches in tokens with a noise scale in sequences: another answer."""
  run = functools.partial(ratio, optimizer=optimizer, surge_index=0.5)
  right = run(64, 256, 100.0)
  tokens = 512 * np.array([64, 256, 100.0])
  assert run(*tokens) == pytest.approx(right, rel=1e-5)
  assert run(64 * 512, 256 * 512, 100.0) < 0.75 * right


def test_adam_goes_on_past_the_noise_scale():
  """Its default: as much progress and as much noise for an example."""
  run = functools.partial(
    recommend_learning_rate, 1.0, 50.0, statistics=noise(100.0)
  )
  for new in (80.0, 800.0):
    adam = run(new, optimizer='adam')
    x, y = 100 / 50, 100 / new
    expected = x / y * math.sqrt((1 + y) / (1 + x))
    assert adam.learning_rate == pytest.approx(expected, rel=1e-4)
    assert bool(adam.past_critical) == (new > 100) and not adam.past_surge
    diagonal = run(new, optimizer='adam', surge_index=0.5).learning_rate
    assert diagonal == pytest.approx(math.sqrt((1 + x) / (1 + y)), rel=1e-4)


def test_a_large_epsilon_is_sgd():
  """With the same critical batch size all the way, and 1 / B noise."""
  statistics = noise(300.0, trace=6.0)  # A squared norm of 0.02.
  run = functools.partial(
    recommend_learning_rate,
    1.0,
    32.0,
    statistics=statistics,
    optimizer='softsign',
    size=100,
  )
  found = run(np.array([1.0, 100, 4000]), eps=1e4)
  expected = [ratio(32, b, 300.0) for b in (1, 100, 4000)]
  np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-3)
  np.testing.assert_array_equal(found.past_critical, [False, False, True])
  # Without it, the root.
  small = run(np.array([1.0]), eps=1e-8).learning_rate
  expected = ratio(32, 1, 300.0, 'adam', surge_index=0.5)
  assert small == pytest.approx(expected, rel=1e-4)
  # Between: eps at the root mean square of the gradient halves both numbers.
  half = run(100.0, eps=math.sqrt(0.02 / 100)).learning_rate
  law = SignLaw(rate=1.0, curvature_ratio=0.5, noise_scale=150.0)
  expected = law.optimal_lr(100) / law.optimal_lr(32)
  np.testing.assert_allclose(half, expected, rtol=1e-5)


def test_momentum_under_the_sign():
  """Its sign has a batch 19 times as large; Adam's and SGD's have not."""
  rng, b1 = np.random.default_rng(0), 0.9
  m = np.zeros(100_000)
  for _ in range(100):
    m = b1 * m + (1 - b1) * (0.05 + rng.normal(size=m.size))
  s = 0.05 * math.sqrt((1 + b1) / (1 - b1))
  expected = math.erf(s / math.sqrt(2))
  assert abs(np.sign(m).mean() - expected) < 4 / math.sqrt(m.size)
  # Square root below the noise scale over 19, linear from there on.
  run = functools.partial(ratio, scale=1e4, optimizer='sign', b1=b1)
  assert run(1, 4) == pytest.approx(2, rel=0.02)
  assert run(1500, 3000) > 1.6
  assert run(1500, 3000, b1=0.0) < 1.45
  for optimizer in ('adam', 'sgd'):
    same = ratio(64, 256, 99.0, optimizer, b1=0.9)
    assert same == ratio(64, 256, 99.0, optimizer)


# The interval.


@settings(max_examples=20, deadline=None)
@given(
  scales=st.tuples(POSITIVE, POSITIVE, POSITIVE),
  new=POSITIVE,
  index=st.sampled_from([0.1, 0.5, 3.0, 30.0]),
  optimizer=st.sampled_from(OPTIMIZERS),
)
def test_the_interval_holds_all_noise_scales_inside(
  scales, new, index, optimizer
):
  low, scale, high = sorted(scales)
  found = recommend_learning_rate(
    1.0,
    64.0,
    new,
    statistics=noise(scale, low, high),
    optimizer=optimizer,
    surge_index=index,
  )
  inside = np.geomspace(low, high, 500)
  each = recommend_learning_rate(
    1.0,
    64.0,
    new,
    statistics=noise(inside),
    optimizer=optimizer,
    surge_index=index,
  ).learning_rate
  np.testing.assert_allclose(found.low, each.min(), rtol=2e-2)
  np.testing.assert_allclose(found.high, each.max(), rtol=2e-2)
  assert found.low <= found.learning_rate <= found.high


def test_an_extreme_inside_the_interval():
  """With a surge both ends of the noise scale can lie above the middle."""
  found = recommend_learning_rate(
    1.0,
    64.0,
    1024.0,
    statistics=noise(500.0, 1.0, 1e6),
    optimizer='sign',
    surge_index=10.0,
  )
  ends = [ratio(64, 1024, s, 'sign', surge_index=10.0) for s in (1.0, 1e6)]
  assert found.low < 0.8 * min(ends)


def test_what_the_estimators_return():
  one = jnp.ones(())
  tracked = TrackedNoiseScale(
    300 * one, 100 * one, jnp.inf * one, one, 300 * one, 50.0
  )
  run = functools.partial(recommend_learning_rate, 0.1, 64, 256)
  found = run(statistics=tracked, optimizer='sgd')
  expected = [0.1 * ratio(64, 256, s) for s in (300.0, 100.0, math.inf)]
  np.testing.assert_allclose(found[:3], expected, rtol=1e-4)
  # One batch has no interval: anything between no noise and nothing else.
  once = run(statistics=NoiseScale(300.0, 1.0, 300.0), optimizer='sgd')
  np.testing.assert_allclose(once[:3], [expected[0], 0.1, 0.4], rtol=1e-4)
  # An estimate of |G|^2 below zero: nothing but noise.
  none = run(statistics=NoiseScale(-32.0, -0.1, 3.2), optimizer='adam')
  np.testing.assert_allclose(none.learning_rate, 0.2, rtol=1e-4)
  soft = run(statistics=tracked, optimizer='adam', eps=1e-2, size=100)
  np.testing.assert_allclose(
    soft.learning_rate,
    0.1 * ratio(64, 256, 300.0 / 1.01, 'adam'),
    rtol=1e-4,
  )


# What runs say.

H = 1 / np.arange(1, 201)


def run_losses(rates, steps, batch, decay, noise=30.0):
  """Of SGD on a quadratic whose loss falls as time^-decay: exact."""
  start = np.arange(1, 201) ** -(1.0 + decay) / H
  shrink = (1 - rates[:, None] * H) ** 2
  end = rates[:, None] ** 2 * noise * H / batch / (1 - shrink)
  square = shrink**steps * start + (1 - shrink**steps) * end
  return square @ H / 2


def best_rate(steps, batch, decay):
  rates = np.geomspace(1e-5, 1.9, 2000)
  return rates[np.argmin(run_losses(rates, steps, batch, decay))]


@pytest.mark.parametrize('decay', [0.5, 1.0, 2.0])
def test_fixed_examples_and_fixed_steps(decay):
  """Exponents 1 and 1 / (1 + p), and the way that mixes them up."""
  batches = 4.0 ** np.arange(4)
  run = functools.partial(best_rate, decay=decay)
  examples = np.array([run(8000 / b, b) for b in batches])
  steps = np.array([run(1000, b) for b in batches])
  predict = lambda **options: np.array(
    [ratio(1, b, 1e6, **options) for b in batches]
  )
  np.testing.assert_allclose(examples / examples[0], predict(), rtol=0.06)
  fixed = predict(budget='steps', decay=decay)
  np.testing.assert_allclose(
    np.log(fixed[-1]), 3 * np.log(4) / (1 + decay), rtol=1e-4
  )
  np.testing.assert_allclose(steps / steps[0], fixed, rtol=0.35)
  # Linear scaling at a fixed number of steps.
  assert predict()[-1] > 2.3 * steps[-1] / steps[0]


def test_a_greedy_step_is_no_learning_rate_to_train_with():
  """The optimum of each step against the best constant one: far slower."""
  start = np.arange(1, 201) ** -2.0 / H
  target, noise_over_batch = 0.02 * (start @ H) / 2, 0.5 * H

  def steps(choose):
    square = start.copy()
    for step in range(1, 4000):
      rate = choose(square)
      square = (1 - rate * H) ** 2 * square + rate**2 * noise_over_batch
      if square @ H / 2 < target:
        return step
    return np.inf

  greedy = steps(
    lambda square: (H**2 @ square) / (H**3 @ square + H @ noise_over_batch)
  )
  constant = min(
    steps(lambda square, rate=rate: rate)
    for rate in np.geomspace(0.005, 0.1, 8)
  )
  assert 1.4 * constant < greedy < np.inf


def adam_losses(rates, steps, batch, b1, seed=0):
  """Mean loss after steps of Adam on a noisy quadratic, four seeds."""
  rng = np.random.default_rng(seed)
  h = 1 / np.sqrt(np.arange(1, 33))
  x = np.ones((rates.size, 4, h.size))
  m, v = np.zeros_like(x), np.zeros_like(x)
  for t in range(1, steps + 1):
    g = h * x + 8 * np.sqrt(h / batch) * rng.normal(size=x.shape[1:])
    m, v = b1 * m + (1 - b1) * g, 0.99 * v + 0.01 * g**2
    u = m / (1 - b1**t) / np.sqrt(v / (1 - 0.99**t))
    x = x - rates[:, None, None] * u
  return (x**2 @ h).mean(1) / 2


@pytest.mark.parametrize('b1', [0.0, 0.9])
def test_simulated_adam_lands_within_a_factor(b1):
  """x4 and x16, with the examples fixed and with the steps, and no fit."""
  rates = np.geomspace(2e-3, 0.3, 21)
  best = lambda steps, batch: rates[
    np.argmin(adam_losses(rates, steps, batch, b1))
  ]
  # Noise of 64 tr H against a gradient that shrinks from tr H^2 on.
  statistics = 1e3
  old = best(512, 4)
  for new in (16, 64):
    measured = best(512 * 4 // new, new)
    found = old * ratio(4, new, statistics, 'adam')
    assert 1 / 1.5 < found / measured < 1.5
    # The linear rule is out by the root.
    linear = old * new / 4
    assert linear / measured > 1.5
    # With the steps fixed it falls, as this loss does almost exponentially.
    measured = best(512, new)
    fixed = ratio(4, new, statistics, 'adam', budget='steps', decay=3.0)
    assert 1 / 1.5 < old * fixed / measured < 1.5
    assert measured < old < found


# How it is called.


def test_inside_a_step_and_all_ways_to_run():
  scales = jnp.geomspace(10.0, 1e4, 8)

  def run(scale, surge_index):
    return recommend_learning_rate(
      0.1,
      64,
      256,
      statistics=NoiseScale(scale, 1.0, scale),
      optimizer='sign',
      surge_index=surge_index,
    )

  index = jnp.linspace(3, 0.2, 8)
  each = jax.vmap(run)
  found = each(scales, index)
  assert found.past_surge.any() and not found.past_surge.all()
  for k in (0, 7):
    single = run(float(scales[k]), float(index[k]))
    part = jax.tree.map(lambda x, k=k: x[k], found)
    chex.assert_trees_all_close(part, single, rtol=1e-5)
  chex.assert_trees_all_close(run(scales, index), found, rtol=1e-5)
  chex.assert_trees_all_close(jax.jit(each)(scales, index), found, rtol=1e-5)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(each, mesh=mesh, in_specs=P('i'), out_specs=P('i'))
  chex.assert_trees_all_close(jax.jit(sharded)(scales, index), found, rtol=1e-5)
  slope = jax.grad(lambda s: run(s, 0.5).learning_rate)(300.0)
  assert slope > 0


RUN = dict(statistics=noise(99.0), optimizer='adam')
BARE = SimpleNamespace(scale=99.0)


@pytest.mark.parametrize(
  'name, arguments',
  [
    ('optimizer', RUN | dict(optimizer='lamb')),
    ('budget', RUN | dict(budget='time')),
    ('b1', RUN | dict(b1=1.0)),
    ('eps', RUN | dict(eps=-1.0)),
    ('eps', RUN | dict(eps=1e-3, size=3, optimizer='sgd')),
    ('eps', RUN | dict(eps=1e-3, size=3, optimizer='sign')),
    ('size', RUN | dict(eps=1e-3)),
    ('statistics', RUN | dict(eps=1e-3, size=3, statistics=BARE)),
    ('decay', RUN | dict(decay=-1.0)),
    ('statistics', RUN | dict(statistics=noise({'w': 99.0}))),
  ],
)
def test_wrong_options_are_named(name, arguments):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    recommend_learning_rate(0.1, 64, 256, **arguments)


@pytest.mark.parametrize('name', ['old_batch_size', 'new_batch_size'])
def test_wrong_batch_sizes_are_named(name):
  sizes = dict(old_batch_size=64, new_batch_size=256) | {name: 0}
  with pytest.raises(ValueError, match=f'^{name}: got'):
    recommend_learning_rate(0.1, **sizes, **RUN)
