"""The entry checks name the argument, what came and what was expected."""

import jax
import jax.numpy as jnp
import pytest

from kexue import checks


@pytest.mark.parametrize(
  'call, message',
  [
    (
      lambda: checks.require(False, 'k', 0, '1 or more'),
      'k: got 0, expected 1',
    ),
    (
      lambda: checks.require_rank('x', jnp.ones(3), 2),
      r'x: got shape \(3,\), expected 2 axes',
    ),
    (
      lambda: checks.require_rank('x', jnp.ones(3), 2, at_least=True),
      'expected 2 or more axes',
    ),
    (
      lambda: checks.require_shape('x', jnp.ones((3, 4)), (3, 5)),
      r'x: got shape \(3, 4\), expected \(3, 5\)',
    ),
    (
      lambda: checks.require_one_of('how', 'x', ['a', 'b']),
      "how: got 'x', expected one of 'a', 'b'",
    ),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_accepts_also_under_jit():
  @jax.jit
  def f(x):
    checks.require_rank('x', x, 2)
    checks.require_rank('x', x, 1, at_least=True)
    checks.require_shape('x', x, (None, 4))
    checks.require_one_of('n', x.ndim, [1, 2])
    return x

  f(jnp.ones((3, 4)))
