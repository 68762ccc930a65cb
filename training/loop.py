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
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ..checks import require
from .progress import Progress
from .records import Records


class Interrupted(Exception):  # noqa: N818  (a request, not a mistake)
  """SIGTERM or Ctrl-C came; the state was saved, if there is a place for it."""


class NonFiniteLoss(FloatingPointError):  # noqa: N818
  """The loss or its gradient became NaN or infinite."""


class StopSignal:
  """Whether SIGTERM or Ctrl-C asked the run to stop."""

  def __init__(self):
    self.requested = False

  def agreed(self) -> bool:
    """Whether any process was asked: all must leave the loop together."""
    if jax.process_count() == 1:
      return self.requested
    asked = multihost_utils.process_allgather(np.array(self.requested))
    return bool(np.any(asked))


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
  stop: StopSignal | None = None,
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
    stop: what `stop_on_signal` yielded, to share it among runs; `None`: one for
      this run.

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
  progress = Progress(steps, show=False) if progress is None else progress
  records = Records(None) if records is None else records
  report = _Report(label, tags or {}, records, progress)
  state = run.place(state)
  restored = checkpoints.restore(state, key) if checkpoints else None
  state = state if restored is None else restored
  step = 0 if restored is None else int(restored.step)
  report.resume(step)
  listen = stop_on_signal() if stop is None else contextlib.nullcontext(stop)
  # Closed whatever happens: what is being saved must reach the disk.
  saving = contextlib.closing(checkpoints or contextlib.ExitStack())
  with listen as stop, saving:
    while step < steps:
      count = min(log_every, steps - step)
      state, metrics = run(state, batches(step, count), key)
      # Copied: a score that is a part of the state would be donated with it.
      scores = jax.tree.map(jnp.copy, evaluate(state) if evaluate else {})
      report.look()
      report.pending = (step, count, metrics, scores)
      step += count
      stopping, last = stop.agreed(), step == steps
      due = checkpoint_every is not None and step % checkpoint_every == 0
      if due or stopping or last:
        report.look()  # Before it is saved: checkpoints are finite.
      if checkpoints and (checkpoint_last if last else due or stopping):
        checkpoints.save(state, key)
        report.saved = step
      if stopping:
        raise Interrupted(f'{label}: stopped at step {step} of {steps}')
  return state


class _Report:
  """Reads the numbers of a chunk, late, and writes its row."""

  def __init__(self, label, tags, records, progress):
    self.label, self.tags = label, tags
    self.records, self.progress = records, progress
    self.pending = None  # The chunk that was not looked at yet.
    self.saved = None  # The step of the newest checkpoint.

  def resume(self, step: int) -> None:
    """Forgets the rows past the checkpoint at `step`."""
    self.saved = step or None
    self.progress.skip(step)
    self.records.keep(
      lambda row: row.get('run') != self.label or row['step'] <= step
    )
    before = [row.get('seconds', 0.0) for row in self.records.of(self.label)]
    self.started = time.monotonic() - max(before, default=0.0)

  def look(self) -> None:
    """Records the pending chunk, or raises `NonFiniteLoss`."""
    if self.pending is None:
      return
    first, count, metrics, scores = self.pending
    self.pending = None
    metrics, scores = jax.device_get((metrics, scores))
    self._require_finite(first, metrics)
    row = {name: float(values[-1]) for name, values in metrics.items()}
    row['loss'] = float(np.mean(metrics['loss'], dtype=np.float64))
    row |= {name: float(value) for name, value in scores.items()}
    losses = {k: v for k, v in row.items() if k.endswith('loss')}
    row['seconds'] = round(time.monotonic() - self.started, 3)
    head = {'run': self.label, 'step': first + count}
    self.records.add({**head, **self.tags, **row})
    self.progress.advance(count, self.label, **losses)

  def _require_finite(self, first: int, metrics: Any) -> None:
    # The loss comes before the update, the gradient's norm tells of it.
    finite = np.isfinite(metrics['loss'])
    finite &= np.isfinite(metrics.get('grad_norm', 0.0))
    if not np.all(finite):
      bad = first + 1 + int(np.argmin(finite))
      last = 'none was saved' if self.saved is None else f'step {self.saved}'
      raise NonFiniteLoss(
        f'the loss or its gradient is not finite at step {bad}; last finite '
        f'checkpoint: {last}'
      )
