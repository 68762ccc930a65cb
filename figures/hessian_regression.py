"""A regression on images, whose Hessian is dense and whose noise is known.

The control of what is measured in networks: everything that theories of Adam
and the Hessian speak of can be computed.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .comparison import Row

POOL = 2  # Pixels of a side that are averaged.
B2 = 0.999


def regression(images: dict[str, np.ndarray]) -> tuple:
  """Averages of pixels [n, d] and whether it is the first class [n], centred.

  Pixels that never vary are left out.
  """
  pixels = images['image'].mean(-1) / 255
  n, height, width = pixels.shape
  shape = n, height // POOL, POOL, width // POOL, POOL
  x = pixels.reshape(shape).mean((2, 4)).reshape(n, -1)
  x, y = x - x.mean(0), images['label'] == 0
  return x[:, x.std(0) > 0], y - y.mean()


class Quadratic(NamedTuple):
  """A regression at its minimum, in float64.

  Attributes:
    hessian: [d, d].
    minimum: [d].
    noise: covariance [d, d] of the gradient of one example there.
  """

  hessian: np.ndarray
  minimum: np.ndarray
  noise: np.ndarray

  @classmethod
  def of(cls, x: np.ndarray, y: np.ndarray) -> 'Quadratic':
    """Of half the mean square of x w - y."""
    minimum = np.linalg.lstsq(x, y, rcond=None)[0]
    residual = x @ minimum - y
    noise = (x * residual[:, None] ** 2).T @ x / len(x)
    return cls(x.T @ x / len(x), minimum, noise)

  def descent(self, rate: float, batch_size: int, steps: int) -> np.ndarray:
    r"""RMS [d] of the full gradient along a run of SGD from the minimum.

    In the eigenbasis the covariance of the weights after t steps is
    C_ij (1 - q_ij^t), q_ij = (1 - eta h_i) (1 - eta h_j), with C that of the
    end; the mean over steps 1 to t of q^t is a geometric sum.
    """
    h, v = np.linalg.eigh(self.hessian)
    decay = rate * (h[:, None] + h - rate * h[:, None] * h)
    noise = v.T @ self.noise @ v / batch_size
    grown = -np.expm1(steps * np.log1p(-decay))
    mean = 1 - (1 - decay) * grown / (steps * decay)
    covariance = rate**2 * noise / decay * mean
    gradients = v @ (h[:, None] * covariance * h) @ v.T
    return np.sqrt(np.diag(gradients))


@functools.partial(
  jax.jit, static_argnames=('optimizer', 'steps', 'batch_size')
)
def _walk(x, y, weights, key, optimizer, *, steps: int, batch_size: int):
  """Mean square of the full gradient over a run, and Adam's v or `None`."""
  hessian, b = x.T @ x / len(x), x.T @ y / len(x)

  def step(carry, key):
    weights, state, total = carry
    rows = jax.random.randint(key, (batch_size,), 0, len(x))
    gradient = x[rows].T @ (x[rows] @ weights - y[rows]) / batch_size
    update, state = optimizer.update(gradient, state)
    weights = weights + update
    return (weights, state, total + (hessian @ weights - b) ** 2), None

  start = weights, optimizer.init(weights), jnp.zeros_like(weights)
  (_, state, total), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
  return total / steps, optax.tree.get(state, 'nu')


def look(
  x: np.ndarray,
  y: np.ndarray,
  key: jax.Array,
  *,
  batch_size: int,
  steps: int,
  draws: int,
  learning_rate: float,
) -> Iterator[Row]:
  """A row for each pixel, and for the eigenvector of the same number.

  Args:
    x: see `regression`.
    y: see `regression`.
    key: of batches and draws.
    batch_size: of the runs and of the noise.
    steps: of the runs of descent and Adam, from the minimum.
    draws: of isotropic weights.
    learning_rate: of Adam.

  Yields:
    The Hessian's `diagonal`, `row` norm and `eigenvalue`; RMS gradients:
    `isotropic` per deviation of the weights, of the run of `descent` and its
    theory, `noise` of a minibatch, and the root of Adam's v.
  """
  at = Quadratic.of(x, y)
  h, v = np.linalg.eigh(at.hessian)
  rate = 0.1 / h[-1]
  start = (jnp.asarray(a, jnp.float32) for a in (x, y, at.minimum))
  walk = functools.partial(
    _walk, *start, key, steps=steps, batch_size=batch_size
  )
  descent, _ = walk(optax.sgd(rate))
  _, second_moment = walk(optax.adam(learning_rate, b2=B2))
  seed = int(jax.random.bits(key))
  weights = np.random.default_rng(seed).normal(size=(draws, len(h)))
  drawn = weights @ at.hessian
  rms = lambda gradients: np.sqrt(np.mean(gradients**2, 0))
  columns = {
    'diagonal': np.diag(at.hessian),
    'row': np.linalg.norm(at.hessian, axis=1),
    'isotropic': rms(drawn),
    'descent': np.sqrt(descent),
    'descent_theory': at.descent(rate, batch_size, steps),
    'adam': np.sqrt(second_moment / (1 - B2**steps)),
    'noise': np.sqrt(np.diag(at.noise) / batch_size),
    'eigenvalue': h,
    'isotropic_eigen': rms(drawn @ v),
    'noise_eigen': np.sqrt(np.diag(v.T @ at.noise @ v) / batch_size),
  }
  for i in range(len(h)):
    yield {name: float(values[i]) for name, values in columns.items()}
