"""Losses whose values are known, and one loss in three parametrisations."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kexue.diffusion import (
  Schedule,
  add_noise,
  ddpm_loss,
  gaussian_denoiser,
  min_snr_weights,
  predict_noise,
  prediction_target,
)
from kexue.diffusion.variational_bound import bound_term

LINEAR = Schedule.linear(1000)
KEY = jax.random.key(0)
PREDICTIONS = ('eps', 'x0', 'v')
X0 = np.random.default_rng(0).uniform(-1, 1, (16, 4, 3)).astype(np.float32)


def network_of(predict, prediction, schedule=LINEAR):
  """The network that makes a prediction of the image in its own words."""

  def network(x, t):
    x0 = predict(x, t)
    noise = predict_noise(schedule, x0, x, t)
    return prediction_target(schedule, x0, noise, t, prediction=prediction)

  return network


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_who_knows_the_image_has_no_loss(prediction):
  know = lambda x, t: jnp.asarray(X0)
  i = jnp.arange(1, 17) * 60
  run = functools.partial(ddpm_loss, x0=X0, schedule=LINEAR, key=KEY, i=i)
  run = functools.partial(run, prediction=prediction)
  assert run(network_of(know, prediction)) < 1e-9
  wrong = lambda x, t: network_of(know, prediction)(x, t) + 0.5
  np.testing.assert_allclose(run(wrong), 0.25, rtol=1e-4)


def test_loss_of_the_best_denoiser():
  """Errors of normal images, on average over positions."""
  schedule, n = Schedule.linear(50), 40_000
  denoise = gaussian_denoiser(0.25, schedule)
  x0 = 0.5 * jax.random.normal(jax.random.key(1), (n, 1))
  a = schedule.alpha_bar[1:]
  error = 0.25 * (1 - a) / (0.25 * a + 1 - a)
  for prediction, factor in (
    ('eps', a / (1 - a)),
    ('x0', 1.0),
    ('v', 1 / (1 - a)),
  ):
    network = network_of(denoise, prediction, schedule)
    found = ddpm_loss(network, x0, schedule, KEY, prediction=prediction)
    each = error * factor
    # Chi squares with weights that are drawn too.
    deviation = np.sqrt((3 * np.mean(each**2) - np.mean(each) ** 2) / n)
    assert abs(found - np.mean(each)) < 4 * deviation


@pytest.mark.parametrize('gamma', [0.5, 5.0])
def test_min_snr_is_one_loss_in_three_parametrisations(gamma):
  i = np.arange(1, 17) * 60
  shrink = lambda x, t: 0.5 * x
  losses = [
    ddpm_loss(
      network_of(shrink, prediction),
      X0,
      LINEAR,
      KEY,
      prediction=prediction,
      gamma=gamma,
      i=jnp.asarray(i),
    )
    for prediction in PREDICTIONS
  ]
  np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
  # Positions with clipped and with unclipped weights take part.
  snr = LINEAR.snr[i]
  assert snr.min() < gamma < snr.max()


def test_weights():
  snr = LINEAR.snr[1:]
  for prediction, units in (('eps', snr), ('x0', 1 + 0 * snr), ('v', snr + 1)):
    found = min_snr_weights(LINEAR, 5.0, prediction=prediction)
    np.testing.assert_allclose(found, np.minimum(snr, 5) / units, rtol=1e-12)
  # A huge gamma is the plain error of noise.
  np.testing.assert_allclose(min_snr_weights(LINEAR, 1e9), 1)
  run = functools.partial(ddpm_loss, lambda x, t: x, X0, LINEAR, KEY)
  np.testing.assert_allclose(run(gamma=1e9), run(), rtol=1e-6)


def test_positions_are_uniform_and_timesteps_original():
  schedule = LINEAR.respace([1, 10, 500, 1000])
  seen = []
  network = lambda x, t: seen.append(t) or x
  ddpm_loss(network, jnp.zeros((4000, 1)), schedule, KEY)
  values, counts = np.unique(seen[0], return_counts=True)
  assert values.tolist() == [1, 10, 500, 1000]
  assert np.all(np.abs(counts - 1000) < 4 * np.sqrt(1000 * 0.75))


def hybrid(params, bound_weight, i, x0):
  """Of a network with two parameters: of the image and of the variance."""

  def network(x, t):
    return jnp.concatenate(
      [params[0] * x, jnp.tanh(params[1]) + 0 * x], axis=-1
    )

  return ddpm_loss(
    network,
    x0,
    LINEAR,
    KEY,
    prediction='x0',
    learned_range=True,
    bound_weight=bound_weight,
    i=i,
  )


def test_the_bound_is_added_and_trains_the_variance_only():
  x0 = jnp.round((X0 + 1) * 127.5) / 127.5 - 1
  x0 = x0.at[:, 0].set(-1.0).at[:, 1].set(1.0)  # Open bins.
  i = jnp.array([1, 2, 500, 1000] * 4)
  params = jnp.array([0.7, 0.3])
  run = jax.jit(jax.value_and_grad(hybrid))
  (plain, by), (both, by_both) = (run(params, w, i, x0) for w in (0.0, 1e-3))
  assert by[1] == 0 and by_both[1] != 0 and np.all(np.isfinite(by_both))
  np.testing.assert_allclose(by[0], by_both[0], rtol=1e-5)
  # The bound, by its own definition, of the same noisy images.
  noise = jax.random.normal(jax.random.split(KEY)[1], x0.shape)
  x0_hat = params[0] * add_noise(LINEAR, x0, noise, i)
  fraction = jnp.full(x0.shape, (jnp.tanh(params[1]) + 1) / 2)
  nats = bound_term(
    LINEAR, x0, x0_hat, i, variance='learned_range', fraction=fraction
  )
  bits = jnp.mean(nats) / (12 * math.log(2))
  np.testing.assert_allclose(both - plain, bits, rtol=1e-3)  # 1000 steps.


def test_the_best_variance_is_between_both_ends():
  """Of images of variance 1 it is the larger, of one image the smaller."""
  i = jnp.full(16, 900)
  run = jax.jit(jax.grad(hybrid))
  by = lambda w, x0: run(jnp.array([w, 0.0]), 1.0, i, x0)[1]
  images = jax.random.normal(jax.random.key(3), X0.shape)
  root = math.sqrt(LINEAR.alpha_bar[900])
  assert by(root, images) < 0  # Descent goes up.
  assert by(0.0, jnp.zeros(X0.shape)) > 0


def test_low_precision_networks_and_images():
  """What is squared and averaged is float32."""
  x0 = jnp.asarray(X0, jnp.bfloat16)
  network = lambda x, t: (0.5 * x).astype(jnp.bfloat16)
  found = ddpm_loss(network, x0, LINEAR, KEY)
  assert found.dtype == jnp.float32
  wide = ddpm_loss(lambda x, t: 0.5 * x, x0.astype('float32'), LINEAR, KEY)
  np.testing.assert_allclose(found, wide, rtol=1e-2)


def test_on_many_devices():
  x0, keys = X0.reshape(8, 2, 4, 3), jax.random.split(KEY, 8)

  def run(weight, x0, key):
    network = lambda x, t: weight * x
    return ddpm_loss(network, x0, LINEAR, key, prediction='v', gamma=5.0)

  expected = jax.jit(jax.vmap(run, (None, 0, 0)))(0.3, x0, keys)
  close = functools.partial(chex.assert_trees_all_close, rtol=1e-5)
  close(jax.jit(run)(0.3, x0[5], keys[5]), expected[5])
  close(jax.pmap(run, in_axes=(None, 0, 0))(0.3, x0, keys), expected)
  mesh = jax.make_mesh((8,), ('i',), (jax.sharding.AxisType.Auto,))

  local = lambda weight, x0, keys: run(weight, x0[0], keys[0])[None]
  sharded = jax.shard_map(
    local, mesh=mesh, in_specs=(P(), P('i'), P('i')), out_specs=P('i')
  )
  close(jax.jit(sharded)(0.3, x0, keys), expected)


def test_wrong_arguments_are_named():
  run = functools.partial(ddpm_loss, lambda x, t: x, X0, LINEAR, KEY)
  few = lambda x, t: x[..., :2]
  for name, call in {
    "prediction: got 'y'": lambda: run(prediction='y'),
    'gamma: got 0': lambda: run(gamma=0),
    "the network's output: got": lambda: run(learned_range=True),
    "the network's output: go": lambda: ddpm_loss(few, X0, LINEAR, KEY),
    'x0: got shape': lambda: ddpm_loss(few, X0[0, 0], LINEAR, KEY),
    "prediction: got 'z'": lambda: min_snr_weights(LINEAR, 5, prediction='z'),
  }.items():
    with pytest.raises(ValueError, match=f'^{name}'):
      call()
