"""The command line of launch.py: flags, and the config that they make."""

import contextlib
import dataclasses

import jax
from absl import flags
from ml_collections import config_flags

from ..checks import require, require_one_of
from ..training import MODES
from ..training.config import checked_config, with_values
from ..training.workdir import read_identity
from . import DEFAULT, FIGURES, PRESETS, default_config

# The flags that, with the config, make a run what it is.
IDENTITY = ('figure', 'preset', 'seed', 'parallel')


class Refused(Exception):  # noqa: N818  (a decision, not a mistake)
  """What the user gave cannot be run; nothing was touched."""


def define_flags() -> flags.FlagValues:
  """The flags that every figure has; a fresh set, so that calls repeat."""
  v = flags.FlagValues()
  text = lambda *args: flags.DEFINE_string(*args, flag_values=v)
  switch = lambda *args: flags.DEFINE_bool(*args, flag_values=v)
  number = lambda *args: flags.DEFINE_integer(*args, 2**31 - 1, flag_values=v)
  choice = lambda *args: flags.DEFINE_enum(*args, flag_values=v)
  names = [*FIGURES, 'all']
  choice('figure', DEFAULT, names, 'Which figure, see --list.')
  choice('preset', 'quick', PRESETS, "Minutes, or the gallery's.")
  choice('parallel', 'pmap', MODES, 'How steps run on the devices.')
  number('seed', 0, "Seed of the run's key.", 0)
  text('workdir', None, 'Where results go; runs/FIGURE-PRESET by default.')
  text('config_file', None, 'The config.json of a run to repeat.')
  text('data_dir', None, 'Folder with data sets that no package ships.')
  switch('list', False, 'List the figures with paper, claim and minutes.')
  switch('plot_only', False, 'Draw again from the records in the workdir.')
  switch('overwrite', False, 'Replace what another run left in the workdir.')
  switch('help', False, 'This text, with the fields of the figure.')
  number('simulated_devices', None, 'Split the CPU into so many devices.', 1)
  text('coordinator', None, 'host:port of process 0, on several hosts.')
  number('num_processes', None, 'How many processes there are.', 1)
  number('process_id', None, 'Which of them this is.', 0)
  v.append_flag_values(flags.FLAGS)  # absl's own: --verbosity and the like.
  return v


@contextlib.contextmanager
def refusing():
  """Mistakes in what the user gave become one line."""
  try:
    yield
  except (ValueError, LookupError, TypeError, OSError, flags.Error) as error:
    raise Refused(error.args[-1] if error.args else error) from error


def parse(argv: list[str]):
  """The flags and the config: defaults, then config file, then flags."""
  first = define_flags()
  first(argv, known_only=True)
  picked = {n: first[n].value for n in IDENTITY}
  config, saved = None, {}
  if first.config_file is not None:
    saved = read_identity(first.config_file)
    for name in IDENTITY:
      if not first[name].present:
        picked[name] = saved[name]
      elif name in ('figure', 'preset'):
        require_one_of(name, picked[name], [saved[name]])
  values = define_flags()
  if picked['figure'] != 'all':
    config = default_config(picked['figure'], picked['preset'])
    config = with_values(config, saved.get('config', {}))
    fields = ', '.join(f.name for f in dataclasses.fields(config))
    try:
      config_flags.DEFINE_config_dataclass(
        'config', config, flag_values=values, sys_argv=argv
      )
    except (LookupError, AttributeError, TypeError) as error:
      raise Refused(f'{error.args[0]}; the fields are {fields}') from None
  rest = values(argv)[1:]
  require(not rest, 'arguments', ' '.join(rest), 'flags only')
  for name, value in picked.items():
    values[name].value = value
  return values, None if config is None else checked_config(values.config)


def start_devices(values: flags.FlagValues) -> None:
  """What must be said before jax looks for devices."""
  if values.simulated_devices is not None:
    jax.config.update('jax_num_cpu_devices', values.simulated_devices)
  cluster = values.coordinator, values.num_processes, values.process_id
  if any(x is not None for x in cluster):
    names = 'coordinator, num_processes, process_id'
    require(None not in cluster, names, cluster, 'all three')
    jax.distributed.initialize(*cluster)
