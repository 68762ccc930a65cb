"""DDCM: the codebook's part of a step, encoding, and decoding.

64 images of 32 x 32 x 3 against 4096 atoms a step, float32, on one pinned core:

- kexue: one pass over a codebook serves the batch;
- numpy loop: for every image and step a codebook is drawn by `default_rng` and
  multiplied, as the authors' program does it with torch;
- torch loop: the same with `torch.randn`.

In the loops the network is kexue's, called for one image at a time. Programs of
one row must agree: the loops' atoms are their own, so it is checked that their
products with the residual are as large as those of kexue's atoms. Rounds are
interleaved; the seconds of the first call, with tracing and compiling, stand
apart. torch is left out if it is missing. Run it alone on the machine:

  python benchmarks/ddcm.py [--rounds=5] [--core=0]
"""

import functools

import numpy as np
from rounds import measure, pinned_arguments, report

IMAGES, SIZE, SHAPE = 64, 4096, (32, 32, 3)
STEPS = 3  # Of a schedule: its programs take STEPS - 1 codes an image.


def numpy_atom(residual, t):
  """The best of a codebook that is drawn for this image."""
  rng = np.random.default_rng(t)
  atoms = rng.standard_normal((SIZE, residual.size), dtype=np.float32)
  k = np.argmax(atoms @ residual.ravel())
  return k, atoms[k]


def torch_atom():
  try:
    import torch
  except ImportError as error:
    print(f'Without torch ({error}).\n')
    return None
  torch.set_num_threads(1)

  def best(residual, t):
    generator = torch.Generator().manual_seed(t)
    atoms = torch.randn((SIZE, residual.size), generator=generator)
    k = int(torch.argmax(atoms @ torch.from_numpy(residual.ravel())))
    return k, atoms[k].numpy()

  return best


def codebook_calls(residual, loops):
  """Functions that choose an atom for each of the images, by name."""
  import jax

  from kexue.diffusion import Codebook

  def program(kind):
    codebook = Codebook(SIZE, residual.shape[1], kind=kind)

    def choose(residual, t):
      k = codebook.best(residual, t)
      return k, codebook.atoms(k, t)

    run, on_device = jax.jit(choose), jax.device_put(residual)
    return lambda: jax.block_until_ready(run(on_device, 7))

  def loop(best):
    def call():
      indices, atoms = zip(*(best(r, 7) for r in residual), strict=True)
      return np.stack(indices), np.stack(atoms)

    return call

  kinds = 'gaussian', 'rademacher', 'circulant', 'hadamard'
  calls = {f'kexue, {kind}': program(kind) for kind in kinds}
  return calls | {name: loop(best) for name, best in loops.items()}


def check_products(results, residual):
  """The best of 4096 normal numbers, whoever drew them."""
  for name, (_, atoms) in results.items():
    atoms = np.asarray(atoms)
    along = np.sum(atoms * residual, 1) / np.linalg.norm(residual, axis=1)
    # The mean of the largest of 4096 is 3.55, its deviation 0.31.
    assert abs(along.mean() - 3.55) < 0.2, (name, along.mean())


def network():
  import jax
  import jax.numpy as jnp

  from kexue.diffusion import Schedule, denoiser
  from kexue.diffusion.unet import UNet, UNetConfig

  unet = UNet(UNetConfig(channels=SHAPE[-1]))
  image, time = jnp.zeros((1, *SHAPE)), jnp.ones([1], jnp.int32)
  params = jax.jit(unet.init)(jax.random.key(0), image, time)
  schedule = Schedule.linear(1000)
  count = sum(x.size for x in jax.tree.leaves(params))
  print(f'network of {count:,} parameters')

  def denoise(params):
    return denoiser(functools.partial(unet.apply, params), schedule)

  return params, denoise, schedule


def codec_calls(x0, loops):
  """Whole encoders, and decoders, by name."""
  import jax

  from kexue.diffusion import (
    Codebook,
    ddcm_decode,
    ddcm_encode,
    ddpm_step,
    sample,
  )

  params, denoise, full = network()
  schedule = full.respace(STEPS)
  wait = jax.block_until_ready

  def ours(kind):
    codebook = Codebook(SIZE, x0[0].size, kind=kind)
    encode = jax.jit(
      lambda p, x: ddcm_encode(denoise(p), x, schedule, codebook)
    )
    decode = jax.jit(
      lambda p, c: ddcm_decode(denoise(p), c, schedule, codebook, shape=SHAPE)
    )
    images = jax.device_put(x0)
    codes = encode(params, images)
    return lambda: wait(encode(params, images)), lambda: wait(
      decode(params, codes)
    )

  predict = jax.jit(lambda p, x, t: denoise(p)(x, t))
  advance = jax.jit(functools.partial(ddpm_step, schedule))

  def loop(best):
    def call():
      chosen = []
      for image in x0:
        x = np.random.default_rng(0).standard_normal((1, *SHAPE), np.float32)
        for i in range(STEPS, 1, -1):
          t = int(schedule.timesteps[i - 1])
          x0_hat = predict(params, x, t)
          k, atom = best(image - np.asarray(x0_hat[0]), t)
          x = advance(x0_hat, x, i, atom.reshape(1, *SHAPE))
          chosen.append(k)
      return wait(x), chosen

    return call

  draw = jax.jit(
    lambda p: sample(denoise(p), schedule, jax.random.key(0), (IMAGES, *SHAPE))
  )
  both = {kind: ours(kind) for kind in ('gaussian', 'hadamard')}
  encoders = {f'kexue, {kind}': calls[0] for kind, calls in both.items()}
  encoders |= {name: loop(best) for name, best in loops.items()}
  decoders = {'plain sampling': lambda: wait(draw(params))}
  decoders |= {f'decoding, {kind}': calls[1] for kind, calls in both.items()}
  return encoders, decoders


def main():
  args = pinned_arguments(rounds=5)
  import jax

  print(
    f'{IMAGES} images {SHAPE}, {SIZE} atoms, {args.rounds} rounds, one core, '
    f'jax {jax.__version__}, {jax.devices()[0].device_kind}'
  )
  loops = {'numpy loop': numpy_atom, 'torch loop': torch_atom()}
  loops = {name: best for name, best in loops.items() if best is not None}
  rng = np.random.default_rng(0)
  x0 = rng.uniform(-1, 1, (IMAGES, *SHAPE)).astype(np.float32)
  residual = x0.reshape(IMAGES, -1)
  results, *times = measure(codebook_calls(residual, loops), args.rounds)
  check_products(results, residual)
  report('an atom for each image', *times)
  encoders, decoders = codec_calls(x0, loops)
  _, *times = measure(encoders, args.rounds)
  report(f'encoding, {STEPS - 1} codes an image', *times)
  _, *times = measure(decoders, 4 * args.rounds)
  report(f'decoding, {STEPS} steps', *times)


if __name__ == '__main__':
  main()
