"""Lines, bars and numbers of `ddpm_samples`, from made-up rows."""

import math

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.ddpm_panels import (
  drawn,
  of_run,
  plot_bits,
  plot_guidance,
  plot_images,
  plot_information,
  plot_rate_distortion,
  plot_steps,
  plot_training,
  results,
)

PIXELS = {'height': 1, 'columns': 2, 'pixels': 'x00ff'}


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def scores(frechet, accuracy):
  return {
    'frechet': frechet,
    'extrapolated': frechet - 0.01,
    'accuracy': accuracy,
    **PIXELS,
  }


def drawn_set(sampler, steps, guidance, *values):
  tags = {'sampler': sampler, 'steps': steps, 'guidance': guidance}
  return {'run': f'{sampler}-{steps}-{guidance}', **tags, **scores(*values)}


def told(t, width, nats, above, error):
  names = ('timestep', 'width', 'nats', 'bits_above', 'error')
  row = dict(zip(names, (t, width, nats, above, error), strict=True))
  about = {'dimensions': 2, 'parameters': 1000, 'dataset': 'digits'}
  return {'run': 'information', **row, **about}


def bound(steps, *parts):
  names = ('prior', 'kl', 'decoder')
  parts = dict(zip(names, parts, strict=True))
  return {
    'run': f'bits-{steps}',
    'steps': steps,
    'total': sum(parts.values()),
  } | parts


ROWS = [
  {'run': 'model', 'step': 5, 'loss': 0.3, 'val_loss': 0.4, 'seconds': 60.0},
  {'run': 'model', 'step': 9, 'loss': 0.1, 'val_loss': 0.2, 'seconds': 90.0},
  told(2, 1, 8.0, 10.0, 0.04),
  told(6, 4, 4.0, 1.8, 0.4),
  told(9, 3, 0.3, 0.1, 4.0),
  {'run': 'real', **scores(0.02, 0.9)},
  bound(1000, 0.1, 1.5, 1.0),
  bound(10, 0.1, 0.5, 3.0),
  drawn_set('DDPM', 5, 1, 0.5, 0.4),
  drawn_set('DDIM', 5, 1, 0.3, 0.5),
  drawn_set('DDPM', 50, 1, 0.06, 0.6),
  drawn_set('DDIM', 50, 1, 0.05, 0.6),
  drawn_set('DDIM', 50, 2, 0.04, 0.7),
  drawn_set('DDIM', 50, 4, 0.1, 0.8),
]


def points(ax):
  return [[*map(float, line.get_xdata())] for line in ax.lines]


def test_headline_numbers():
  numbers = results(ROWS)
  assert numbers['bits_per_dim'] == {
    'total': 2.6,
    'decoder': 1.0,
    'kl': 1.5,
    'prior': 0.1,
  }
  assert numbers['best']['guidance'] == 2
  assert numbers['best_accuracy']['guidance'] == 4
  assert numbers['val_loss'] == 0.2 and numbers['dataset'] == 'digits'
  assert len(numbers['sets']) == len(drawn(ROWS)) == 6
  assert 'pixels' not in numbers['sets'][0]
  assert results(ROWS[2:])['val_loss'] is None


def test_training(ax):
  plot_training(ax, ROWS)
  assert 'of 1.5 minutes' in ax.get_title()
  assert [*ax.lines[1].get_ydata()] == [0.4, 0.2]
  other = matplotlib.figure.Figure().subplots()
  plot_training(other, ROWS[2:])
  assert 'another run' in other.get_title()


def test_information(ax):
  plot_information(ax, ROWS)
  assert [*ax.lines[0].get_ydata()] == pytest.approx([8.0, 1.0, 0.1])
  assert [*ax.lines[0].get_xdata()] == [2, 7.5, 10]
  # 12.3 nats in all, 1.8 bits of them before t = 6.
  assert 'half of 18 bits\n  below t = 6' in ax.texts[0].get_text()


def test_rate_and_distortion(ax):
  plot_rate_distortion(ax, ROWS)
  line = ax.lines[0]
  assert [*line.get_xdata()] == pytest.approx([5.0, 0.9, 0.05])
  # The range of 2 squared over the error.
  assert [*line.get_ydata()] == pytest.approx([20.0, 10.0, 0.0])
  at = np.interp(0.5, [0.05, 0.9], [0, 10])
  assert f'{at:.1f} dB at 0.5' in ax.texts[1].get_text()
  assert math.isclose(ax.lines[2].get_ydata()[0], at)


def test_steps(ax):
  plot_steps(ax, ROWS)
  assert points(ax)[:2] == [[5, 50], [5, 50]]
  assert [*ax.lines[0].get_ydata()] == [0.5, 0.06]
  assert ax.lines[2].get_ydata()[0] == 0.02


def test_guidance(ax):
  plot_guidance(ax, ROWS)
  assert [*ax.lines[0].get_xdata()] == [0.6, 0.7, 0.8]
  assert [*ax.lines[0].get_ydata()] == [0.05, 0.04, 0.1]
  assert '50 steps' in ax.get_title()


def test_bits(ax):
  plot_bits(ax, ROWS)
  widths = [bar.get_width() for bar in ax.patches]
  assert widths == pytest.approx([3.0, 1.0, 0.5, 1.5, 0.1, 0.1])
  assert [text.get_text() for text in ax.texts] == [' 3.60', ' 2.60']


def test_images(ax):
  plot_images(ax, ROWS)
  (image,) = ax.images
  # Real ones, the fewest and the most steps of two samplers, one guided.
  assert image.get_array().shape == (6, 2)
  assert len(of_run(ROWS, 'real')) == 1
