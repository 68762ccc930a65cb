"""A layer of experts: forward, and forward with all gradients.

4096 tokens of width 128, 16 experts of hidden width 256 with relu, of which 2
are chosen, float32, on one pinned core; the load is that of random routing, or
skewed, with half of the tokens choosing one expert first:

- kexue: `dispatch`, "sorted" in blocks (what it does on CPU), with
  `jax.lax.ragged_dot`, with a capacity of 1.25 (which drops), and "dense";
- dense scan: plain jax, a scan over experts with all tokens each;
- torch: a loop over experts with the tokens that chose each, as in DeepSeek's
  released code, one thread.

Values and gradients (of tokens, gates, parameters) of all must agree, but for
what the capacity drops. Rounds are interleaved; the seconds of the first call,
with tracing and compiling, stand apart. torch is left out if it is missing. Run
it alone on the machine:

  python benchmarks/moe_dispatch.py [--rounds=20] [--core=0]
"""

import numpy as np
from rounds import measure, pinned_arguments, report

SHAPE = {
  'tokens': 4096,
  'width': 128,
  'hidden': 256,
  'experts': 16,
  'chosen': 2,
}


def problem(skewed):
  """Tokens, logits, matrices, and a cotangent."""
  rng = np.random.default_rng(0)
  t, d, f, e, _ = SHAPE.values()
  sizes = (t, d), (t, e), (e, d, f), (e, f, d), (t, d)
  x, logits, w_in, w_out, cotangent = (
    rng.normal(size=size).astype(np.float32) for size in sizes
  )
  if skewed:
    logits[:, 3] = np.where(np.arange(t) % 2, 9, -9)
  return x, logits, w_in / d**0.5, w_out / f**0.5, cotangent


def jax_layers():
  """Functions of tokens, routing and parameters, by name."""
  import functools

  import jax
  import jax.numpy as jnp

  from kexue.models import dispatch

  def expert(matmul, params, x):
    return matmul(jax.nn.relu(matmul(x, params[0])), params[1])

  def scan(x, routing, params):
    """Every expert for every token, one after the other."""

    def add(total, inputs):
      index, *own = inputs
      chosen = jnp.where(routing.indices == index, routing.gates, 0)
      y = expert(jnp.matmul, own, x)
      return total + jnp.sum(chosen, axis=-1, keepdims=True) * y, None

    numbers = jnp.arange(len(params[0]))
    return jax.lax.scan(add, jnp.zeros_like(x), (numbers, *params))[0]

  def ours(**options):
    run = functools.partial(dispatch, expert_fn=expert, **options)
    return lambda x, routing, params: run(x, routing, params=params)

  return {
    'kexue, blocks': ours(backend='blocks'),
    'kexue, capacity 1.25': ours(method='capacity'),
    'kexue, ragged_dot': ours(backend='ragged'),
    'kexue, dense': ours(method='dense'),
    'dense scan': scan,
  }


def jax_calls(x, logits, w_in, w_out, cotangent):
  """Forward and step of each layer, the numbers dropped, temporary bytes."""
  import jax
  import jax.numpy as jnp

  from kexue.models import dropped_choices, route

  x, *params, cotangent = map(jnp.asarray, (x, w_in, w_out, cotangent))
  routing = route(jnp.asarray(logits), None, SHAPE['chosen'])
  forward, step, size = {}, {}, {}

  def compiled(layer):
    def loss(x, gates, params):
      y = layer(x, routing._replace(gates=gates), params)
      return jnp.sum(y * cotangent)

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    arguments = x, routing.gates, params
    bound = jax.jit(
      lambda x, gates, params: layer(x, routing._replace(gates=gates), params)
    )
    return bound, gradients, arguments

  for name, layer in jax_layers().items():
    bound, gradients, arguments = compiled(layer)
    memory = gradients.lower(*arguments).compile().memory_analysis()
    size[name] = memory.temp_size_in_bytes
    run = lambda f, a: lambda: jax.block_until_ready(f(*a))
    forward[name] = run(bound, arguments)
    step[name] = run(gradients, arguments)
  return routing, forward, step, size, int(dropped_choices(routing))


def torch_calls(routing, x, w_in, w_out, cotangent):
  """The loop over experts; empty without torch."""
  try:
    import torch
  except ImportError as error:
    print(f'Without torch ({error}).\n')
    return {}, {}
  torch.set_num_threads(1)
  indices = torch.tensor(np.asarray(routing.indices), dtype=torch.long)
  leaves = [
    torch.tensor(np.asarray(a)).requires_grad_()
    for a in (x, routing.gates, w_in, w_out)
  ]
  weight = torch.tensor(cotangent)

  def layer():
    x, gates, w_in, w_out = leaves
    y = torch.zeros_like(x)
    counts = torch.bincount(indices.flatten(), minlength=len(w_in)).tolist()
    for i, count in enumerate(counts):
      if count:
        token, place = torch.where(indices == i)
        out = torch.relu(x[token] @ w_in[i]) @ w_out[i]
        y.index_add_(0, token, out * gates[token, place, None])
    return y

  def forward():
    with torch.no_grad():
      return layer().numpy()

  def step():
    for leaf in leaves:
      leaf.grad = None
    (layer() * weight).sum().backward()
    x, gates, *params = (leaf.grad.numpy() for leaf in leaves)
    return x, gates, params

  return {'torch loop': forward}, {'torch loop': step}


def check(results, drops):
  """The same values or gradients of all that drop nothing."""
  import jax

  expected = jax.tree.leaves(results['kexue, dense'])
  for name, found in results.items():
    if drops and 'capacity' in name:
      continue
    for a, b in zip(jax.tree.leaves(found), expected, strict=True):
      gap = np.abs(np.asarray(a) - np.asarray(b)).max()
      assert gap < 1e-3 * np.abs(np.asarray(b)).max(), (name, gap)


def main():
  args = pinned_arguments(rounds=20)
  import jax

  sizes = ', '.join(f'{size} {name}' for name, size in SHAPE.items())
  print(
    f'{sizes}, {args.rounds} rounds, one core, jax {jax.__version__}, '
    f'{jax.devices()[0].device_kind}'
  )
  for kind in ('random', 'skewed'):
    x, logits, w_in, w_out, cotangent = problem(kind == 'skewed')
    routing, forward, step, size, drops = jax_calls(
      x, logits, w_in, w_out, cotangent
    )
    parts = torch_calls(routing, x, w_in, w_out, cotangent)
    load = np.asarray(routing.load)
    print(f'\n{kind}: loads {load.min()} to {load.max()}, drops {drops}')
    for title, calls, more, memory in (
      ('forward', forward, parts[0], None),
      ('forward and backward', step, parts[1], size),
    ):
      results, first, times = measure(calls | more, args.rounds)
      check(results, drops)
      report(f'{kind}, {title}', first, times, memory)


if __name__ == '__main__':
  main()
