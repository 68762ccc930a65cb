"""Models that move to new data: what is pretrained, turned, put back."""

import jax
import jax.numpy as jnp
import numpy as np

from kexue.figures.adaptation import (
  DIGITS_WIDTHS,
  digits_adaptation,
  text_adaptation,
)
from kexue.figures.language_model import Task
from kexue.figures.session import session
from kexue.models import TransformerConfig
from kexue.training.data import Dataset

KEY = jax.random.key(0)
OPTIONS = dict(steps=10, learning_rate=0.01, parallel='jit')


def letters(first):
  rng = np.random.default_rng(first)
  text = rng.integers(first, first + 4, 2000).astype(np.uint8)
  return Task(
    TransformerConfig(layers=2, width=16, heads=2, scan_layers=True),
    Dataset(text[:1800], text[1800:], 'letters'),
    length=8,
    batch_size=8,
    validation_windows=8,
  )


def test_a_text_model_is_its_matrices_and_the_rest_stays(tmp_path):
  source, target = letters(97), letters(105)
  with session(tmp_path, KEY, 10) as launch:
    task = text_adaptation(launch, source, target, **OPTIONS)
    count = len(launch.records.rows)
    again = text_adaptation(launch, source, target, **OPTIONS)
    assert len(launch.records.rows) == count == 10  # Restored, not trained.
  assert sorted(task.start) == sorted(again.start) and len(task.start) == 7
  for name, w in task.start.items():
    assert w.shape[0] == 2 and w.ndim == 3
    np.testing.assert_array_equal(w, again.start[name])
  batch = jnp.asarray(task.batches(KEY)(0, 1)[0])
  gradient = task.gradient(task.start, batch)
  assert float(task.loss(task.start, batch)) > 1
  # The gradient is that of the loss, in one direction.
  step = jax.tree.map(lambda g: -1e-2 * g, gradient)
  moved = jax.tree.map(jnp.add, task.start, step)
  change = task.loss(moved, batch) - task.loss(task.start, batch)
  slope = -1e-2 * sum(jnp.sum(g**2) for g in gradient.values())
  np.testing.assert_allclose(change, slope, rtol=0.1)
  assert float(task.score(moved)) != float(task.score(task.start))


def test_digits_are_turned(tmp_path):
  with session(tmp_path, KEY, 10) as launch:
    task = digits_adaptation(launch, **OPTIONS | dict(steps=100))
    upright = launch.records.rows[-1]['loss']
  shapes = [w.shape for _, w in sorted(task.start.items())]
  widths = zip(DIGITS_WIDTHS, DIGITS_WIDTHS[1:], strict=False)
  assert shapes == [(1, *pair) for pair in widths]
  batch = task.batches(KEY)(0, 1)
  assert batch['image'].shape == (1, 64, 8, 8, 1)
  # What was learned of upright digits is of no use.
  assert float(task.score(task.start)) > 2 * np.log(10) > 5 * upright
