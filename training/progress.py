"""A progress bar on a terminal, plain lines in a log."""

import sys
import time
from typing import Any, TextIO

import tqdm


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  return f'{minutes}:{seconds:02d}'


class Progress:
  """Steps done of all steps, with loss, rate and time left.

  On a terminal this is tqdm's bar; elsewhere a line at the first call and then
  one every `interval` seconds.

  Args:
    total: steps of the whole run.
    show: whether this process shows anything.
    stream: where to; `None`: standard error.
    interval: seconds between lines of a log.

  Example:
    >>> progress = Progress(200, stream=sys.stdout)
    >>> progress.skip(100)
    >>> progress.advance(50, 'adamw', loss=2.5)  # doctest: +ELLIPSIS
    150/200 steps | adamw | loss 2.500 | ... steps/s | ... left
    >>> progress.close()
  """

  def __init__(
    self,
    total: int,
    *,
    show: bool = True,
    stream: TextIO | None = None,
    interval: float = 10.0,
  ):
    self._stream = stream or sys.stderr
    self._show, self._interval = show, interval
    self._total, self._done, self._skipped = total, 0, 0
    self._started = time.monotonic()
    self._printed = -float('inf')
    self._bar = None
    if show and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total, file=self._stream, unit='step', dynamic_ncols=True
      )

  def expect(self, steps: int) -> None:
    """Counts steps that only now turn out to be needed."""
    self._total += steps
    if self._bar is not None:
      self._bar.total = self._total
      self._bar.refresh()

  def skip(self, steps: int) -> None:
    """Counts steps that an earlier launch took; they say nothing of speed."""
    self._done += steps
    self._skipped += steps
    if self._bar is not None:
      self._bar.initial += steps
      self._bar.update(steps)

  def advance(self, steps: int, label: str, **numbers: Any) -> None:
    """Counts steps and shows the numbers, most importantly the loss."""
    self._done += steps
    if self._bar is not None:
      self._bar.set_description_str(label, refresh=False)
      self._bar.set_postfix({k: f'{v:.3f}' for k, v in numbers.items()})
      self._bar.update(steps)
      return
    now = time.monotonic()
    due = now - self._printed >= self._interval or self._done >= self._total
    if self._show and due:
      self._printed = now
      rate = (self._done - self._skipped) / max(now - self._started, 1e-9)
      left = _clock((self._total - self._done) / rate) if rate else '?'
      shown = ' | '.join(f'{k} {v:.3f}' for k, v in numbers.items())
      print(
        f'{self._done}/{self._total} steps | {label} | {shown} | '
        f'{rate:.3g} steps/s | {left} left',
        file=self._stream,
        flush=True,
      )

  def note(self, text: str) -> None:
    """Prints one line without disturbing the bar."""
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    elif self._show:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the terminal as it was."""
    if self._bar is not None:
      self._bar.close()
