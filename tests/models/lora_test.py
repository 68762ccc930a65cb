"""The adapted dense layer: what is trained, what is frozen, where it runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kexue.lowrank import lora_init, lora_merge
from kexue.models import LoRADense
from kexue.optimizers import lora_pro

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 7, 6))
KERNEL = jax.random.normal(jax.random.key(1), (6, 5))


def test_starts_as_the_frozen_layer():
  layer = LoRADense(features=5, rank=2, alpha=4.0)
  variables = layer.init(KEY, X)
  shapes = jax.tree.map(jnp.shape, variables)
  assert shapes == {
    'params': {'a': (6, 2), 'b': (2, 5)},
    'frozen': {'kernel': (6, 5), 'bias': (5,)},
  }
  frozen = dict(variables['frozen'], bias=jnp.arange(5.0))
  y = layer.apply(variables | {'frozen': frozen}, X)
  dense = nn.Dense(5).apply({'params': frozen}, X)
  np.testing.assert_allclose(y, dense, atol=1e-5)
  assert float(jnp.std(frozen['kernel'])) > 0.2
  assert float(jnp.std(variables['params']['a'])) > 0.1


@pytest.mark.parametrize('scaling', ['rslora', 'lora'])
def test_any_start_of_a_pretrained_kernel(scaling):
  options = dict(alpha=4.0, scaling=scaling)
  layer = LoRADense(features=5, rank=2, use_bias=False, **options)
  lora = lora_init(
    KEY, KERNEL, 2, method='lora_ga', gradient=KERNEL**2, **options
  )
  lora = lora._replace(b=lora.b + 1)
  variables = {
    'params': {'a': lora.a, 'b': lora.b},
    'frozen': {'kernel': lora.base},
  }
  y = jax.jit(layer.apply)(variables, X)
  np.testing.assert_allclose(y, X @ lora_merge(lora), atol=1e-4)
  assert y.shape == (3, 7, 5)


class Two(nn.Module):
  """Two adapted layers."""

  @nn.compact
  def __call__(self, x):
    x = nn.silu(LoRADense(8, 2, name='first')(x))
    return LoRADense(5, 2, name='second')(x)


def test_optimizers_see_the_adapters_alone():
  model = Two()
  variables = model.init(KEY, X)
  params, frozen = variables['params'], variables['frozen']
  target = jax.random.normal(KEY, (3, 7, 5))

  def loss(params):
    y = model.apply({'params': params, 'frozen': frozen}, X)
    return ((y - target) ** 2).mean()

  tx = optax.chain(
    lora_pro(optax.scale_by_adam(), scale=1.0, weight_decay=0.1),
    optax.scale_by_learning_rate(0.02),
  )

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  first, state = loss(params), tx.init(params)
  for _ in range(30):
    params, state = step(params, state)
  assert loss(params) < 0.9 * first
  assert float(jnp.abs(params['first']['b']).max()) > 0


def test_runs_inside_nnx():
  model = nnx.bridge.ToNNX(LoRADense(5, 2), rngs=nnx.Rngs(0))
  model.lazy_init(X)
  before = model(X)
  params = nnx.state(model, nnx.Param)
  assert set(params) == {'a', 'b'}
  optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
  loss = lambda model: (model(X) ** 2).mean()
  optimizer.update(model, nnx.grad(loss)(model))
  assert float(loss(model)) < float((before**2).mean())
  np.testing.assert_array_equal(model.bias[...], 0)


def test_half_precision_on_request():
  layer = LoRADense(features=5, rank=2, dtype=jnp.bfloat16)
  variables = layer.init(KEY, X)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
  y = layer.apply(variables, X)
  assert y.dtype == jnp.bfloat16
  expected = X @ variables['frozen']['kernel']
  np.testing.assert_allclose(np.float32(y), expected, atol=0.1)


@pytest.mark.parametrize(
  'layer, x, message',
  [
    (LoRADense(5, 6), X, 'rank: got 6'),
    (LoRADense(5, 0), X, 'rank: got 0'),
    (LoRADense(5, 2, alpha=-1.0), X, 'alpha: got -1'),
    (LoRADense(5, 2, scaling='x'), X, "scaling: got 'x'"),
    (LoRADense(5, 2), X[0, 0, 0], 'x: got shape'),
  ],
)
def test_wrong_arguments_are_named(layer, x, message):
  with pytest.raises(ValueError, match=message):
    layer.init(KEY, x)
