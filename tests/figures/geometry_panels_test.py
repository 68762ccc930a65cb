"""Numbers of made-up rows."""

import pytest

from kexue.figures.geometry_panels import of_layers, results, tuned_runs


def made_up():
  """Two layers, one group of 8 and 16; two kinds, two rates, two seeds."""
  rows = []
  for layer in (0, 1):
    for n in (8, 16):
      about = {'layer': layer, 'group': 'clusters', 'n': n, 'explained': 0.5}
      for k in (1, 2, 4):
        row = {**about, 'k': k, 'norm': (1 + layer) / k, 'random': 1.0}
        rows.append(row | ({'best': 0.1} if n == 8 else {}))
      rows.append({**about, 'cosine': 0.2 + 0.2 * layer, 'width': 64})
  for kind, rate, seed in (
    ('plain', 0.1, 0),
    ('plain', 0.2, 0),
    ('plain', 0.2, 1),
    ('normalized', 0.1, 0),
  ):
    about = {'kind': kind, 'learning_rate': rate, 'seed': seed}
    rows += [
      {**about, 'step': s, 'loss': 3.0, 'violation': 1.0} for s in (1, 2)
    ]
    end = {'val_loss': 2 - rate + seed, 'violation': 0.1 * seed}
    rows.append({**about, **end})
  return rows


def test_errors_by_layer():
  rows = made_up()
  found = of_layers(rows, 'clusters', 16, 'norm')
  assert found == {1: [1.0, 2.0], 2: [0.5, 1.0], 4: [0.25, 0.5]}
  assert of_layers(rows, 'clusters', 16, 'best') == {}


def test_numbers():
  numbers = results(made_up())
  assert numbers['n'] == 16
  assert numbers['a_quarter_kept'] == {
    'clusters': {'norm': 0.375, 'random': 1.0}
  }
  assert numbers['errors']['clusters'][8]['best'][2] == pytest.approx(0.1)
  assert numbers['cosine']['clusters'][8] == pytest.approx(0.3)
  assert numbers['cosine_of_random_vectors'] == 0.125
  plain = numbers['training']['plain']
  assert plain['learning_rate'] == 0.2
  assert plain['losses_of_rates'] == {0.1: 1.9, 0.2: 1.8}
  assert plain['val_loss'] == pytest.approx(
    {'mean': 2.3, 'min': 1.8, 'max': 2.8}
  )
  assert numbers['training']['normalized']['learning_rate'] == 0.1


def test_runs_at_the_best_rate():
  found = tuned_runs(made_up())
  assert [len(found[kind]) for kind in ('plain', 'normalized')] == [2, 1]
  first, second = found['plain']
  assert [row['step'] for row in first] == [1, 2]
  assert {row['learning_rate'] for row in first + second} == {0.2}
  assert {row['seed'] for row in second} == {1}
