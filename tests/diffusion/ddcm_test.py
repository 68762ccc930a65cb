import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from kexue.diffusion import (
  Codebook,
  Codes,
  Schedule,
  ddcm_decode,
  ddcm_encode,
  ddcm_sample,
  equal_kl_timesteps,
  gaussian_denoiser,
  kl_per_step,
  sample,
)
from kexue.diffusion.ddcm import drawn_atom
from kexue.training import data_mesh

DIM = 64
VARIANCES = np.arange(1, DIM + 1) ** -1.0
FULL = Schedule.linear(200)
DENOISE = gaussian_denoiser(VARIANCES, FULL)
SCHEDULE = FULL.respace(25)
CODEBOOK = Codebook(32, DIM, kind='hadamard')


def images(count, seed=1):
  normal = jax.random.normal(jax.random.key(seed), (count, DIM))
  return normal * np.float32(np.sqrt(VARIANCES))


@functools.cache
def encoder(schedule=SCHEDULE, codebook=CODEBOOK, **options):
  return jax.jit(
    lambda x0: ddcm_encode(DENOISE, x0, schedule, codebook, **options)
  )


@functools.cache
def decoder(schedule=SCHEDULE, codebook=CODEBOOK, **options):
  return jax.jit(
    lambda codes: ddcm_decode(
      DENOISE, codes, schedule, codebook, shape=(DIM,), **options
    )
  )


def slow_codec(x0, schedule, codebook):
  """One image, by the equations, in float64: indices and reconstruction."""
  alpha_bar = np.float64(schedule.alpha_bar)
  x, indices = np.float64(codebook.start()), []
  every, draw = jnp.arange(codebook.size), jax.jit(codebook.atoms)
  for i in range(schedule.steps, 0, -1):
    t = int(schedule.timesteps[i - 1])
    ab, before = alpha_bar[i], alpha_bar[i - 1]
    x0_hat = np.sqrt(ab) * VARIANCES / (ab * VARIANCES + 1 - ab) * x
    if i == 1:
      return indices, x0_hat
    beta = 1 - ab / before
    mean = (
      np.sqrt(before) * beta * x0_hat + np.sqrt(1 - beta) * (1 - before) * x
    ) / (1 - ab)
    atoms = np.float64(draw(every, t))
    indices.append(int(np.argmax(atoms @ (x0 - x0_hat))))
    deviation = np.sqrt(beta * (1 - before) / (1 - ab))
    x = mean + deviation * atoms[indices[-1]]
  return None


def test_is_the_algorithm_of_the_paper():
  x0 = images(3)
  codes = encoder()(x0)
  chex.assert_shape(codes.indices, (3, 24, 1))
  decoded = decoder()(codes)
  for row in range(3):
    indices, expected = slow_codec(np.float64(x0[row]), SCHEDULE, CODEBOOK)
    np.testing.assert_array_equal(codes.indices[row, :, 0], indices)
    np.testing.assert_allclose(decoded[row], expected, atol=1e-5)
  assert not np.any(codes.coefficients)


def test_a_codebook_of_one_says_nothing():
  one = Codebook(1, DIM)
  codes = encoder(codebook=one)(images(2))
  assert not np.any(codes.indices)
  decoded = decoder(codebook=one)(codes)
  np.testing.assert_array_equal(decoded[0], decoded[1])


def error(x0, **options):
  codes = encoder(**options)(x0)
  options = {k: v for k, v in options.items() if k != 'atoms'}
  return float(jnp.mean((decoder(**options)(codes) - x0) ** 2))


def test_more_bits_come_nearer():
  x0 = images(16)
  few, many = (error(x0, codebook=Codebook(k, DIM)) for k in (4, 256))
  assert many < 0.7 * few
  assert error(x0, codebook=Codebook(256, DIM), atoms=3) < 0.8 * many


