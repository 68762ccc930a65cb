"""An image codec out of a trained diffusion model.

  python launch.py codec encode IMAGE.png... --model=RUN [--rate=BITS]
  python launch.py codec decode FILE.kxd... --model=RUN [--steps=N]
  python launch.py codec info FILE.kxd...

RUN is the directory of a run that trained a model, as --figure=ddpm_samples
does, or the model's own. Files that cannot be done are named, the others are
done; the exit code is 2 if there was one.
"""

import pathlib

from absl import flags

from ..checks import require, require_one_of
from ..diffusion.stream_header import PACKINGS
from .result_files import ResultFiles

VERBS = ('encode', 'decode', 'info')


def define_flags() -> flags.FlagValues:
  """The flags of the codec; a fresh set, so that calls repeat."""
  v = flags.FlagValues()
  text = lambda *args: flags.DEFINE_string(*args, flag_values=v)
  switch = lambda *args: flags.DEFINE_bool(*args, flag_values=v)
  text('model', None, 'Directory of the model, or of the run that trained it.')
  text('output', None, 'Where results go; beside their sources by default.')
  switch('overwrite', False, 'Replace files that are there.')
  flags.DEFINE_float(
    'rate', 1.0, 'Encode: bits a pixel, at most.', 0.0, flag_values=v
  )
  flags.DEFINE_enum(
    'packing',
    'dense',
    PACKINGS,
    'Encode: fewest bits, or a wrong bit spoils a step or an atom only.',
    flag_values=v,
  )
  switch('strict', False, "Encode: decode as well, keep the pixels' check sum.")
  switch('split_colours', False, 'Encode: colours as three grey pictures.')
  flags.DEFINE_integer(
    'steps', None, 'Decode: only so many steps.', 0, flag_values=v
  )
  switch('lenient', False, 'Decode what is cut short, damaged or different.')
  switch('help', False, 'This text.')
  v.set_gnu_getopt(True)  # Flags may follow files.
  v.append_flag_values(flags.FLAGS)
  return v


def run(argv: list[str]) -> int:
  """Runs `codec ...`.

  Args:
    argv: what follows "codec".

  Returns:
    The exit code, 0 or 2.

  Raises:
    ValueError: for arguments that mean nothing; nothing was touched.
    absl.flags.Error: for unknown flags, or values that they do not take.
  """
  values = define_flags()
  _, *arguments = values(['codec', *argv])
  if values.help:
    print(__doc__ + values.get_help(include_special_flags=False))
    return 0
  verb, *sources = arguments or ['']
  require_one_of('codec', verb, VERBS)
  require(len(sources) > 0, 'files', 'none', f'files to {verb}')
  output = values.output and pathlib.Path(values.output)
  files = ResultFiles(output, values.overwrite)
  try:
    _do(verb, sources, values, files)
  except KeyboardInterrupt:
    files.warn('stopped; files that are there are whole')
    return 130
  if files.failed and len(sources) > 1:
    files.warn(f'kexue: {len(files.failed)} of {len(sources)} files failed')
  return 2 if files.failed else 0


def _do(verb, sources, values, files) -> None:
  from . import codec_files
  from .codec import Codec  # Late: seconds of imports.
  from .pretrained import load_diffusion

  if verb == 'info':
    return codec_files.describe_files(sources, files)
  require(values.model is not None, '--model', None, 'a directory')
  codec = Codec(load_diffusion(values.model))
  if verb == 'decode':
    return codec_files.decode_files(
      sources, codec, files, steps=values.steps, lenient=values.lenient
    )
  return codec_files.encode_files(
    sources,
    codec,
    files,
    rate=values.rate,
    packing=values.packing,
    strict=values.strict,
    split_colours=values.split_colours,
  )
