"""Eight simulated devices, before anything of jax runs."""

import jax

jax.config.update('jax_num_cpu_devices', 8)
