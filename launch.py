"""Reproduces the figures of kexue.

  python launch.py --list                     what there is, and what it costs
  python launch.py                            the default figure, quick preset
  python launch.py --figure=NAME --preset=full --workdir=DIR
  python launch.py --figure=NAME --config.FIELD=VALUE
  python launch.py --figure=NAME --workdir=DIR --plot_only
  python launch.py --figure=NAME --help       with the fields of its config

A run that was stopped goes on where it was when the same command is given.

A model that a figure trained is an image codec:

  python launch.py codec --help
"""

import dataclasses
import shlex
import signal
import sys

import jax
from jax.experimental import multihost_utils

from kexue import figures
from kexue.figures.command_line import (
  IDENTITY,
  Refused,
  parse,
  refusing,
  start_devices,
)
from kexue.training import codec_command
from kexue.training.checkpoint import CorruptCheckpoint
from kexue.training.config import describe
from kexue.training.loop import Interrupted
from kexue.training.workdir import environment, prepare, read_identity


def reproduce(values, config) -> None:
  """One figure: run what is missing, draw, say where things are."""
  from kexue.figures.draw import draw  # Draws late: a second of imports.

  workdir = values.workdir or f'runs/{values.figure}-{values.preset}'
  if values.plot_only:
    with refusing():
      identity = read_identity(f'{workdir}/config.json')
      draw(identity['figure'], workdir, identity)
  else:
    identity = {n: values[n].value for n in IDENTITY}
    identity['config'] = dataclasses.asdict(config)
    with refusing():
      config.check(values.data_dir)
      config.check_parallel(values.parallel)
      if jax.process_index() == 0:
        prepare(workdir, identity, overwrite=values.overwrite)
    multihost_utils.sync_global_devices('the workdir is prepared')
    figures.load(values.figure).run(
      config,
      jax.random.key(values.seed),
      workdir,
      parallel=values.parallel,
      data_dir=values.data_dir,
    )
    if jax.process_index() == 0:
      draw(values.figure, workdir, identity, environment())
  if jax.process_index() == 0:
    print(f'{workdir}/figure.png and result.json are drawn from metrics.csv')


def command(argv: list[str]) -> None:
  """What the command line asks for."""
  with refusing():
    values, config = parse(argv)
  if values.help:
    print(__doc__ + values.get_help(include_special_flags=False))
    print('' if config is None else describe(config))
  elif values.list:
    print(figures.table())
  else:
    with refusing():
      start_devices(values)
    if config is not None:
      return reproduce(values, config)
    for name in figures.FIGURES:
      workdir = f'{values.workdir or "runs"}/{name}-{values.preset}'
      one = [*argv, f'--figure={name}', f'--workdir={workdir}']
      with refusing():
        each = parse(one)
      reproduce(*each)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  argv = sys.argv if argv is None else argv
  handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    if argv[1:2] == ['codec']:
      with refusing():
        return codec_command.run(argv[2:])
    command(argv)
  except (Refused, CorruptCheckpoint) as error:
    print(f'kexue: {error}', file=sys.stderr)
    return 2
  except (Interrupted, KeyboardInterrupt) as stop:
    again = shlex.join(['python', *argv])
    print(f'{str(stop) or "stopped"}; to go on:\n  {again}', file=sys.stderr)
  finally:
    signal.signal(signal.SIGTERM, handler)
  return 0


if __name__ == '__main__':
  sys.exit(main())
