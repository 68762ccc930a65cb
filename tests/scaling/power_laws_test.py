"""Published power laws: the printed table, exponents, units."""

import jax.numpy as jnp
import numpy as np
import pytest

from kexue.scaling import (
  deepseek_law,
  moonlight_law,
  power_lines_law,
  step_law,
)

TABLE = [
  (deepseek_law, (1e17,), '0.0023381701', '106189.81'),
  (deepseek_law, (1e20,), '0.00098599817', '1017145'),
  (deepseek_law, (3e21,), '0.00064451934', '3094205.9'),
  (deepseek_law, (1e23,), '0.00041579198', '9742779'),
  (step_law, (1e8, 2e9), '0.0025367008', '118663.22'),
  (step_law, (1e9, 1e11), '0.0016324994', '1107714.9'),
  (step_law, (7e9, 1e12), '0.00082660519', '4125038.4'),
  (moonlight_law, (1e20,), '0.00092003367', '1227194.4'),
  (moonlight_law, (1e22,), '0.0007076259', '8251128.6'),
]


@pytest.mark.parametrize('law, inputs, rate, batch', TABLE)
def test_table(law, inputs, rate, batch):
  found = law(*inputs)
  assert f'{found.learning_rate:.8g}' == rate
  assert f'{found.batch_tokens:.8g}' == batch


def test_power_lines_per_decade():
  factors = power_lines_law(10.0)
  assert f'{factors.optimal_batch_size:.8g}' == '2.4154608'
  assert f'{factors.critical_batch_size:.8g}' == '2.8973436'
  assert factors.timescale == pytest.approx(10**-0.527)
  # At the same tokens per parameter the timescale stays, the batches grow.
  same = power_lines_law(10.0, 10.0)
  assert same.timescale == 1
  assert same[1:] == factors[1:]


def test_arrays():
  found = deepseek_law(jnp.array([1e17, 1e20]))
  np.testing.assert_allclose(
    found.batch_tokens, [106189.81, 1017145], rtol=1e-4
  )
  np.testing.assert_allclose(
    step_law(jnp.float32(1e9), jnp.float32(1e11)).learning_rate,
    0.0016324994,
    rtol=1e-4,
  )


def test_sequences_are_not_tokens():
  """What passes for a small batch: a count of sequences read as tokens."""
  sequences = deepseek_law(3e21).batch_tokens / 4096
  assert 700 < sequences < 800
  # Moonlight's own table: 399 million parameters, 8.92 billion tokens, batches
  # of 96 sequences of 8192, a learning rate of 9.5e-4.
  found = moonlight_law(6 * 0.399e9 * 8.92e9)
  assert 64 < found.batch_tokens / 8192 < 128
  assert found.learning_rate == pytest.approx(9.503e-4, rel=0.1)


@pytest.mark.parametrize(
  'call, name',
  [
    (lambda: deepseek_law(0.0), 'flops'),
    (lambda: moonlight_law(-1), 'flops'),
    (lambda: step_law(0, 1e9), 'parameters'),
    (lambda: step_law(1e9, 0), 'tokens'),
    (lambda: power_lines_law(0), 'token_ratio'),
    (lambda: power_lines_law(1, 0), 'parameter_ratio'),
  ],
)
def test_wrong_arguments_are_named(call, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    call()
