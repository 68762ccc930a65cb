"""What a run writes down: metrics.csv, json files and TensorBoard events."""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from ..checks import require

Row = dict[str, Any]


def write_text(path: os.PathLike[str] | str, text: str) -> None:
  """Replaces a file whole: a reader or a crash never sees half of it."""
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)


def write_json(path: os.PathLike[str] | str, content: Any) -> None:
  """Writes readable json, with NaN and infinities as strings."""
  finite = lambda x: x if abs(x) < float('inf') else str(x)

  def clean(x):
    if isinstance(x, dict):
      return {str(k): clean(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
      return [clean(v) for v in x]
    return finite(x) if isinstance(x, float) else x

  text = json.dumps(clean(content), indent=2, default=float, allow_nan=False)
  write_text(path, text + '\n')


def _parse(text: str) -> Any:
  """The inverse of `repr` for numbers; all else stays text."""
  for number in (int, float):
    try:
      return number(text)
    except ValueError:
      pass
  return text


def read_csv(path: os.PathLike[str] | str) -> list[Row]:
  """Reads rows back as they were added; empty cells are left out.

  A last line without its line break, which a killed run can leave, is dropped.

  Args:
    path: a `metrics.csv`.

  Returns:
    List of rows: dicts from column to int, float or str; `run` is always text.

  Raises:
    ValueError: if a line has more or fewer cells than the header.
  """
  text = pathlib.Path(path).read_text(encoding='utf-8')
  whole = text[: text.rfind('\n') + 1]
  lines = list(csv.reader(io.StringIO(whole, newline='')))
  if not lines:
    return []
  header, *body = lines
  for number, line in enumerate(body, start=2):
    require(
      len(line) == len(header),
      f'{path}, line {number}',
      f'{len(line)} cells',
      f'{len(header)}',
    )
  return [
    {
      name: cell if name == 'run' else _parse(cell)
      for name, cell in zip(header, line, strict=True)
      if cell
    }
    for line in body
  ]


class Records:
  """Rows of one workdir, appended to `metrics.csv` and mirrored to TensorBoard.

  A row is a dict from column to number or text. Rows that carry `run` and
  `step` are also drawn in TensorBoard, a curve per numeric column and run.

  Args:
    workdir: directory; an existing `metrics.csv` in it is continued. `None`:
      the rows are kept in memory only.
    tensorboard: also write event files under `workdir/tensorboard`.
    write: whether this process writes at all; with several, only the first.

  Example:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as workdir:
    ...   records = Records(workdir, tensorboard=False)
    ...   records.add({'run': 'a', 'step': 1, 'loss': 0.5})
    ...   records.add({'run': 'a', 'step': 2, 'loss': 0.25})
    ...   records.keep(lambda row: row['step'] <= 1)
    ...   read_csv(f'{workdir}/metrics.csv')
    [{'run': 'a', 'step': 1, 'loss': 0.5}]
  """

  def __init__(
    self,
    workdir: os.PathLike[str] | str | None,
    *,
    tensorboard: bool = True,
    write: bool = True,
  ):
    self._write = write and workdir is not None
    self._tensorboard = tensorboard and self._write
    self._writers: dict[str, Any] = {}
    self.rows: list[Row] = []
    if workdir is not None:
      self._workdir = pathlib.Path(workdir)
      self._path = self._workdir / 'metrics.csv'
      if self._path.exists():
        self.rows = read_csv(self._path)
      if write:
        self._workdir.mkdir(parents=True, exist_ok=True)
    self._rewrite()

  def _rewrite(self) -> None:
    """Writes the file anew, with every column that any row has."""
    self._columns = list(dict.fromkeys(c for row in self.rows for c in row))
    if self._write:
      lines = [self._columns, *map(self._cells, self.rows)]
      write_text(
        self._path, ''.join(map(_line, lines if self._columns else []))
      )

  def _cells(self, row: Row) -> list[str]:
    return ['' if row.get(c) is None else str(row[c]) for c in self._columns]

  def add(self, row: Row) -> None:
    """Appends one row and flushes it."""
    row = {k: v.item() if hasattr(v, 'item') else v for k, v in row.items()}
    self.rows.append(row)
    if not set(row) <= set(self._columns):
      self._rewrite()
    elif self._write:
      with self._path.open('a', encoding='utf-8') as file:
        file.write(_line(self._cells(row)))
    self._draw(row)

  def keep(self, wanted: Callable[[Row], bool]) -> None:
    """Drops the rows that are not wanted, from the file too."""
    kept = [row for row in self.rows if wanted(row)]
    if len(kept) < len(self.rows):
      self.rows = kept
      self._rewrite()

  def of(self, run: str) -> list[Row]:
    """The rows of one run, in order."""
    return [row for row in self.rows if row.get('run') == run]

  def _draw(self, row: Row) -> None:
    if not self._tensorboard or 'run' not in row or 'step' not in row:
      return
    run = str(row['run'])
    if run not in self._writers:
      from tensorboardX import SummaryWriter  # Half a second; only if needed.

      for writer in self._writers.values():  # One run at a time is open.
        writer.close()
      self._writers = {
        run: SummaryWriter(
          str(self._workdir / 'tensorboard' / run), purge_step=row['step']
        )
      }
    for name, value in row.items():
      number = isinstance(value, int | float) and math.isfinite(value)
      if name not in ('run', 'step') and number:
        self._writers[run].add_scalar(name, value, row['step'])

  def close(self) -> None:
    """Flushes the event files."""
    for writer in self._writers.values():
      writer.close()
    self._writers = {}


def _line(cells: Iterable[str]) -> str:
  """One line of csv, quoted where a cell needs it."""

  class Line(list):
    write = list.append

  line = Line()
  csv.writer(line, lineterminator='\n').writerow(cells)
  return ''.join(line)
