"""Vector quantisation: a training step, and the search for the nearest code.

4096 vectors of width 64 against 1024 codes, float32, on one pinned core. A step
is forward, gradient with respect to the vectors, commitment loss, and running
averages of the codebook, dead-code revival off:

- kexue: `nearest_code`, `gradient_estimator`, `update_codebook`;
- plain jax: all squared distances, `jnp.argmin`, rotation matrices applied as
  in the reference implementation, one-hot matrices for the averages;
- vector-quantize-pytorch on torch, one thread.

Steps of one estimator must agree in indices, gradient and next codebook, and
all searches in their indices. Rounds are interleaved; the seconds of the first
call, with tracing and compiling, stand apart. vector-quantize-pytorch is left
out if it is missing: `pip install torch vector-quantize-pytorch`. Run it alone
on the machine:

  python benchmarks/vector_quantization.py [--rounds=40] [--core=0]
"""

import functools

import numpy as np
from rounds import measure, pinned_arguments, report

SHAPE = {'vectors': 4096, 'width': 64, 'codes': 1024}
DECAY = 0.99


def problem():
  """Vectors, codes near vectors of their kind, and a cotangent."""
  rng = np.random.default_rng(0)
  n, d, k = SHAPE.values()
  sizes = ((n, d), (k, d), (n, d))
  return [rng.normal(size=size).astype(np.float32) for size in sizes]


def plain_search(z, codebook):
  """The search one would write, as most implementations have it."""
  import jax.numpy as jnp

  squares = jnp.sum(z**2, axis=1, keepdims=True) + jnp.sum(codebook**2, axis=1)
  return jnp.argmin(squares - 2 * z @ codebook.T, axis=1)


def plain_estimator(z, q, kind):
  """What autodiff makes of the straight-through and the rotation trick."""
  import jax.numpy as jnp
  from jax import lax

  if kind == 'ste':
    return z + lax.stop_gradient(q - z)
  norm = lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True)
  u, v = (lax.stop_gradient(x / norm(x)) for x in (z, q))
  w = (u + v) / norm(u + v)
  dot = lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True)
  rotated = z - 2 * dot(z, w) * w + 2 * dot(z, u) * v
  return rotated * lax.stop_gradient(norm(q) / norm(z))


def plain_update(state, z, indices):
  import jax
  import jax.numpy as jnp

  one_hot = jax.nn.one_hot(indices, len(state.counts), dtype=z.dtype)
  average = lambda old, new: DECAY * old + (1 - DECAY) * new
  counts = average(state.counts, one_hot.sum(0))
  sums = average(state.sums, one_hot.T @ z)
  total = jnp.sum(counts)
  smooth = (counts + 1e-5) / (total + len(counts) * 1e-5) * total
  return type(state)(sums / smooth[:, None], counts, sums)


def jax_steps(z, codebook, cotangent):
  """Functions without arguments by name: gradient, indices and codebook."""
  import jax
  import jax.numpy as jnp

  from kexue.models import (
    CodebookState,
    commitment_loss,
    gradient_estimator,
    nearest_code,
    update_codebook,
  )

  z, codebook, cotangent = map(jnp.asarray, (z, codebook, cotangent))
  state = CodebookState(codebook, jnp.ones(len(codebook)), codebook)

  def step(search, estimate, update, state, z, cotangent):
    indices = search(z, state.codebook)

    def loss(z):
      q = state.codebook[indices]
      return jnp.sum(estimate(z, q) * cotangent) + commitment_loss(z, q)

    gradient = jax.grad(loss)(z)
    return gradient, indices, update(state, z, indices)

  def program(search, estimator, kind, update):
    estimate = functools.partial(estimator, kind=kind)
    run = jax.jit(functools.partial(step, search, estimate, update))

    def call():
      gradient, indices, new = jax.block_until_ready(run(state, z, cotangent))
      return gradient, indices, new.codebook

    return call

  update = functools.partial(update_codebook, decay=DECAY)
  ours = functools.partial(program, nearest_code, gradient_estimator)
  plain = functools.partial(program, plain_search, plain_estimator)
  return {
    'kexue, rotation': ours('rotation', update),
    'kexue, straight-through': ours('ste', update),
    'plain jax, rotation': plain('rotation', plain_update),
    'plain jax, straight-through': plain('ste', plain_update),
  }


