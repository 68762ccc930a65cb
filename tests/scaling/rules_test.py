"""Rules: the printed tables, what they keep, and where they have no meaning."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue.scaling import (
  adascale_gain,
  half_life_rule,
  malladi_rule,
  scale_learning_rate,
)

# kappa, learning rate of SGD and of Adam, b1 from .9, b2 from .999, eps.
RULES = """
0.0625 0.0625 0.25 0.99375 0.9999375 4
0.125 0.125 0.35355339 0.9875 0.999875 2.8284271
0.25 0.25 0.5 0.975 0.99975 2
0.5 0.5 0.70710678 0.95 0.9995 1.4142136
2 2 1.4142136 0.8 0.998 0.70710678
3 3 1.7320508 0.7 0.997 0.57735027
4 4 2 0.6 0.996 0.5
8 8 2.8284271 0.2 0.992 0.35355339
9 9 3 0.1 0.991 0.33333333
"""
# B, learning rate of SGD, gain from B = 1, at B_simple = 15.364917.
GAINS = """
1 1
2 1.8848252
4 3.3803227
7.0984916 5.1713534
16 8.3481385
64 13.196696
256 15.438321
1024 16.122994
65536 16.361081
"""
BATCH = st.floats(1e-2, 1e6)


@pytest.mark.parametrize('row', RULES.split('\n')[1:-1])
def test_table_of_rules(row):
  kappa, *expected = map(float, row.split())
  adam = malladi_rule(1.0, kappa, eps=1.0)
  linear = scale_learning_rate(1.0, 1.0, kappa, rule='linear')
  found = (linear, adam.learning_rate, adam.b1, adam.b2, adam.eps)
  assert [f'{x:.8g}' for x in found] == [f'{x:.8g}' for x in expected]
  root = scale_learning_rate(1.0, 1.0, kappa, rule='sqrt')
  assert root == adam.learning_rate


@pytest.mark.parametrize('row', GAINS.split('\n')[1:-1])
def test_table_of_gains(row):
  batch, gain = map(float, row.split())
  # P1: squared deviations over the squared gradient.
  simple = (2**2 + 4**2 + 1 + 3**2) / (1 + 0.5**2 + 0.25**2 + 0.8**2)
  assert f'{simple:.8g}' == '15.364917'
  found = adascale_gain(1, batch, noise_scale=simple)
  assert f'{found:.8g}' == f'{gain:.8g}'
  arguments = dict(noise_scale=simple)
  rate = scale_learning_rate(0.3, 1, batch, rule='adascale', **arguments)
  assert rate == 0.3 * found
  rate = scale_learning_rate(0.3, 1, batch, rule='adamscale', **arguments)
  assert rate == 0.3 * found**0.5


@settings(max_examples=50, deadline=None)
@given(old=BATCH, middle=BATCH, new=BATCH, noise=st.floats(0, 1e9))
def test_gains_compose_and_lie_between_none_and_linear(old, middle, new, noise):
  gain = adascale_gain(old, new, noise_scale=noise)
  low, high = sorted((1.0, new / old))
  assert low * (1 - 1e-9) <= gain <= high * (1 + 1e-9)
  parts = adascale_gain(old, middle, noise_scale=noise) * adascale_gain(
    middle, new, noise_scale=noise
  )
  assert gain == pytest.approx(parts, rel=1e-9)


def test_gain_is_the_ratio_of_decreases():
  """Against the minimum of the noisy quadratic over the learning rate."""
  g, std = np.array([1, 0.5, -0.25, 0.8]), np.array([2.0, 4, 1, 3])
  noise = std @ std / (g @ g)

  def decrease(batch):  # With H = I.
    rates = np.linspace(0, 1, 200_001)
    loss = rates * (g @ g) - rates**2 / 2 * (g @ g + std @ std / batch)
    return loss.max()

  for old, new in ((1, 8), (64, 4)):
    gain = adascale_gain(old, new, noise_scale=noise)
    assert gain == pytest.approx(decrease(new) / decrease(old), rel=1e-6)


def test_an_infinite_noise_scale_is_the_linear_rule():
  assert adascale_gain(64, 256, noise_scale=math.inf) == 4
  assert adascale_gain(64, 256, noise_scale=0) == 1
  rates = [
    scale_learning_rate(0.1, 64, 256, rule=rule, noise_scale=noise)
    for rule, noise in (('linear', None), ('adascale', math.inf))
  ]
  assert rates == [0.4, 0.4]


@pytest.mark.parametrize('kappa', [0.25, 4.0, 9.0])
def test_malladi_keeps_the_size_of_the_walk(kappa):
  """Adam on noise alone: variance per example, and memory in examples."""

  def walk(learning_rate, b1, b2, eps, batch):
    rng = np.random.default_rng(0)
    # As `b2` is near one, the second moment is the noise.
    steps, entries = int(600 / batch), 2000
    m, x = np.zeros(entries), np.zeros(entries)
    for _ in range(steps):
      m = b1 * m + (1 - b1) * rng.normal(size=entries) / math.sqrt(batch)
      x -= learning_rate * m / (1 / math.sqrt(batch) + eps)
    return x.std()

  old = walk(1e-2, 0.99, 0.9999, 1.0, 1)
  adam = malladi_rule(1e-2, kappa, b1=0.99, b2=0.9999, eps=1.0)
  # A thousand entries or more: a deviation known to 2 per cent.
  assert walk(*adam, kappa) == pytest.approx(old, rel=0.08)
  # The linear rule is off by the root of the ratio.
  wrong = adam._replace(learning_rate=1e-2 * kappa)
  assert abs(math.log(walk(*wrong, kappa) / old)) > 0.4


def test_malladi_refuses_what_has_no_meaning():
  """At a ratio of 10 the formula has b1 = 0, beyond it a negative one."""
  for ratio in (10.5, 16):
    with pytest.raises(ValueError, match=f'^ratio: got {ratio}, .*below 10'):
      malladi_rule(1e-3, ratio)
  with pytest.raises(ValueError, match='^ratio: got 2.0, .*b2 = 0.5'):
    malladi_rule(1e-3, 2.0, b1=0.9, b2=0.5)
  # Half-lives go on, and no momentum stays none.
  assert half_life_rule(0.9, 16) == pytest.approx(0.9**16)
  assert malladi_rule(1e-3, 100, b1=0.0).b1 == 0


def test_half_life():
  assert f'{half_life_rule(0.999, 4.0):.6f}' == '0.996006'
  # The number of examples after which half is forgotten.
  life = lambda decay, batch: batch * math.log(0.5) / math.log(decay)
  assert life(half_life_rule(0.999, 8.0), 8) == pytest.approx(life(0.999, 1))
  # To first order, Malladi's.
  small = malladi_rule(1.0, 4.0, b2=1 - 1e-6).b2
  assert half_life_rule(1 - 1e-6, 4.0) == pytest.approx(small, abs=1e-11)


def test_arrays_jit_and_an_optimizer():
  ratios = jnp.array([0.25, 4.0])
  found = jax.jit(malladi_rule)(1e-3, ratios)
  np.testing.assert_allclose(found.b1, [0.975, 0.6], rtol=1e-6)
  np.testing.assert_allclose(found.learning_rate, [5e-4, 2e-3], rtol=1e-6)
  np.testing.assert_allclose(
    jax.vmap(lambda b: adascale_gain(64, b, noise_scale=64.0))(
      jnp.array([64.0, 256.0])
    ),
    [1.0, 1.6],
  )
  assert optax.adam(*malladi_rule(1e-3, 2.0)).init(jnp.ones(2))


@pytest.mark.parametrize(
  'call, name',
  [
    (lambda: adascale_gain(0, 1, noise_scale=1), 'old_batch_size'),
    (lambda: adascale_gain(1, -1, noise_scale=1), 'new_batch_size'),
    (lambda: adascale_gain(1, 1, noise_scale=-1), 'noise_scale'),
    (lambda: scale_learning_rate(1, 1, 2, rule='cube'), 'rule'),
    (lambda: scale_learning_rate(1, 1, 2, rule='adascale'), 'noise_scale'),
    (
      lambda: scale_learning_rate(1, 1, 2, rule='sqrt', noise_scale=3),
      'noise_scale',
    ),
    (lambda: scale_learning_rate(1, 0, 2, rule='sqrt'), 'old_batch_size'),
    (lambda: malladi_rule(1.0, 0.0), 'ratio'),
    (lambda: malladi_rule(1.0, 2.0, b1=1.0), 'b1'),
    (lambda: malladi_rule(1.0, 2.0, b2=-0.1), 'b2'),
    (lambda: half_life_rule(1.0, 2.0), 'b2'),
    (lambda: half_life_rule(0.9, 0), 'ratio'),
  ],
)
def test_wrong_arguments_are_named(call, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    call()
