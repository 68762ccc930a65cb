"""From the rows of a run to figure.png and result.json."""

import json
import os
import pathlib
from typing import Any

from ..training.records import read_csv, write_json
from . import FIGURES, load


def draw(
  name: str,
  workdir: os.PathLike[str] | str,
  identity: dict[str, Any],
  ran_on: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Draws a figure from `metrics.csv` and writes what it shows as numbers.

  Args:
    name: a figure of the table.
    workdir: the directory of its run.
    identity: what `config.json` holds.
    ran_on: the `environment()` of the run; `None`: as `result.json` has it.

  Returns:
    The content of `result.json`: the numbers that `plot` returned, the
    identity, versions, devices, commit and the seconds of all runs.

  Raises:
    ValueError: if there are no records.
  """
  import matplotlib  # Late: a second that training need not wait for.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  path = pathlib.Path(workdir)
  if not (path / 'metrics.csv').exists():
    raise ValueError(f'{path}: holds no metrics.csv to draw from')
  rows = read_csv(path / 'metrics.csv')
  module = load(name)
  tall, wide = len(module.MOSAIC), len(module.MOSAIC[0])
  with matplotlib.rc_context(
    {
      'axes.spines.top': False,
      'axes.spines.right': False,
      'axes.grid': True,
      'grid.alpha': 0.3,
      'legend.frameon': False,
      'axes.titlesize': 'medium',
    }
  ):
    figure = Figure(figsize=(6.2 * wide, 4.4 * tall), layout='constrained')
    FigureCanvasAgg(figure)
    numbers = module.plot(rows, figure.subplot_mosaic(module.MOSAIC))
    partial = path / 'figure.partial.png'
    figure.savefig(partial, dpi=130)
    partial.replace(path / 'figure.png')
  if ran_on is None and (path / 'result.json').exists():
    ran_on = json.loads((path / 'result.json').read_text()).get('ran_on')
  last = {row['run']: row.get('seconds', 0.0) for row in rows}
  result = {
    'numbers': numbers,
    **identity,
    'claim': FIGURES[name].claim,
    'paper': FIGURES[name].paper,
    'training_seconds': sum(last.values()),
    'ran_on': ran_on,
  }
  write_json(path / 'result.json', result)
  return result
