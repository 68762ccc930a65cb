"""Eight simulated devices and quick compilation, before jax runs anything."""

import os
import pathlib

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)

# For programs that run for milliseconds and take seconds to compile; processes
# that a test starts inherit it. The last two take an older generator of code:
# XLA_FLAGS=--xla_cpu_use_fusion_emitters=true tests that of users, at twice the
# time.
FLAGS = [
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
]
if jax.__version_info__ < (0, 11):  # XLA stops at flags that it does not know.
  FLAGS += [
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
  ]
os.environ['XLA_FLAGS'] = ' '.join([*FLAGS, os.environ.get('XLA_FLAGS', '')])


@pytest.fixture(autouse=True, scope='module')
def few_programs():
  """Drops compiled programs before there are too many for a process.

  Each is mapped into memory in pieces, of which Linux allows 65,530; XLA
  crashes past that.
  """
  yield
  pieces = pathlib.Path('/proc/self/maps')
  if pieces.exists() and pieces.read_bytes().count(b'\n') > 15_000:
    jax.clear_caches()
