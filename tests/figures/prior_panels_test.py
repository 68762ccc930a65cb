"""Lines, points and images of `vq_prior`, from made-up rows."""

import math

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.prior_panels import (
  REAL,
  plot_images,
  plot_information,
  plot_plane,
  plot_scores,
  plot_training,
  style,
)
from kexue.figures.rotation_panels import COLORS

NAMES = ['ste', 'ste-64', 'fsq']


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def judged_rows():
  return [
    {
      'run': f'judged-{name}-s{seed}',
      'tokenizer': name,
      'error': 0.01 * (i + 1),
      'bits': 100.0 + 10 * i + seed,
      'samples_frechet': 0.1 * (i + 1),
      'pixels_of_an_image': 784,
    }
    for i, name in enumerate(NAMES)
    for seed in (0, 1)
  ]


def table():
  one = lambda x: {'mean': x, 'min': x - 0.1, 'max': x + 0.2}
  columns = ('capacity', 'entropy', 'bits_per_token', 'share')
  columns += ('reconstructions_frechet', 'samples_frechet')
  return {
    name: {column: one(1.0 + i + j) for j, column in enumerate(columns)}
    for i, name in enumerate(NAMES)
  }


def test_fewer_codes_look_like_their_technique():
  few, many = style('ste-64'), style('ste')
  assert few['color'] == many['color'] == COLORS['ste']
  assert few['linestyle'] != many['linestyle']
  assert few['marker'] != many['marker']


def test_training_is_in_bits(ax):
  rows = [
    {'run': f'prior-{name}-s{seed}', 'tokenizer': name, 'step': step}
    | {'val_loss': math.log(2) * (4 / step + seed)}
    for name in NAMES
    for seed in (0, 1)
    for step in (1, 2)
  ]
  lost = {'run': 'prior-lost-s0', 'step': 2, 'val_loss': np.inf}
  plot_training(ax, [*rows, lost, {'run': 'real', 'step': 1}])
  assert len(ax.get_lines()) == 3
  xy = ax.get_lines()[0].get_xydata()
  np.testing.assert_allclose(xy, [[1, 4.5], [2, 2.5]])
  extent = ax.collections[0].get_paths()[0].get_extents()
  assert (extent.ymin, extent.ymax) == pytest.approx((2, 5))


def test_bars_are_what_tokens_hold(ax):
  plot_information(ax, table())
  widths = [bar.get_width() for bar in ax.patches]
  assert widths[:3] == [1, 2, 3] and len(widths) == 9
  assert [text.get_text() for text in ax.texts] == [' 3.00', ' 4.00', ' 5.00']


def test_planes_have_points_and_lines_of_equal_length(ax):
  plot_plane(ax, judged_rows(), ('error', 'bits'), 'title')
  points, grey = ax.get_lines()[:3], ax.get_lines()[3:]
  np.testing.assert_allclose(points[1].get_xydata(), [[0.02, 110], [0.02, 111]])
  assert [text.get_text() for text in ax.texts] == NAMES and len(grey) == 4
  for line in grey:
    error, bits = line.get_data()
    total = bits + 784 / 2 * np.log2(error)
    np.testing.assert_allclose(total, total[0])
  other = matplotlib.figure.Figure().subplots()
  plot_plane(other, judged_rows(), ('error', 'samples_frechet'), 'title')
  assert len(other.get_lines()) == 3


def test_scores_have_whiskers_and_the_real_level(ax):
  plot_scores(ax, table(), 'frechet', 0.25)
  means = [text.get_text().strip() for text in ax.texts]
  assert means == ['5.000', '6.000', '7.000', '6.000', '7.000', '8.000', REAL]
  low, high = ax.containers[0].lines[1]
  assert (low.get_ydata()[0], high.get_ydata()[0]) == pytest.approx((4.9, 5.2))
  hollow, full = (ax.containers[i].lines[0] for i in (0, 3))
  assert hollow.get_markerfacecolor() == 'white'
  assert full.get_markerfacecolor() == COLORS['ste']
  assert ax.get_ylim()[0] == 0


def test_real_images_are_on_top(ax):
  strip = lambda byte: {
    'height': 1,
    'columns': 2,
    'pixels': 'x' + bytes([byte, 0]).hex(),
  }
  rows = [{'tokenizer': 'fsq', **strip(1)}, {'run': 'real', **strip(2)}]
  plot_images(ax, [*rows, {'run': 'other'}])
  assert ax.get_images()[0].get_array().tolist() == [[2, 0], [1, 0]]
  assert [t.get_text() for t in ax.get_yticklabels()] == ['real', 'fsq']
