"""Numbers and panels of `ddcm_progressive`, from made-up rows."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.progressive_panels import (
  BITS,
  LOOKS,
  RULES,
  as_text,
  numbers_of,
  plot_curves,
  plot_differences,
  plot_images,
  results,
)
from kexue.figures.token_measures import as_strip

EACH = np.array([-1.0, 0.0, 4.0])


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def strip(level):
  return as_strip(np.full((2, 4, 4, 1), level, np.uint8))


def rows():
  """Of four codes, two of them prefixes; those alone are better or worse."""
  found = [{'run': 'originals', 'images': 3, 'dataset': 'digits', **strip(9)}]
  for rule in RULES:
    for kind in LOOKS:
      for k in range(5) if kind == 'expected' else (3, 1):
        row = {'run': rule, 'rule': rule, 'kind': kind, 'codes': k}
        row |= {'bits_per_pixel': k / 8, 'psnr': 10.0 + k, 'error': 0.5}
        if k in (1, 3):
          better = {'expected': 0, 'finished': -EACH, 'alone': 1 + EACH}
          own = 10 + k + better[kind] * (1 if rule == 'even' else -1)
          own = own * np.ones(3)
          row |= {'psnr': own.mean(), 'psnrs': as_text(own)} | strip(k)
        found.append(row)
  return found


def test_text_there_and_back():
  np.testing.assert_allclose(numbers_of(as_text(EACH)), EACH)


def test_numbers():
  found = results(rows())
  assert (found['images'], found['dataset']) == (3, 'digits')
  even, kl = found['rules']['even'], found['rules']['equal_kl']
  assert [entry['codes'] for entry in even] == [1, 3]
  first = even[0]
  assert first['bits_per_pixel'] == 1 / 8
  assert first['whole_bits_per_pixel'] == 1 / 2
  assert first['expected'] == 11 and first['finished'] == pytest.approx(10)
  assert first['alone'] == pytest.approx(13)
  lost = first['finished_less_alone']
  each = -EACH - 1 - EACH
  assert lost['mean'] == pytest.approx(each.mean())
  assert lost['error'] == pytest.approx(each.std(ddof=1) / np.sqrt(3))
  gained = kl[0]['expected_less_alone']
  assert gained['mean'] == pytest.approx(2)
  assert gained['error'] == pytest.approx(EACH.std(ddof=1) / np.sqrt(3))


def test_curves(ax):
  plot_curves(ax, rows(), 'even', 20.0)
  (line,) = (x for x in ax.get_lines() if len(x.get_xdata()) == 5)
  np.testing.assert_allclose(line.get_xdata(), np.arange(5) / 8)
  np.testing.assert_allclose(line.get_ydata(), 10 + np.arange(5))
  assert ax.get_ylim() == (8, 21) and ax.get_xlabel() == BITS
  assert ax.get_title() == RULES['even']
  labels = {text.get_text() for text in ax.get_legend().get_texts()}
  assert labels == {look['label'] for look in LOOKS.values()}


def test_differences(ax):
  plot_differences(ax, results(rows()))
  drawn = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]
  assert any(np.allclose(y, [-2, -2]) for y in drawn if len(y) == 2)
  assert any(np.allclose(y, [3, 3]) for y in drawn if len(y) == 2)


def test_images(ax):
  plot_images(ax, rows())
  image = ax.get_images()[0].get_array()
  assert image.shape == (6 * 4, 3 * 8)
  assert image[0, 0] == 1 and image[0, 8] == 3 and image[0, 16] == 9
  ticks = [tick.get_text() for tick in ax.get_xticklabels()]
  assert ticks == [f'0.12 {BITS}', f'0.38 {BITS}', 'originals']
  assert len(ax.get_yticklabels()) == 6