def torch_steps(z, codebook, cotangent):
  """The same of vector-quantize-pytorch, which keeps its state in a module."""
  try:
    import torch
    from vector_quantize_pytorch import VectorQuantize
  except ImportError as error:
    print(
      f'Without vector-quantize-pytorch ({error}); to compare with it: '
      'pip install torch vector-quantize-pytorch\n'
    )
    return {}
  torch.set_num_threads(1)

  def program(rotation_trick):
    model = VectorQuantize(
      z.shape[1],
      len(codebook),
      decay=DECAY,
      commitment_weight=1.0,
      threshold_ema_dead_code=0,
      rotation_trick=rotation_trick,
    )
    inner, weight = model._codebook, torch.tensor(cotangent)[None]
    x, codes = torch.tensor(z)[None], torch.tensor(codebook)[None]

    def call():
      inner.embed.data.copy_(codes)
      inner.embed_avg.data.copy_(codes)
      inner.cluster_size.data.fill_(1)
      vectors = x.clone().requires_grad_()
      quantized, indices, loss = model(vectors)
      ((quantized * weight).sum() + loss.sum()).backward()
      found = vectors.grad[0], indices[0], inner.embed[0]
      return [tensor.detach().numpy() for tensor in found]

    return call

  name = 'vector-quantize-pytorch'
  return {
    f'{name}, rotation': program(True),
    f'{name}, straight-through': program(False),
  }


def searches(z, codebook):
  import jax
  import jax.numpy as jnp

  from kexue.models import nearest_code

  z, codebook = jnp.asarray(z), jnp.asarray(codebook)
  program = lambda search: lambda: jax.block_until_ready(search(z, codebook))
  return {
    'nearest_code': program(jax.jit(nearest_code)),
    'jnp.argmin of all distances': program(jax.jit(plain_search)),
    'the matrix product alone': program(jax.jit(lambda z, c: z @ c.T)),
  }


def check_steps(results):
  """The same indices, gradients and codebooks for one estimator."""
  for kind in ('rotation', 'straight-through'):
    (_, expected), *others = (
      item for item in results.items() if item[0].endswith(kind)
    )
    for name, found in others:
      for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype or 'int' in str(a.dtype), (name, a.dtype)
        gap = np.abs(np.asarray(a) - np.asarray(b)).max()
        assert gap < 2e-4, (name, gap)


def check_searches(results):
  expected = results['nearest_code']
  found = results['jnp.argmin of all distances']
  assert np.array_equal(found, expected), np.sum(found != expected)


def main():
  args = pinned_arguments(rounds=40)
  import jax

  z, codebook, cotangent = problem()
  steps = jax_steps(z, codebook, cotangent)
  steps |= torch_steps(z, codebook, cotangent)
  calls = steps | searches(z, codebook)
  sizes = ', '.join(f'{size} {name}' for name, size in SHAPE.items())
  print(
    f'{sizes}, {args.rounds} rounds, one core, jax {jax.__version__}, '
    f'{jax.devices()[0].device_kind}'
  )
  results, first, times = measure(calls, args.rounds)
  check_steps({name: results[name] for name in steps})
  check_searches(results)
  part = lambda names: {name: times[name] for name in times if name in names}
  report('step', first, part(steps))
  report('search', first, part(calls.keys() - steps.keys()))
  kinds = 'kexue, rotation', 'kexue, straight-through'
  a, b = (np.array(times[name]) for name in kinds)
  print(
    f'\nrotation / straight-through: {min(a) / min(b):.2f} of the minima, '
    f'{np.median(a / b):.2f} median'
  )


if __name__ == '__main__':
  main()
