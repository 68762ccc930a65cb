"""Numbers and panels of `ddcm_codebook_size`, from made-up rows."""

import matplotlib.figure
import numpy as np
import pytest

from kexue.figures.codebook_size_panels import (
  of_kind,
  plot_bed,
  plot_distance,
  plot_excess,
  plot_images,
  plot_intervals,
  results,
)
from kexue.figures.token_measures import as_strip


@pytest.fixture
def ax():
  return matplotlib.figure.Figure().subplots()


def drawn(name, distance, width, **more):
  """A set that is so far off, give or take `width`."""
  row = {'run': name, 'steps': 50, 'judged': 1024, **more}
  for to in ('reference', 'ddpm-1'):
    row |= {
      f'{to}_distance': 0.05 + distance,
      f'{to}_value': distance,
      f'{to}_low': distance - width,
      f'{to}_high': distance + width,
      f'{to}_chance': 0.01 if distance > width else 0.5,
    }
  return row | as_strip(np.zeros((3, 4, 4, 1), np.uint8))


def rows():
  found = [drawn('real', -0.03, 0.001, dataset='digits')]
  found += [drawn('ddpm-1', 0.001, 0.003), drawn('ddpm-2', 0.0, 0.0)]
  sizes = {'independent': (1, 4, 16, 64), 'shared': (64, 1024)}
  for kind, own in sizes.items():
    factor = 0.2 if kind == 'independent' else 5.0
    for size in own:
      tags = dict(size=size, shared=int(kind == 'shared'))
      found.append(drawn(f'{kind}-{size}', factor / size, 0.01, **tags))
    for seed in (0, 1):
      found += [
        {
          'run': f'bed-{kind}',
          'size': size,
          'seed': seed,
          'excess': (1 + seed) * factor / size + (size < 8),
          'law': factor,
        }
        for size in (1, 8, 16, 64)
      ]
  return found


def test_numbers():
  found = results(rows())
  assert found['indistinguishable'] == {'independent': 64, 'shared': 1024}
  assert found['dataset'] == 'digits' and found['steps'] == 50
  bed = found['bed']['shared']
  assert bed['slope'] == pytest.approx(-1) and bed['factor'] == (
    pytest.approx(7.5)
  )
  assert bed['expected_factor'] == 5 and bed['excess'][64] == (
    pytest.approx(7.5 / 64)
  )
  own = of_kind(found['table'], 'independent')
  assert [entry['size'] for entry in own] == [1, 4, 16, 64]
  assert 'pixels' not in own[0]


@pytest.mark.parametrize('to', ['reference', 'ddpm-1'])
def test_one_interval_beside_zero_is_enough(to):
  changed = rows()
  for row in changed:
    if row['run'] in ('independent-64', 'shared-64'):
      row |= {f'{to}_low': 0.001, f'{to}_high': 0.02}
  found = results(changed)['indistinguishable']
  assert found == {'independent': None, 'shared': 1024}
  below = rows()
  for row in below:
    if row['run'] == 'shared-1024':
      row |= {f'{to}_low': -0.02, f'{to}_high': -0.001}
  assert results(below)['indistinguishable']['shared'] is None


def test_distance(ax):
  plot_distance(ax, results(rows()))
  line = ax.get_lines()[0]
  np.testing.assert_allclose(line.get_xdata(), [1, 4, 16, 64])
  np.testing.assert_allclose(line.get_ydata()[0], 0.25)
  assert '50 bits' in ax.get_xlabel() and '1024 real images' in ax.get_title()
  assert {t.get_text() for t in ax.texts} >= {'two sets of DDPM'}


def test_excess(ax):
  plot_excess(ax, results(rows()))
  dashed = [x for x in ax.get_lines() if x.get_linestyle() == '--']
  np.testing.assert_allclose(dashed[0].get_ydata()[-1], 0.2 / 64)
  np.testing.assert_allclose(dashed[1].get_ydata(), [5 / 64, 5 / 1024])


def test_bed(ax):
  plot_bed(ax, rows(), results(rows()))
  labels = [text.get_text() for text in ax.get_legend().get_texts()]
  assert labels == ['independent: 0.30 K^-1.00', 'shared: 7.50 K^-1.00']


def test_intervals(ax):
  plot_intervals(ax, results(rows()))
  names = [tick.get_text() for tick in ax.get_yticklabels()]
  assert names[0] == 'ddpm-1' and 'shared-64' in names
  ends = [line.get_xdata() for line in ax.get_lines()]
  assert any(np.allclose(x, [-2, 4]) for x in ends if len(x) == 2)


def test_images(ax):
  plot_images(ax, rows())
  names = [tick.get_text() for tick in ax.get_yticklabels()]
  assert names[:3] == ['real', 'ddpm-1', 'independent-1']
  assert ax.get_images()[0].get_array().shape == (4 * len(names), 12)
