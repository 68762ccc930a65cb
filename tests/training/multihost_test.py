"""Two processes on loopback form a cluster and train as one."""

import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

SCRIPT = textwrap.dedent("""
  import sys
  import jax
  port, process, how, local, workdir = sys.argv[1:]
  jax.config.update('jax_num_cpu_devices', int(local))
  jax.distributed.initialize('localhost:' + port, 2, int(process))
  import jax.numpy as jnp, numpy as np, optax
  from kexue.training import init_state, make_step, parallelize
  from kexue.training.checkpoint import Checkpoints
  from kexue.training.loop import fit

  assert jax.device_count() == 2 * jax.local_device_count() == 2 * int(local)
  loss = lambda w, v, x, key: (jnp.mean((x @ w - 1) ** 2), (v, {}))
  optimizer = optax.sgd(0.1)
  run = parallelize(make_step(loss, optimizer), how)
  fresh = lambda: init_state(jnp.arange(3.0), optimizer)
  batches = lambda step, count: np.stack([
    np.random.default_rng(step + i).normal(size=(8, 3)) for i in range(count)
  ]).astype(np.float32)
  key = jax.random.key(0)
  state = fresh()
  for stop in (2, 4):  # The second call goes on from the first's checkpoint.
    state = fit(run, fresh(), batches, key, steps=stop, log_every=2,
                checkpoints=Checkpoints(workdir))
  np.save(f'{workdir}-{process}.npy', np.asarray(state.params))
""")


@pytest.mark.parametrize(
  'how, local', [('pmap', 1), ('pmap', 2), ('shard_map', 2), ('jit', 1)]
)
def test_two_processes_equal_numpy(tmp_path, how, local):
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        '-c',
        SCRIPT,
        str(port),
        str(i),
        how,
        str(local),
        f'{tmp_path}/c',
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    for i in range(2)
  ]
  outputs = [p.communicate(timeout=120)[0] for p in processes]
  assert all(p.returncode == 0 for p in processes), outputs
  w = np.arange(3.0)
  for step in range(4):
    x = np.random.default_rng(step).normal(size=(8, 3))
    w = w - 0.1 * 2 * x.T @ (x @ w - 1) / 8
  for i in range(2):
    np.testing.assert_allclose(np.load(f'{tmp_path}/c-{i}.npy'), w, rtol=1e-5)
