"""The products whose columns and rows are sampled: random, images, a gradient.

Shapes: `p` pixels, `l` terms of a product [p, l] @ [l, p].
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..checks import require
from ..training.data import best_images, load

CLASSES, BATCH = 10, 128


def labelled_images(name: str, data_dir) -> tuple[str, np.ndarray, np.ndarray]:
  """Name, images [N, p] in 0..1 and labels [N]."""
  name = best_images(data_dir) if name == 'auto' else name
  data = load(name, data_dir=data_dir).train
  labelled = isinstance(data, dict) and 'label' in data
  require(labelled, 'config.images', name, 'labelled images')
  pixels = data['image'].reshape(len(data['image']), -1)
  return name, np.float32(pixels / 255), data['label']


def gaussian(m: int, l: int, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Factors whose terms differ in size and have nothing in common."""
  random = np.random.default_rng(0)
  x = random.normal(size=(m, l)) * np.exp(random.normal(size=l))
  return np.float32(x), np.float32(random.normal(size=(l, n)))


def layer_gradient(
  images: np.ndarray, labels: np.ndarray, steps: int, terms: int
) -> tuple[np.ndarray, np.ndarray]:
  """Activations [p, l] and what comes back [l, p] at the second of 3 layers."""
  pixels = images.shape[1]
  keys = jax.random.split(jax.random.key(0), 3)
  widths = (pixels, pixels, pixels, CLASSES)
  params = [
    jax.random.normal(key, (a, b)) * (2 / a) ** 0.5
    for key, a, b in zip(keys, widths, widths[1:], strict=False)
  ]

  def loss(params, images, labels, shift=0.0):
    hidden = jax.nn.relu(images @ params[0])
    logits = jax.nn.relu(hidden @ params[1] + shift) @ params[2]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(each), hidden

  optimizer = optax.adam(1e-3)

  @jax.jit
  def step(carry, start):
    params, state = carry
    at = (start * BATCH + jnp.arange(BATCH)) % len(images)
    take = lambda x: jnp.asarray(x)[at]
    gradient, _ = jax.grad(loss, has_aux=True)(
      params, take(images), take(labels)
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  carry = params, optimizer.init(params)
  for i in range(steps):
    carry = step(carry, i)
  # The gradient with respect to a shift of each example is what comes back.
  back, hidden = jax.grad(loss, argnums=3, has_aux=True)(
    carry[0], images[:terms], labels[:terms], jnp.zeros((terms, pixels))
  )
  return np.asarray(hidden).T, np.asarray(back)
