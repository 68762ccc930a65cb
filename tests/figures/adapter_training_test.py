"""Steps of adapters against the functions that say what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.figures.adaptation import Adaptation
from kexue.figures.adapter_training import (
  AdapterTraining,
  cosine,
  make_adapters,
  mean_gradient,
  pairs_of,
  pulled_back,
  pushed_forward,
  weights_of,
)
from kexue.figures.session import session
from kexue.lowrank import lora_equivalent_gradient
from kexue.optimizers import lora_pro

KEY = jax.random.key(0)


def quadratic():
  """The distance of two matrices to their targets, moved by each batch."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  start = {'x': draw(1, 6, 5), 'y': draw(2, 5, 6)}
  target = {'x': draw(1, 6, 5), 'y': draw(2, 5, 6)}

  def loss(matrices, batch):
    far = [((matrices[n] - target[n]) ** 2).sum() for n in target]
    return (1 + jnp.mean(batch)) * sum(far) / 2

  def batches(key):
    return lambda step, count: np.zeros((count, 8), np.float32)

  score = lambda matrices: loss(matrices, jnp.zeros(1))
  return Adaptation(start, loss, jax.jit(jax.grad(loss)), batches, score)


def test_gradients_and_steps_pass_between_pairs_and_matrices():
  task = quadratic()
  gradient = mean_gradient(task, KEY, 2)
  adapters = make_adapters(task, None, 2, KEY, method='pissa')
  params = pairs_of(adapters)
  for name, w in weights_of(params, adapters).items():
    np.testing.assert_allclose(w, task.start[name], atol=1e-5)
  pulled = pulled_back(params, gradient, adapters)
  moved = pushed_forward(params, pulled, adapters)
  for name, g in gradient.items():
    a, b = params[name]['a'], params[name]['b']
    np.testing.assert_allclose(pulled[name]['a'], g @ b.mT, atol=1e-4)
    np.testing.assert_allclose(pulled[name]['b'], a.mT @ g, atol=1e-4)
    expected = lora_equivalent_gradient(
      a, b, pulled[name]['a'], pulled[name]['b'], scale=1.0
    )
    np.testing.assert_allclose(moved[name], expected, atol=1e-4)
  matrices = task.start
  assert weights_of(matrices, {}) is matrices
  assert pulled_back(matrices, gradient, {})['x'] is gradient['x']


def test_cosine_by_hand():
  x, y = {'w': jnp.array([3.0, 4.0])}, {'w': jnp.array([4.0, 3.0])}
  assert float(cosine(x, y)) == pytest.approx(24 / 25)
  assert float(cosine(x, {'w': jnp.zeros(2)})) == 0


def run(tmp_path, direction, method, *, rate=0.1, steps=4, name='a'):
  task = quadratic()
  training = AdapterTraining(
    task,
    direction,
    optax.constant_schedule(1.0),
    steps=steps,
    log_every=2,
    parallel='jit',
  )

  def adapters():
    gradient = mean_gradient(task, KEY, 1) if method == 'lora_ga' else None
    return make_adapters(task, gradient, 2, KEY, method=method)

  with session(tmp_path, KEY, steps) as launch:
    train = lambda: training.train(
      launch,
      name,
      learning_rate=rate,
      key=KEY,
      adapters=adapters if method else None,
      tags={'seed': 0},
    )
    last = train()
    count = len(launch.records.rows)
    assert train() == last and len(launch.records.rows) == count
  return last, launch.records.rows


def test_matrices_descend_as_they_must(tmp_path):
  last, rows = run(tmp_path, optax.identity(), None)
  task = quadratic()
  assert last['cosine'] == pytest.approx(1)
  start = float(task.score(task.start))
  # A quadratic of curvature one: every step takes a tenth of the distance.
  assert last['score'] == pytest.approx(start * 0.9**8, rel=1e-4)
  assert [row['step'] for row in rows] == [2, 4] and last['seed'] == 0


def test_the_cosine_of_the_first_step_is_that_of_the_theory(tmp_path):
  task = quadratic()
  gradient = mean_gradient(task, KEY, 1)
  seen = lost = 0
  for g in gradient.values():
    s = np.linalg.svd(g, compute_uv=False)
    seen, lost = seen + (s[..., :4] ** 2).sum(), lost + (s[..., 4:] ** 2).sum()
  direction = lora_pro(optax.identity(), scale=1.0)
  last, _ = run(tmp_path, direction, 'lora_ga', rate=1e-7)
  assert last['cosine'] == pytest.approx((seen / (seen + lost)) ** 0.5, 1e-3)


def test_adapters_descend_and_divergence_is_told(tmp_path):
  first = float(quadratic().score(quadratic().start))
  last, _ = run(tmp_path, optax.scale_by_adam(), 'kaiming', steps=20)
  assert last['score'] < 0.9 * first and 0 < last['cosine'] < 1
  last, _ = run(
    tmp_path, optax.identity(), 'pissa', rate=1e3, steps=30, name='b'
  )
  assert last['score'] == float('inf') and last['step'] == 30
