import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import Codebook, Codes, Schedule, ddim_step
from kexue.diffusion.codes import (
  choose_codes,
  coded_positions,
  encode_by,
  replay_codes,
)

SCHEDULE = Schedule.from_betas([0.1, 0.2, 0.3, 0.4])
CODEBOOK = Codebook(8, 4)


def denoise(x, t):
  return 0.5 * x + 0.01 * t


def noise(indices, coefficients, t):
  del coefficients
  return CODEBOOK.atoms(indices[:, 0], t)


@pytest.mark.parametrize(
  ('tail', 'expected'), [(0, [4, 3, 2]), (1, [4, 3]), (3, [])]
)
def test_positions_that_have_codes(tail, expected):
  assert coded_positions(SCHEDULE, tail).tolist() == expected


@pytest.mark.parametrize('tail', [0, 2])
def test_who_chooses_arrives_where_who_replays_does(tail):
  def choose(x, x0_hat, i, t):
    assert x.shape == x0_hat.shape == (3, 4)
    del t
    index = jnp.full((3, 1), i, jnp.int32)
    return index, 2 * index

  arrived, codes = choose_codes(
    denoise, SCHEDULE, CODEBOOK, choose, noise, jnp.ones((3, 4)), tail=tail
  )
  expected = list(range(4, tail + 1, -1))
  assert codes.indices[0, :, 0].tolist() == expected
  assert codes.coefficients[0, :, 0].tolist() == [2 * i for i in expected]
  replayed = replay_codes(
    denoise, codes, SCHEDULE, CODEBOOK, noise, shape=(4,), tail=tail
  )
  np.testing.assert_array_equal(replayed, arrived)


def test_the_tail_is_ddim_without_noise():
  codes = Codes(jnp.zeros((2, 0, 1), int), jnp.zeros((2, 0, 1), int))
  decoded = replay_codes(
    denoise, codes, SCHEDULE, CODEBOOK, noise, shape=(4,), tail=3
  )
  x = jnp.broadcast_to(CODEBOOK.start(), (2, 4))
  for i in (4, 3, 2, 1):
    x = ddim_step(SCHEDULE, denoise(x, i), x, i, 0 * x, eta=0.0)
  np.testing.assert_allclose(decoded, x, rtol=1e-5)


def test_codes_follow_what_is_missing():
  x0 = jnp.array([[0.1, 0.2, 0.3, 0.4]])
  seen = []

  def select(residual, i, t):
    seen.append(residual)
    index = jnp.zeros((1, 1), jnp.int32)
    return index, index

  encode_by(select, lambda x, t: 0 * x, x0, SCHEDULE, CODEBOOK, noise, tail=2)
  assert seen[0].shape == (1, 4)
