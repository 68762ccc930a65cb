"""Random vectors of all devices: distinct, even, the same everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from kexue.models.sample_rows import sample_rows

KEY = jax.random.key(0)
Z = jnp.arange(48.0).reshape(24, 2)


def numbers(rows):
  """Which rows of Z they are."""
  np.testing.assert_array_equal(rows, Z[(rows[:, 0] / 2).astype(int)])
  return np.asarray(rows[:, 0] / 2).astype(int)


def test_without_replacement_then_in_turn():
  rows, available = sample_rows(Z, 60, key=KEY)
  drawn = numbers(rows)
  assert available == 24
  assert sorted(drawn[:24]) == list(range(24)) != list(drawn[:24])
  np.testing.assert_array_equal(drawn[24:], drawn[:36])
  few, _ = sample_rows(Z, 7, key=KEY)
  assert len(set(numbers(few))) == 7


def test_what_is_masked_out_is_not_drawn():
  mask = jnp.arange(24) % 3 == 0
  z = jnp.where(mask[:, None], Z, jnp.nan)
  rows, available = sample_rows(z, 20, key=KEY, mask=mask)
  assert available == 8
  drawn = numbers(rows)
  assert sorted(drawn[:8]) == list(range(0, 24, 3))
  np.testing.assert_array_equal(drawn[8:], np.resize(drawn[:8], 12))
  _, available = sample_rows(z, 20, key=KEY, mask=jnp.zeros(24, bool))
  assert available == 0


def test_every_row_is_equally_likely():
  keys = jax.random.split(KEY, 3000)
  rows = jax.vmap(lambda key: sample_rows(Z, 6, key=key)[0])(keys)
  hits = np.bincount(numbers(rows.reshape(-1, 2)), minlength=24)
  deviation = np.sqrt(3000 * 1 / 4 * 3 / 4)
  assert np.abs(hits - 750).max() < 4 * deviation
  first = np.bincount(numbers(rows[:, 0]), minlength=24)
  assert np.abs(first - 125).max() < 4 * np.sqrt(125)


def test_one_device_is_eight():
  mask = jnp.arange(24) % 5 > 0
  draw = lambda z, mask, **where: sample_rows(z, 9, key=KEY, mask=mask, **where)
  expected = draw(Z, mask)
  over = functools.partial(draw, axis_name='data')
  found = jax.pmap(over, 'data')(Z.reshape(8, 3, 2), mask.reshape(8, 3))
  for part, value in zip(found, expected, strict=True):
    np.testing.assert_array_equal(part, np.stack([value] * 8))
  axes = ('a', 'b')
  mesh = jax.make_mesh((2, 4), axes, (jax.sharding.AxisType.Auto,) * 2)
  mapped = jax.shard_map(
    functools.partial(draw, axis_name=axes),
    mesh=mesh,
    in_specs=P(axes),
    out_specs=P(),
  )
  for part, value in zip(jax.jit(mapped)(Z, mask), expected, strict=True):
    np.testing.assert_array_equal(part, value)
