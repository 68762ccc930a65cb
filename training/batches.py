"""Batches that a resumed run repeats: pure functions of (key, step), in numpy.

Nothing waits for the device. Raw Philox draws only: `np.random.Generator` may
change with numpy's version, and then a run would change with it.

Letters: N examples or bytes, S steps, B batch size, L length.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..checks import require


def _check_steps(step: int, steps: int, batch_size: int) -> None:
  require(step >= 0, 'step', step, '0 or more')
  require(steps >= 1, 'steps', steps, '1 or more')
  require(batch_size >= 1, 'batch_size', batch_size, '1 or more')


def _seed(key: jax.Array) -> int:
  """Bits of a typed key as an integer; fetched, not computed."""
  typed = jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key)
  require(typed, 'key', type(key).__name__, 'jax.random.key')
  require(key.shape == (), 'key.shape', key.shape, '(), one key')
  return int.from_bytes(np.asarray(jax.random.key_data(key)).tobytes())


def _draws(seed: int, counter: int, count: int) -> np.ndarray:
  """uint64 [count] of the Philox stream from block `counter` of 4 on."""
  return np.random.Philox(key=seed, counter=counter).random_raw(count)


def _step_draws(key, step: int, steps: int, count: int) -> np.ndarray:
  """uint64 [steps, count]: each step has its own stretch of the stream."""
  blocks = -(-count // 4)  # A block of Philox is four draws.
  draws = _draws(_seed(key), step * blocks, steps * blocks * 4)
  return draws.reshape(steps, -1)[:, :count]


def _check_tokens(tokens: np.ndarray, length: int) -> None:
  require(np.ndim(tokens) == 1, 'tokens.shape', np.shape(tokens), '(N,)')
  require(length >= 1, 'length', length, '1 or more')
  count = len(tokens)
  require(length < count, 'length', length, f'below {count}, the tokens given')


def token_batches(
  tokens: np.ndarray,
  *,
  key: jax.Array,
  step: int,
  steps: int,
  batch_size: int,
  length: int,
) -> np.ndarray:
  """Random windows of a text, the same for the same key and step.

  Step s takes its own stretch of a counter-based random stream, so a run that
  resumes at s draws what it would have drawn, however steps are grouped.

  Args:
    tokens: [N], N > length.
    key: typed `jax.random.key`.
    step: the first step, >= 0.
    steps: S, how many steps, >= 1.
    batch_size: B, windows in a step.
    length: L, predictions in a window; a window has one token more.

  Returns:
    [S, B, L + 1] in the dtype of tokens: inputs are [..., :-1], targets
    [..., 1:].

  Raises:
    ValueError: an argument is out of range.

  Example:
    >>> tokens, key = np.arange(100, dtype=np.uint8), jax.random.key(0)
    >>> batches = functools.partial(
    ...     token_batches, tokens, key=key, batch_size=4, length=8)
    >>> bool((batches(step=0, steps=7)[5:] == batches(step=5, steps=2)).all())
    True
  """
  _check_steps(step, steps, batch_size)
  _check_tokens(tokens, length)
  # The remainder's bias is below N / 2^64.
  starts = _step_draws(key, step, steps, batch_size) % (len(tokens) - length)
  windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
  return windows[starts.astype(np.int64)]


def token_windows(tokens: np.ndarray, *, count: int, length: int) -> np.ndarray:
  """Evenly spaced windows of a text, for validation.

  Args:
    tokens: [N], N > length.
    count: how many; they overlap where count is large.
    length: L, predictions in a window; a window has one token more.

  Returns:
    [count, L + 1] in the dtype of tokens.

  Raises:
    ValueError: an argument is out of range.

  Example:
    >>> token_windows(np.arange(10), count=3, length=1).tolist()
    [[0, 1], [4, 5], [8, 9]]
  """
  require(count >= 1, 'count', count, '1 or more')
  _check_tokens(tokens, length)
  starts = np.linspace(0, len(tokens) - length - 1, count).astype(np.int64)
  return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[starts]


def count_examples(arrays: dict[str, np.ndarray]) -> int:
  """N, the length that all arrays share."""
  counts = {name: len(array) for name, array in arrays.items()}
  require(
    len(set(counts.values())) == 1,
    'lengths of arrays',
    counts,
    'one array or more, of one length',
  )
  return next(iter(counts.values()))


@functools.lru_cache(maxsize=4)  # One epoch serves many calls in a row.
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
  """An order of `count` examples, int64 [count], one for each epoch."""
  # Sorting raw draws: Generator.permutation may change with numpy's version.
  return np.argsort(_draws(seed, epoch << 64, count), kind='stable')


def array_batches(
  arrays: dict[str, np.ndarray],
  *,
  key: jax.Array,
  step: int,
  steps: int,
  batch_size: int,
) -> dict[str, np.ndarray]:
  """Shuffled batches, every example once an epoch, of any arrays.

  An epoch is N // B steps in an order of its own; the N % B examples that
  its order puts last sit it out. A pure function of (key, step).

  Args:
    arrays: dict of arrays of N rows.
    key: typed `jax.random.key`.
    step: the first step, >= 0.
    steps: S, how many steps, >= 1.
    batch_size: B, 1..N.

  Returns:
    Dict of [S, B, ...].

  Raises:
    ValueError: an argument is out of range, or rows do not agree.

  Example:
    >>> rows = array_batches({'x': np.arange(6)}, key=jax.random.key(0),
    ...                      step=0, steps=3, batch_size=2)['x']
    >>> rows.shape, sorted(rows.ravel().tolist())
    ((3, 2), [0, 1, 2, 3, 4, 5])
  """
  count, seed = count_examples(arrays), _seed(key)
  _check_steps(step, steps, batch_size)
  require(
    batch_size <= count, 'batch_size', batch_size, f'at most {count}, the rows'
  )
  epochs, places = np.divmod(np.arange(step, step + steps), count // batch_size)
  rows = np.concatenate(
    [
      permutation(seed, epoch, count)[
        : count // batch_size * batch_size
      ].reshape(-1, batch_size)[places[epochs == epoch]]
      for epoch in range(epochs[0], epochs[-1] + 1)
    ]
  )
  return {name: array[rows] for name, array in arrays.items()}


def drawn_batches(
  arrays: dict[str, np.ndarray],
  *,
  key: jax.Array,
  step: int,
  steps: int,
  batch_size: int,
) -> dict[str, np.ndarray]:
  """Independent batches, every example drawn anew from all of them.

  As theories of gradient noise have it: shuffled batches, which do not repeat
  an example before the epoch ends, see 1 - B / N of the noise. A pure function
  of (key, step).

  Args:
    arrays: dict of arrays of N rows.
    key: typed `jax.random.key`.
    step: the first step, >= 0.
    steps: S, how many steps, >= 1.
    batch_size: B, 1 or more.

  Returns:
    Dict of [S, B, ...].

  Raises:
    ValueError: an argument is out of range, or rows do not agree.

  Example:
    >>> draw = functools.partial(
    ...     drawn_batches, {'x': np.arange(3)}, key=jax.random.key(0),
    ...     batch_size=8)
    >>> rows = draw(step=0, steps=4)['x']
    >>> rows.shape, bool((rows[2:] == draw(step=2, steps=2)['x']).all())
    ((4, 8), True)
  """
  count = count_examples(arrays)
  _check_steps(step, steps, batch_size)
  rows = _step_draws(key, step, steps, batch_size) % count
  rows = rows.astype(np.int64)
  return {name: array[rows] for name, array in arrays.items()}
