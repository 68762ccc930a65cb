"""Muon's step against optax.contrib.muon and optax.adamw.

Three sets of parameters, float32, one device, gradients of normal noise:

- layers: 24 of [256, 256] and 24 of [256, 1024];
- gpt2: twelve layers of GPT-2 small at half its width, with the embedding, the
  positions and the gains;
- mixed: convolutions, heads apart, stacked experts, a fused qkv kernel, gains.

Contestants: `optax.contrib.muon` as it comes, the same with its five triples
spelt out (then it scans instead of unrolling: its best setting), ours, ours
without the Gram form, and `optax.adamw` as the floor. Same coefficients, steps,
dtype, scale and bias correction; the matrices of all Muons must agree to 1e-3
of their size after three steps. A step is `update` and `apply_updates`, jitted,
state donated; rounds are interleaved. Seconds to trace and compile are the best
of three, each from empty caches; memory is `memory_analysis` of the program.
Last, the matrix sign alone on rectangles of aspect 4. Run it alone:

  python benchmarks/muon_step.py [--rounds=15] [--sets=layers,gpt2,mixed]
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers as Numbers

from kexue.optimizers import matrix_labels, muon, newton_schulz

TRIPLE = (3.4445, -4.7750, 2.0315)
RATE = 1e-3


def layers():
  """Shapes and dimension numbers by name; None is AdamW's."""
  return {
    f'{kind}_{i}': (shape, Numbers())
    for i in range(24)
    for kind, shape in [('square', (256, 256)), ('wide', (256, 1024))]
  }


def gpt2(width=384):
  shapes = {
    'embedding': ((50257, width), None),
    'positions': ((1024, width), None),
  }
  for i in range(12):
    for name in ('query', 'key', 'value', 'out'):
      shapes[f'{name}_{i}'] = ((width, width), Numbers())
    shapes[f'up_{i}'] = ((width, 4 * width), Numbers())
    shapes[f'down_{i}'] = ((4 * width, width), Numbers())
    shapes[f'gain_{i}'] = ((width,), None)
  return shapes


def mixed():
  convolution = Numbers((0, 1, 2), 3)
  return {
    **{f'conv_{i}': ((3, 3, 64, 64), convolution) for i in range(8)},
    **{f'conv_wide_{i}': ((3, 3, 64, 128), convolution) for i in range(4)},
    **{f'heads_{i}': ((256, 8, 32), Numbers(0, 2)) for i in range(12)},
    'experts_in': ((4, 16, 128, 256), Numbers(2, 3)),
    'experts_out': ((4, 16, 256, 128), Numbers(2, 3)),
    'qkv': ((256, 3, 256), Numbers(0, 2)),
    'gains': ((12, 256), None),
  }


def contestants(numbers):
  theirs = functools.partial(
    optax.contrib.muon, RATE, muon_weight_dimension_numbers=numbers
  )
  mine = functools.partial(
    muon, RATE, dimension_numbers=numbers, scale='keller', bias_correction=True
  )
  plain = functools.partial(
    newton_schulz, coefficients='keller', steps=5, gram=False
  )
  return {
    'optax.contrib.muon, default': theirs(),
    'optax.contrib.muon, five triples': theirs(ns_coeffs=(TRIPLE,) * 5),
    'kexue muon': mine(),
    'kexue muon without Gram': mine(msign=plain),
    'optax.adamw': optax.adamw(RATE),
  }


def prepare(optimizer, params, grads):
  """The compiled step, seconds to trace and compile, bytes of temporaries."""

  def step(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, seconds = optimizer.init(params), []
  for _ in range(3):
    jax.clear_caches()
    start = time.perf_counter()
    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads)
    program = program.compile()
    seconds.append(time.perf_counter() - start)
  memory = program.memory_analysis().temp_size_in_bytes
  return program, min(seconds), memory


