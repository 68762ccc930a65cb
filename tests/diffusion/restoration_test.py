import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.diffusion import (
  Codebook,
  Schedule,
  average_pooling,
  ddcm_decode,
  ddcm_encode,
  gaussian_denoiser,
  masked,
  restore,
)
from kexue.training import data_mesh

FULL = Schedule.linear(200)
SCHEDULE = FULL.respace(25)
SHAPE = (8, 8, 1)
FREQUENCY = np.add.outer(np.arange(8), np.arange(8))[..., None]
VARIANCES = np.float32(1 / (1 + FREQUENCY))
DENOISE = gaussian_denoiser(VARIANCES, FULL)


def images(count):
  normal = jax.random.normal(jax.random.key(1), (count, *SHAPE))
  return normal * np.sqrt(VARIANCES)


def restored(operator, y, codebook, **options):
  run = lambda y: restore(
    DENOISE, operator, y, SCHEDULE, codebook, shape=SHAPE, **options
  )
  return jax.jit(run)(y)


def test_takes_the_atom_that_explains_most():
  """One step of the loop, every atom tried in float64."""
  codebook = Codebook(40, 64)
  operator = average_pooling(2)
  y = operator(images(3))
  indices = np.asarray(restored(operator, y, codebook).codes.indices)
  start = jnp.broadcast_to(codebook.start().reshape(SHAPE), (3, *SHAPE))
  t, i = int(SCHEDULE.timesteps[-1]), SCHEDULE.steps
  x0_hat = DENOISE(start, t)
  ab, before = SCHEDULE.alpha_bar[i], SCHEDULE.alpha_bar[i - 1]
  deviation = np.sqrt((1 - ab / before) * (1 - before) / (1 - ab))
  atoms = jax.jit(codebook.atoms)(jnp.arange(40), t)
  atoms = np.float64(atoms).reshape(40, *SHAPE)
  moved = np.float64(x0_hat)[:, None] + deviation / np.sqrt(before) * atoms
  seen = moved.reshape(3, 40, 4, 2, 4, 2, 1).mean((3, 5))
  error = np.square(seen - np.float64(y)[:, None]).sum((2, 3, 4))
  np.testing.assert_array_equal(indices[:, 0, 0], error.argmin(1))


def test_decodes_without_measurement_or_operator():
  codebook = Codebook(64, 64, kind='hadamard')
  operator = average_pooling(2)
  for tail in (0, 3):
    result = restored(operator, operator(images(4)), codebook, tail=tail)
    chex.assert_shape(result.codes.indices, (4, 24 - tail, 1))
    decoded = ddcm_decode(
      DENOISE, result.codes, SCHEDULE, codebook, shape=SHAPE, tail=tail
    )
    np.testing.assert_allclose(decoded, result.x0, atol=1e-5)


def test_more_atoms_explain_more_and_restore_what_was_seen():
  mask = (jnp.arange(8) < 5).astype(jnp.float32)[None, :, None]
  operator = masked(jnp.broadcast_to(mask, SHAPE))
  x0 = images(16)
  y = operator(x0)
  errors = []
  for size in (1, 16, 256):
    result = restored(operator, y, Codebook(size, 64))
    errors.append(float(jnp.mean((operator(result.x0) - y) ** 2)))
  assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_the_identity_is_the_codec():
  """Atoms of one norm: the nearest one has the largest product."""
  codebook = Codebook(64, 64, kind='hadamard')
  x0 = images(4)
  encode = lambda x0: ddcm_encode(DENOISE, x0, SCHEDULE, codebook)
  encoded = jax.jit(encode)(x0)
  same = restored(lambda x: x, x0, codebook)
  np.testing.assert_array_equal(same.codes.indices, encoded.indices)


def test_one_device_and_eight():
  codebook, operator = Codebook(32, 64), average_pooling(4)
  y = operator(images(8))
  run = lambda y: restore(DENOISE, operator, y, SCHEDULE, codebook, shape=SHAPE)
  spec = P('data')
  each = jax.shard_map(run, mesh=data_mesh(), in_specs=spec, out_specs=spec)
  expected, sharded = restored(operator, y, codebook), jax.jit(each)(y)
  chex.assert_trees_all_equal(sharded.codes, expected.codes)
  chex.assert_trees_all_close(sharded.x0, expected.x0, atol=1e-6)


def test_refuses_measurements_of_another_shape():
  with pytest.raises(ValueError, match=r'^y: got \(2, 8, 8, 1\), expected'):
    restore(
      DENOISE,
      average_pooling(2),
      jnp.zeros((2, *SHAPE)),
      SCHEDULE,
      Codebook(4, 64),
      shape=SHAPE,
    )
