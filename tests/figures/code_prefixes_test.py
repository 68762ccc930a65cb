"""Every prefix of a walk against the decoders of the library."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kexue.diffusion import (
  Header,
  Schedule,
  ddcm_decode,
  ddcm_encode,
  gaussian_denoiser,
  sample,
  turbo_decode,
  turbo_encode,
)
from kexue.figures.code_prefixes import finish, header_codebook, walk

ORIGINAL = Schedule.cosine(30)
DENOISE = gaussian_denoiser(jnp.full((2, 3, 1), 0.3), ORIGINAL)
X0 = 0.5 * jax.random.normal(jax.random.key(0), (4, 2, 3, 1))


@pytest.mark.parametrize('mode, tail', [('ddcm', 0), ('turbo', 2)])
def test_prefixes_are_what_a_decoder_makes_of_them(mode, tail):
  schedule = ORIGINAL.respace(7)
  header = Header(
    mode=mode,
    kind='hadamard',
    size=16,
    atoms=2,
    coefficient_bits=1 if mode == 'turbo' else 2,
    steps=6 - tail,
    tail=tail,
    shape=(2, 3, 1),
    rule='even',
  )
  codebook, both = header_codebook(header), dict(tail=tail)
  encode, decode = turbo_encode, turbo_decode
  if mode == 'ddcm':
    encode, decode = ddcm_encode, ddcm_decode
    both['coefficient_bits'] = 2
  codes = jax.jit(
    lambda x0: encode(DENOISE, x0, schedule, codebook, atoms=2, **both)
  )(X0)
  noisy, expected = walk(DENOISE, codes, schedule, header)
  assert noisy.shape == expected.shape == (header.steps + 1, *X0.shape)
  rebuilt = functools.partial(
    decode, DENOISE, codes, schedule, codebook, shape=header.shape, **both
  )
  # All codes of a tail: a decoder goes on to the end.
  for k in (0, 1, header.steps - (tail > 0)):
    np.testing.assert_allclose(expected[k], rebuilt(steps=k), atol=1e-5)
  start = np.asarray(codebook.start()).reshape(header.shape)
  np.testing.assert_array_equal(noisy[0], np.broadcast_to(start, X0.shape))
  end = finish(DENOISE, noisy[-1], schedule, schedule.steps - header.steps)
  np.testing.assert_allclose(end, rebuilt(), atol=1e-5)
  assert np.max(np.abs(expected[1] - expected[0])) > 0.01


def test_the_rest_is_ddim():
  schedule, x = ORIGINAL.respace(5), X0 / jnp.std(X0)
  rest = schedule.respace(schedule.timesteps[:3])
  program = jax.jit(lambda x, i: finish(DENOISE, x, schedule, i))
  for position, steps in ((5, schedule), (3, rest)):
    found = program(x, position)
    expected = sample(
      DENOISE, steps, jax.random.key(0), x.shape, eta=0.0, start=x
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
  assert program._cache_size() == 1
