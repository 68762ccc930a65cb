"""The tracked step against the plain one; columns against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.figures.language_model import Task
from kexue.figures.noise_tracking import (
  PARTS,
  TRACKED,
  by_part,
  mean_loss,
  moments_of,
  part_of,
  ratios,
  tracked,
  tracked_step,
)
from kexue.models.transformer import TransformerConfig
from kexue.scaling import noise_scale_tracker, tracked_noise_scale
from kexue.training import init_state, parallelize
from kexue.training.data import Dataset

KEY = jax.random.key(0)
SIZES = (32, 16)
OPTIMIZER = optax.sgd(0.1)
TRACKER = noise_scale_tracker(decay=0.5)


@pytest.fixture(scope='module')
def task():
  text = np.random.default_rng(0).integers(0, 9, 4000).astype(np.uint8)
  return Task(
    TransformerConfig(layers=1, width=8, heads=1, vocab_size=9),
    Dataset(text, text[:500], 'made up'),
    length=4,
    batch_size=sum(SIZES),
    validation_windows=4,
  )


@pytest.fixture(scope='module')
def after_three_steps(task):
  """The state after steps on one device and on eight, and the batches."""
  batches, states = task.batches(KEY)(0, 3), {}
  params = task.init(KEY)
  for how in ('jit', 'shard_map'):
    # Eight devices have one microbatch each, of the eight.
    step = tracked_step(task, OPTIMIZER, TRACKER, SIZES, 8)
    trackers = {name: TRACKER.init(params) for name in TRACKED}
    state = init_state(params, OPTIMIZER, trackers)
    # Each device has rows of both: sorted so that they are the same for all.
    rows = batches if how == 'jit' else by_device(batches)
    states[how], metrics = parallelize(step, how)(state, rows, KEY)
  return params, batches, states, metrics


def by_device(batches):
  """The rows of both batches, as one device has all of them, dealt out."""
  first, other = np.split(batches, SIZES[:1], axis=1)
  split = lambda x: x.reshape(3, 8, -1, x.shape[-1])
  return np.concatenate([split(first), split(other)], 2).reshape(batches.shape)


@pytest.fixture(scope='module')
def each(task):
  """The gradient of every sequence, as a program."""
  of = lambda p, row: mean_loss(task, p, row[None])
  return jax.jit(jax.vmap(jax.grad(of), (None, 0)))


def test_only_the_first_batch_trains(each, after_three_steps):
  params, batches, states, _ = after_three_steps
  for batch in batches:
    params = jax.tree.map(
      lambda x, g: x - 0.1 * jnp.mean(g[: SIZES[0]], axis=0),
      params,
      each(params, batch),
    )
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
  for state in states.values():
    jax.tree.map(close, state.params, params)


def test_eight_devices_track_what_one_does(after_three_steps):
  _, _, states, metrics = after_three_steps
  one, eight = (tracked(states[how].variables) for how in states)
  for name, value in one.items():
    np.testing.assert_allclose(eight[name], value, rtol=1e-2, err_msg=name)
  assert metrics['one_step'].shape == (3,)


def test_trackers_see_their_own_batches(each, after_three_steps):
  params, batches, states, _ = after_three_steps
  # The first step alone, by hand.
  state = states['jit'].variables
  gradients = each(params, batches[0])
  flat = np.concatenate(
    [np.reshape(x, (sum(SIZES), -1)) for x in each_leaf(gradients)], 1
  )
  for name, rows in zip(TRACKED, np.split(flat, SIZES[:1]), strict=True):
    flat = rows.reshape(8, -1, rows.shape[-1]).mean(1)
    small, big = np.mean(np.sum(flat**2, 1)), np.sum(flat.mean(0) ** 2)
    b, n = len(rows) // 8, len(rows)
    trace = (small - big) / (1 / b - 1 / n)
    # It is in the first group, decayed twice.
    found = sum(float(x[0]) for x in each_leaf(state[name].trace))
    assert found == pytest.approx(0.125 * trace, rel=1e-3)


each_leaf = jax.tree.leaves


def test_leaves_are_sorted_into_parts(task):
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(task.shapes)]
  assert {*map(part_of, paths)} == {
    'embedding',
    'head',
    'attention 0',
    'mlp 0',
    'norms',
  }
  ones = jax.tree.map(lambda x: jnp.ones(2), task.shapes)
  parts = by_part(ones)
  assert sum(float(x[0]) for x in parts.values()) == len(paths)
  assert float(parts['mlp 0'][0]) == 3


def test_columns_are_what_the_tracker_says(after_three_steps):
  _, _, states, _ = after_three_steps
  state = states['jit'].variables
  columns = tracked(state)
  total = tracked_noise_scale(state['training'])
  for name, value in zip(('', '_low', '_high'), total[:3], strict=True):
    np.testing.assert_allclose(columns[f'training{name}'], value, rtol=1e-4)
  head = tracked_noise_scale(state['training'], per_leaf=True).scale['head']
  np.testing.assert_allclose(columns['part head'], head['kernel'], rtol=1e-4)


class Quadratic:
  """The loss w D w / 2 + w . x of rows x, in three numbers."""

  curvatures = np.array([1.0, 2.0, 6.0])

  def loss(self, params, variables, batch, key):
    w = params['w']
    value = jnp.sum(self.curvatures * w**2) / 2 + jnp.mean(batch @ w)
    return value, ({}, {})


def test_moments_of_a_quadratic():
  draws, w = 400, np.array([1.0, -2.0, 0.5])
  noise = np.random.default_rng(0).normal(size=(draws, 4 * PARTS, 3))
  noise *= (1.0, 2.0, 3.0)
  params = {'w': jnp.asarray(w, jnp.float32)}
  moments = moments_of(Quadratic(), params, jnp.float32(noise), KEY)
  gradient, variance = Quadratic.curvatures * w, np.array([1.0, 4.0, 9.0])
  total = Quadratic.curvatures.sum()
  for name, value in (
    ('gradient_sq_norm', gradient @ gradient),
    ('noise', variance.sum()),
    ('curvature', gradient @ (Quadratic.curvatures * gradient)),
    ('noise_curvature', variance @ Quadratic.curvatures),
    # A diagonal is the same along all signs.
    ('aligned', total),
    ('noise_trace', total),
    ('trace', total),
  ):
    found = np.float64(moments[name])
    error = found.std(ddof=1) / np.sqrt(draws) + 1e-5
    assert abs(found.mean() - value) < 4 * error, name
    assert error < 0.1 * value, name
  l1 = np.abs(gradient).sum()
  assert np.mean(moments['gradient_l1']) == pytest.approx(l1, rel=0.02)
  assert np.mean(moments['cross_l1']) == pytest.approx(l1, rel=0.02)
  assert np.mean(moments['noise_l1']) == pytest.approx(6, rel=0.1)


def test_ratios_are_of_means():
  names = ('gradient_sq_norm', 'noise', 'curvature', 'noise_curvature')
  names += ('aligned', 'noise_trace', 'trace')
  names += ('gradient_l1', 'noise_l1', 'cross_l1')
  drawn = np.random.default_rng(1).uniform(1, 2, (len(names), 5))
  m = dict(zip(names, drawn, strict=True))
  found = ratios(jax.tree.map(jnp.float32, m))
  for name, a, b in (
    ('simple', 'noise', 'gradient_sq_norm'),
    ('curvature_scale', 'noise_curvature', 'curvature'),
    ('surge', 'aligned', 'noise_trace'),
    ('article_surge', 'aligned', 'trace'),
  ):
    half = 0.5 if 'surge' in name else 1
    expected = half * m[a].mean() / m[b].mean()
    np.testing.assert_allclose(found[name], expected, rtol=1e-4)
    assert found[f'{name}_low'] < found[name] < found[f'{name}_high']
  for name, below in (
    ('sign_scale', 'gradient_l1'),
    ('sign_scale_above', 'cross_l1'),
  ):
    expected = (m['noise_l1'].mean() / m[below].mean()) ** 2
    np.testing.assert_allclose(found[name], expected, rtol=1e-4)
