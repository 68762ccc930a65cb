"""What sets of images are worth, with a judge that takes means of columns."""

import math
import types

import numpy as np
import pytest

from kexue.figures.codec_contest import psnr
from kexue.figures.image_features import frechet
from kexue.figures.rate_distortion_rows import (
  SHOWN,
  Scorer,
  classical_rows,
  standard_error,
)
from kexue.figures.rotation_panels import image_of


def features(images):
  return np.float64(images).mean(axis=(1, 3))


@pytest.fixture
def scorer():
  rng = np.random.default_rng(0)
  # Smooth ones, which transforms can do something about.
  slopes = rng.uniform(2, 12, (50, 1, 1, 1))
  ramps = np.add(*np.ogrid[:8, :8])[None, ..., None] * slopes
  images = np.uint8(ramps + rng.uniform(0, 50, (50, 1, 1, 1)))
  reference = features(images[25:])
  judge = types.SimpleNamespace(
    features=features,
    reference=reference,
    variance=float(np.sum(np.var(reference, axis=0))),
  )
  return Scorer(judge, images[:25])


def test_nothing_lost_is_nothing_far(scorer):
  row = scorer.row(scorer.originals, 3.0)
  assert row['frechet'] == pytest.approx(0, abs=1e-6)
  assert 'pixels' not in row


def test_a_row_is_of_its_images(scorer):
  worse = np.uint8(np.clip(np.int32(scorer.originals) + 9, 0, 255))
  row = scorer.row(worse, 0.6)
  each = psnr(worse, scorer.originals)
  assert row['psnr'] == pytest.approx(each.mean())
  assert row['psnr_error'] == pytest.approx(each.std(ddof=1) / 5)
  assert np.array(row['psnrs'].split(), float) == pytest.approx(each, abs=1e-3)
  distance = frechet(features(worse), features(scorer.originals))
  variance = scorer._judge.variance
  assert row['frechet'] == pytest.approx(distance / variance)
  assert row['frechet_error'] > 0
  shown = image_of(row)
  assert shown.shape == (8, 8 * min(SHOWN, 25))
  np.testing.assert_array_equal(shown[:, 8:16], worse[1, ..., 0])


def test_real_images_are_the_floor(scorer):
  real = scorer.real()
  distance = frechet(scorer._judge.reference, features(scorer.originals))
  expected = distance / scorer._judge.variance
  assert real['real_frechet'] == pytest.approx(expected)


def test_classical_codecs_lose_less_with_more_bits(scorer):
  listed = classical_rows(scorer, scorer.originals, (100.0, 10.0), (5, 90))
  rows = {label: row() for label, row in listed}
  assert [*rows] == [
    *('pca-100', 'pca-10', 'dct-100', 'dct-10', 'jpeg-5', 'jpeg-90')
  ]
  pairs = np.reshape([*rows.values()], (3, 2))
  for few, many in pairs:
    assert few['psnr'] < many['psnr']
    assert few['bits_per_pixel'] < many['bits_per_pixel']
  assert rows['jpeg-5']['file_rate'] > rows['jpeg-5']['bits_per_pixel'] + 10


def test_standard_error_is_of_the_mean():
  assert standard_error(np.array([1, 1.5, 2])) == pytest.approx(
    0.5 / math.sqrt(3)
  )
