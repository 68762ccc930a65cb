"""The factor of routed experts: the article's script, and its two values."""

import jax
import numpy as np
import pytest

from kexue.models import shared_expert_scale

RNG = np.random.default_rng(0)


def simulated(n, k, s, score, renormalize, samples=4000):
  factors = []
  for _ in range(samples):
    z = np.exp(RNG.normal(size=n - s))
    p = z / z.sum() if score == 'softmax' else z / (1 + z)
    p = np.sort(p)[::-1][: k - s]
    p = p / p.sum() if renormalize else p
    factors.append(s**0.5 / np.sqrt(np.square(p).sum()))
  return np.mean(factors), np.std(factors) / samples**0.5


def test_the_two_values_of_the_article():
  """DeepSeek-V2 and DeepSeek-V3, which use 16 and 2.5."""
  assert abs(shared_expert_scale(162, 8, 2) - 16) < 0.5
  three = shared_expert_scale(257, 9, 1, score='sigmoid', renormalize=True)
  assert abs(three - 2.83) < 0.005


@pytest.mark.parametrize('score', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('renormalize', [False, True])
def test_equals_the_script(score, renormalize):
  expected, error = simulated(20, 5, 2, score, renormalize)
  found = shared_expert_scale(20, 5, 2, score=score, renormalize=renormalize)
  assert abs(found - expected) < 5 * error


def test_is_a_number_even_where_programs_are_traced():
  traced = jax.jit(lambda x: x * shared_expert_scale(8, 3, 1, samples=10))
  assert traced(1.0) == np.float32(shared_expert_scale(8, 3, 1, samples=10))


def test_a_gate_of_its_own():
  assert shared_expert_scale(8, 3, 1, gate='softplus') < shared_expert_scale(
    8, 3, 1
  )


def test_wrong_arguments_are_named():
  for name, arguments in {
    's: got 3': (8, 3, 3),
    's: got 0': (8, 3, 0),
    'k: got 9': (8, 9, 1),
    'n: got 8.0': (8.0, 3, 1),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      shared_expert_scale(*arguments)
  with pytest.raises(ValueError, match='^samples: got 0'):
    shared_expert_scale(8, 3, 1, samples=0)
  with pytest.raises(ValueError, match='^score: got'):
    shared_expert_scale(8, 3, 1, score='tanh')
