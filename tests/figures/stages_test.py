"""Stages of one run are where a run of as many steps ends."""

import jax
import numpy as np
import optax

from kexue.figures.image_model import ImageConfig
from kexue.figures.session import session
from kexue.figures.stages import by_stage, parameters_at

KEY = jax.random.key(0)


def test_stages_go_on_from_each_other(tmp_path):
  task = ImageConfig(dataset='digits', width=4, population=64).task(8)
  with session(tmp_path, KEY, 3) as launch:
    found = parameters_at(
      launch, task, optax.sgd(0.1), (0, 1, 3), KEY, parallel='jit'
    )
    stages = dict(found)
  assert [*stages] == [0, 1, 3]
  params, batches = task.init(KEY), task.batches(KEY)(0, 3)
  for i in range(4):
    if i in stages:
      for a, b in zip(*map(jax.tree.leaves, (stages[i], params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    if i < 3:
      batch = jax.tree.map(lambda x, i=i: x[i], batches)
      gradient = jax.grad(task.mean_loss)(params, batch)
      params = jax.tree.map(lambda x, g: x - 0.1 * g, params, gradient)


def test_rows_of_single_steps_by_stage():
  rows = [dict(stage=s, probe=p) for s, p in ((5, 1), (0, 2), (5, 3))]
  found = by_stage([*rows, dict(train_loss=1.0)])
  assert [*found] == [0, 5] and found[5] == [rows[0], rows[2]]
