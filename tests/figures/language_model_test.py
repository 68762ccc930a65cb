"""A sweep: one compilation, paired seeds, shrunk schedules, resuming."""

import jax
import numpy as np
import optax
import pytest

from kexue.figures.language_model import Sweep, Task, TaskConfig
from kexue.figures.session import Session
from kexue.models import TransformerConfig
from kexue.optimizers import muon
from kexue.training.data import Dataset
from kexue.training.loop import Interrupted, StopSignal
from kexue.training.progress import Progress
from kexue.training.records import Records

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def task():
  text = np.random.default_rng(0).integers(97, 105, 4000).astype(np.uint8)
  return Task(
    TransformerConfig(layers=1, width=16, heads=2),
    Dataset(text[:3600], text[3600:], 'random letters'),
    length=16,
    batch_size=8,
    validation_windows=8,
  )


def sweep(task, make, name, steps=8, **options):
  return Sweep(
    task, make, name, steps=steps, log_every=2, parallel='jit', **options
  )


def launch(workdir, stop=None):
  records = Records(workdir, tensorboard=False)
  progress = Progress(1, show=False)
  return Session(records, progress, stop or StopSignal(), workdir, KEY)


def test_grid_seeds_and_budgets(task, tmp_path):
  traced = []

  def make(rate, decay):
    traced.append(1)
    return optax.adamw(rate, weight_decay=decay)

  session = launch(tmp_path)
  records = session.records
  s = sweep(task, make, 'adamw')
  train = lambda **kw: s.train(session, **kw)
  train(learning_rate=0.01, weight_decay=0.0)
  before = len(traced)
  low = train(learning_rate=0.001, weight_decay=0.1)
  # Only `init` made it again; the program was not traced a second time.
  assert len(traced) - before <= 2
  other = train(learning_rate=0.001, weight_decay=0.1, seed=1)
  half = train(learning_rate=0.001, weight_decay=0.1, budget=0.5)
  assert low['step'] == 8 and half['step'] == 4
  assert low['val_loss'] != other['val_loss']
  count = len(records.rows)
  assert train(learning_rate=0.001, weight_decay=0.1) == low
  assert len(records.rows) == count  # Recorded already.


def test_contestants_start_alike_and_see_the_same_batches(task, tmp_path):
  still = lambda rate, decay: optax.sgd(0.0)
  rows = []
  for name in ('a', 'b'):
    session = launch(tmp_path / name)
    s = sweep(task, still, name, steps=4)
    s.train(session, learning_rate=1.0, weight_decay=0.0)
    rows.append([(r['loss'], r['val_loss']) for r in session.records.rows])
  assert rows[0] == rows[1]


def test_the_schedule_ends_at_zero_whatever_the_budget(task):
  rates = {}

  def make(rate, decay):
    return optax.GradientTransformation(
      lambda params: rates.setdefault('rate', rate) and (),
      lambda updates, state, params=None: (updates, state),
    )

  s = sweep(task, make, 'x', steps=20)
  for budget in (1.0, 0.5):
    rates.clear()
    s._optimizer(1.0, 0.0, budget, 0.0).init({'w': np.ones(2)})
    rate = rates['rate']
    assert float(rate(20 * budget)) == pytest.approx(0.0, abs=1e-6)
    assert float(rate(2 * budget)) == pytest.approx(1.0)


def test_divergence_is_recorded_as_an_infinite_loss(task, tmp_path):
  explode = lambda rate, decay: optax.scale(float('nan'))
  row = sweep(task, explode, 'nan').train(
    launch(tmp_path), learning_rate=1.0, weight_decay=0.0
  )
  assert row['val_loss'] == float('inf') and row['step'] == 8


def test_flops_are_counted_by_hand(task):
  d, f, v, tokens = 16, 48, 256, 8 * 16
  weights = 4 * d * d + 3 * d * f + v * d
  norms = 3 * d + 2 * 8  # Gains of the stream, and of queries and keys.
  assert task.step_flops == (6 * (weights + norms) + 12 * d * 16) * tokens
  one = lambda m, n: 5 * (4 * m * m * n + 2 * m**3)
  assert task.newton_schulz_flops() == 4 * one(d, d) + 3 * one(d, f)


