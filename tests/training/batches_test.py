import jax
import numpy as np
import pytest

from kexue.training import batches

KEY = jax.random.key(3)
TEXT = np.arange(1000, dtype=np.int32)


def tokens(tokens=TEXT, **changes):
  arguments = dict(key=KEY, step=0, steps=7, batch_size=5, length=8)
  return batches.token_batches(tokens, **{**arguments, **changes})


def test_token_batches_are_windows():
  drawn = tokens()
  assert drawn.shape == (7, 5, 9) and drawn.dtype == np.int32
  assert (np.diff(drawn, axis=-1) == 1).all()
  assert tokens(TEXT.astype(np.uint8)).dtype == np.uint8


def test_token_batches_depend_on_key_and_step_alone():
  np.testing.assert_array_equal(tokens(step=5, steps=2), tokens()[5:])
  assert len(np.unique(tokens(batch_size=4)[..., 0])) > 20
  assert (tokens(key=jax.random.key(4)) != tokens()).any()
  # Pinned: another numpy or jax must not change what a run sees.
  assert tokens(steps=1)[0, :, 0].tolist() == [464, 601, 561, 581, 304]


def test_token_batches_reach_both_ends():
  starts = tokens(TEXT[:20], steps=200, length=16)[..., 0]
  assert np.bincount(starts.ravel()).min() > 180  # 1,000 among 0..3.
  assert starts.max() == 3


def test_token_windows():
  windows = batches.token_windows(TEXT, count=10, length=8)
  assert windows.shape == (10, 9)
  assert windows[0, 0] == 0 and windows[-1, -1] == 999
  assert set(np.diff(windows[:, 0])) <= {110, 111}


def arrays(rows=10, **changes):
  arguments = dict(key=KEY, step=0, steps=9, batch_size=3)
  named = {'x': np.arange(rows), 'y': np.arange(2 * rows).reshape(-1, 2)}
  return batches.array_batches(named, **{**arguments, **changes})


def test_array_batches_shuffle_each_epoch_without_replacement():
  drawn = arrays()
  assert drawn['x'].shape == (9, 3) and drawn['y'].shape == (9, 3, 2)
  np.testing.assert_array_equal(drawn['y'][..., 0], 2 * drawn['x'])
  epochs = drawn['x'].reshape(3, 9)
  assert all(len(set(epoch)) == 9 for epoch in epochs.tolist())
  assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
  # Who sits an epoch out differs too.
  assert set(arrays(steps=60)['x'].ravel()) == set(range(10))


def test_array_batches_depend_on_key_and_step_alone():
  np.testing.assert_array_equal(
    arrays(step=2, steps=5)['x'], arrays()['x'][2:7]
  )
  assert (arrays(key=jax.random.key(4))['x'] != arrays()['x']).any()
  assert arrays(steps=1)['x'].tolist() == [[1, 3, 7]]


def test_epochs_share_no_random_numbers():
  orders = arrays(1000, steps=2, batch_size=1000)['x']
  first, second = np.argsort(orders, axis=1)
  for shift in range(1, 20):  # Streams that overlap agree after a shift.
    assert abs(np.corrcoef(first[shift:], second[:-shift])[0, 1]) < 0.2


def test_array_batches_take_text():
  text = np.array(['a', 'bc', 'd'], object)
  batch = batches.array_batches(
    {'text': text}, key=KEY, step=0, steps=1, batch_size=3
  )['text']
  assert sorted(batch[0]) == ['a', 'bc', 'd']


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: tokens(batch_size=0), 'batch_size: got 0, expected 1 or more'),
    (lambda: tokens(steps=0), 'steps: got 0'),
    (lambda: tokens(step=-1), 'step: got -1, expected 0 or more'),
    (lambda: tokens(length=0), 'length: got 0, expected 1 or more'),
    (lambda: tokens(length=1000), 'length: got 1000, expected below 1000'),
    (
      lambda: tokens(TEXT.reshape(2, 500)),
      r'tokens.shape: got \(2, 500\), expected \(N,\)',
    ),
    (lambda: tokens(key=7), "key: got 'int', expected jax.random.key"),
    (lambda: tokens(key=jax.random.key_data(KEY)), 'expected jax.random.key'),
    (lambda: tokens(key=jax.random.split(KEY)), r'key.shape: got \(2,\)'),
    (lambda: batches.token_windows(TEXT, count=0, length=8), 'count: got 0'),
    (
      lambda: batches.token_windows(TEXT, count=1, length=1000),
      'length: got 1000',
    ),
    (lambda: arrays(batch_size=11), 'batch_size: got 11, expected at most 10'),
    (lambda: arrays(batch_size=0), 'batch_size: got 0'),
    (
      lambda: batches.array_batches(
        {'x': TEXT, 'y': TEXT[1:]}, key=KEY, step=0, steps=1, batch_size=1
      ),
      "got {'x': 1000, 'y': 999}, expected one array or more, of one",
    ),
    (
      lambda: batches.array_batches({}, key=KEY, step=0, steps=1, batch_size=1),
      'lengths of arrays: got {}, expected one array or more',
    ),
  ],
)
def test_wrong_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_drawn_batches_are_independent_draws():
  arrays = {'x': np.arange(20), 'y': -np.arange(20)}
  draw = lambda **changes: batches.drawn_batches(
    arrays, **dict(key=KEY, step=0, steps=500, batch_size=6) | changes
  )
  rows = draw()
  assert rows['x'].shape == (500, 6)
  np.testing.assert_array_equal(rows['y'], -rows['x'])
  np.testing.assert_array_equal(draw(step=3, steps=2)['x'], rows['x'][3:5])
  counts = np.bincount(rows['x'].ravel(), minlength=20)
  assert abs(counts - 150).max() < 5 * np.sqrt(150)
  # With replacement: a batch repeats an example, and may exceed their number.
  assert min(len({*row}) for row in rows['x'].tolist()) < 6
  assert draw(batch_size=50, steps=1)['x'].shape == (1, 50)
  with pytest.raises(ValueError, match='batch_size: got 0'):
    draw(batch_size=0)
