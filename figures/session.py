"""One launch of a figure: where rows go, progress is shown, stops are heard."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax

from ..training.loop import StopSignal, stop_on_signal
from ..training.progress import Progress
from ..training.records import Records, Row


class Session(NamedTuple):
  """One launch of a figure.

  Attributes:
    records: where rows go; what is complete there is not trained again.
    progress: counts steps.
    stop: whether a signal asked the figure to stop.
    workdir: where a run is checkpointed when one did.
    key: of the figure.
  """

  records: Records
  progress: Progress
  stop: StopSignal
  workdir: str
  key: jax.Array

  def record(
    self, label: str, count: int, rows: Callable[[], Iterable[Row]]
  ) -> None:
    """Adds rows under a label, unless an earlier launch added all of them.

    Args:
      label: of the rows, in the place of a run's.
      count: how many they are.
      rows: computes them; not called if they are there.
    """
    if len(self.records.of(label)) < count:
      self.records.keep(lambda row: row['run'] != label)
      for step, row in enumerate(rows(), start=1):
        self.records.add({'run': label, 'step': step, **row})


@contextlib.contextmanager
def session(
  workdir: str, key: jax.Array, total_steps: int
) -> Iterator[Session]:
  """Opens records and progress bar, and turns signals into requests."""
  write = jax.process_index() == 0
  with (
    contextlib.closing(Records(workdir, write=write)) as records,
    contextlib.closing(Progress(total_steps, show=write)) as progress,
    stop_on_signal() as stop,
  ):
    yield Session(records, progress, stop, workdir, key)
