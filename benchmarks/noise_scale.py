"""What tracking the noise scale costs next to the plain training step.

The 4-layer width-128 transformer, batches of 16 x 128 bytes, AdamW, float32.
Three settings, each with the step one would write without a noise scale:

- accumulation: 8 microbatches in a `lax.scan`, on one device;
- data parallel: the batch split over two (simulated) devices, one `pmean`;
- one batch: nothing is split, so that the small batches have to be made. In two
  microbatches, in four, one for each example; or, beside the gradient that the
  step needs, `per_example_noise_scale`, which has them all at once.

Tracking is `accumulate_gradients` and the update of a `noise_scale_tracker`,
leaf by leaf. Plain steps compute nothing but loss, gradient and update. All of
a setting must have the same gradient at the start and end the first round at
the same loss. Rounds are interleaved; a round is 5 steps in one program;
seconds of tracing and compiling apart. Run it alone on the machine:

  python benchmarks/noise_scale.py [--rounds=15] [--microbatches=8]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from kexue.models import Transformer, TransformerConfig, next_token_loss
from kexue.scaling import (
  accumulate_gradients,
  noise_scale_tracker,
  per_example_noise_scale,
  squared_norms,
)
from kexue.training import TrainState, init_state, parallelize
from kexue.training.parallel import data_mesh

DEVICES, STEPS, BATCH, LENGTH = 2, 5, 16, 128
MANY = 50  # Squared norms, and updates, in a program that times them.
OPTIMIZER = optax.adamw(1e-3, weight_decay=0.1)
TRACKER = noise_scale_tracker()


def plain(loss, parts):
  """Value and gradient, by hand."""

  def gradient(params, variables, batch, axis_name):
    split = batch.reshape(parts, -1, *batch.shape[1:])

    def add(total, part):
      value, grads = jax.value_and_grad(loss)(params, part)
      return jax.tree.map(jnp.add, total, grads), value

    if parts == 1:
      value, grads = jax.value_and_grad(loss)(params, batch)
    else:
      zeros = jax.tree.map(jnp.zeros_like, params)
      total, values = lax.scan(add, zeros, split)
      value = jnp.mean(values)
      grads = jax.tree.map(lambda g: g / parts, total)
    if axis_name is not None:
      value, grads = lax.pmean((value, grads), axis_name)
    return value, grads, variables

  return gradient


def tracked(loss, parts):
  """The same with the squared norms, which go to the tracker."""

  def gradient(params, variables, batch, axis_name):
    found = accumulate_gradients(
      loss, params, batch, microbatches=parts, axis_name=axis_name
    )
    return found.loss, found.gradient, TRACKER.update(variables, *found[2:])

  return gradient


def beside(loss):
  """The plain gradient and, from gradients of their own, the noise scale."""

  def gradient(params, variables, batch, axis_name):
    value, grads, _ = plain(loss, 1)(params, variables, batch, axis_name)
    found = per_example_noise_scale(
      loss, params, batch, axis_name=axis_name, per_leaf=True
    )
    # A step of the averages alone; the tracker takes squared norms.
    average = lambda total, x: 0.99 * total + 0.01 * x
    kept = {
      name: jax.tree.map(
        average, getattr(variables, name), getattr(found, name)
      )
      for name in ('gradient_sq_norm', 'trace')
    }
    return value, grads, variables._replace(**kept)

  return gradient


def settings(loss, microbatches):
  """Gradients by name, the plain one first, and devices, by setting."""
  name = f'{microbatches} microbatches'
  return {
    'accumulation': (
      1,
      {
        f'{name}, plain': plain(loss, microbatches),
        f'{name}, tracked': tracked(loss, microbatches),
      },
    ),
    'data parallel': (
      DEVICES,
      {
        f'{DEVICES} devices, plain': plain(loss, 1),
        f'{DEVICES} devices, tracked': tracked(loss, 1),
      },
    ),
    'one batch': (
      1,
      {
        'one batch, plain': plain(loss, 1),
        'in 2 microbatches, tracked': tracked(loss, 2),
        'in 4 microbatches, tracked': tracked(loss, 4),
        f'in {BATCH} microbatches, tracked': tracked(loss, BATCH),
        'plain, and per_example_noise_scale': beside(loss),
      },
    ),
  }


def program_of(gradient, mesh):
  def step(state, batch, key, *, axis_name=None):
    value, grads, variables = gradient(
      state.params, state.variables, batch, axis_name
    )
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(state.step + 1, params, opt_state, variables)
    return state, {'loss': value}

  program, key = parallelize(step, 'pmap', mesh), jax.random.key(0)

  def run(state, batches):
    state, metrics = program(state, batches, key)
    return jax.block_until_ready(state), float(metrics['loss'][-1])

  return run


def check_gradients(gradients, params, batch, mesh):
  """Largest relative difference from the plain gradient."""
  devices = list(mesh.devices.flat)
  split = batch.reshape(len(devices), -1, *batch.shape[1:])
  variables = TRACKER.init(params)

  def of(gradient):
    mapped = jax.pmap(
      lambda batch: gradient(params, variables, batch, 'data')[1],
      'data',
      devices=devices,
      out_axes=None,
    )
    return mapped(split)

  first, *others = map(of, gradients.values())
  norm = optax.tree.norm(first)
  gaps = [optax.tree.norm(optax.tree.sub(x, first)) / norm for x in others]
  worst = float(max(gaps))
  assert worst < 1e-5, worst
  return worst


def measure(gradients, params, batches, mesh, rounds):
  """Seconds of a step by name and round, and of the first call."""
  states, first, times, losses = {}, {}, {}, {}
  programs = {name: program_of(g, mesh) for name, g in gradients.items()}
  for name, run in programs.items():
    state = init_state(params, OPTIMIZER, TRACKER.init(params))
    start = time.perf_counter()
    states[name], losses[name] = run(state, batches)
    first[name] = time.perf_counter() - start
    times[name] = []
  assert max(losses.values()) - min(losses.values()) < 1e-4, losses
  for _ in range(rounds):
    for name, run in programs.items():
      start = time.perf_counter()
      states[name], _ = run(states[name], batches)
      times[name].append((time.perf_counter() - start) / STEPS)
  return times, first


def parts(params, rounds):
  """Milliseconds of what tracking adds: squared norms, and the tracker."""
  tracked, norms = TRACKER.init(params), squared_norms(params)

  @jax.jit
  def many_norms(params):
    # Each of other numbers, so that none is computed once for all.
    each = lambda i: squared_norms(jax.tree.map(lambda x: x + i, params))
    return lax.map(each, jnp.arange(float(MANY)))

  @jax.jit
  def many_updates(tracked):
    update = lambda state, _: (TRACKER.update(state, norms, norms, 2, 16), None)
    return lax.scan(update, tracked, length=MANY)[0]

  def best(program, x):
    seconds = []
    for _ in range(rounds + 1):  # The first compiles.
      start = time.perf_counter()
      jax.block_until_ready(program(x))
      seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds) / MANY

  return best(many_norms, params), best(many_updates, tracked)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--microbatches', type=int, default=8)
  args = parser.parse_args()
  if jax.config.jax_platforms in (None, '', 'cpu'):
    jax.config.update('jax_num_cpu_devices', DEVICES)

  model = Transformer(TransformerConfig(layers=4, width=128, heads=4))

  def loss(params, batch):
    logits = model.apply({'params': params}, batch[:, :-1])
    return next_token_loss(logits, batch[:, 1:])

  batches = np.random.default_rng(0).integers(
    0, 256, (STEPS, BATCH, LENGTH + 1), np.int32
  )
  params = jax.jit(model.init)(jax.random.key(0), batches[0, :, :-1])['params']
  print(
    f'{sum(x.size for x in jax.tree.leaves(params)):,} parameters in '
    f'{len(jax.tree.leaves(params))} leaves, AdamW, {args.rounds} rounds of '
    f'{STEPS} steps, jax {jax.__version__}, {jax.devices()[0].device_kind}\n'
  )
  heads = ['step', 'min ms', 'median ms', 'min', 'median', 'first call s']
  print('| ' + ' | '.join(heads) + ' |')
  print('|' + '---|' * len(heads))
  worst = 0.0
  for devices, gradients in settings(loss, args.microbatches).values():
    mesh = data_mesh(jax.devices()[:devices])
    gap = check_gradients(gradients, params, batches[0], mesh)
    worst = max(worst, gap)
    times, first = measure(gradients, params, batches, mesh, args.rounds)
    base, *_ = times
    for name, t in times.items():
      # Of the same round, so that what slows a machine down slows both.
      ratio = np.median(np.array(t) / np.array(times[base]))
      print(
        f'| {name} | {1e3 * min(t):.1f} | {1e3 * np.median(t):.1f} | '
        f'{100 * (min(t) / min(times[base]) - 1):+.1f} % | '
        f'{100 * (ratio - 1):+.1f} % | {first[name]:.1f} |'
      )
  print(f'\ngradients of a setting agree to {worst:.0e}')
  norms, update = parts(params, args.rounds)
  print(f'squared norms {norms:.2f} ms, update of the tracker {update:.3f} ms')


if __name__ == '__main__':
  main()
