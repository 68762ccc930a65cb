"""Numbers of `ddcm_rate_distortion`, made of rows by hand."""

import dataclasses
import math

import numpy as np
import pytest

from kexue.diffusion import Header, payload_bits
from kexue.figures.codec_bed import bed_variances
from kexue.figures.codec_contest import label_of
from kexue.figures.rate_distortion_table import (
  at_rate,
  bed_gap,
  frontier,
  gains,
  kinds,
  ladders,
  lines,
)


def row_of(header, values, **more):
  h = header
  names = ('mode', 'kind', 'rule', 'size', 'atoms', 'coefficient_bits', 'steps')
  return {
    'run': label_of(h),
    **{name: getattr(h, name) for name in names},
    'bits_per_pixel': payload_bits(h) / 64,
    'psnrs': ' '.join(map(str, values)),
    'psnr': float(np.mean(values)),
    'psnr_error': 0.1,
    'frechet': 0.5,
    'frechet_error': 0.1,
    **more,
  }


HEADER = Header(
  mode='ddcm', kind='hadamard', size=64, steps=10, shape=(8, 8, 1), rule='even'
)
EQUAL = dataclasses.replace(HEADER, rule='equal_kl', tail=2, millinats=9)


def test_gains_are_paired():
  other = dataclasses.replace(EQUAL, size=128)
  rows = [
    row_of(HEADER, [20.0, 30.0, 40.0]),
    row_of(EQUAL, [21.0, 31.5, 42.0]),
    row_of(other, [99.0, 99.0, 99.0]),  # Of other bits: compared with nothing.
  ]
  (gain,) = gains(rows)
  assert gain['gain'] == pytest.approx(1.5) and gain['setting'] == 'K=64, T=10'
  assert gain['error'] == pytest.approx(0.5 / math.sqrt(3))
  assert gain['family'] == 'DDCM' and gain['bits_per_pixel'] == 60 / 64


def test_kinds_are_compared_with_gaussian_ones():
  of = lambda kind: dataclasses.replace(EQUAL, kind=kind)
  rows = [
    row_of(of('gaussian'), [20.0, 22.0]),
    row_of(of('circulant'), [20.5, 22.1]),
    row_of(dataclasses.replace(of('rademacher'), steps=11), [1.0, 2.0]),
    row_of(dataclasses.replace(HEADER, kind='rademacher'), [1.0, 2.0]),
  ]
  (found,) = kinds(rows)
  assert found['kind'] == 'circulant'
  assert found['gain'] == pytest.approx(0.3)


def test_lines_and_what_is_best_on_them():
  sizes = {n: dataclasses.replace(EQUAL, size=n) for n in (4, 16, 64, 256)}
  levels = {4: 10.0, 16: 20.0, 64: 18.0, 256: 24.0}
  rows = [row_of(sizes[n], [x, x]) for n, x in levels.items()][::-1]
  rows.append(row_of(dataclasses.replace(EQUAL, kind='gaussian'), [1.0, 1.0]))
  (line,) = lines(rows).values()
  assert [row['size'] for row in line] == [4, 16, 64, 256]
  assert [row['size'] for row in frontier(line, 'psnr')] == [4, 16, 256]
  rate = lambda n: payload_bits(sizes[n]) / 64
  assert at_rate(line, rate(16)) == 20
  between = math.sqrt(rate(16) * rate(256))
  assert at_rate(line, between) == pytest.approx(22)
  assert at_rate(line, 2 * rate(256)) is None
  assert at_rate(line, rate(4) / 2) is None
  ((place, own),) = ladders(rows).items()
  assert place[:2] == ('equal_kl', 'K') and len(own) == 4


def test_the_gap_of_the_bed():
  """A codec at half a bit more than the least, in all coordinates alike."""
  row = {'distortion': 1 / 64, 'bits_per_pixel': 3.5, 'psnr': 24.0}
  gap = bed_gap(row, np.ones(5))
  assert gap['least'] == pytest.approx(3) and gap['bits'] == 3.5
  assert gap['least_without_shared_noise'] == pytest.approx(3.5)
  assert 3 < gap['least_realistic'] < 3.1
  assert bed_gap(row | {'distortion': 1.0}, bed_variances())['least'] == 0