def test_muon_trains_in_a_sweep(task, tmp_path):
  make = lambda rate, decay: muon(
    rate, weight_decay=decay, dimension_numbers=task.model.dimension_numbers
  )
  row = sweep(task, make, 'muon', steps=30).train(
    launch(tmp_path), learning_rate=0.05, weight_decay=0.1
  )
  assert row['val_loss'] < np.log(8) + 0.3  # Eight letters, no structure.


def test_a_request_to_stop_during_the_last_chunk_is_not_lost(task, tmp_path):
  stop = StopSignal()
  stop.requested = True  # As if the signal came within the only chunk.
  s = Sweep(
    task, lambda r, d: optax.sgd(r), 'x', steps=2, log_every=2, parallel='jit'
  )
  train = lambda stop: s.train(
    launch(tmp_path, stop), learning_rate=0.1, weight_decay=0.0
  )
  with pytest.raises(Interrupted):
    train(stop)
  rows = Records(tmp_path, tensorboard=False).rows
  assert rows[-1]['step'] == 2  # Recorded all the same,
  train(StopSignal())
  after = Records(tmp_path, tensorboard=False).rows
  assert len(after) == len(rows)  # and not repeated.


def test_a_further_number_varies_without_a_new_program(task, tmp_path):
  traced = []

  def make(rate, decay, momentum):
    traced.append(1)
    return optax.sgd(rate, momentum=momentum)

  session = launch(tmp_path)
  size = lambda state: {'norm': optax.tree.norm(state.params)}
  s = sweep(task, make, 'sgd', varies='momentum', measure=size, warmup=0.0)
  train = lambda m: s.train(
    session, learning_rate=0.1, weight_decay=0.0, setting=m
  )
  plain, before = train(0.0), len(traced)
  heavy = train(0.9)
  assert len(traced) - before <= 2  # Only `init` made it again.
  assert plain['momentum'] == 0.0 and heavy['momentum'] == 0.9
  assert plain['norm'] != heavy['norm']
  with pytest.raises(ValueError, match='setting: got None'):
    s.train(session, learning_rate=0.1, weight_decay=0.0)


def test_tuning_repeats_the_best_rate_only(task, tmp_path):
  session = launch(tmp_path)
  s = sweep(task, lambda rate, decay: optax.sgd(rate), 'sgd')
  best = s.tune(session, [1e-5, 0.5], seeds=2, weight_decay=0.0)
  assert best['learning_rate'] == 0.5
  ends = {(r['learning_rate'], r['seed']) for r in session.records.rows}
  assert ends == {(1e-5, 0), (0.5, 0), (0.5, 1)}


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(learning_rates=(0.1, 0.0)), 'config.learning_rates'),
    (dict(weight_decay=-1.0), 'config.weight_decay: got -1.0'),
    (dict(steps=10), 'config.steps: got 10, expected at least the 20 log'),
    (dict(log_points=1), 'config.log_points'),
    (dict(seeds=0), 'config.seeds'),
    (dict(batch_size=12), 'config.batch_size: got 12, expected a multiple'),
    (dict(width=33), 'width: got 33'),
    (dict(dataset='nothing'), "name: got 'nothing'"),
  ],
)
def test_a_config_that_cannot_run_is_refused(change, message):
  TaskConfig().check()
  with pytest.raises(ValueError, match=message):
    TaskConfig(**change).check()


def test_the_matrices_of_a_task_are_what_muon_trains(task):
  params = task.init(KEY)
  found = task.matrices(params)
  assert found['layers_0/attention/query/kernel'].shape == (1, 16, 16)
  assert found['layers_0/mlp/up/kernel'].shape == (1, 16, 48)
  assert len(found) == 7 and 'embedding/embedding' not in found
  # Of a tree from which the other leaves are gone as well.
  state = muon(0.1, dimension_numbers=task.model.dimension_numbers).init(params)
  momentum = optax.tree.get(state, 'momentum')
  assert task.matrices(momentum).keys() == found.keys()
