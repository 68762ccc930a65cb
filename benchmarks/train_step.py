"""Our training step against the same step written by hand.

The 4-layer width-128 transformer, batches of 16 x 128 bytes, float32, one
device. "by hand" is what one writes with `jax.jit` and optax alone: value and
gradient, update, apply, donated state, a call a step; "by hand, scanned" puts
the same steps in one `lax.scan`. Ours is `make_step` under `parallelize`.

All contestants take the same steps on the same batches from the same start and
must end at the same loss. Rounds are interleaved; a round is 10 steps; seconds
of tracing and compiling apart. Run it alone on the machine:

  python benchmarks/train_step.py [--rounds=15] [--optimizer=adamw|muon]
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kexue.models import Transformer, TransformerConfig, next_token_loss
from kexue.optimizers import muon
from kexue.training import init_state, make_step, parallelize

STEPS, BATCH, LENGTH = 10, 16, 128


def by_hand(model, optimizer, scanned):
  def loss(params, batch):
    logits = model.apply({'params': params}, batch[:, :-1])
    return next_token_loss(logits, batch[:, 1:])

  def step(state, batch):
    params, opt_state = state
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value

  if scanned:
    program = jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)
  else:
    one = jax.jit(step, donate_argnums=0)

    def program(state, batches):
      for batch in batches:
        state, value = one(state, batch)
      return state, value[None]

  def run(state, batches):
    state, values = program(state, batches)
    return jax.block_until_ready(state), float(values[-1])

  return run, lambda params: (params, optimizer.init(params))


def ours(model, optimizer, how):
  def loss(params, variables, batch, key):
    logits = model.apply({'params': params}, batch[:, :-1])
    return next_token_loss(logits, batch[:, 1:]), (variables, {})

  program = parallelize(make_step(loss, optimizer), how)
  key = jax.random.key(0)

  def run(state, batches):
    state, metrics = program(state, batches, key)
    return jax.block_until_ready(state), float(metrics['loss'][-1])

  return run, lambda params: init_state(params, optimizer)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--optimizer', default='adamw', choices=['adamw', 'muon'])
  args = parser.parse_args()

  model = Transformer(TransformerConfig(layers=4, width=128, heads=4))
  if args.optimizer == 'adamw':
    optimizer = optax.adamw(1e-3, weight_decay=0.1)
  else:
    optimizer = muon(
      1e-3, weight_decay=0.1, dimension_numbers=model.dimension_numbers
    )
  batches = np.random.default_rng(0).integers(
    0, 256, (STEPS, BATCH, LENGTH + 1), np.int32
  )
  params = jax.jit(model.init)(jax.random.key(0), batches[0, :, :-1])['params']
  contestants = {
    'by hand, a call a step': by_hand(model, optimizer, False),
    'by hand, scanned': by_hand(model, optimizer, True),
    **{
      f'kexue, {how}': ours(model, optimizer, how)
      for how in ('pmap', 'shard_map', 'jit')
    },
  }
  states, compile_s, times, losses = {}, {}, {}, {}
  for name, (run, init) in contestants.items():
    state = init(jax.tree.map(jnp.array, params))
    start = time.perf_counter()
    states[name], losses[name] = run(state, batches)
    compile_s[name] = time.perf_counter() - start
    times[name] = []
  spread = max(losses.values()) - min(losses.values())
  assert spread < 1e-4, losses
  for _ in range(args.rounds):
    for name, (run, _) in contestants.items():
      start = time.perf_counter()
      states[name], _ = run(states[name], batches)
      times[name].append((time.perf_counter() - start) / STEPS)

  print(
    f'{args.optimizer}, {sum(x.size for x in jax.tree.leaves(params)):,} '
    f'parameters, {args.rounds} rounds of {STEPS} steps, jax '
    f'{jax.__version__}, {jax.devices()[0].device_kind}; losses after the '
    f'first round agree to {spread:.0e}'
  )
  print(
    '| step | min ms | median ms | min / by hand | median / by hand | '
    'first call s |'
  )
  print('|---|---|---|---|---|---|')
  base = times['by hand, a call a step']
  for name, t in times.items():
    print(
      f'| {name} | {1e3 * min(t):.1f} | {1e3 * np.median(t):.1f} | '
      f'{min(t) / min(base):.2f} | {np.median(t) / np.median(base):.2f} | '
      f'{compile_s[name]:.1f} |'
    )


if __name__ == '__main__':
  main()
