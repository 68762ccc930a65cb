"""Eight simulated devices, and as little compiling as possible."""

import os

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)  # Before anything of jax runs.


def pytest_configure(config):
  """Keeps what was compiled, for other files and for the next session.

  Compiling is most of what tests do. A worker has a directory of its own,
  because none may read what another has half written.
  """
  worker = os.environ.get('PYTEST_XDIST_WORKER', 'alone')
  kept = config.cache.mkdir(f'xla-{worker}')
  jax.config.update('jax_compilation_cache_dir', str(kept))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@pytest.fixture(scope='module')
def quick_compilation():
  """For programs that run for milliseconds and take seconds to compile."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
