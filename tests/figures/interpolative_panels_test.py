"""Rows picked by their entries; the panels are drawn by the figure's test."""

from kexue.figures.column_choices import BASELINES, OURS
from kexue.figures.interpolative_panels import STYLES, kinds, median, of

ROWS = [
  {'matrix': 'b', 'selector': 'x', 'error': 1.0},
  {'matrix': 'b', 'selector': 'x', 'error': 9.0},
  {'matrix': 'b', 'selector': 'x', 'error': 2.0},
  {'matrix': 'a', 'selector': 'x', 'error': 4.0},
  {'matrix': None, 'size': 3},
]


def test_rows_are_picked():
  assert of(ROWS, matrix='a', selector='x') == [ROWS[3]]
  assert of(ROWS, size=3) == [ROWS[4]] and of(ROWS, size=4) == []
  assert kinds(ROWS) == ['b', 'a']
  assert median(ROWS, 'error', matrix='b', selector='x') == 2.0


def test_every_selector_looks_like_no_other():
  assert set(STYLES) == {*OURS, *BASELINES}
  assert len(set(STYLES.values())) == len(STYLES)
