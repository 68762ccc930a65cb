"""Curves, table and winners of made-up rows."""

import matplotlib.figure
import pytest

from kexue.figures.usage_panels import (
  curves_of,
  of_start,
  plot_bits,
  plot_sizes,
  plot_steps,
  results,
)


def made_up(seeds=2):
  """Losses 30, 20, ...; usage falls with the seed and rises with the steps."""
  rows = []
  settings = [
    (technique, start, size)
    for size in (64, 256)
    for technique, start in (
      ('ste', 'fit'),
      ('ste', 'unfit'),
      ('simvq', 'fit'),
      ('fsq', 'none'),
    )
  ]
  for i, (technique, start, size) in enumerate(settings):
    for seed in range(seeds):
      for step in (4, 8):
        row = {'run': f'{i}-{seed}', 'seed': seed, 'step': step}
        row |= {'technique': technique, 'start': start, 'num_codes': size}
        row |= {'dataset': 'made up', 'perplexity': size / 2.0**seed}
        row |= {'usage': 0.1 * step - 0.2 * seed}
        row['val_loss'] = 0.03 - 0.001 * i + 0.002 * seed
        if technique != 'fsq':
          row['quantization_error'] = 0.5
        rows.append(row)
  return rows


def test_the_last_rows_count():
  curves = curves_of(made_up())
  assert {*curves} == {
    ('ste', 'fit'),
    ('ste', 'unfit'),
    ('simvq', 'fit'),
    ('fsq', 'none'),
  }
  ends = curves['ste', 'unfit'][256]
  assert [(row['seed'], row['step']) for row in ends] == [(0, 8), (1, 8)]
  assert {*of_start(curves, 'unfit')} == {('ste', 'unfit'), ('fsq', 'none')}


def test_numbers_of_made_up_rows():
  numbers = results(made_up())
  own = numbers['table']['ste unfit'][256]
  assert own['usage'] == pytest.approx({'mean': 0.7, 'min': 0.6, 'max': 0.8})
  assert own['val_loss']['mean'] == pytest.approx(0.026)
  assert own['perplexity']['mean'] == 192
  assert own['quantization_error']['mean'] == 0.5
  assert 'quantization_error' not in numbers['table']['fsq none'][64]
  assert numbers['winners'] == {
    'fit, 64': 'fsq',
    'fit, 256': 'fsq',
    'unfit, 64': 'fsq',
    'unfit, 256': 'fsq',
  }
  assert numbers['most_codes'] == 256
  assert {*numbers['most']['fit']} == {'ste', 'simvq', 'fsq'}
  assert {*numbers['most']['unfit']} == {'ste', 'fsq'}
  most = numbers['most']['unfit']['ste']
  assert most['val_loss'] == pytest.approx(0.026)
  rows = [row for row in made_up() if row['technique'] != 'fsq']
  winners = results(rows)['winners']
  assert winners['fit, 64'] == 'simvq' and winners['unfit, 64'] == 'ste'


def test_panels_show_the_means():
  rows = made_up()
  axes = matplotlib.figure.Figure().subplots(1, 3)
  plot_sizes(axes[0], of_start(curves_of(rows), 'fit'), 'val_loss', 'fit')
  plot_bits(axes[1], curves_of(rows))
  plot_steps(axes[2], rows, 'unfit')
  line = axes[0].get_lines()[0]
  assert line.get_xdata().tolist() == [64, 256]
  assert line.get_ydata() == pytest.approx([0.031, 0.027])
  bits = axes[1].get_lines()
  assert bits[0].get_xdata() == pytest.approx([5.5, 7.5])
  assert [line.get_linestyle() for line in bits] == ['-', '--', '-', '-']
  steps = axes[2].get_lines()
  assert [line.get_label() for line in steps] == ['ste', 'fsq']
  assert steps[0].get_xdata() == pytest.approx([4, 8])
  assert steps[0].get_ydata() == pytest.approx([0.3, 0.7])
  assert '256 codes' in axes[2].get_title()
  for ax in axes:
    assert ax.get_title() and ax.get_xlabel() and ax.get_ylabel()
