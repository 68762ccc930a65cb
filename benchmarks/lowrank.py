"""The low-rank room against numpy, SciPy, scikit-learn and scikit-matter.

Matrices U diag(s) V^T with random orthonormal U and V, of 1000 x 800 and
4000 x 3000, s_j = 10^(-(j - 1) / 15) ("fast") and 1 / j ("slow"), rank 50:

- SVD: `numpy.linalg.svd`, scikit-learn's `randomized_svd` with QR between the
  power iterations, ours with as many;
- interpolative: `scipy.linalg.interpolative.interp_decomp`, ours by method;
- CUR: scikit-matter's `CUR` of features and of samples, ours by method. The
  core is not part of its time, and is part of ours.

Errors are Frobenius norms over that of the best approximation of rank 50; for
scikit-matter's with the optimal core. float64 where nothing else is said, the
same matrix for all. Rounds are interleaved; what takes over five seconds runs
once. Compilation is apart: the first call less the median.

With two threads, peers and ours are bound to two cores in processes that wait
for each other, and each has what suits it: XLA two threads and the OpenBLAS
that it takes for small factorisations one (with two, whose idle threads spin,
ours take twice as long); of the peers the faster of one and two threads of
OpenBLAS. Run it alone:

  pip install skmatter
  python benchmarks/lowrank.py [--rounds=7] [--sizes=1000x800,4000x3000]
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from importlib import metadata

RANK = 50
SPECTRA = {
  'fast': lambda j: 10.0 ** -(j / 15),
  'slow': lambda j: 1 / (j + 1),
}
SLOW = 5.0  # Seconds from which one round has to do.


def matrix_file(folder, size, name):
  return pathlib.Path(folder) / f'{size}-{name}.npy'


def save_matrices(folder, sizes):
  """Once for all processes, by one set of bases for both spectra."""
  import numpy as np

  for size in sizes:
    m, n = map(int, size.split('x'))
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((m, n)))[0]
    v = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for name, spectrum in SPECTRA.items():
      np.save(
        matrix_file(folder, size, name), (u * spectrum(np.arange(n))) @ v.T
      )


def peers(a):
  """By name: call with a seed, approximation of its result, no peer."""
  import numpy as np
  from scipy.linalg import interpolative as scipy_id
  from sklearn.utils.extmath import randomized_svd as sklearn_svd

  single = a.astype(np.float32)

  def sklearn(x, q):
    return lambda seed: sklearn_svd(
      x, RANK, n_iter=q, power_iteration_normalizer='QR', random_state=seed
    )

  def truncated(result):
    u, s, vh = result
    return (u[:, :RANK] * s[:RANK]) @ vh[:RANK]

  def scipy(rand):
    return lambda seed: scipy_id.interp_decomp(a, RANK, rand=rand)

  def from_scipy(result):
    order, z = result
    return scipy_id.reconstruct_matrix_from_id(a[:, order[:RANK]], order, z)

  calls = {
    'numpy.linalg.svd': (
      lambda seed: np.linalg.svd(a, full_matrices=False),
      truncated,
    ),
    'scikit-learn, q = 2': (sklearn(a, 2), truncated),
    'scikit-learn, q = 7': (sklearn(a, 7), truncated),
    'scikit-learn, q = 2, float32': (sklearn(single, 2), truncated),
    'scikit-learn, q = 7, float32': (sklearn(single, 7), truncated),
    'interp_decomp, rand=True': (scipy(True), from_scipy),
    'interp_decomp, rand=False': (scipy(False), from_scipy),
  }
  calls |= skmatter(a)
  return {name: (*pair, None) for name, pair in calls.items()}


def skmatter(a):
  """Rows and columns by scikit-matter, if it is installed."""
  import numpy as np

  try:
    from skmatter.feature_selection import CUR as Features
    from skmatter.sample_selection import CUR as Samples
  except ImportError:
    return {}

  def select(seed):
    columns = Features(n_to_select=RANK, recompute_every=1).fit(a)
    rows = Samples(n_to_select=RANK, recompute_every=1).fit(a)
    return rows.selected_idx_, columns.selected_idx_

  def product(result):
    rows, columns = result
    qc = np.linalg.qr(a[:, columns])[0]
    qr = np.linalg.qr(a[rows].T)[0]
    return qc @ (qc.T @ a @ qr) @ qr.T

  return {'skmatter CUR': (select, product)}


def ours(a):
  """The same of ours, each against one of the peers."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from kexue.lowrank import cur, interpolative, randomized_svd

  jax.config.update('jax_enable_x64', True)
  double, single = jnp.asarray(a), jnp.asarray(a, jnp.float32)

  def call(function, x, **options):
    run = jax.jit(functools.partial(function, rank=RANK, **options))
    return lambda seed: jax.block_until_ready(run(x, key=jax.random.key(seed)))

  def triples(result):
    u, s, vh = map(np.asarray, result)
    return (u * s) @ vh

  def columns(result):
    indices, coefficients = map(np.asarray, result)
    return a[:, indices] @ coefficients

  def product(result):
    return np.asarray(result.c) @ np.asarray(result.u) @ np.asarray(result.r)

  calls = {}
  for q in (2, 7):
    for label, x in (('', double), (', float32', single)):
      calls[f'randomized_svd, q = {q}{label}'] = (
        call(randomized_svd, x, power_iterations=q),
        triples,
        f'scikit-learn, q = {q}{label}',
      )
  for method in ('pivoted_qr', 'randomized', 'strong_rrqr', 'osinsky'):
    rand = 'False' if method == 'pivoted_qr' else 'True'
    calls[f'interpolative, {method}'] = (
      call(interpolative, double, method=method),
      columns,
      f'interp_decomp, rand={rand}',
    )
  for method in ('randomized', 'pivoted_qr', 'deim', 'maxvol', 'osinsky'):
    calls[f'cur, {method}'] = (
      call(cur, double, method=method),
      product,
      'skmatter CUR',
    )
  return calls


