"""What the panels of made-up advice show."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.advice import RULES
from kexue.figures.advice_panels import plot_loss, plot_noise, plot_rates

RATES = (0.01, 0.02, 0.04)


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def best(rate):
  return dict(rate=rate, low=rate / 2, high=rate * 2, at_edge=False)


def labels(ax):
  return [text.get_text() for text in ax.get_legend().get_texts()]


def test_rules_start_at_the_base_and_optima_have_their_band(ax):
  runs = {
    f'{fixed}{rate}': [
      dict(trained='sgd', fixed=fixed, batch_size=batch, seed=0)
      | dict(learning_rate=rate, train_loss=1 + abs(np.log(rate / 0.02)))
    ]
    for fixed, batch in (('base', 16), ('examples', 64))
    for rate in RATES
  }
  row = dict(advised='sgd', fixed='examples', base_batch_size=16)
  row |= dict.fromkeys(RULES, 0.03) | dict(low=0.02, high=0.04)
  rows = [row | dict(batch_size=256, advice=0.05), row | dict(batch_size=64)]
  numbers = dict(
    base={'sgd': best(0.02)},
    advice={'sgd': {'examples': {64: dict(measured=best(0.04)), 256: {}}}},
  )
  plot_rates(ax, runs, rows, numbers, 'sgd', 'examples')
  np.testing.assert_allclose(
    ax.lines[0].get_xydata(), [[16, 0.02], [64, 0.03], [256, 0.05]]
  )
  band = ax.collections[-2].get_paths()[0].vertices
  assert band[:, 1].max() == pytest.approx(0.06)
  tried = [x.get_offsets() for x in ax.collections[1:3]]
  np.testing.assert_allclose(tried[1], [[64, rate] for rate in RATES])
  assert 'measured optimum' in labels(ax)


def test_noise_is_drawn_where_it_is_finite(ax):
  row = dict(noise_scale=9.0, noise_low=8.0, noise_high=np.inf)
  rows = [row | dict(step=2), row | dict(step=1, noise_scale=np.inf)]
  plot_noise(ax, {'base-sgd': rows, 'other': []})
  np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[2, 9]])
  assert labels(ax) == ['sgd']


def test_losses_are_in_per_cent_and_what_is_missing_is_left_out(ax):
  losses = dict.fromkeys(RULES, 0.02) | dict(linear=np.nan)
  measured = dict(measured=best(0.1), excess_loss=losses)
  plot_loss(ax, {'sgd': {'examples': {64: measured, 256: {}}}})
  assert [x.get_text() for x in ax.get_xticklabels()] == ['sgd\n64\nexamples']
  by = {x.get_label(): x.get_ydata() for x in ax.lines}
  assert by['advice'] == pytest.approx(2) and np.isnan(by['linear rule'])
  assert np.isnan(by["Malladi's rule"]).all()