def test_codes_where_the_kl_is_and_none_where_it_is_not():
  x0 = images(16)
  kl = kl_per_step(DENOISE, images(64, seed=3), FULL, jax.random.key(0))
  codebook = Codebook(256, DIM, kind='hadamard')
  steps = equal_kl_timesteps(FULL, kl, 25, nats=float(np.log(256)) / 3, tail=5)
  equal = FULL.respace(steps)
  codes = encoder(equal, codebook, tail=5)(x0)
  chex.assert_shape(codes.indices, (16, 24, 1))
  decoded = decoder(equal, codebook, tail=5)(codes)
  uniform = error(x0, codebook=codebook)
  assert float(jnp.mean((decoded - x0) ** 2)) < 0.7 * uniform


def test_any_prefix_decodes():
  x0 = images(8)
  codes = encoder()(x0)
  errors = []
  for steps in (0, 12, 24):
    decoded = decoder(steps=steps)(codes)
    errors.append(float(jnp.mean((decoded - x0) ** 2)))
    if steps == 12:
      cut = Codes(*(part[:, :steps] for part in codes))
      np.testing.assert_array_equal(decoder()(cut), decoded)
  assert errors == sorted(errors, reverse=True)
  np.testing.assert_array_equal(decoded, decoder()(codes))


def test_a_batch_that_is_padded_decodes_to_the_same_bits():
  """Whatever else is in the batch, for one to eight images."""
  codes = encoder()(images(8))
  expected = decoder()(codes)
  for count in (1, 3, 7):
    kept = (np.arange(8) < count)[:, None, None]
    padded = Codes(*(jnp.where(kept, part, 0) for part in codes))
    np.testing.assert_array_equal(decoder()(padded)[:count], expected[:count])


def test_chosen_codes_are_those_of_what_the_decoder_will_see():
  """Encoding a reconstruction's own code again would change nothing."""
  x0 = images(8)
  codes = encoder()(x0)
  halfway = decoder(steps=12)(codes)
  t = int(SCHEDULE.timesteps[SCHEDULE.steps - 12 - 1])
  best = CODEBOOK.best(x0 - halfway, t)
  np.testing.assert_array_equal(best, codes.indices[:, 12, 0])


def test_drawn_atoms_have_the_moments_of_the_posterior():
  """One step, many codebooks: `z` is a sample of N(c0 r / s, I)."""
  schedule = Schedule.from_betas([0.2, 0.5])
  before, after, beta, missing = 0.8, 0.4, 0.5, 0.4
  towards = np.sqrt(before) * beta / (1 - after)
  mean = towards * missing / np.sqrt(beta * (1 - before) / (1 - after))
  codebook = Codebook(1024, 2)

  def draw(t):
    select = drawn_atom(codebook, schedule, jax.random.key(5))
    index, _ = select(jnp.full((8, 2), missing), 2, t)
    return codebook.atoms(index[:, 0], t)

  z = np.float64(jax.lax.map(jax.jit(draw), jnp.arange(1, 201)))
  # Draws of one codebook share its atoms: means of codebooks are independent.
  means = z.mean((1, 2))
  score = (means.mean() - mean) / (means.std(ddof=1) / np.sqrt(len(means)))
  assert abs(score) < 4
  assert z.std() == pytest.approx(1, abs=0.04)


def test_random_codes_generate_what_ddpm_does():
  """With independent codebooks."""
  codebook, schedule = Codebook(4096, DIM, seed=3), FULL.respace(50)
  options = dict(count=600, shape=(DIM,))
  sampled = jax.jit(
    lambda key: ddcm_sample(DENOISE, schedule, codebook, key, **options)
  )(jax.random.key(2))
  chex.assert_shape(sampled.codes.indices, (600, 49, 1))
  drawn = sample(DENOISE, schedule, jax.random.key(3), (600, DIM))
  ours, theirs = (
    np.float64(x / np.sqrt(VARIANCES)) for x in (sampled.x0, drawn)
  )
  for moment in (1, 2):
    a, b = (np.mean(x**moment, axis=1) for x in (ours, theirs))
    assert abs(scipy.stats.ttest_ind(a, b, equal_var=False).statistic) < 4
  again = ddcm_decode(
    DENOISE,
    sampled.codes,
    schedule,
    codebook,
    shape=(DIM,),
    start=sampled.start,
  )
  np.testing.assert_allclose(again, sampled.x0, atol=1e-5)


