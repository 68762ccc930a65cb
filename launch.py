"""Reproduces the figures of kexue.

  python launch.py --list                     what there is, and what it costs
  python launch.py                            the default figure, quick preset
  python launch.py --figure=NAME --preset=full --workdir=DIR
  python launch.py --figure=NAME --config.FIELD=VALUE
  python launch.py --figure=NAME --workdir=DIR --plot_only
  python launch.py --figure=NAME --help       with the fields of its config

A run that was stopped goes on where it was when the same command is given.
"""

import dataclasses
import json
import pathlib
import shlex
import signal
import sys

import jax
from absl import flags
from ml_collections import config_flags

from kexue import figures
from kexue.checks import require_one_of
from kexue.training import MODES
from kexue.training.config import checked_config, describe
from kexue.training.loop import Interrupted
from kexue.training.workdir import prepare, read_identity


def define_flags() -> flags.FlagValues:
  """The flags that every figure has; a fresh set, so that calls repeat."""
  v = flags.FlagValues()
  string = lambda *args: flags.DEFINE_string(*args, flag_values=v)
  switch = lambda *args: flags.DEFINE_bool(*args, flag_values=v)
  number = lambda *args: flags.DEFINE_integer(*args, 0, flag_values=v)
  string('figure', None, 'Which figure, see --list; "all": every one.')
  string('preset', None, '"quick" (minutes, default) or "full" (the gallery).')
  string('workdir', None, 'Where results go; runs/FIGURE-PRESET by default.')
  string('config_file', None, 'The config.json of a run to repeat.')
  string('data_dir', None, 'Folder with data sets that no package ships.')
  string('parallel', None, 'pmap (default), shard_map or jit.')
  switch('list', False, 'List the figures with paper, claim and minutes.')
  switch('plot_only', False, 'Draw again from the records in the workdir.')
  switch('overwrite', False, 'Replace what another run left in the workdir.')
  switch('help', False, 'This text, with the fields of the figure.')
  number('seed', None, "Seed of the run's key (default 0).")
  number('simulated_devices', None, 'Split the CPU into so many devices.')
  string('coordinator', None, 'host:port of process 0, on several hosts.')
  number('num_processes', None, 'How many processes there are.')
  number('process_id', None, 'Which of them this is.')
  v.append_flag_values(flags.FLAGS)  # absl's own: --verbosity and the like.
  return v


def parse(argv):
  """(flags, identity of the run, config or None), or `ValueError`."""
  first = define_flags()
  first(argv, known_only=True)
  saved = {}
  if first.config_file is not None:
    saved = json.loads(pathlib.Path(first.config_file).read_text())
  given = lambda name, default: (
    saved.get(name, default) if first[name].value is None else first[name].value
  )
  identity = {
    'figure': given('figure', figures.DEFAULT),
    'preset': given('preset', figures.PRESETS[0]),
    'seed': given('seed', 0),
    'parallel': given('parallel', MODES[0]),
  }
  require_one_of('figure', identity['figure'], [*figures.FIGURES, 'all'])
  require_one_of('preset', identity['preset'], figures.PRESETS)
  require_one_of('parallel', identity['parallel'], MODES)
  values, config = define_flags(), None
  if identity['figure'] != 'all':
    config = figures.default_config(identity['figure'], identity['preset'])
    for name, value in saved.get('config', {}).items():
      setattr(config, name, value)
    try:
      config_flags.DEFINE_config_dataclass(
        'config', config, flag_values=values, sys_argv=argv
      )
    except (KeyError, AttributeError) as error:
      names = ', '.join(f.name for f in dataclasses.fields(config))
      raise ValueError(f'{error.args[0]}; the fields are {names}') from None
  rest = values(argv)[1:]
  if rest:
    raise ValueError(f'got {rest[0]!r}, expected flags only')
  if config is not None:
    config = checked_config(values.config)
    config.check(values.data_dir)
    identity['config'] = dataclasses.asdict(config)
  return values, identity, config


def table() -> str:
  """The figures, one to a line."""
  head = ('figure', 'paper', 'claim', 'quick', 'full')
  rows = [head] + [
    (n, f.paper, f.claim, f'{f.quick} min', f'{f.full} min')
    for n, f in figures.FIGURES.items()
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(w) for cell, w in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


def reproduce(values, identity, config) -> None:
  """One figure: run what is missing, draw, say where things are."""
  from kexue.figures.draw import draw

  name = identity['figure']
  workdir = values.workdir or f'runs/{name}-{identity["preset"]}'
  if values.plot_only:
    identity = read_identity(workdir)
    if identity is None:
      raise ValueError(f'workdir: {workdir} holds no run to draw')
    name = identity['figure']
  elif jax.process_index() == 0:
    prepare(workdir, identity, overwrite=values.overwrite)
  if not values.plot_only:
    figures.load(name).run(
      config,
      jax.random.key(identity['seed']),
      workdir,
      parallel=identity['parallel'],
      data_dir=values.data_dir,
    )
  if jax.process_index() == 0:
    draw(name, workdir, identity)
    print(f'{workdir}/figure.png and result.json are drawn from metrics.csv')


def start_devices(values) -> None:
  """What must be said before jax looks for devices."""
  if values.simulated_devices is not None:
    jax.config.update('jax_num_cpu_devices', values.simulated_devices)
  if values.coordinator is not None:
    jax.distributed.initialize(
      values.coordinator, values.num_processes, values.process_id
    )


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  argv = sys.argv if argv is None else argv
  try:
    values, identity, config = parse(argv)
    if values.help:
      print(__doc__ + values.get_help(include_special_flags=False))
      print(describe(config) if config is not None else '')
      return 0
    if values.list:
      print(table())
      return 0
    start_devices(values)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if identity['figure'] != 'all':
      reproduce(values, identity, config)
      return 0
    root = pathlib.Path(values.workdir or 'runs')
    for name in figures.FIGURES:
      flag = f'--figure={name}', f'--workdir={root / name}'
      values, identity, config = parse([*argv, *flag])
      reproduce(values, identity, config)
  except (ValueError, OSError, flags.Error) as error:
    print(f'launch.py: {error}', file=sys.stderr)
    return 2
  except (Interrupted, KeyboardInterrupt) as stop:
    print(
      f'{stop or "stopped"}; to resume:\n  ' + shlex.join(['python', *argv]),
      file=sys.stderr,
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())
