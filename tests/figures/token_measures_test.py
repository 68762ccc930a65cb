"""Bits and errors by hand, the order of what is encoded, strips of images."""

import math

import numpy as np
import pytest

from kexue.figures.rotation_panels import image_of
from kexue.figures.token_measures import (
  as_strip,
  encoded,
  fidelity,
  information,
)


def test_information_by_hand():
  tokens = np.array([[0, 0, 1], [2, 2, 2]])
  found = information(tokens, math.log(2) / 4, 8)
  assert found['capacity'] == 3 and found['usage'] == 3 / 8
  share = np.array([1 / 3, 1 / 6, 1 / 2])
  assert found['entropy'] == pytest.approx(-share @ np.log2(share))
  assert found['bits_per_token'] == pytest.approx(0.25)
  assert found['bits'] == pytest.approx(0.75)


def test_a_residual_costs_the_entropy_of_its_normal_law():
  rng = np.random.default_rng(0)
  originals = np.full((50, 20, 20, 1), 128, np.uint8)
  noise = np.round(rng.normal(size=originals.shape) * 10)
  found = fidelity((originals + noise).astype(np.uint8), originals)
  assert found['error'] == pytest.approx((10 / 255) ** 2, rel=0.02)
  share = np.unique(noise, return_counts=True)[1] / noise.size
  bits = -share @ np.log2(share) * 400
  assert found['residual_bits'] == pytest.approx(bits, rel=1e-3)
  assert np.isfinite(fidelity(originals, originals)['residual_bits'])


def test_parts_are_encoded_in_order(monkeypatch):
  monkeypatch.setattr('kexue.figures.token_measures.CHUNK', 4)

  class Task:
    def tokens(self, state, images):
      assert len(images) == 4
      return state * images[:, :1, :1, 0]

  images = np.arange(10).reshape(10, 1, 1, 1)
  np.testing.assert_array_equal(encoded(Task(), 3, images), 3 * images[..., 0])


def test_strips_are_side_by_side():
  images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
  found = image_of(as_strip(images))
  np.testing.assert_array_equal(found[:, 3:], images[1, ..., 0])
  assert found.shape == (2, 6)


def test_strips_in_colour():
  images = np.arange(36, dtype=np.uint8).reshape(2, 2, 3, 3)
  found = image_of(as_strip(images))
  np.testing.assert_array_equal(found[:, 3:], images[1])
