"""Lines, images and table of `rotation_trick`, from made-up places."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.rotation_panels import (
  LABELS,
  image_of,
  plot_best,
  plot_images,
  plot_lines,
  value,
)


def axes():
  return matplotlib.figure.Figure().subplots()


def legend(ax):
  return [text.get_text() for text in ax.get_legend().get_texts()]


def seeds(*losses):
  return [{'val_loss': loss} for loss in losses]


def test_lines_are_means_and_bands_ranges():
  places = {
    ('ste', 'ema', 1.0, 1.0): seeds(4.0, 6.0),
    ('ste', 'ema', 0.25, 1.0): seeds(1.0, 3.0),
    ('reflection', 'ema', 0.25, 1.0): seeds(7.0, 7.0),
    ('fsq', 'none', 0.25, 1.0): seeds(0.5, 1.5),
  }
  ax = axes()
  plot_lines(ax, places, 2, 'val_loss', 'title')
  lines = {line.get_label(): line for line in ax.get_lines()}
  np.testing.assert_allclose(lines['ste'].get_xydata(), [[0.25, 2], [1, 5]])
  np.testing.assert_allclose(lines['reflection'].get_xydata(), [[0.25, 7]])
  assert [*lines['fsq'].get_ydata()] == [1, 1]
  band = ax.collections[0].get_paths()[0].get_extents()
  assert (band.ymin, band.ymax) == (1, 6)
  assert ax.get_xlabel() == LABELS[2] and ax.get_ylabel() == LABELS['val_loss']
  assert legend(ax) == ['ste', 'reflection', 'fsq']


def test_codebooks_in_one_panel_are_told_apart():
  row = {'quantization_error': 1.0, 'latent_square': 4.0}
  places = {
    ('ste', book, 0.25, ratio): [row]
    for book in ('ema', 'learned')
    for ratio in (0.1, 1.0)
  }
  ax = axes()
  plot_lines(ax, places, 3, 'quantization_error', 'title')
  assert [line.get_linestyle() for line in ax.get_lines()] == ['--', '-']
  np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), 0.25)
  assert legend(ax) == ['ste'] and ax.get_yscale() == 'log'
  assert np.isnan(value({}, 'usage'))


def test_images_come_back_and_originals_stand_first():
  image = np.arange(6, dtype=np.uint8).reshape(2, 3)
  about = {'height': 2, 'columns': 3}
  of = lambda x: {'pixels': 'x' + x.tobytes().hex(), **about}
  np.testing.assert_array_equal(image_of(of(image)), image)
  rows = [{'images': 'fsq, none', **of(image)}] * 2
  rows += [{'images': 'originals', **of(image + 9)}] * 2 + [{'run': 'other'}]
  ax = axes()
  plot_images(ax, rows)
  shown = ax.get_images()[0].get_array()
  assert shown.shape == (4, 6)
  np.testing.assert_array_equal(shown[2:, :3], image + 9)
  names = [tick.get_text() for tick in ax.get_xticklabels()]
  assert names == ['originals', 'fsq\nnone']


def test_the_table_is_sorted_and_says_what_it_needs():
  one = lambda x: dict(mean=x, min=x - 1, max=x + 1)

  def entry(loss, speed):
    best = {'val_loss': one(loss), 'usage': one(0.5), 'perplexity': one(9.0)}
    best |= {'commitment_weight': 0.25, 'ratio': 4.0}
    return {'best': best, 'tokens_per_second': speed}

  ax = axes()
  plot_best(ax, {'ste ema': entry(3.0, 2500.0), 'fsq none': entry(2.0, None)})
  names = [tick.get_text() for tick in ax.get_yticklabels()]
  assert names == ['ste ema', 'fsq none']  # The best is on top.
  said = [text.get_text().strip() for text in ax.texts]
  assert said == ['50%, 9, 2k (0.25, 4)', '50%, 9']
  assert ax.get_lines()[1].get_xdata()[0] == pytest.approx(3)
