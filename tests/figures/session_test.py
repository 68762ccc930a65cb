"""The launch of a figure: rows under a label are computed once."""

import jax

from kexue.figures.session import session


def test_rows_of_no_run_are_computed_once_and_again_if_cut_short(tmp_path):
  calls = []

  def rows():
    calls.append(1)
    yield from ({'value': v} for v in (3, 4))

  with session(tmp_path, jax.random.key(0), 2) as launch:
    for _ in range(2):
      launch.record('numbers', 2, rows)
    assert len(calls) == 1
    found = launch.records.of('numbers')
    assert [(r['step'], r['value']) for r in found] == [(1, 3), (2, 4)]
    launch.records.keep(lambda row: row['step'] == 1)  # As if killed there.
  with session(tmp_path, jax.random.key(0), 2) as launch:
    launch.record('numbers', 2, rows)
    assert len(calls) == 2 and len(launch.records.of('numbers')) == 2
