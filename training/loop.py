"""The training loop: one program between two log points.

While the devices work on one chunk of steps the host draws the next batches and
reads the metrics of the chunk before, one log point late.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ..checks import require
from .progress import Progress
from .records import Records


class Interrupted(Exception):
  """SIGTERM or Ctrl-C came; the state was saved, if there is a place for it."""


class NonFiniteLoss(FloatingPointError):
  """The loss became NaN or infinite."""


class StopSignal:
  """Whether SIGTERM or Ctrl-C asked the run to stop."""

  def __init__(self):
    self.requested = False


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
  """Turns the first SIGTERM or Ctrl-C into a request, the second into an end.

  Outside the main thread, where Python allows no handlers, nothing changes.

  >>> with stop_on_signal() as stop:
  ...   signal.raise_signal(signal.SIGTERM)
  >>> stop.requested
  True
  """
  stop, signals = StopSignal(), (signal.SIGINT, signal.SIGTERM)
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def handle(number, frame):
    if stop.requested:
      raise KeyboardInterrupt
    stop.requested = True

  before = [signal.signal(s, handle) for s in signals]
  try:
    yield stop
  finally:
    for s, handler in zip(signals, before, strict=True):
      signal.signal(s, handler)


def fit(
  run: Callable[..., Any],
  state: Any,
  batches: Callable[[int, int], Any],
  key: jax.Array,
  *,
  steps: int,
  log_every: int,
  label: str = 'run',
  tags: dict[str, Any] | None = None,
  evaluate: Callable[[Any], dict[str, jax.Array]] | None = None,
  records: Records | None = None,
  checkpoints: Any | None = None,
  checkpoint_every: int | None = None,
  checkpoint_last: bool = True,
  progress: Progress | None = None,
) -> Any:
  """Trains to `steps`, from the newest checkpoint if there is one.

  A row goes to `records` at each log point: `run`, `step`, the tags, the
  metrics of the step program (the loss as a mean over the chunk, the others of
  its last step), what `evaluate` returns, and the `seconds` the run took so
  far, compilation and earlier launches included. Rows past the checkpoint
  resumed from are cut first, so that a killed run leaves the same rows as one
  never killed.

  Args:
    run: what `parallelize` returned.
    state: the state at step 0, donated.
    batches: `batches(step, count)` -> the global batches [count, B, ...] of the
      steps from `step` on, a function of its arguments alone.
    key: key of the run.
    steps: length of the run.
    log_every: steps of one program, between two log points.
    label: name of the run in records and progress.
    tags: further columns of every row of this run.
    evaluate: function of the state that returns scalars, run at log points.
    records: where rows go.
    checkpoints: a `Checkpoints`; saved every `checkpoint_every` steps, when a
      signal asks to stop, and at the end.
    checkpoint_every: multiple of `log_every`; `None`: only at stop and end.
    checkpoint_last: whether the end is saved; a sweep needs its rows only.
    progress: counts the steps.

  Returns:
    The state after `steps` steps.

  Raises:
    NonFiniteLoss: names the step and the last finite checkpoint.
    Interrupted: after SIGTERM or Ctrl-C, the state saved.
    ValueError: for a count below one, or `checkpoint_every` that no log point
      meets.
  """
  require(steps >= 1, 'steps', steps, '1 or more')
  require(log_every >= 1, 'log_every', log_every, '1 or more')
  require(
    checkpoint_every is None
    or (checkpoint_every >= 1 and checkpoint_every % log_every == 0),
    'checkpoint_every',
    checkpoint_every,
    f'a multiple of {log_every}',
  )
  records = Records('', write=False) if records is None else records
  progress = Progress(steps, show=False) if progress is None else progress

  restored = checkpoints.restore(state, key) if checkpoints else None
  saved = None
  if restored is not None:
    state = restored
    saved = int(state.step)
    progress.skip(saved)
  step = saved or 0
  records.keep(
    lambda row: row.get('run') != label or row.get('step', 0) <= step
  )

  def save():
    nonlocal saved
    if checkpoints and saved != step:
      checkpoints.save(state, key)
      saved = step

  before = [row['seconds'] for row in records.of(label) if 'seconds' in row]
  started = time.monotonic() - (before[-1] if before else 0.0)
  pending = None  # The chunk whose numbers have not been looked at yet.

  def report():
    nonlocal pending
    if pending is not None:
      first, count, metrics, scores = pending
      pending = None
      row = _row(metrics, scores, first, saved)
      seconds = round(time.monotonic() - started, 3)
      records.add(
        {
          'run': label,
          'step': first + count,
          **(tags or {}),
          **row,
          'seconds': seconds,
        }
      )
      progress.advance(
        count, label, **{k: v for k, v in row.items() if k.endswith('loss')}
      )

  with stop_on_signal() as stop:
    while step < steps:
      count = min(log_every, steps - step)
      state, metrics = run(state, batches(step, count), key)
      scores = {} if evaluate is None else evaluate(state)
      report()
      pending = (step, count, metrics, scores)
      step += count
      due = checkpoint_every and step % checkpoint_every == 0
      last = step == steps
      if due or last or stop.requested:
        report()  # Looked at before it is saved: checkpoints are finite.
      if (
        (due and not last)
        or (last and checkpoint_last)
        or (stop.requested and not last)
      ):
        save()
      if stop.requested and step < steps:
        if checkpoints:
          checkpoints.close()
        raise Interrupted(f'{label}: stopped at step {step} of {steps}')
  if checkpoints:
    checkpoints.close()
  return state


def _row(metrics, scores, first, saved) -> dict[str, float]:
  """One row from the metrics [S] of a chunk that began after step `first`."""
  metrics, scores = jax.device_get((metrics, scores))
  losses = np.asarray(metrics['loss'])
  if not np.all(np.isfinite(losses)):
    bad = first + 1 + int(np.argmin(np.isfinite(losses)))
    last = 'none was saved' if saved is None else f'step {saved}'
    raise NonFiniteLoss(
      f'the loss is not finite at step {bad}; last finite checkpoint: {last}'
    )
  row = {name: float(values[-1]) for name, values in metrics.items()}
  row['loss'] = float(np.mean(losses, dtype=np.float64))
  return row | {name: float(value) for name, value in scores.items()}