def bind(threads, blas_threads):
  """To cores and threads of OpenBLAS, before anything starts a pool of them."""
  assert 'numpy' not in sys.modules
  cores = sorted(os.sched_getaffinity(0))[:threads]
  os.sched_setaffinity(0, cores)
  for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ[name] = str(blas_threads)


def serve(pipe, contestants, file, optimum, *threads):
  """A process: names and peers of its calls, then a call each time asked."""
  bind(*threads)
  import numpy as np

  a = np.load(file)
  calls = contestants(a)
  pipe.send({name: peer for name, (_, _, peer) in calls.items()})
  for name, seed in iter(pipe.recv, None):
    call, approximate, _ = calls[name]
    start = time.perf_counter()
    result = call(seed)
    seconds = time.perf_counter() - start
    error = seed or np.linalg.norm(a - approximate(result)) / optimum
    pipe.send((seconds, error))


class Process:
  """Contestants in a process of their own, with what was measured of them."""

  def __init__(self, contestants, *arguments):
    context = multiprocessing.get_context('spawn')  # A fork has our threads.
    self._pipe, end = context.Pipe()
    arguments = (end, contestants, *arguments)
    self._process = context.Process(target=serve, args=arguments)
    self._process.start()
    end.close()  # So that a process that fails is noticed.
    self.base = self._pipe.recv()
    self.times, self.errors, self.first = {}, {}, {}

  def _call(self, name, seed):
    self._pipe.send((name, seed))
    return self._pipe.recv()

  def start(self):
    for name in self.base:
      first, self.errors[name] = self._call(name, 0)
      self.first[name] = first
      self.times[name] = [first] if first > SLOW else []

  def round(self, seed):
    time.sleep(0.1)  # Until threads of the other process spin no longer.
    for name in self.base:
      if self.first[name] <= SLOW:
        self.times[name].append(self._call(name, seed)[0])

  def stop(self):
    self._pipe.send(None)
    self._process.join()


def measure(file, optimum, threads, rounds):
  """Times, errors over optimum, first calls and peers, by name.

  Of a peer those with the number of OpenBLAS's threads that suits it best.
  """
  about = (file, optimum, threads)
  processes = [Process(peers, *about, b) for b in range(1, threads + 1)]
  processes.append(Process(ours, *about, 1))
  for process in processes:
    process.start()
  for seed in range(1, rounds + 1):
    for process in processes:
      process.round(seed)
  for process in processes:
    process.stop()
  results = {}
  for x in processes:
    for name, times in x.times.items():
      if name not in results or min(times) < min(results[name][0]):
        results[name] = (times, x.errors[name], x.first[name], x.base[name])
  return results


def table(title, results):
  import numpy as np

  print(f'\n{title}\n')
  heads = ['', 'min ms', 'median ms', 'peer', 'min / peer', 'median / peer']
  heads += ['error / optimum', 'compile s']
  print('| ' + ' | '.join(heads) + ' |')
  print('|' + '---|' * len(heads))
  for name, (t, error, first, base) in results.items():
    peer = base and results.get(base, (None,))[0]
    cells = [f'{1e3 * min(t):.1f}', f'{1e3 * np.median(t):.1f}']
    if peer:
      cells += [base, f'{min(t) / min(peer):.3f}']
      cells += [f'{np.median(t) / np.median(peer):.3f}']
    else:
      cells += ['', '', '']
    cells.append(f'{error:.4f}')
    # A peer's first call compiles nothing.
    cells.append(f'{first - np.median(t):.1f}' if base else '')
    print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)


def versions():
  names = ('jax', 'numpy', 'scipy', 'scikit-learn')
  return ', '.join(f'{name} {metadata.version(name)}' for name in names)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--sizes', default='1000x800,4000x3000')
  parser.add_argument('--spectra', default=','.join(SPECTRA))
  parser.add_argument('--threads', default='1,2')
  args = parser.parse_args()
  import numpy as np

  sizes, spectra = args.sizes.split(','), args.spectra.split(',')
  with tempfile.TemporaryDirectory() as folder:
    save_matrices(folder, sizes)
    for size, threads, name in itertools.product(
      sizes, map(int, args.threads.split(',')), spectra
    ):
      file = matrix_file(folder, size, name)
      n = min(map(int, size.split('x')))
      # A float: numpy's would load numpy where it arrives.
      optimum = float(np.linalg.norm(SPECTRA[name](np.arange(RANK, n))))
      title = f'{size}, {name}, {threads} thread(s), {versions()}'
      table(title, measure(file, optimum, threads, args.rounds))


if __name__ == '__main__':
  main()
