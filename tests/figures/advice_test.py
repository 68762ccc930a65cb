"""Each rule's learning rate against its formula, for a made-up noise scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kexue.figures import advice
from kexue.figures.advice import FLAGS, RULES, Advisor, fall, warnings
from kexue.figures.image_model import ImageConfig
from kexue.scaling import noise_scale_tracker
from kexue.training import init_state

KEY = jax.random.key(0)
NOISE = 48.0
PAST = [
  dict(step=t, train_loss=2 * t**-0.25, base_rate=0.001)
  for t in (1, 10, 20, 40)
]


def state_of(task):
  """At the start, after a tracker has seen the noise scale alone."""
  tracker = noise_scale_tracker(decay=0.9)
  params = task.init(KEY)
  tracked = tracker.init({'all': jnp.zeros(())})
  for _ in range(5):
    small, big = 1 + NOISE / 4, 1 + NOISE / 16
    tracked = tracker.update(tracked, {'all': small}, {'all': big}, 4, 16)
  return init_state(params, optax.sgd(0.1), tracked)


@pytest.fixture(scope='module', params=['sgd', 'adam'])
def advised(request):
  config = ImageConfig(dataset='digits', width=4, population=128)
  task = config.task(16)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(advice, 'LARGE', 64)
    patch.setattr(advice, 'FRESH', 32)
    advisor = Advisor(task, request.param, state_of(task), PAST, KEY, 8)
    rows = [*advisor.rows(64, ('examples', 'steps'))]
  return request.param, rows


def test_every_rule_has_its_learning_rate(advised):
  name, (examples, steps) = advised
  assert (examples['fixed'], steps['fixed']) == ('examples', 'steps')
  assert {*RULES, *FLAGS, 'low', 'high', 'noise_scale'} <= {*examples}
  assert examples['noise_scale'] == pytest.approx(NOISE, rel=1e-4)
  assert examples['linear'] == pytest.approx(0.004)
  assert examples['sqrt'] == pytest.approx(0.002)
  x, y = NOISE / 16, NOISE / 64
  gain = (1 + x) / (1 + y)
  # Adam: as much progress and as much noise for an example as before.
  invariant = np.sqrt((1 + y) / (1 + x)) * x / y
  ratio = gain if name == 'sgd' else invariant
  assert examples['advice'] == pytest.approx(0.001 * ratio, rel=1e-3)
  # Fewer examples were seen: p / (1 + p) of what they are worth.
  worth = gain if name == 'sgd' else 4
  slower = 0.001 * ratio * worth ** (-0.25 / 1.25)
  assert steps['decay'] == pytest.approx(0.25)
  assert steps['advice'] == pytest.approx(slower, rel=1e-3)


def test_a_step_has_its_surge_index(advised):
  name, (row, _) = advised
  if name == 'sgd':
    assert row['one_step'] == pytest.approx(row['advice'])
  else:
    s, x, y = row['surge_index'], NOISE / 16, NOISE / 64
    f = lambda n: np.sqrt(1 + n) / (n + 2 * s)
    expected = 0.001 * f(y) / f(x)
    assert s > 0 and row['one_step'] == pytest.approx(expected, rel=1e-3)


def test_the_power_is_that_of_the_second_half():
  rows = [dict(step=t, train_loss=5.0) for t in (1, 2)]
  rows += [dict(step=t, train_loss=t**-2.0) for t in (4, 8)]
  assert fall(rows) == pytest.approx(2)
  assert fall([dict(step=t, train_loss=1.0 * t) for t in (1, 2, 4, 8)]) == 0


def test_warnings_end_a_line():
  assert warnings(dict(past_critical=0, past_surge=0)) == ''
  both = warnings(dict(past_critical=1, past_surge=1))
  assert both == ', past the critical batch size, past the surge'