def check_agreement(ends, labels, names):
  """The matrices of all Muons moved alike."""
  (reference, *others) = (ends[n] for n in names if 'muon' in n)
  worst = 0.0
  for other in others:
    for key, label in labels.items():
      if label == 'muon':
        gap = jnp.max(jnp.abs(other[key] - reference[key])) / RATE
        worst = max(worst, float(gap))
  assert worst < 1e-3, worst
  return worst


def time_interleaved(calls, rounds):
  times = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(time.perf_counter() - start)
  return times


def table(title, times, columns, base):
  print(f'\n{title}\n')
  heads = ['', 'min ms', 'median ms', 'min / default', *columns]
  print('| ' + ' | '.join(heads) + ' |')
  print('|' + '---|' * len(heads))
  for name, t in times.items():
    cells = [f'{1e3 * min(t):.1f}', f'{1e3 * np.median(t):.1f}']
    cells.append(f'{min(t) / min(times[base]):.2f}')
    cells += [f'{values[name]:.2f}' for values in columns.values()]
    print(f'| {name} | ' + ' | '.join(cells) + ' |')


def steps(name, shapes, rounds):
  keys = jax.random.split(jax.random.key(0), 2 * len(shapes))
  draw = lambda keys: {
    leaf: 0.02 * jax.random.normal(key, shape)
    for (leaf, (shape, _)), key in zip(shapes.items(), keys, strict=True)
  }
  params, grads = draw(keys[::2]), draw(keys[1::2])
  numbers = {leaf: n for leaf, (_, n) in shapes.items()}
  optimizers = contestants(numbers)
  programs, compile_s, memory, states, ends = {}, {}, {}, {}, {}
  for who, optimizer in optimizers.items():
    programs[who], compile_s[who], memory[who] = prepare(
      optimizer, params, grads
    )
    state = jax.tree.map(jnp.array, params), optimizer.init(params)
    for _ in range(3):
      state = programs[who](*state, grads)
    states[who], ends[who] = state, jax.tree.map(jnp.array, state[0])
  labels = matrix_labels(params, numbers)
  gap = check_agreement(ends, labels, optimizers)

  def call(who):
    states[who] = programs[who](*states[who], grads)
    return states[who]

  calls = {who: functools.partial(call, who) for who in optimizers}
  times = time_interleaved(calls, rounds)
  count = sum(x.size for x in params.values())
  base = 'optax.contrib.muon, default'
  relative = lambda values: {k: v / values[base] for k, v in values.items()}
  table(
    f'{name}: {len(shapes)} leaves, {count:,} parameters; the matrices agree '
    f'to {gap:.0e} of the learning rate',
    times,
    {
      'compile s': compile_s,
      'compile / default': relative(compile_s),
      'temporaries MB': {k: v / 1e6 for k, v in memory.items()},
      'temporaries / default': relative(memory),
    },
    base,
  )


def rectangles(rounds):
  """Gram form against standard, 24 of [256, 1024] one after the other."""
  xs = [jax.random.normal(jax.random.key(i), (256, 1024)) for i in range(24)]
  programs = {
    name: jax.jit(
      lambda xs, g=gram: [
        newton_schulz(x, coefficients='keller', gram=g) for x in xs
      ]
    )
    for name, gram in [('standard', False), ('Gram', True)]
  }
  results = [np.stack(program(xs)) for program in programs.values()]
  gap = np.abs(results[0] - results[1]).max()
  calls = {n: functools.partial(p, xs) for n, p in programs.items()}
  times = time_interleaved(calls, rounds)
  title = f'Newton-Schulz, 24 of [256, 1024]; equal to {gap:.0e}'
  table(title, times, {}, 'standard')


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--sets', default='layers,gpt2,mixed')
  args = parser.parse_args()
  device = jax.devices()[0].device_kind
  print(f'jax {jax.__version__}, optax {optax.__version__}, {device}, float32')
  sets = {'layers': layers, 'gpt2': gpt2, 'mixed': mixed}
  for name in args.sets.split(','):
    steps(name, sets[name](), args.rounds)
  rectangles(args.rounds)


if __name__ == '__main__':
  main()
