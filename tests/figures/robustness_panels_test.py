"""Lines and numbers of `ddcm_robustness`, from made-up rows."""

import matplotlib.figure
import pytest

from kexue.figures.robustness_panels import (
  NAMES,
  clean,
  damaged,
  plot_images,
  plot_loss,
  plot_parts,
  plot_psnr,
  results,
  tolerated,
)

PIXELS = {'height': 1, 'columns': 2, 'pixels': 'x00ff'}


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def sent(name, psnr):
  return {
    'run': f'{name}-clean',
    'codec': name,
    'bits': 784.0,
    'bits_per_pixel': 1.0,
    'psnr': psnr,
  }


def arrived(name, rate, psnr, loss, **more):
  return {
    'run': f'{name}-{rate:g}',
    'codec': name,
    'rate': rate,
    'psnr': psnr,
    'psnr_low': psnr - 1,
    'psnr_high': psnr + 2,
    'tenth': psnr - 5,
    'loss': loss,
    'wrong': 0.5,
    'lost': 0.0,
    **more,
  }


def part(name, place, loss):
  row = {'codec': name, 'part': place, 'loss': loss, 'loss_error': 0.1}
  return {'run': f'{name}-parts', 'lost': 0.0, **row}


ROWS = [
  {'run': 'real', 'dataset': 'digits', 'images': 3, 'seeds': 2}
  | {'pictured': 0.01, **PIXELS},
  sent('rank', 30.0),
  arrived('rank', 0.1, 10.0, 20.0),
  arrived('rank', 0.01, 28.0, 2.0, **PIXELS),
  arrived('rank', 0.001, 29.5, 0.5),
  part('rank', 0.25, 6.0),
  part('rank', 0.75, 2.0),
  sent('jpeg', 20.0),
  arrived('jpeg', 0.001, 15.0, 5.0),
  arrived('jpeg', 0.01, 12.0, 8.0, **PIXELS),
  arrived('jpeg', 0.1, 5.0, 15.0),
  part('jpeg', 0.25, 3.0),
  part('jpeg', 0.75, 3.0),
]


def test_headline_numbers():
  numbers = results(ROWS)
  assert [*numbers['codecs']] == ['rank', 'jpeg']
  # Halfway between 0.5 and 2 dB, in logarithms.
  assert numbers['codecs']['rank']['tolerated'] == pytest.approx(10**-2.5)
  assert numbers['codecs']['jpeg']['tolerated'] is None
  assert numbers['at_pictured']['rank']['loss'] == 2.0
  assert [row['rate'] for row in numbers['curves']['rank']] == [
    0.001,
    0.01,
    0.1,
  ]
  assert [row['loss'] for row in numbers['parts']['rank']] == [6.0, 2.0]
  assert numbers['images'] == 3 and numbers['pictured'] == 0.01


def test_what_is_tolerated():
  row = lambda rate, loss: {'rate': rate, 'loss': loss}
  assert tolerated([row(0.1, 0.0), row(0.2, 4.0)]) > 0.1
  assert tolerated([row(0.1, 0.3), row(0.2, 0.4)]) is None
  assert tolerated([row(0.1, 1.0), row(0.2, 4.0)], 2.0) == pytest.approx(
    0.1 * 2**0.5
  )


def test_rows_by_codec():
  assert [*clean(ROWS)] == ['rank', 'jpeg']
  assert [row['rate'] for row in damaged(ROWS, 'rank')] == [0.001, 0.01, 0.1]


def test_psnr(ax):
  plot_psnr(ax, ROWS)
  assert [*ax.lines[0].get_xdata()] == [0.001, 0.01, 0.1]
  assert [*ax.lines[0].get_ydata()] == [29.5, 28.0, 10.0]
  assert [*ax.lines[1].get_ydata()] == [24.5, 23.0, 5.0]
  assert [*ax.lines[2].get_ydata()] == [30.0]
  extent = ax.collections[0].get_paths()[0].get_extents()
  assert (extent.ymin, extent.ymax) == (9.0, 31.5)
  texts = [text.get_text() for text in ax.get_legend().get_texts()]
  assert texts == [f'{NAMES[n]}, 1.00 bits a pixel' for n in ('rank', 'jpeg')]


def test_loss(ax):
  plot_loss(ax, [*ROWS, arrived('rank', 1e-5, 30.0, 0.0)])
  assert [*ax.lines[0].get_ydata()] == [0.5, 2.0, 20.0]
  assert ax.get_xscale() == ax.get_yscale() == 'log'


def test_parts(ax):
  plot_parts(ax, ROWS)
  line = ax.containers[0].lines[0]
  assert line.get_xydata().tolist() == [[0.25, 6.0], [0.75, 2.0]]
  assert ax.get_ylim()[0] == 0


def test_images(ax):
  plot_images(ax, ROWS)
  assert ax.images[0].get_array().shape == (3, 2)
  labels = [text.get_text() for text in ax.get_yticklabels()]
  assert labels == ['original', f'{NAMES["rank"]}, 28.0 dB', 'JPEG, 12.0 dB']
  assert 'one wrong bit in 100' in ax.get_title()