def test_any_shape_of_images():
  x0 = images(2).reshape(2, 8, 8)
  denoise = gaussian_denoiser(VARIANCES.reshape(8, 8), FULL)
  encode = lambda x: ddcm_encode(denoise, x, SCHEDULE, CODEBOOK)
  codes = jax.jit(encode)(x0)
  chex.assert_trees_all_equal(codes, encoder()(images(2)))
  decode = lambda c: ddcm_decode(denoise, c, SCHEDULE, CODEBOOK, shape=(8, 8))
  np.testing.assert_allclose(
    jax.jit(decode)(codes).reshape(2, DIM), decoder()(codes), atol=1e-6
  )


def test_one_device_and_eight():
  x0 = images(8)

  def codec(x0):
    codes = ddcm_encode(DENOISE, x0, SCHEDULE, CODEBOOK)
    return codes, ddcm_decode(DENOISE, codes, SCHEDULE, CODEBOOK, shape=(DIM,))

  expected = encoder()(x0), decoder()(encoder()(x0))
  spec = P('data')
  each = jax.shard_map(
    codec, mesh=data_mesh(), in_specs=spec, out_specs=spec, check_vma=True
  )
  sharded = jax.jit(each)(x0)
  mapped = jax.tree.map(lambda x: x[:, 0], jax.pmap(codec)(x0[:, None]))
  for found in (sharded, mapped):
    chex.assert_trees_all_equal(found[0], expected[0])
    chex.assert_trees_all_close(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'name'),
  [
    (dict(atoms=0), 'atoms'),
    (dict(coefficient_bits=0), 'coefficient_bits'),
    (dict(selection='best'), 'selection'),
    (dict(selection='sample'), 'key'),
    (dict(selection='sample', atoms=2, key=jax.random.key(0)), 'atoms'),
    (
      dict(selection='sample', key=jax.random.key(0), weights=jnp.ones(DIM)),
      'weights',
    ),
    (dict(weights=jnp.ones(3)), 'weights'),
    (dict(tail=-1), 'tail'),
    (dict(tail=25), 'tail'),
  ],
)
def test_encoding_refuses(options, name):
  with pytest.raises(ValueError, match=f'^{name}: got'):
    ddcm_encode(DENOISE, images(2), SCHEDULE, CODEBOOK, **options)


def test_refuses_a_codebook_of_another_dimension():
  with pytest.raises(ValueError, match='^codebook.dim: got 4, expected 64'):
    ddcm_encode(DENOISE, images(2), SCHEDULE, Codebook(8, 4))


ZEROS = jnp.zeros((2, 24, 1), jnp.int32)


@pytest.mark.parametrize(
  ('codes', 'options', 'name'),
  [
    (Codes(ZEROS, ZEROS), dict(steps=25), 'steps'),
    (Codes(ZEROS, ZEROS), dict(steps=-1), 'steps'),
    (Codes(ZEROS, ZEROS), dict(tail=1), 'codes'),
    (Codes(ZEROS, ZEROS[:, :3]), {}, 'codes.coefficients'),
    (Codes(ZEROS[0], ZEROS[0]), {}, 'codes.indices'),
    (Codes(ZEROS, ZEROS), dict(shape=(8,)), 'codebook.dim'),
    (Codes(ZEROS, ZEROS), dict(coefficient_bits=9), 'coefficient_bits'),
  ],
)
def test_decoding_refuses(codes, options, name):
  options = dict(shape=(DIM,)) | options
  with pytest.raises(ValueError, match=f'^{name}: got'):
    ddcm_decode(DENOISE, codes, SCHEDULE, CODEBOOK, **options)


def test_sampling_refuses_no_images():
  with pytest.raises(ValueError, match='^count: got 0'):
    ddcm_sample(
      DENOISE, SCHEDULE, CODEBOOK, jax.random.key(0), count=0, shape=(DIM,)
    )
