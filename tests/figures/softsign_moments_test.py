"""Draws are of the moments, curves of the example; what is refused."""

import jax
import matplotlib.figure
import numpy as np
import pytest
from scipy import special

from kexue.figures.softsign_moments import (
  DRAWN,
  METHODS,
  MOSAIC,
  Config,
  plot,
  run,
)

KEY = jax.random.key(0)
SMALL = dict(points=3, b=(0.5, 2.0), samples=DRAWN, eps=(0.0, 0.8))


def test_tables_are_recorded_once_and_drawn(tmp_path):
  config = Config(**SMALL, batch_sizes=(1.0, 12.66488))
  rows = run(config, KEY, tmp_path)
  assert run(config, KEY, tmp_path) == rows
  assert len(rows) == 2 * 3 + 2 * 3
  origin = rows[0]
  assert (origin['a'], origin['b']) == (0, 0.5)
  assert abs(origin['clip_mean']) < 1e-15
  # At a = 0 the second moment has a closed form.
  exact = 1 - 0.5 * np.sqrt(np.pi / 2) * special.erfcx(0.5 / np.sqrt(2))
  assert origin['quadrature_second'] == pytest.approx(exact, rel=1e-9)
  assert origin['error_mean'] == pytest.approx(np.sqrt(exact / DRAWN), rel=0.05)
  figure = matplotlib.figure.Figure()
  axes = figure.subplot_mosaic(MOSAIC)
  numbers = plot(rows, axes)
  assert numbers['largest_z'] < 5 and numbers['compared'] == 12
  # The sign's learning rate of the example at its peak, and without noise.
  peak = 0.079313828 / 0.068918919 - 1
  assert numbers['overshoot_by_eps']['0']['exact'] == pytest.approx(peak, 1e-4)
  assert {*numbers['largest_error']} == {*METHODS} - {'quadrature'}
  for ax in axes.values():
    assert ax.get_ylabel() and ax.get_title() and ax.get_legend()
  figure.canvas.draw()


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(points=1), 'config.points: got 1'),
    (dict(b=(0.0,)), r'config.b: got \(0.0,\)'),
    (dict(batch_sizes=(-1.0,)), r'config.batch_sizes: got \(-1.0,\)'),
    (dict(eps=(-0.1,)), r'config.eps: got \(-0.1,\)'),
    (dict(samples=1000), 'config.samples: got 1000'),
  ],
)
def test_what_cannot_run_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    Config(**change).check()


def test_the_presets_can_run():
  Config().check()
  Config.full().check()
