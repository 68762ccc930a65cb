"""The loop: rows, resuming after SIGKILL and SIGTERM, stopping at NaN."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.training import init_state, make_step, parallelize
from kexue.training.checkpoint import Checkpoints
from kexue.training.loop import Interrupted, NonFiniteLoss, fit
from kexue.training.records import Records, read_csv

KEY = jax.random.key(0)


def problem(learning_rate=0.1):
  def loss(params, variables, batch, key):
    noise = jax.random.normal(key, params.shape)
    return jnp.mean((batch - params + 0.1 * noise) ** 2), (variables, {})

  optimizer = optax.adam(learning_rate)
  run = parallelize(make_step(loss, optimizer), 'jit')
  return run, lambda: init_state(jnp.zeros(3), optimizer)


def batches(step, count):
  each = [
    np.random.default_rng(step + i).normal(size=(8, 3)) for i in range(count)
  ]
  return np.stack(each).astype(np.float32)


def test_rows_at_each_log_point(tmp_path):
  run, fresh = problem()
  records = Records(tmp_path, tensorboard=False)
  state = fit(
    run,
    fresh(),
    batches,
    KEY,
    steps=10,
    log_every=4,
    label='a',
    tags={'rate': 0.1},
    evaluate=lambda state: {'size': jnp.sum(state.params**2)},
    records=records,
  )
  assert int(state.step) == 10
  rows = read_csv(tmp_path / 'metrics.csv')
  assert [row['step'] for row in rows] == [4, 8, 10]
  assert all(row['rate'] == 0.1 and row['run'] == 'a' for row in rows)
  np.testing.assert_allclose(
    rows[-1]['size'], np.sum(np.square(state.params)), rtol=1e-6
  )
  # The loss of a row is the mean over its chunk.
  _, metrics = run(fresh(), batches(0, 10), KEY)
  expected = np.split(np.asarray(metrics['loss'], np.float64), [4, 8])
  np.testing.assert_allclose(
    [row['loss'] for row in rows], [e.mean() for e in expected], rtol=1e-6
  )


def test_chunks_do_not_change_the_run():
  run, fresh = problem()
  ends = [
    fit(run, fresh(), batches, KEY, steps=12, log_every=n).params
    for n in (1, 5, 12)
  ]
  np.testing.assert_array_equal(ends[0], ends[1])
  np.testing.assert_array_equal(ends[0], ends[2])


SCRIPT = textwrap.dedent("""
  import os, signal, sys
  import jax, jax.numpy as jnp, numpy as np
  sys.path.insert(0, {here!r})
  import loop_test as t
  from kexue.training.checkpoint import Checkpoints
  from kexue.training.loop import fit
  from kexue.training.records import Records

  workdir, kill_at = sys.argv[1], int(sys.argv[2])

  def batches(step, count):
    if step == kill_at:  # Past the checkpoint at 8, which is on disk.
      checkpoints.wait()
      os.kill(os.getpid(), signal.SIGKILL)
    return t.batches(step, count)

  run, fresh = t.problem()
  checkpoints = Checkpoints(workdir + '/checkpoints')
  state = fit(run, fresh(), batches, t.KEY, steps=20, log_every=2,
              records=Records(workdir, tensorboard=False),
              checkpoints=checkpoints, checkpoint_every=4)
  np.save(workdir + '/end.npy', jax.device_get(state.params))
""")


def launch(workdir, kill_at):
  script = SCRIPT.format(here=os.path.dirname(__file__))
  return subprocess.run(
    [sys.executable, '-c', script, str(workdir), str(kill_at)],
    capture_output=True,
    text=True,
    check=False,
  )


def test_killed_between_checkpoints_and_resumed_is_bit_identical(tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert launch(whole, -1).returncode == 0
  assert launch(killed, 14).returncode == -signal.SIGKILL
  assert not (killed / 'end.npy').exists()
  kept = read_csv(killed / 'metrics.csv')
  assert (
    kept[-1]['step'] == 12 and Checkpoints(killed / 'checkpoints').latest == 12
  )
  with (killed / 'metrics.csv').open('a') as file:
    file.write('run,14,9.9,9.9,9.9\n')  # Past the checkpoint: to be cut.
  again = launch(killed, -1)
  assert again.returncode == 0, again.stderr
  np.testing.assert_array_equal(
    np.load(killed / 'end.npy'), np.load(whole / 'end.npy')
  )
  drop = lambda rows: [
    {k: v for k, v in row.items() if k != 'seconds'} for row in rows
  ]
  assert drop(read_csv(killed / 'metrics.csv')) == drop(
    read_csv(whole / 'metrics.csv')
  )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_run_resumes(tmp_path, number):
  run, fresh = problem()
  expected = fit(run, fresh(), batches, KEY, steps=9, log_every=2)

  def interrupted(step, count):
    if step == 4:
      signal.raise_signal(number)
    return batches(step, count)

  options = dict(steps=9, log_every=2)
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(Interrupted, match='stopped at step 6 of 9'):
    fit(
      run,
      fresh(),
      interrupted,
      KEY,
      checkpoints=Checkpoints(tmp_path),
      **options,
    )
  assert signal.getsignal(signal.SIGINT) is before
  state = fit(
    run, fresh(), batches, KEY, checkpoints=Checkpoints(tmp_path), **options
  )
  np.testing.assert_array_equal(state.params, expected.params)


def test_a_second_signal_ends_at_once():
  run, fresh = problem()

  def impatient(step, count):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)

  with pytest.raises(KeyboardInterrupt):
    fit(run, fresh(), impatient, KEY, steps=4, log_every=1)


@pytest.mark.parametrize('checkpointed', [False, True])
def test_nan_names_the_step_and_the_last_finite_checkpoint(
  tmp_path, checkpointed
):
  run, fresh = problem()

  def poisoned(step, count):
    rows = batches(step, count)
    for i in range(count):
      if step + i + 1 == 7:
        rows[i] = np.nan
    return rows

  options = {}
  if checkpointed:
    options = dict(checkpoints=Checkpoints(tmp_path), checkpoint_every=4)
  where = 'step 4' if checkpointed else 'none was saved'
  with pytest.raises(
    NonFiniteLoss, match=f'not finite at step 7; .*checkpoint: {where}'
  ):
    fit(run, fresh(), poisoned, KEY, steps=12, log_every=4 // 2, **options)
  if checkpointed:
    assert Checkpoints(tmp_path).latest == 4


def test_a_sweep_leaves_no_last_checkpoint(tmp_path):
  run, fresh = problem()
  options = dict(steps=4, log_every=2, checkpoint_every=2)
  fit(
    run,
    fresh(),
    batches,
    KEY,
    checkpoints=Checkpoints(tmp_path / 'a'),
    checkpoint_last=False,
    **options,
  )
  assert Checkpoints(tmp_path / 'a').latest == 2
  fit(
    run,
    fresh(),
    batches,
    KEY,
    checkpoints=Checkpoints(tmp_path / 'b'),
    **options,
  )
  assert Checkpoints(tmp_path / 'b').latest == 4


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(steps=0, log_every=1), 'steps: got 0'),
    (dict(steps=4, log_every=0), 'log_every: got 0'),
    (dict(steps=4, log_every=2, checkpoint_every=3), 'checkpoint_every: got 3'),
  ],
)
def test_wrong_arguments_are_named(options, message):
  run, fresh = problem()
  with pytest.raises(ValueError, match=message):
    fit(run, fresh(), batches, KEY, **options)
