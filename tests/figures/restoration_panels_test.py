"""Lines, pictures and numbers of `ddcm_restoration`, from made-up rows."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.restoration_panels import (
  best,
  plot_consistency,
  plot_images,
  plot_methods,
  plot_psnr,
  plot_steps,
  results,
)

TASKS = 'pooled', 'box'


def pixels(byte):
  return {'height': 1, 'columns': 2, 'pixels': 'x' + bytes([byte, 0]).hex()}


def scores(consistency, psnr):
  return {'consistency': consistency, 'psnr': psnr, 'psnr_error': 0.5}


def coded(size, steps):
  bits = (steps - 1) * np.log2(size)
  return {'size': size, 'steps': steps, 'bits_per_pixel': bits / 100}


def restoration(task, noise, size, steps, *values, differ=0):
  return {
    'run': f'{task}-K{size}-T{steps}',
    'task': task,
    'noise': noise,
    'method': 'restored',
    'differ': differ,
    'values': 10,
    'difference': differ / 8,
    **coded(size, steps),
    **scores(*values),
    **pixels(3),
  }


def linear(task, noise, method, *values):
  run = f'{task}-{noise:g}-{method}'
  row = {'run': run, 'task': task, 'noise': noise, 'method': method}
  return row | scores(*values) | pixels(2)


ROWS = [
  {'run': 'real', 'dataset': 'digits', 'images': 1, **pixels(1)},
  *(
    linear(task, noise, method, 0.01, 15.0 - 10 * noise)
    for task in TASKS
    for noise in (0.0, 0.1)
    for method in ('measured', 'pseudo-inverse', 'linear')
  ),
  *(
    {'run': f'code-K{k}-T{t}', 'method': 'code', 'psnr': psnr, **coded(k, t)}
    for k, t, psnr in ((4, 9, 18.0), (16, 9, 22.0), (16, 5, 17.0))
  ),
  *(
    restoration(task, noise, *more, 0.2 / shift + noise, 10 + shift)
    for task in TASKS
    for noise in (0.0, 0.1)
    for more, shift in (((4, 9), 1), ((16, 5), 0.5), ((16, 9), 2))
  ),
]


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def points(line):
  return line.get_xydata().round(6).tolist()


def test_headline_numbers():
  numbers = results(ROWS)
  assert numbers['size'] == 16 and numbers['steps'] == 9
  assert numbers['bits_per_pixel'] == pytest.approx(0.32)
  assert [*numbers['restored']] == [*TASKS]
  assert numbers['restored']['box'] == scores(0.1, 12)
  assert numbers['decoded'] == {'differ': 0, 'values': 120, 'difference': 0}
  assert len(numbers['methods']) == 12 and len(numbers['grid']) == 12
  assert [row['psnr'] for row in numbers['codes']] == [18, 22, 17]
  wrong = restoration('box', 0.0, 4, 9, 0.1, 9.0, differ=2)
  check = results([*ROWS, wrong])['decoded']
  assert check == {'differ': 2, 'values': 130, 'difference': 0.25}


def test_the_best_have_the_steps_of_all_codebooks():
  assert {(row['size'], row['steps']) for row in best(ROWS)} == {(16, 9)}
  assert len(best(ROWS)) == 4


def test_consistency(ax):
  plot_consistency(ax, ROWS)
  quiet, noisy, *_ = ax.lines
  assert points(quiet) == [[0.16, 0.2], [0.32, 0.1]]
  assert points(noisy) == [[0.16, 0.3], [0.32, 0.2]]
  assert noisy.get_linestyle() == '--'
  # The level of the noise itself.
  assert (
    ax.lines[4].get_ydata()[0] == 0.1 and ax.texts[0].get_text() == 'the noise'
  )
  assert [t.get_text() for t in ax.texts[1:]] == ['K=4', 'K=16']
  assert ax.get_yscale() == 'log'


def test_psnr(ax):
  plot_psnr(ax, ROWS)
  assert points(ax.lines[0]) == [[0.16, 11], [0.32, 12]]
  assert points(ax.lines[-1]) == [[0.16, 18], [0.32, 22]]


def test_steps(ax):
  plot_steps(ax, ROWS)
  assert points(ax.lines[0]) == [[0.4, 10.5], [0.1, 12.0]]
  assert [text.get_text() for text in ax.texts[:4]] == ['5'] * 4


def test_methods(ax):
  numbers = results(ROWS)
  plot_methods(ax, numbers)
  found = {
    (round(float(c.lines[0].get_xdata()[0]), 3), c.lines[0].get_ydata()[0])
    for c in ax.containers
  }
  assert len(ax.containers) == 12
  # The pseudo-inverse and the restoration of the second task, both noises.
  assert {(0.775, 15), (0.775, 14), (1.225, 12)} <= found
  texts = [text.get_text() for text in ax.get_legend().get_texts()]
  assert texts == ['pseudo-inverse', "Wiener's filter", 'restored']
  assert ax.lines[-1].get_ydata()[0] == 22


def test_images(ax):
  plot_images(ax, ROWS)
  (image,) = ax.images
  assert image.get_array().shape == (7, 4)
  np.testing.assert_array_equal(image.get_array()[:, 0], [1, 2, 2, 3, 2, 2, 3])
  labels = [text.get_text() for text in ax.get_yticklabels()]
  assert labels[0] == 'original' and labels[-1] == 'restored, noise 0.1'
  assert len(ax.get_xticklabels()) == 2


def test_images_in_colour(ax):
  pixel = {'columns': 1, 'channels': 3, 'pixels': 'x010203'}
  rows = [row | pixel if 'pixels' in row else row for row in ROWS]
  plot_images(ax, rows)
  assert ax.images[0].get_array().shape == (7, 2, 3)
