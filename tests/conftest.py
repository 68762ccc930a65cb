"""Eight simulated devices, before anything of jax runs; quick compilation."""

import pathlib

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(autouse=True, scope='module')
def few_programs():
  """Drops compiled programs before there are too many for a process.

  Each is mapped into memory in pieces, of which Linux allows 65,530; XLA
  crashes past that.
  """
  yield
  pieces = pathlib.Path('/proc/self/maps')
  if pieces.exists() and pieces.read_bytes().count(b'\n') > 30_000:
    jax.clear_caches()


@pytest.fixture(scope='module')
def quick_compilation():
  """For programs that run for milliseconds and take seconds to compile."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
