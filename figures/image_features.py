r"""Sets of images judged by the features of a small classifier.

The Fréchet distance of Gaussians with the moments of two sets,

.. math::
  |m_a - m_b|^2 + \mathrm{tr}\bigl(C_a + C_b - 2 (C_a C_b)^{1/2}\bigr),

is that of Heusel et al. with the features of a network trained here in the
place of Inception's. It is biased upwards, by about a constant over the number
of images: compare equal counts, or extrapolate as Chong and Forsyth do.

References:
  Heusel et al., `GANs Trained by a Two Time-Scale Update Rule
  <https://arxiv.org/abs/1706.08500>`_, 2017;
  Chong and Forsyth, `Effectively Unbiased FID
  <https://arxiv.org/abs/1911.07023>`_, 2020.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..training import TrainState
from ..training.batches import array_batches
from ..training.data import Dataset
from .fast_convolutions import fast_convolutions
from .image_model import CLASSES
from .tokenizer import pixels

FEATURES = 64


class Classified(NamedTuple):
  """`logits` [B, 10] of images and the `features` [B, 64] they come from."""

  logits: jax.Array
  features: jax.Array


class Classifier(nn.Module):
  """Two strided convolutions and a layer of features: [B, H, W, C] bytes."""

  width: int = 16

  @nn.compact
  def __call__(self, images: jax.Array) -> Classified:
    """Reads off logits and features."""
    x = pixels(images)
    for width in (self.width, 2 * self.width):
      x = nn.relu(nn.Conv(width, (4, 4), strides=2)(x))
    x = nn.relu(nn.Dense(FEATURES)(x.reshape(len(x), -1)))
    return Classified(nn.Dense(CLASSES)(x), x)


class ClassifierTask:
  """A classifier on the training images.

  Args:
    data: labelled images.
    batch_size: images in a step.
    images: how many are trained on, the first ones.
  """

  def __init__(self, data: Dataset, *, batch_size: int, images: int = 60_000):
    self.model, self.batch_size = Classifier(), batch_size
    names = ('image', 'label')
    self._train = {name: data.train[name][:images] for name in names}
    self._held_out = {name: data.validation[name] for name in names}
    self._start = jax.jit(self.model.init)
    self._classify = jax.jit(self.model.apply)

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Parameters, and no variables."""
    return self._start(key, self._train['image'][:1])['params'], {}

  def loss(self, model, params, variables, batch, key):
    """Cross entropy in nats."""
    del key
    with fast_convolutions():
      logits = model.apply({'params': params}, batch['image']).logits
    of = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(of(logits, batch['label'])), (variables, {})

  def batches(self, key: jax.Array) -> Callable[[int, int], Any]:
    """`batches(step, count)` of the run with this key, for `fit`."""
    return lambda step, count: array_batches(
      self._train, key=key, step=step, steps=count, batch_size=self.batch_size
    )

  def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
    """`val_loss` in nats, and `accuracy`, of all held-out images."""
    labels = jnp.asarray(self._held_out['label'])
    logits = self.classify(state, self._held_out['image']).logits
    of = optax.softmax_cross_entropy_with_integer_labels
    right = jnp.argmax(logits, axis=1) == labels
    return {'val_loss': jnp.mean(of(logits, labels)), 'accuracy': right.mean()}

  def classify(self, state: TrainState, images: np.ndarray) -> Classified:
    """What it makes of bytes [B, H, W, C]."""
    return self._classify({'params': state.params}, images)


class Judge:
  """Compares sets of images with real ones.

  Args:
    task: of the classifier.
    state: the trained one.
    reference: real images [N, H, W, C], bytes.

  Attributes:
    reference: their features, float64 [N, 64].
    variance: of these, the sum over all; distances are shares of it.
  """

  def __init__(
    self, task: ClassifierTask, state: TrainState, reference: np.ndarray
  ):
    self._classify = lambda images: task.classify(state, images)
    self.reference = self.features(reference)
    # Distances are shares of the variance of real features.
    self.variance = float(np.sum(np.var(self.reference, axis=0)))

  def features(self, images: np.ndarray) -> np.ndarray:
    """Those of bytes [N, H, W, C], float64 [N, 64]."""
    return np.float64(self._classify(images).features)

  def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How far off and how recognisable they are.

    Args:
      images: bytes [N, H, W, C], as many as there are real ones.
      labels: [N], what they should show.

    Returns:
      `frechet`, the distance over the variance of the real features;
      `extrapolated`, the same without the bias of the count; `accuracy`, the
      share that the classifier takes for what they should show.
    """
    logits, features = jax.device_get(self._classify(images))
    own = features.astype(np.float64)
    return {
      'frechet': frechet(own, self.reference) / self.variance,
      'extrapolated': extrapolated(own, self.reference) / self.variance,
      'accuracy': float(np.mean(np.argmax(logits, axis=1) == labels)),
    }


def frechet(a: np.ndarray, b: np.ndarray) -> float:
  """The Fréchet distance of two sets of features.

  Args:
    a: [N, F].
    b: [M, F].

  Returns:
    A number of 0 or more, up to rounding.

  Example:
    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> round(frechet(a, a + [3.0, 4.0]), 6)
    25.0
  """
  a, b = np.float64(a), np.float64(b)
  moments = lambda x: (x.mean(0), np.cov(x, rowvar=False))
  return frechet_of_moments(*moments(a), *moments(b))


def frechet_of_moments(
  mean: np.ndarray,
  covariance: np.ndarray,
  other_mean: np.ndarray,
  other_covariance: np.ndarray,
) -> float:
  """The Fréchet distance of two normal laws.

  Args:
    mean: [F].
    covariance: [F, F].
    other_mean: [F].
    other_covariance: [F, F].

  Returns:
    A number of 0 or more, up to rounding.

  Example:
    >>> round(frechet_of_moments(np.ones(2), 4 * np.eye(2), 0.0, np.eye(2)), 6)
    4.0
  """
  values, vectors = np.linalg.eigh(covariance)
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  # The eigenvalues of the product of covariances, of a symmetric matrix.
  product = np.linalg.eigvalsh(root @ other_covariance @ root)
  product = np.maximum(product, 0)
  shift = np.sum(np.square(mean - other_mean))
  traces = np.trace(covariance) + np.trace(other_covariance)
  return float(shift + traces - 2 * np.sum(np.sqrt(product)))


def extrapolated(a: np.ndarray, b: np.ndarray) -> float:
  """The Fréchet distance at infinitely many rows, to first order in 1 / N.

  Halves have twice the bias: twice the whole less the mean of two halves.

  Args:
    a: [N, F].
    b: [N, F].

  Returns:
    A number, below zero at times where the sets are alike.
  """
  halves = [frechet(a[i::2], b[i::2]) for i in (0, 1)]
  return 2 * frechet(a, b) - float(np.mean(halves))
