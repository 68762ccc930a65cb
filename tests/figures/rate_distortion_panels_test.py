"""Points and labels of `ddcm_rate_distortion`, from made-up rows."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.rate_distortion_panels import (
  plot_bed,
  plot_frechet,
  plot_gains,
  plot_images,
  plot_kinds,
  plot_ladders,
  plot_psnr,
)

PIXELS = {'height': 1, 'columns': 2, 'pixels': 'x00ff'}


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def coded(steps, rate, psnr, *, rule='equal_kl', mode='turbo', **more):
  return {
    'run': f'{mode}-{steps}-{rule}',
    'mode': mode,
    'kind': 'hadamard',
    'rule': rule,
    'size': 1024,
    'atoms': 1,
    'coefficient_bits': 1,
    'steps': steps,
    'bits_per_pixel': rate,
    'psnr': psnr,
    'psnr_error': 0.1,
    'psnrs': f'{psnr} {psnr}',
    'frechet': 1 / psnr,
    'frechet_error': 0.01,
    **more,
  }


JPEG = {
  'run': 'jpeg-50',
  'mode': 'jpeg',
  'bits_per_pixel': 0.5,
  'file_rate': 4.5,
  **{k: v for k, v in coded(1, 0.5, 20.0).items() if 'psnr' in k},
  **{'frechet': 0.3, 'frechet_error': 0.01},
}
ROWS = [
  {'run': 'real', 'real_frechet': 0.02, **PIXELS},
  JPEG,
  coded(20, 0.25, 25.0),
  coded(40, 0.5, 30.0, **PIXELS),
  coded(80, 1.0, 29.0),  # Worse with more bits: off the line, still a point.
  coded(20, 0.25, 24.0, rule='even'),
  coded(40, 0.5, 27.0, rule='even'),
]


def line_of(ax, label):
  (line,) = (line for line in ax.lines if line.get_label() == label)
  return [*map(float, line.get_xdata())], [*map(float, line.get_ydata())]


def test_lines_go_through_the_best(ax):
  plot_psnr(ax, ROWS)
  assert line_of(ax, 'Turbo, equal KL') == ([0.25, 0.5], [25, 30])
  assert line_of(ax, 'Turbo, even steps') == ([0.25, 0.5], [24, 27])
  assert line_of(ax, 'JPEG without header') == ([0.5], [20])
  assert 'whole JPEG files' in [text.get_text() for text in ax.texts]
  points = [x for line in ax.lines for x in line.get_xdata()]
  assert 1.0 in points and 4.5 in points


def test_real_images_are_marked(ax):
  plot_frechet(ax, ROWS, 0.02)
  levels = [[*line.get_ydata()] for line in ax.lines]
  assert [0.02, 0.02] in levels and ax.get_yscale() == 'log'


def test_ladders_are_named_by_what_is_raised(ax):
  plot_ladders(ax, ROWS)
  named = [text.get_text() for text in ax.get_legend().get_texts()]
  assert named == ['Turbo over T (K = 1024, M = 1)']
  styles = {line.get_linestyle(): [*line.get_ydata()] for line in ax.lines[:2]}
  assert styles == {'-': [25, 30, 29], '--': [24, 27]}


def test_gains_go_from_few_bits_to_many(ax):
  gain = dict(family='Turbo', setting='K=8, M=1, T=9', error=0.1)
  more = gain | dict(gain=4.0, bits_per_pixel=2.0)
  plot_gains(ax, [more, gain | dict(gain=0.5, bits_per_pixel=0.25)])
  labels = [label.get_text() for label in ax.get_yticklabels()]
  assert labels[1] == 'Turbo K=8, M=1, T=9: 2.00'
  assert [*ax.lines[0].get_xdata()] == [0.5]


def test_kinds_stand_about_zero(ax):
  row = dict(kind='hadamard', family='Turbo', setting='K=8', error=0.1)
  plot_kinds(ax, [row | dict(gain=-0.5)])
  low, high = ax.get_ylim()
  assert low == -high and high > 0.6
  assert 'Turbo: K=8' in ax.get_title()


def test_the_bed_shows_what_is_possible(ax):
  bed = coded(9, 0.7, 18.0) | {'run': 'bed-turbo', 'distortion': 0.06}
  plot_bed(ax, [bed], np.full(8, 0.5))
  rates, levels = line_of(ax, 'R(D), exact')
  assert np.all(np.diff(levels) > 0) and np.all(np.diff(rates) >= 0)
  # One variance: R = log2(variance / D) / 2.
  at = 4 / 10 ** (levels[-1] / 10)
  assert rates[-1] == pytest.approx(np.log2(0.5 / at) / 2)
  assert line_of(ax, 'Turbo, equal KL') == ([0.7], [18])


def test_pictures_are_of_about_one_rate(ax):
  plot_images(ax, ROWS)
  labels = [label.get_text() for label in ax.get_yticklabels()]
  assert labels == ['original', 'Turbo, equal KL: 0.50 bits, 30.0 dB']
