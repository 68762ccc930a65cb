"""Eight simulated devices, before anything of jax runs; quick compilation."""

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(scope='module')
def quick_compilation():
  """For programs that run for milliseconds and take seconds to compile."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
